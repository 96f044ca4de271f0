"""LRU (Orvieto et al., 2023): a linear recurrence with complex diagonal matrix, stable by its parametrisation.

    h_t = a * h_{t-1} + e^gamma * B x_t,   a = exp(-e^nu + i e^theta),   y_t = Re(C h_t) + D * x_t
    output = GLU(W GELU(y))

B and C are complex matrices, kept as real ones of twice the size. Initialisation: a uniform on the ring between radii
`low` and `high` with phases in (0, `phase`), e^gamma = sqrt(1 - |a|^2), B complex N(0, 1 / sqrt(dim)), C
complex N(0, sqrt(2 / state)), D N(0, 1), W N(0, 1 / sqrt(dim)) with bias zero.
Departs from the paper: nu, theta, gamma and B have no learning rate of their own; |a|^2 starts between 1e-7 and
1 - 1e-7, so that every logarithm is finite.
"""

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


class LRU(Mixer):
    """h_t = a * h_{t-1} + e^gamma * B x_t with complex a, |a| < 1; y_t = Re(C h_t) + D * x_t, then a gate."""

    family: ClassVar = "state space"
    variants: ClassVar = ("state=10, low=0.9, high=0.999, phase=0.3",)

    def __init__(
        self, dim: int, *, state: Positive | None = None, low: float = 0.0, high: float = 1.0, phase: float = 6.28
    ) -> None:
        super().__init__()
        if not 0 <= low < high <= 1:
            raise ValueError(f"lru(low={low}, high={high}): radii rise from low to high within 0 to 1")
        if phase <= 0:
            raise ValueError(f"lru(phase={phase}): the largest phase is positive")
        modes = dim if state is None else state
        square = torch.empty(modes).uniform_(low**2, high**2).clamp(1e-7, 1 - 1e-7)
        self.nu = nn.Parameter((-square.log() / 2).log())
        self.theta = nn.Parameter((phase * torch.rand(modes).clamp(min=1e-7)).log())
        self.gamma = nn.Parameter((1 - square).log() / 2)
        self.b, self.c = linear(dim, 2 * modes, std=(2 * dim) ** -0.5), linear(2 * modes, dim, std=modes**-0.5)
        self.skip, self.out = nn.Parameter(torch.randn(dim)), linear(dim, 2 * dim, bias=True, std=dim**-0.5)

    def forward(self, x: Features, state: State | None = None) -> tuple[Features, State]:
        parts, state = self.states(x, state)
        return self.read(parts, x), state

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.read(take(self.states(x, None)[0], where), take(x, where))

    def states(self, x: Features, state: State | None) -> tuple[Parts, State]:
        """Every h_t, and the last."""
        a = torch.exp(torch.complex(-upcast(self.nu).exp(), upcast(self.theta).exp()))
        new = self.gamma.exp() * torch.complex(*upcast(self.b(x)).chunk(2, dim=-1))
        states, last = scan(a.expand_as(new), new, torch.zeros_like(new[:, 0]) if state is None else state)
        return torch.cat([states.real, states.imag], dim=-1).to(x.dtype), last

    def read(self, parts: Parts, x: Chosen) -> Chosen:
        """The output from what was read out of memory."""
        y = self.c(parts) + self.skip * x
        return F.glu(self.out(F.gelu(y)), dim=-1)
