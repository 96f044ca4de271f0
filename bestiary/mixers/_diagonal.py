"""S4D: a fixed diagonal state-space model per head (Gu et al., 2022)."""

import math
from typing import ClassVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from bestiary.ops import convolution
from bestiary.ops.precision import upcast, upcast_type

Inputs = Float[Tensor, "batch time heads copies"]
Modes = Complex[Tensor, "batch heads copies modes"]


class Diagonal(nn.Module):
    """h_t = a h_{t-1} + b u_t,  y_t = 2 Re(c . h_t): complex modes, the conjugate half left out.

    a = (1 + dt A / 2) / (1 - dt A / 2) and b = dt B / (1 - dt A / 2), the bilinear rule. `copies` inputs share the
    system of a head. Drawn as "diag-lin": A_n = -1/2 + i pi n, B = 1, C complex N(0, 1), dt log-uniform in
    (0.001, 0.1).
    """

    without_decay: ClassVar = ("decay", "turn", "b", "c")

    def __init__(self, heads: int, modes: int) -> None:
        super().__init__()
        self.log_dt = nn.Parameter(torch.empty(heads).uniform_(math.log(1e-3), math.log(0.1)))
        self.decay = nn.Parameter(torch.full((heads, modes), math.log(0.5)))  # log of -Re A
        self.turn = nn.Parameter(math.pi * torch.arange(modes).repeat(heads, 1))  # Im A
        self.b = nn.Parameter(torch.stack([torch.ones(heads, modes), torch.zeros(heads, modes)]))
        self.c = nn.Parameter(torch.randn(2, heads, modes) * 0.5**0.5)

    def forward(self, u: Inputs, modes: Modes | None) -> Inputs:
        """Every y_t, as a convolution with the impulse response, and what is left of the modes before."""
        log_a, b, c = self.discretize()
        powers = torch.exp(log_a * time_steps(u.shape[1] + 1, u))  # time heads modes
        response = 2 * (powers[:-1] * (b * c)).sum(-1).real
        taps = response.repeat_interleave(u.shape[-1], dim=1)
        y = convolution.long(u.flatten(2), taps).unflatten(-1, u.shape[2:])
        y = y if modes is None else y + 2 * torch.einsum("thn,bhrn->bthr", powers[1:] * c, modes).real
        return y.to(u.dtype)

    def final_modes(self, u: Inputs, modes: Modes | None) -> Modes:
        """The modes after the last input."""
        log_a, b, _ = self.discretize()
        powers = torch.exp(log_a * time_steps(u.shape[1] + 1, u))
        new = torch.einsum("bthr,thn->bhrn", u.to(powers.dtype), powers[:-1].flip(0) * b)
        return new if modes is None else new + powers[-1].unsqueeze(1) * modes

    def discretize(self) -> tuple[Tensor, Tensor, Tensor]:
        """log a, b and c, each heads by modes."""
        dt = upcast(self.log_dt).exp().unsqueeze(-1)
        half = torch.complex(-upcast(self.decay).exp(), upcast(self.turn)) * dt / 2
        return (
            torch.log((1 + half) / (1 - half)),
            torch.complex(*upcast(self.b)) * dt / (1 - half),
            torch.complex(*upcast(self.c)),
        )


def time_steps(count: int, like: Tensor) -> Float[Tensor, "count 1 1"]:
    """0, 1, ..., count - 1 as real numbers that broadcast over heads and modes."""
    return torch.arange(count, device=like.device).to(upcast_type(like)).reshape(-1, 1, 1)
