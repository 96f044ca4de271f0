"""Hyena of order two (Poli et al., 2023): gates around an implicit long convolution.

    x1, x2, v = short convolution(W x),    z = h convolved with (x1 * v) + D * (x1 * v),    y = W_o (x2 * z)

The filter is a function of time t in [0, 1] over `taps` positions: a network of sines, a linear map, and a window
exp(-delta_c t) whose rates run from log(100) / 1.5 to log(100) / 0.3 across channels.
Short filters start as a Conv1d does, D N(0, 1), the sines' frequency 1. Linear maps, by `init`:

    "paper"      PyTorch's draw, as in the authors' code
    "zoology23"  N(0, 0.02), the filter's network included, W_o N(0, 0.02 / sqrt(2 layers)), biases zero; the features
                 of the position are trained: the code that made Figure 2 of Zoology (HazyResearch/zoology, 0a76ef2,
                 26 October 2023), of 2 `layers`

Departs from the paper: by default the features of the position are fixed (the code trains them at a rate of 1e-5);
the filter's own rate and decay settings are not used; beyond `taps` the filter is zero, where the code fails.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bestiary.mixers._filter import SineFilter
from bestiary.mixers._mixer import Chosen, Features, Mixer, Past, ShortConv, State, Where, take
from bestiary.mixers._start import draw_normal, output_std
from bestiary.ops import convolution
from bestiary.spec import Positive


class Hyena(Mixer):
    """y = W_o (x2 * (h convolved with (x1 * v) + D * x1 * v)), with h a windowed network of the position."""

    family: ClassVar = "convolution"
    variants: ClassVar = ("taps=20, features=5, short=1", "init='zoology23', taps=20")
    later_options: ClassVar = ("init", "layers")

    def __init__(
        self,
        dim: int,
        *,
        taps: Positive = 1024,
        features: Positive = 3,
        width: Positive = 64,
        frequency: float = 1.0,
        short: Positive = 3,
        init: Literal["paper", "zoology23"] = "paper",
        layers: Positive = 2,
    ) -> None:
        super().__init__()
        if layers != 2 and init != "zoology23":
            raise ValueError(f"layers={layers} with init={init!r} changes nothing: it is of init='zoology23'")
        self.taps = taps
        self.project, self.short = nn.Linear(dim, 3 * dim), ShortConv(3 * dim, short, bias=True)
        self.filter = SineFilter(dim, taps, features, width, frequency)
        self.skip = nn.Parameter(torch.randn(dim))
        self.out = nn.Linear(dim, dim)
        if init == "zoology23":
            self.filter.positions = nn.Parameter(self.filter.positions)
            draw_normal(self)
            nn.init.normal_(self.out.weight, std=output_std(layers))

    def forward(self, x: Features, state: State = None) -> tuple[Features, State]:
        before, past = (None, None) if state is None else state
        (x1, x2, v), before = self.gates(x, before)
        time = x.shape[1] + (0 if past is None else past.shape[1])
        z = convolution.long(x1 * v, self.filter(time), past) + self.skip * x1 * v
        return self.out(x2 * z), (before, convolution.recent_inputs(x1 * v, past, self.taps))

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        (x1, x2, v), _ = self.gates(x, None)
        z = take(convolution.long(x1 * v, self.filter(x.shape[1])), where) + self.skip * take(x1 * v, where)
        return self.out(take(x2, where) * z)

    def gates(self, x: Features, past: Past | None) -> tuple[tuple[Tensor, ...], Past]:
        """x1, x2 and v, and the inputs that the short convolution still needs."""
        mixed, kept = self.short(self.project(x), past)
        return mixed.chunk(3, dim=-1), kept
