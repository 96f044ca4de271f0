"""BaseConv (Arora et al., 2023, section 4 and equation 1): the least gated convolution.

    y = (W x + b) * (h convolved with x + c) + x,   c with short filters only

`filter="short"` is a convolution of `taps` taps with a bias; `"explicit"` learns every one of `taps` taps;
`"implicit"` makes them by a ReLU network of 16 units from three features of the position (`taps` is then the
longest sequence that it tells apart, so that the default, 3, is refused). Both long filters add the input itself,
h_0 + 1, as the authors' code does. Initialisation is that of the authors' runs: linear maps N(0, 0.02) with zero
biases, the network included; short filters as a Conv1d, explicit taps N(0, 1).
Departs from the paper: x is added, which equation 1 does not do and the authors' code does (since 0f98dfe, 28
October 2023); vector biases and none on the convolution of long filters, as in that code, where the theory has one
bias per position; beyond `taps` a filter is zero, where the code fails or wraps round.
"""

from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from bestiary.mixers._filter import position_features
from bestiary.mixers._mixer import Chosen, Features, Mixer, Past, ShortConv, Where, linear, take
from bestiary.ops import convolution
from bestiary.spec import Positive


class BaseConv(Mixer):
    """y = (W x + b) * (h convolved with x + c) + x."""

    family: ClassVar = "convolution"
    variants: ClassVar = (
        "filter='explicit', taps=64",
        "filter='explicit', taps=20",
        "filter='implicit', taps=64",
    )

    def __init__(
        self, dim: int, *, filter: Literal["short", "explicit", "implicit"] = "short", taps: Positive = 3
    ) -> None:
        super().__init__()
        if filter == "implicit" and taps == 3:
            raise ValueError("base_conv(filter='implicit') needs taps, the longest sequence; 3 is for short filters")
        self.taps, self.project = taps, linear(dim, dim, bias=True)
        match filter:
            case "short":
                self.filter = ShortConv(dim, taps, bias=True)
            case "explicit":
                self.filter = _Explicit(dim, taps)
            case "implicit":
                self.filter = _Implicit(dim, taps)

    def forward(self, x: Features, state: Past | None = None) -> tuple[Features, Past]:
        if isinstance(self.filter, ShortConv):
            mixed, past = self.filter(x, state)
        else:
            time = x.shape[1] + (0 if state is None else state.shape[1])
            mixed = convolution.long(x, self.filter(time), state)
            past = convolution.recent_inputs(x, state, self.taps)
        return self.project(x) * mixed + x, past

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        short = isinstance(self.filter, ShortConv)
        mixed = self.filter(x, None)[0] if short else convolution.long(x, self.filter(x.shape[1]))
        x = take(x, where)
        return self.project(x) * take(mixed, where) + x


class _Explicit(nn.Module):
    """One parameter per tap."""

    def __init__(self, dim: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(taps, dim))

    def forward(self, time: int) -> torch.Tensor:
        return add_skip(self.weight[:time])


class _Implicit(nn.Module):
    """Taps as a function of their position."""

    positions: torch.Tensor

    def __init__(self, dim: int, taps: int) -> None:
        super().__init__()
        self.register_buffer("positions", position_features(taps), persistent=False)
        self.network = nn.Sequential(linear(3, 16, bias=True), nn.ReLU(), linear(16, dim, bias=True))

    def forward(self, time: int) -> torch.Tensor:
        return add_skip(self.network(self.positions[:time]))


def add_skip(filter: torch.Tensor) -> torch.Tensor:
    """The filter that also passes its input through."""
    return filter + F.pad(torch.ones_like(filter[:1]), (0, 0, 0, len(filter) - 1))
