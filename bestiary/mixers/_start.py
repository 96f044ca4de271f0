"""How weights start: the draws that the code of papers uses, and one for short training."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from bestiary.mixers._mixer import ShortConv, linear


class Start(NamedTuple):
    """The draw of a mixer's linear maps, its convolutions and the rates of its decay. Biases start at zero.

    "torch": uniform within 1 / sqrt(inputs), PyTorch's own; "xavier": uniform within 2^-2.5 sqrt(6 / (inputs +
    outputs)); "normal": N(0, std); "unit": N(0, 1 / sqrt(inputs)), which keeps the size of what it is given.
    """

    maps: Literal["torch", "xavier", "normal", "unit"]
    std: float = 0.02  # of "normal"
    filters: float | None = None  # standard deviation of the taps of convolutions; None: as PyTorch draws a Conv1d
    rates: tuple[float, float] = (0.0, 16.0)  # A is uniform between them

    def fill(self, weight: Tensor, outputs: int | None = None) -> None:
        """Draw a weight (outputs by inputs) in place. `outputs` is what its map counts, if it is not the rows."""
        rows, inputs = weight.shape
        match self.maps:
            case "torch":
                nn.init.uniform_(weight, -(inputs**-0.5), inputs**-0.5)
            case "xavier":
                bound = 2**-2.5 * math.sqrt(6 / (inputs + (outputs or rows)))
                nn.init.uniform_(weight, -bound, bound)
            case "normal":
                nn.init.normal_(weight, std=self.std)
            case "unit":
                nn.init.normal_(weight, std=inputs**-0.5)

    def linear(self, inputs: int, outputs: int, *, bias: bool = False) -> nn.Linear:
        """A linear map."""
        made = linear(inputs, outputs, bias=bias)
        self.fill(made.weight.data)
        return made

    def conv(self, dim: int, taps: int) -> ShortConv:
        """A short convolution without a bias."""
        made = ShortConv(dim, taps)
        if self.filters is not None:
            nn.init.normal_(made.filter, std=self.filters)
        return made

    def rate(self, heads: int) -> nn.Parameter:
        """log A of each head."""
        return nn.Parameter(torch.empty(heads).uniform_(*self.rates).log())


def output_std(layers: int) -> float:
    """The standard deviation of maps back to the stream in a model of so many layers, as in GPT-2."""
    return 0.02 / math.sqrt(2 * layers)


def draw_normal(mixer: nn.Module) -> None:
    """Draw every linear map within a mixer N(0, 0.02) in place, biases zero."""
    for part in mixer.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


NORMAL = Start("normal")
# flash-linear-attention since dc861e3, 24 June 2025; from d30c083, 4 March, W_o was PyTorch's draw over sqrt(2 layers)
FLA = Start("normal", filters=0.02)
XAVIER = Start("xavier")  # its layers before 4 March 2025, down to 16 March 2024 (a17c411)
SHORT = Start("unit", rates=(0.0, 1.0))  # ours, for a few hundred steps
