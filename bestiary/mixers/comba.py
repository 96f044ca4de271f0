"""Comba (Hu et al., 2025): the delta rule as a closed loop, with feedback from the state and from the output.

    q, k, v = SiLU(short convolution(W x)),  unit q_t and k_t,  beta_t = sigmoid(w x_t)
    alpha_t = exp(-A softplus(u x_t + dt)),  0 < b < 1 and d learnt, one of each per head
    y_t = S_t^T (q_t - d k_t),  output = W_o (RMSNorm(y) * sigmoid(W_g x))

What is erased is read before the memory decays. Keys are 0.75 and values 1.5 of the model wide, split over the heads.
Initialisation as in the authors' code: linear maps N(0, 0.02), A uniform in (0, 16), dt log-uniform in (0.001, 0.1),
b = sigmoid(1), d = 1 (they advise to try 0.02 too in small models).
Departs from the authors' code, following the equations: it subtracts d b k before it normalises q, and its kernel
normalises b k, which undoes b. Convolutions are drawn as PyTorch draws them, where the code shrinks them to
N(0, 0.02) too; queries are not scaled by 1 / sqrt(key), which the norm undoes.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._delta import Decay, GatedOutput, Streams
from bestiary.mixers._mixer import FastWeight, Features, State, linear, normalize
from bestiary.ops.drive import Drive
from bestiary.spec import Positive


class Comba(FastWeight):
    """S_t = (alpha_t I - b beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, read by q_t - d k_t."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, key=8, value=4, conv=1",)

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        key: Positive | None = None,
        value: Positive | None = None,
        conv: Positive = 4,
    ) -> None:
        super().__init__()
        key = max(1, 3 * dim // (4 * heads)) if key is None else key
        value = 2 * key if value is None else value
        self.shape = heads, key, value
        self.streams = Streams(dim, heads, (key, key, value), conv)
        self.beta = linear(dim, heads)
        self.decay = Decay(heads, 1, linear(dim, heads), low=0.0)
        self.feedback, self.correction = nn.Parameter(torch.ones(heads)), nn.Parameter(torch.ones(heads))
        self.answer = GatedOutput(dim, heads, value, linear(dim, heads * value))

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        (q, k, v), local = self.streams(x, local)
        q, k, beta = normalize(q), normalize(k), self.beta(x).sigmoid().unsqueeze(-1)
        fed_back = self.feedback.sigmoid().unsqueeze(-1) * k
        q = q - self.correction.unsqueeze(-1) * k
        return Drive(q, k, beta * v, self.decay(x), rewrite=(-beta, fed_back)), local

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.answer(y, x)
