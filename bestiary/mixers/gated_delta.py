"""Gated DeltaNet (Yang, Kautz & Hatamizadeh, 2025): the delta rule on a decaying memory.

    alpha_t = exp(-A softplus(w x_t + dt)),  beta_t = sigmoid(u x_t),  unit q_t and k_t
    q, k, v = SiLU(short convolution(W x)),  output = W_o (RMSNorm(y) * SiLU(W_g x))

`negative` doubles beta_t, so that the eigenvalue along k_t lies in (-1, 1) (Grazzi et al., 2024; OLMo Hybrid, 2026).
Widths follow the paper: keys 0.75 and values 1.5 of the model, split over the heads. Initialisation follows the
authors' code: Xavier with gain 2^-2.5, A uniform in (0, 16), dt log-uniform in (0.001, 0.1).
Departs from the paper: nothing known.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._delta import softplus
from bestiary.mixers._mixer import FastWeight, Features, ShortConv, State, normalize, step_sizes
from bestiary.mixers._norm import RMSNorm
from bestiary.ops.drive import Drive
from bestiary.spec import Positive


class GatedDelta(FastWeight):
    """S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, one alpha and one beta per head."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, key=8, value=4, conv=1, negative=True",)

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        key: Positive | None = None,
        value: Positive | None = None,
        conv: Positive = 4,
        negative: bool = False,
    ) -> None:
        super().__init__()
        key = max(1, 3 * dim // (4 * heads)) if key is None else key
        value = 2 * key if value is None else value
        self.shape, self.widths = (heads, key, value), (heads * key, heads * key, heads * value)
        self.most = 2 if negative else 1
        self.qkv = nn.Linear(dim, sum(self.widths), bias=False)
        self.conv = ShortConv(sum(self.widths), conv)
        self.decay, self.beta = nn.Linear(dim, heads, bias=False), nn.Linear(dim, heads)
        self.rate = nn.Parameter(torch.empty(heads).uniform_(0, 16).log())
        self.dt = nn.Parameter(step_sizes((heads,)))
        self.gate, self.norm = nn.Linear(dim, heads * value, bias=False), RMSNorm(value, eps=1e-5)
        self.out = nn.Linear(heads * value, dim, bias=False)
        for part in (
            *self.qkv.weight.split(self.widths),
            *(m.weight for m in (self.decay, self.beta, self.gate, self.out)),
        ):
            nn.init.xavier_uniform_(part, gain=2**-2.5)
        nn.init.zeros_(self.beta.bias)

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        mixed, local = self.conv(self.qkv(x), local)
        q, k, v = (z.unflatten(-1, (self.shape[0], -1)) for z in F.silu(mixed).split(self.widths, dim=-1))
        q, k, beta = normalize(q), normalize(k), self.most * self.beta(x).sigmoid().unsqueeze(-1)
        g = (-self.rate.exp() * softplus(self.decay(x) + self.dt)).unsqueeze(-1)
        return Drive(q, k, beta * v, g, rewrite=(-beta, g.exp() * k)), local

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.out(self.norm(y).flatten(2) * F.silu(self.gate(x)))
