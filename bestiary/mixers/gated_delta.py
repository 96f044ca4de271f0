"""Gated DeltaNet (Yang, Kautz & Hatamizadeh, 2025): the delta rule on a decaying memory.

    alpha_t = exp(-A softplus(w x_t + dt)),  beta_t = sigmoid(u x_t + c),  unit k_t, |q_t| = 1 / sqrt(key)
    q, k, v = SiLU(short convolution(W x)),  output = W_o (RMSNorm(y) * SiLU(W_g x))

`negative` doubles beta_t, so that the eigenvalue along k_t lies in (-1, 1) (Grazzi et al., 2024; OLMo Hybrid, 2026).
Widths follow the paper: keys 0.75 and values 1.5 of the model, split over the heads. A is uniform in (0, 16) and dt
log-uniform in (0.001, 0.1). Linear maps, by `init`:

    "paper"    PyTorch's draw, biases zero: all training configurations of NVlabs/GatedDeltaNet (mamba_init=True;
               from fba56c5, 8 December 2024, to 5ddd1e4, 17 March 2025)
    "fla2024"  Xavier with gain 2^-2.5: flash-linear-attention from 4064237, 20 December 2024, to 4 March 2025
    "fla"      N(0, 0.02), convolutions too: the same library since dc861e3, 24 June 2025; from 4 March (d30c083) W_o
               was PyTorch's draw over sqrt(2 layers)
    "short"    N(0, 1 / sqrt(inputs)) and A uniform in (0, 1): ours, for a few hundred steps. With A up to 16 half of
               the heads forget within 16 tokens at first

`taper=LENGTH` is PoST (arXiv 2604.07658) for a model trained on so many tokens: see `TaperedRates`. At the start
log A rises evenly over the heads from 0 to log(LENGTH), dt is as above, and PoST's code has the maps of "fla".
Departs from the paper: nothing known. c, zero at first, is NVlabs'; flash-linear-attention has none.
"""

import math
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._delta import softplus, unit_queries
from bestiary.mixers._mixer import FastWeight, Features, State, step_sizes
from bestiary.mixers._norm import RMSNorm
from bestiary.mixers._start import FLA, SHORT, XAVIER, Start
from bestiary.mixers._taper import TaperedRates
from bestiary.ops.drive import Drive
from bestiary.ops.norm import normalize
from bestiary.spec import Positive

STARTS = {"paper": Start("torch"), "fla2024": XAVIER, "fla": FLA, "short": SHORT}


class GatedDelta(FastWeight):
    """S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, one alpha and one beta per head."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, key=8, value=4, conv=1, negative=True, init='fla2024'", "init='short'", "taper=32")
    later_options: ClassVar = ("taper",)

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        key: Positive | None = None,
        value: Positive | None = None,
        conv: Positive = 4,
        negative: bool = False,
        init: Literal["paper", "fla2024", "fla", "short"] = "paper",
        taper: Positive | None = None,
    ) -> None:
        super().__init__()
        key = max(1, 3 * dim // (4 * heads)) if key is None else key
        value = 2 * key if value is None else value
        self.shape, self.widths = (heads, key, value), (heads * key, heads * key, heads * value)
        self.most = 2 if negative else 1
        start = STARTS[init]
        self.qkv = nn.Linear(dim, sum(self.widths), bias=False)
        for part in self.qkv.weight.data.split(self.widths):
            start.fill(part)
        self.conv = start.conv(sum(self.widths), conv)
        self.decay, self.beta = start.linear(dim, heads), start.linear(dim, heads, bias=True)
        self.rate = TaperedRates(0.0, math.log(taper), heads, taper) if taper else start.rate(heads)
        self.dt = nn.Parameter(step_sizes((heads,)))
        self.gate, self.norm = start.linear(dim, heads * value), RMSNorm(value, eps=1e-5)
        self.out = start.linear(heads * value, dim)

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        tapered = isinstance(self.rate, TaperedRates)
        past, read = (local or (None, 0)) if tapered else (local, 0)
        parts, past = self.conv.streams(self.qkv(x), past, self.widths)
        q, k, v = (z.unflatten(-1, (self.shape[0], -1)) for z in parts)
        q, k, beta = unit_queries(q), normalize(k), self.most * self.beta(x).sigmoid().unsqueeze(-1)
        rate = self.rate(x, read) if isinstance(self.rate, TaperedRates) else self.rate.exp()
        g = (-rate * softplus(self.decay(x) + self.dt)).unsqueeze(-1)
        local = (past, read + x.shape[1]) if tapered else past
        return Drive(q, k, beta * v, g, rewrite=(-beta, g.exp() * k)), local

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.out(self.norm(y, self.gate(x).unflatten(-1, y.shape[-2:])).flatten(2))
