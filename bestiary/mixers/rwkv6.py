"""RWKV-6, Finch (Peng et al., 2024, section 4.2): RWKV-5 whose token shift and decay depend on the token.

    shifted_i = x_t + (x_{t-1} - x_t) * (mu_i + B_i tanh(A_i (x_t + (x_{t-1} - x_t) * mu)))  for i = r, k, v, g, w
    r, k, v, g = W shifted,   w_t = exp(-exp(decay + D tanh(C shifted_w)))
    S_t = Diag(w_t) S_{t-1} + k_t v_t^T
    y_t = W_o (norm(r_t^T (S_{t-1} + (u * k_t) v_t^T)) * SiLU(g_t)),  the norm over each head, with weights

A and C are low-rank maps, to `mix_rank` channels each (32) and `decay_rank` (64), no wider than the model. They
start at zero and B, D in (-0.01, 0.01); the rest as RWKV-5, each mu one less its value there, mu_w = mu = mu_k.
Weight decay spares all four, as in the authors' code (RWKV-LM, RWKV-v5/src/model.py).
Departs from the paper: nothing known. Its channel mixing is not part of a sequence mixer.
"""

from typing import ClassVar

import torch
from torch import nn

from bestiary.mixers._mixer import Features, check_rank
from bestiary.mixers._rwkv import Parts, TimeMix
from bestiary.spec import Positive


class RWKV6(TimeMix):
    """S_t = Diag(w_t) S_{t-1} + k_t v_t^T, read as r_t^T (S_{t-1} + (u * k_t) v_t^T); low-rank shift and decay."""

    variants: ClassVar = ("heads=2, layer=3, layers=4, mix_rank=3, decay_rank=5",)
    without_decay: ClassVar = ("mix", "mix_low.weight", "mix_high", "decay_low.weight", "decay_high.weight")

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive | None = None,
        mix_rank: Positive | None = None,
        decay_rank: Positive | None = None,
        layer: int = 0,
        layers: Positive = 12,
    ) -> None:
        super().__init__(dim, heads, layer, layers)
        mix_rank = min(32, dim) if mix_rank is None else mix_rank
        decay_rank = min(64, dim) if decay_rank is None else decay_rank
        check_rank(dim, max(mix_rank, decay_rank))
        depth, rest, channel = layer / max(1, layers - 1), 1 - layer / layers, torch.arange(dim) / dim
        slow, fast = channel**rest, channel ** (0.5 * rest)
        self.mix = nn.Parameter(1 - torch.stack([fast, slow, slow + 0.3 * depth, fast, slow]))
        self.first = nn.Parameter(1 - slow)
        self.mix_low, self.decay_low = nn.Linear(dim, 5 * mix_rank, bias=False), nn.Linear(dim, decay_rank, bias=False)
        self.mix_high = nn.Parameter(torch.empty(5, mix_rank, dim).uniform_(-0.01, 0.01))
        self.decay_high = nn.Linear(decay_rank, dim, bias=False)
        nn.init.zeros_(self.mix_low.weight)
        nn.init.zeros_(self.decay_low.weight)
        nn.init.uniform_(self.decay_high.weight, -0.01, 0.01)

    def mix_previous(self, x: Features, before: Features) -> tuple[Parts, Features]:
        gap = before - x
        low = torch.tanh(self.mix_low(x + gap * self.first)).unflatten(-1, (5, -1))
        parts = x + gap * (self.mix[:, None, None] + torch.einsum("btnr,nrd->nbtd", low, self.mix_high))
        return parts[:4], self.decay + self.decay_high(torch.tanh(self.decay_low(parts[4])))
