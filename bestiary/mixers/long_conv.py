"""Long convolution (Fu et al., 2023, "Simple Hardware-Efficient Long Convolutions for Sequence Modeling").

    y = GLU(W GELU(h convolved with x + D * x)),    h = sign(w) max(|w| - squash, 0)

One filter of `taps` free taps per channel, soft-thresholded so that it stays sparse in time. Initialisation as in
the paper, "geometric decay": w_ij ~ N(0, 0.02) exp(-(j / taps) (dim / 2)^(i / dim)) for channel i and tap j, D
N(0, 1).
Departs from the paper: none of its dropout on the filter; the threshold is 0.001 where the paper searches it
between 0.001 and 0.1.
"""

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, Mixer, Past, Where, take
from bestiary.ops import convolution
from bestiary.spec import Positive


class LongConv(Mixer):
    """y = GLU(W GELU(h convolved with x + D * x)) with a free, thresholded filter h."""

    family: ClassVar = "convolution"
    variants: ClassVar = ("taps=20, squash=0.0",)

    def __init__(self, dim: int, *, taps: Positive = 1024, squash: float = 0.001) -> None:
        super().__init__()
        self.taps, self.squash = taps, squash
        time, channel = torch.arange(taps).unsqueeze(1) / taps, torch.arange(dim) / dim
        self.weight = nn.Parameter(0.02 * torch.randn(taps, dim) * torch.exp(-time * (dim / 2) ** channel))
        self.skip = nn.Parameter(torch.randn(dim))
        self.out = nn.Linear(dim, 2 * dim)

    def forward(self, x: Features, state: Past | None = None) -> tuple[Features, Past]:
        return self.read(convolution.long(x, self.filter(), state), x), convolution.recent_inputs(x, state, self.taps)

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.read(take(convolution.long(x, self.filter()), where), take(x, where))

    def filter(self) -> torch.Tensor:
        """The filter after soft thresholding."""
        return self.weight.sign() * F.relu(self.weight.abs() - self.squash)

    def read(self, mixed: Chosen, x: Chosen) -> Chosen:
        """The output from the convolved input and the input itself."""
        return F.glu(self.out(F.gelu(mixed + self.skip * x)))
