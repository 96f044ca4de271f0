"""Mamba (Gu & Dao, 2023): a diagonal state-space model whose step, input and output maps depend on the token.

    x, z = W_in u,   x = SiLU(short convolution(x)),   dt = softplus(W_dt W_low x + bias),   B, C = W_B x, W_C x
    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,   y_t = C_t h_t + D x_t,   output = W_out (y * SiLU(z))

`negative` replaces exp(dt_t A) by 2 exp(dt_t A) - 1, whose values lie in (-1, 1), and leaves what enters as it is
(Grazzi et al., 2024, and their code). Without `gate` the output is W_out y.
Initialisation as in the paper: A = -1 ... -N in every channel, dt log-uniform in (0.001, 0.1) through its bias,
D = 1, the rest PyTorch's. D is `skip`; with 0 what is read out of memory is not drowned at first by the input itself,
which lets some seeds learn recall within a few hundred steps (ours).
Departs from the authors' language model: the output map is not scaled down by the number of layers.
"""

import math
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, Mixer, ShortConv, Where, check_rank, step_sizes, take
from bestiary.ops.scan import selective_scan
from bestiary.spec import Positive


class Mamba(Mixer):
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, with dt, B, C linear in x_t; gated output."""

    family: ClassVar = "state space"
    variants: ClassVar = ("state=4, conv=1, expand=1, rank=2", "state=4, negative=True, gate=False, skip=0.0")
    without_decay: ClassVar = ("rate",)

    class Memory(NamedTuple):
        """The last inputs of the convolution, and h."""

        conv: Float[Tensor, "batch past inner"]
        h: Float[Tensor, "batch inner state"]

    def __init__(
        self,
        dim: int,
        *,
        state: Positive = 16,
        conv: Positive = 4,
        expand: Positive = 2,
        rank: Positive | None = None,
        negative: bool = False,
        gate: bool = True,
        skip: float = 1.0,
    ) -> None:
        super().__init__()
        inner, rank = expand * dim, check_rank(dim, math.ceil(dim / 16) if rank is None else rank)
        self.widths, self.negative = (rank, state, state), negative
        self.into = nn.Linear(dim, inner, bias=False)
        self.gate = nn.Linear(dim, inner, bias=False) if gate else None
        self.conv = ShortConv(inner, conv, bias=True)
        self.low, self.dt = nn.Linear(inner, sum(self.widths), bias=False), nn.Linear(rank, inner)
        nn.init.uniform_(self.dt.weight, -(rank**-0.5), rank**-0.5)
        self.dt.bias.data.copy_(step_sizes((inner,)))
        self.rate = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.full((inner,), float(skip)))
        self.out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        conv, h = (None, x.new_zeros(len(x), *self.rate.shape)) if state is None else state
        (inner,), conv = self.conv.streams(self.into(x), conv, self.skip.shape)
        y, h = self.mix(inner, h, None)
        return self.read(y, x), self.Memory(conv, h)

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        (inner,), _ = self.conv.streams(self.into(x), None, self.skip.shape)
        y, _ = self.mix(inner, x.new_zeros(len(x), *self.rate.shape), where)
        return self.read(y, take(x, where))

    def mix(
        self, inner: Float[Tensor, "batch time inner"], h: Float[Tensor, "batch inner state"], where: Where | None
    ) -> tuple[Float[Tensor, "batch _ inner"], Float[Tensor, "batch inner state"]]:
        """C_t h_t + D x_t at the positions asked for, and the last h."""
        low, b, c = self.low(inner).split(self.widths, dim=-1)
        dt, a = F.softplus(self.dt(low)), -self.rate.exp()
        y, h = selective_scan(dt, inner, a, b, c, h, where, negative=self.negative)
        return y + self.skip * take(inner, where), h

    def read(self, y: Float[Tensor, "batch _ inner"], x: Chosen) -> Chosen:
        """The output from what was read out of memory."""
        return self.out(y if self.gate is None else y * F.silu(self.gate(x)))
