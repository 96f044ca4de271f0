"""S4D (Gu, Gupta, Goel & Ré, 2022): a diagonal state-space model for each channel, computed as a long convolution.

    h' = A h + B u,   y = 2 Re(C h) + D u   in each channel, with step size dt and n = state / 2 complex modes
    h_t = a h_{t-1} + b u_t,   a = (1 + dt A / 2) / (1 - dt A / 2),   b = dt B / (1 - dt A / 2)   (bilinear rule)
    output = GLU(W GELU(y))

Initialisation: A_n = -1/2 + i pi n (S4D-Lin) or -1/2 + i N / pi (N / (2n + 1) - 1) (S4D-Inv, N the state), B = 1,
C complex N(0, 1), step sizes log-uniform in (0.001, 0.1), D N(0, 1).
Departs from the paper: the state-space parameters have no learning rate of their own.
"""

import math
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from bestiary.mixers._diagonal import Diagonal, Modes
from bestiary.mixers._mixer import Chosen, Features, Mixer, Where, take
from bestiary.spec import Positive


class S4D(Mixer):
    """h_t = a h_{t-1} + b x_t, y_t = 2 Re(c . h_t) + D x_t in each channel, then a gate across channels."""

    family: ClassVar = "state space"
    variants: ClassVar = ("state=8, spectrum='inv'",)

    def __init__(self, dim: int, *, state: Positive = 64, spectrum: Literal["lin", "inv"] = "lin") -> None:
        super().__init__()
        if state % 2:
            raise ValueError(f"s4d(state={state}): modes come in conjugate pairs, so the state must be even")
        self.diagonal = Diagonal(dim, state // 2)
        if spectrum == "inv":
            mode = torch.arange(state // 2)
            self.diagonal.turn.data.copy_(state / math.pi * (state / (2 * mode + 1) - 1))
        self.skip, self.out = nn.Parameter(torch.randn(dim)), nn.Linear(dim, 2 * dim)

    def forward(self, x: Features, state: Modes | None = None) -> tuple[Features, Modes]:
        return self.read(self.mix(x, state)), self.diagonal.final_modes(x.unsqueeze(-1), state)

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.read(take(self.mix(x, None), where))

    def mix(self, x: Features, state: Modes | None) -> Features:
        """y at every position before the gate."""
        return self.diagonal(x.unsqueeze(-1), state).squeeze(-1) + self.skip * x

    def read(self, y: Chosen) -> Chosen:
        """The output from what was read out of memory."""
        return F.glu(self.out(F.gelu(y)), dim=-1)
