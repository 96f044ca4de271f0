"""RWKV-5, Eagle (Peng et al., 2024, section 4.1): a matrix per head that decays at a fixed rate per key channel.

    r, k, v, g = W (mu * x_t + (1 - mu) * x_{t-1}),  one mu each
    S_t = Diag(w) S_{t-1} + k_t v_t^T,   w = exp(-exp(decay)),   read before the token enters, with a bonus for it:
    y_t = W_o (norm(r_t^T (S_{t-1} + (u * k_t) v_t^T)) * SiLU(g_t)),  the norm over each head, with weights

A head is 64 wide. Initialisation as in the authors' code for layer `layer` of `layers`: decay -6 + 5 (c / (d -
1))^(0.7 + 1.3 l), u = l (1 - c / (d - 1)) + 0.1 (0, 1, -1, ...), mu powers of c / d; W_r, W_v orthogonal, W_k, W_g a
tenth of that, W_o zero, the norm's weights ((1 + layer) / layers)^0.7.
Departs from the paper: nothing known. Its channel mixing is not part of a sequence mixer.
"""

from typing import ClassVar

import torch
from torch import nn

from bestiary.mixers._mixer import Features
from bestiary.mixers._rwkv import Parts, TimeMix
from bestiary.spec import Positive


class RWKV5(TimeMix):
    """S_t = Diag(w) S_{t-1} + k_t v_t^T with fixed w, read as r_t^T (S_{t-1} + (u * k_t) v_t^T); gated output."""

    variants: ClassVar = ("heads=2, layer=3, layers=4",)
    without_decay: ClassVar = ("mix",)

    def __init__(self, dim: int, *, heads: Positive | None = None, layer: int = 0, layers: Positive = 12) -> None:
        super().__init__(dim, heads, layer, layers)
        depth, rest, channel = layer / max(1, layers - 1), 1 - layer / layers, torch.arange(dim) / dim
        slow, fast = channel**rest, channel ** (0.5 * rest)
        self.mix = nn.Parameter(torch.stack([fast, slow, slow + 0.3 * depth, fast]))

    def mix_previous(self, x: Features, before: Features) -> tuple[Parts, Features]:
        return before + self.mix[:, None, None] * (x - before), self.decay.expand_as(x)
