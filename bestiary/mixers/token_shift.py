"""Token shift (Peng, 2021; Peng et al., 2023): each channel mixed with its previous value, then a linear map.

    y_t = W (mu * x_t + (1 - mu) * x_{t-1}),   x_0 = 0

The mixing alone of RWKV. Initialisation: mu rises with the channel c as c / dim, as RWKV-4 has it for the keys of its
first layer; W as PyTorch draws it.
Departs from the paper: there it is the beginning of a mixer, here all of one.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._mixer import Chosen, Features, Mixer, Where, take
from bestiary.mixers.rwkv4 import interpolate

Last = Float[Tensor, "batch dim"]


class TokenShift(Mixer):
    """y_t = W (mu * x_t + (1 - mu) * x_{t-1}), a weight mu per channel."""

    family: ClassVar = "convolution"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mix, self.out = nn.Parameter(torch.arange(dim) / dim), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Features, state: Last | None = None) -> tuple[Features, Last]:
        return self.out(self.mix_previous(x, state)), x[:, -1]

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.out(take(self.mix_previous(x, None), where))

    def mix_previous(self, x: Features, last: Last | None) -> Features:
        """Each input mixed with the one before it."""
        first = torch.zeros_like(x[:, :1]) if last is None else last.unsqueeze(1)
        return interpolate(torch.cat([first, x[:, :-1]], dim=1), x, self.mix)
