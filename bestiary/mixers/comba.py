"""Comba (Hu et al., 2025): the delta rule as a closed loop, with feedback from the state and from the output.

    q, k, v = SiLU(short convolution(W x)),  unit q_t and k_t,  beta_t = sigmoid(w x_t)
    alpha_t = exp(-A softplus(u x_t + dt)),  0 < b < 1 and d learnt, one of each per head
    y_t = S_t^T (q_t - d k_t) / sqrt(key),  output = W_o (RMSNorm(y) * sigmoid(W_g x))

What is erased is read before the memory decays. Keys are 0.75 and values 1.5 of the model wide, split over the heads.
A is uniform in (0, 16), dt log-uniform in (0.001, 0.1), b = sigmoid(1). The rest, by `init`:

    "paper"  linear maps and convolutions N(0, 0.006), the output map PyTorch's, d = 0.01: AwesomeSeq/Comba-triton
             (f65c4fb, 9 June 2025)
    "fla"    all of them N(0, 0.02), d = 1: flash-linear-attention since dc861e3, 24 June 2025; in its first week
             there (from fb29335, 16 June) W_o was PyTorch's draw over sqrt(2 layers). By the same authors, who advise
             to try d = 0.02 too in small models

Departs from the authors' code, following the equations: it subtracts d b k before it normalises q, and its kernel
normalises b k, which undoes b. Its output map is also divided by the square root of twice the number of layers.
Departs from the authors' runs: 0.75 and 1.5 are the defaults of their layer; their training configurations have as
many values as keys, 4 heads of 256, which is all of the model's width at 340M parameters and half of it at 1B.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._delta import Decay, GatedOutput, Streams
from bestiary.mixers._mixer import FastWeight, Features, State
from bestiary.mixers._start import FLA, Start
from bestiary.ops.drive import Drive
from bestiary.ops.norm import normalize
from bestiary.spec import Positive

STARTS = {"paper": Start("normal", std=0.006, filters=0.006), "fla": FLA}


class Comba(FastWeight):
    """S_t = (alpha_t I - b beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, read by q_t - d k_t."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, key=8, value=4, conv=1, init='fla'",)

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        key: Positive | None = None,
        value: Positive | None = None,
        conv: Positive = 4,
        init: Literal["paper", "fla"] = "paper",
    ) -> None:
        super().__init__()
        key = max(1, 3 * dim // (4 * heads)) if key is None else key
        value = 2 * key if value is None else value
        self.shape = heads, key, value
        start = STARTS[init]
        self.streams = Streams(dim, heads, (key, key, value), conv, start)
        self.beta = start.linear(dim, heads)
        self.decay = Decay(heads, 1, start.linear(dim, heads), start)
        self.feedback = nn.Parameter(torch.ones(heads))
        self.correction = nn.Parameter(torch.full((heads,), 1.0 if init == "fla" else 0.01))
        self.answer = GatedOutput(dim, heads, value, start.linear(dim, heads * value), start=start)
        if init == "paper":
            Start("torch").fill(self.answer.out.weight.data)

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        (q, k, v), local = self.streams(x, local)
        q, k, beta = normalize(q), normalize(k), self.beta(x).sigmoid().unsqueeze(-1)
        fed_back = self.feedback.sigmoid().unsqueeze(-1) * k
        q = (q - self.correction.unsqueeze(-1) * k) * k.shape[-1] ** -0.5
        return Drive(q, k, beta * v, self.decay(x), rewrite=(-beta, fed_back)), local

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.answer(y, x)
