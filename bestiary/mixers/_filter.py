"""Long filters: how their taps are parametrised."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn


def position_features(taps: int, features: int = 3) -> Float[Tensor, "taps features"]:
    """Time from 0 to 1 and (features - 1) / 2 complex exponentials (Poli et al., 2023, appendix D.2).

    Frequencies run from 1e-4 to (features - 1) / 2 - 1 in turns per filter length, as in the authors' code.
    """
    if features < 3 or features % 2 == 0:
        raise ValueError(f"positions have an odd number of features from 3 up, got {features}")
    bands = (features - 1) // 2
    angle = torch.outer(2 * math.pi * torch.arange(taps) / taps, torch.linspace(1e-4, bands - 1, bands))
    return torch.cat([torch.linspace(0, 1, taps).unsqueeze(1), angle.cos(), -angle.sin()], dim=1)


class SineFilter(nn.Module):
    """Taps as a function of their position: sines of one trained frequency per unit, then a decaying window."""

    without_decay: ClassVar = ("positions",)  # where they are trained
    positions: Tensor
    window: Tensor

    def __init__(self, dim: int, taps: int, features: int, width: int, frequency: float) -> None:
        super().__init__()
        self.register_buffer("positions", position_features(taps, features), persistent=False)
        rates = torch.linspace(math.log(100) / 1.5, math.log(100) / 0.3, dim)
        self.register_buffer("window", torch.exp(-torch.linspace(0, 1, taps).unsqueeze(1) * rates), persistent=False)
        self.hidden = nn.ModuleList([nn.Linear(features, width), nn.Linear(width, width), nn.Linear(width, width)])
        self.frequency = nn.Parameter(torch.full((width,), float(frequency)))
        self.last = nn.Linear(width, dim, bias=False)

    def forward(self, time: int) -> Tensor:
        z = self.positions[:time]
        for layer in self.hidden:
            z = torch.sin(self.frequency * layer(z))
        return self.last(z) * self.window[:time]
