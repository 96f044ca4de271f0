"""A mixer of one's own: a leaky average of what was read, with one rate per channel."""

import torch
from torch import nn

from bestiary.mixers import Features, Mixer
from bestiary.ops.scan import scan


class Leaky(Mixer):
    """h_t = a h_{t-1} + (1 - a) x_t,  y_t = W h_t."""

    def __init__(self, dim: int, *, slowest: float = 3.0) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.linspace(-slowest, slowest, dim))
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Features, state: torch.Tensor | None = None) -> tuple[Features, torch.Tensor]:
        a = self.rate.sigmoid().expand_as(x)
        h, last = scan(a, (1 - a) * x, torch.zeros_like(x[:, 0]) if state is None else state)
        return self.out(h), last
