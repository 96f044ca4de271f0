"""Short convolution, as in the Canon layers of Allen-Zhu (2025): each channel sees its last few values.

    y_t = x_t + sum_{i < taps} w_i * x_{t-i}

Filters are drawn as PyTorch draws a Conv1d, on which the paper insists. `residual=False` leaves x_t out, and
`activation="silu"` stands around the sum over taps; the paper's choice is the default.
Departs from the paper: nothing known. Where in a block it stands ("A" to "D") is a matter of the pattern of mixers.
"""

from typing import ClassVar, Literal

from torch.nn import functional as F

from bestiary.mixers._mixer import Features, Mixer, Past, ShortConv
from bestiary.spec import Positive


class ShortConvolution(Mixer):
    """y_t = x_t + sum_{i < taps} w_i * x_{t-i}, a weight per channel and tap."""

    family: ClassVar = "convolution"
    variants: ClassVar = ("taps=2, residual=False, activation='silu'",)

    def __init__(
        self,
        dim: int,
        *,
        taps: Positive = 4,
        residual: bool = True,
        activation: Literal["none", "silu"] = "none",
    ) -> None:
        super().__init__()
        self.conv, self.residual, self.activation = ShortConv(dim, taps), residual, activation

    def forward(self, x: Features, state: Past | None = None) -> tuple[Features, Past]:
        y, past = self.conv(x, state)
        y = F.silu(y) if self.activation == "silu" else y
        return (x + y if self.residual else y), past
