"""S5 (Smith, Warrington & Linderman, 2023): one diagonal state-space model with all channels as its input and output.

    h' = A h + B u,   y = 2 Re(C h) + D * u,   n = state / 2 complex modes, a step size dt for each
    h_t = a h_{t-1} + (a - 1) / A * B u_t,   a = exp(dt A)   (zero-order hold),   output = v * sigmoid(W v), v = GELU(y)

B and C are complex matrices, kept as real ones of twice the size. Initialisation: the HiPPO-LegS matrix without its
part of rank one has eigenvalues A = -1/2 + i w and eigenvectors V, one of each conjugate pair kept; `blocks` copies of
that make up the state. B = V* B' and C = C' V with B', Re C' and Im C' N(0, 1 / sqrt(state)); step sizes log-uniform in
(0.001, 0.1), D N(0, 1), W N(0, 1 / sqrt(dim)) with bias zero.
Departs from the authors' code: Re A = -exp(.), which cannot change its sign; normal draws are not truncated; the
state-space parameters have no learning rate of their own.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, Mixer, Where, linear, take
from bestiary.ops.precision import upcast
from bestiary.ops.scan import scan
from bestiary.spec import Positive

Parts = Float[Tensor, "batch _ parts"]  # real and imaginary
State = Complex[Tensor, "batch modes"]


class S5(Mixer):
    """h_t = exp(dt A) h_{t-1} + (exp(dt A) - 1) / A * B x_t, y_t = 2 Re(C h_t) + D * x_t, then a gate."""

    family: ClassVar = "state space"
    variants: ClassVar = ("state=12, blocks=3",)

    def __init__(self, dim: int, *, state: Positive = 64, blocks: Positive = 1) -> None:
        super().__init__()
        if state % (2 * blocks):
            raise ValueError(f"s5(state={state}, blocks={blocks}): each block needs conjugate pairs, an even number")
        turn, vectors = hippo_eigenvectors(state // blocks)
        vectors, modes = torch.block_diag(*blocks * [vectors]), state // 2
        b = vectors.mH @ torch.complex(torch.randn(state, dim), torch.zeros(state, dim)) * state**-0.5
        c = torch.complex(torch.randn(dim, state), torch.randn(dim, state)) @ vectors * state**-0.5
        self.decay, self.turn = nn.Parameter(torch.full((modes,), math.log(0.5))), nn.Parameter(turn.repeat(blocks))
        self.log_dt = nn.Parameter(torch.empty(modes).uniform_(math.log(1e-3), math.log(0.1)))
        self.b, self.c = nn.Linear(dim, state, bias=False), nn.Linear(state, dim, bias=False)
        self.b.weight.data.copy_(torch.cat([b.real, b.imag]))
        self.c.weight.data.copy_(torch.cat([c.real, -c.imag], dim=1))
        self.skip, self.out = nn.Parameter(torch.randn(dim)), linear(dim, dim, bias=True, std=dim**-0.5)

    def forward(self, x: Features, state: State | None = None) -> tuple[Features, State]:
        parts, state = self.states(x, state)
        return self.read(parts, x), state

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.read(take(self.states(x, None)[0], where), take(x, where))

    def states(self, x: Features, state: State | None) -> tuple[Parts, State]:
        """Every h_t, and the last."""
        poles = torch.complex(-upcast(self.decay).exp(), upcast(self.turn))
        a = torch.exp(self.log_dt.exp() * poles)
        new = (a - 1) / poles * torch.complex(*upcast(self.b(x)).chunk(2, dim=-1))
        states, last = scan(a.expand_as(new), new, torch.zeros_like(new[:, 0]) if state is None else state)
        return torch.cat([states.real, states.imag], dim=-1).to(x.dtype), last

    def read(self, parts: Parts, x: Chosen) -> Chosen:
        """The output from what was read out of memory."""
        v = F.gelu(2 * self.c(parts) + self.skip * x)
        return v * self.out(v).sigmoid()


def hippo_eigenvectors(size: int) -> tuple[Float[Tensor, " modes"], Complex[Tensor, "size modes"]]:
    """Imaginary parts of half the eigenvalues of HiPPO-LegS's normal part, which is -1/2 + K, K skew; eigenvectors."""
    root = torch.sqrt(torch.arange(size, dtype=torch.float64) + 0.5)
    skew = torch.outer(root, root).triu(1) - torch.outer(root, root).tril(-1)
    turn, vectors = torch.linalg.eigh(torch.complex(torch.zeros_like(skew), -skew))
    return turn[: size // 2].float(), vectors[:, : size // 2].to(torch.complex64)
