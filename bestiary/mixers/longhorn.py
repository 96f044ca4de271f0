"""Longhorn (Liu et al., 2024): a state that solves an online regression, one implicit step for each token.

    m, z = W_in u,   x = SiLU(short convolution(m)),   beta = sigmoid(W_beta W_low x + bias),   k, q = W_k x, W_q x
    h_t = argmin_h |h - h_{t-1}|^2 + beta |h . k_t - x_t|^2   in each channel, of which the solution is
    h_t = (1 - e_t k_t^2) h_{t-1} + e_t k_t x_t,   e = beta / (1 + beta |k|^2),   where k k^T is taken as diagonal
    y_t = q_t . h_t + D x_t,   output = W_out (y * SiLU(z))

Initialisation as in the authors' layer: D = 1, the rest PyTorch's.
Departs from the authors' language model (Cranial-XIX/longhorn, models/longhorn.py): the bias of beta is drawn, where
theirs starts at zero, and the output map is not scaled down by the number of layers. The diagonal approximation is the
paper's own.
"""

import math
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, Mixer, Past, ShortConv, Where, check_rank, take
from bestiary.ops.scan import selective_scan
from bestiary.spec import Positive


class Longhorn(Mixer):
    """h_t = (1 - e_t k_t^2) h_{t-1} + e_t k_t x_t with e = beta / (1 + beta |k|^2), read by q_t; gated output."""

    family: ClassVar = "state space"
    variants: ClassVar = ("state=4, conv=1, expand=1, rank=2",)

    class Memory(NamedTuple):
        """The state after the inputs read so far."""

        conv: Past
        h: Float[Tensor, "batch inner state"]

    def __init__(
        self,
        dim: int,
        *,
        state: Positive = 16,
        conv: Positive = 4,
        expand: Positive = 2,
        rank: Positive | None = None,
    ) -> None:
        super().__init__()
        inner, rank = expand * dim, check_rank(dim, math.ceil(dim / 16) if rank is None else rank)
        self.shape, self.widths = (inner, state), (rank, state, state)
        self.into, self.gate = nn.Linear(dim, inner, bias=False), nn.Linear(dim, inner, bias=False)
        self.conv = ShortConv(inner, conv, bias=True)
        self.low, self.beta = nn.Linear(inner, sum(self.widths), bias=False), nn.Linear(rank, inner)
        self.skip, self.out = nn.Parameter(torch.ones(inner)), nn.Linear(inner, dim, bias=False)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        conv, h = (None, x.new_zeros(len(x), *self.shape)) if state is None else state
        (inner,), conv = self.conv.streams(self.into(x), conv, self.skip.shape)
        y, h = self.mix(inner, h, None)
        return self.read(y, x), self.Memory(conv, h)

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        (inner,), _ = self.conv.streams(self.into(x), None, self.skip.shape)
        y, _ = self.mix(inner, x.new_zeros(len(x), *self.shape), where)
        return self.read(y, take(x, where))

    def mix(
        self, inner: Float[Tensor, "batch time inner"], h: Float[Tensor, "batch inner state"], where: Where | None
    ) -> tuple[Float[Tensor, "batch _ inner"], Float[Tensor, "batch inner state"]]:
        """q_t . h_t + D x_t at the positions asked for, and the last h."""
        low, k, q = self.low(inner).split(self.widths, dim=-1)
        beta = self.beta(low).sigmoid()
        size = beta / (1 + beta * k.square().sum(-1, keepdim=True))
        y, h = selective_scan(size, inner, None, k, q, h, where)
        return y + self.skip * take(inner, where), h

    def read(self, y: Float[Tensor, "batch _ inner"], x: Chosen) -> Chosen:
        """The output from what was read out of memory."""
        return self.out(y * F.silu(self.gate(x)))
