"""Mamba (Gu & Dao, 2023): a diagonal state-space model whose step, input and output maps depend on the token.

    x, z = W_in u,   x = SiLU(short convolution(x)),   dt = softplus(W_dt W_low x + bias),   B, C = W_B x, W_C x
    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,   y_t = C_t h_t + D x_t,   output = W_out (y * SiLU(z))

Initialisation as in the paper: A = -1 ... -N in every channel, dt log-uniform in (0.001, 0.1) through its bias,
D = 1, the rest PyTorch's.
Departs from the authors' language model: the output map is not scaled down by the number of layers.
"""

import math
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, Mixer, ShortConv, Where, check_rank, step_sizes, take
from bestiary.ops.scan import scan
from bestiary.spec import Positive


class Mamba(Mixer):
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, with dt, B, C linear in x_t; gated output."""

    family: ClassVar = "state space"
    variants: ClassVar = ("state=4, conv=1, expand=1, rank=2",)
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
    ) -> None:
        super().__init__()
        inner, rank = expand * dim, check_rank(dim, math.ceil(dim / 16) if rank is None else rank)
        self.widths = rank, state, state
        self.into, self.gate = nn.Linear(dim, inner, bias=False), nn.Linear(dim, inner, bias=False)
        self.conv = ShortConv(inner, conv, bias=True)
        self.low, self.dt = nn.Linear(inner, sum(self.widths), bias=False), nn.Linear(rank, inner)
        nn.init.uniform_(self.dt.weight, -(rank**-0.5), rank**-0.5)
        self.dt.bias.data.copy_(step_sizes((inner,)))
        self.rate = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        conv, h = (None, x.new_zeros(len(x), *self.rate.shape)) if state is None else state
        inner, conv = self.conv(self.into(x), conv)
        states, c = self.states(F.silu(inner), h)
        return self.read(states, c, F.silu(inner), x), self.Memory(conv, states[:, -1])

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        inner = F.silu(self.conv(self.into(x), None)[0])
        states, c = self.states(inner, x.new_zeros(len(x), *self.rate.shape))
        return self.read(take(states, where), take(c, where), take(inner, where), take(x, where))

    def states(
        self, inner: Float[Tensor, "batch time inner"], h: Tensor
    ) -> tuple[Float[Tensor, "batch time inner state"], Tensor]:
        """Every h_t, and the C_t that read them."""
        low, b, c = self.low(inner).split(self.widths, dim=-1)
        dt = F.softplus(self.dt(low)).unsqueeze(-1)
        states, _ = scan(torch.exp(-dt * self.rate.exp()), dt * inner.unsqueeze(-1) * b.unsqueeze(-2), h)
        return states, c

    def read(self, states: Tensor, c: Tensor, inner: Tensor, x: Chosen) -> Chosen:
        y = (states @ c.unsqueeze(-1)).squeeze(-1) + self.skip * inner
        return self.out(y * F.silu(self.gate(x)))
