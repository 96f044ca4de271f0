"""Differential attention (Ye, Dong, Xia, Sun, Zhu, Huang & Wei, 2024): what two attentions agree on is noise.

    y_i = W_o (1 - s) RMSNorm(sum_j (softmax_j(q_i . k_j / sqrt(key)) - l softmax_j(q'_i . k'_j / sqrt(key))) v_j)
    l = exp(a . b) - exp(a' . b') + s,   s = 0.8 - 0.6 exp(-0.3 layer)

per head, whose two queries and keys are half as wide as its value, with rotary positions; l is one number for all
heads. Initialisation is that of the authors' layer: a, b, a', b' drawn N(0, 0.1), linear maps PyTorch's.
Departs from the paper: rotation pairs the first and second half of a key, not neighbours, which learns the same.
"""

import math
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._mixer import Chosen, Features, State, head_width
from bestiary.mixers._norm import RMSNorm
from bestiary.mixers._softmax import (
    CachedAttention,
    Positions,
    append_cache,
    merge_heads,
    new_positions,
    split_heads,
    unless_last,
)
from bestiary.ops.attention import attend, rotate
from bestiary.spec import Positive


class Differential(CachedAttention):
    """y_i = sum_j (softmax_j(q_i . k_j) - l softmax_j(q'_i . k'_j)) v_j, normalised."""

    family: ClassVar = "softmax"
    variants: ClassVar = ("heads=4, layer=3",)
    without_decay: ClassVar = ("balance",)

    class Memory(NamedTuple):
        """Keys and values of all positions so far."""

        k: Float[Tensor, "batch twice past key"]  # two per head
        v: Float[Tensor, "batch heads past value"]

    def __init__(self, dim: int, *, heads: Positive = 1, layer: int = 0) -> None:
        super().__init__()
        if head_width(dim, heads) % 4:
            raise ValueError(f"two rotary keys need a head width that 4 divides, not {dim} / {heads}")
        if layer < 0:
            raise ValueError(f"layers are counted from 0, not {layer}")
        self.heads, self.start = heads, 0.8 - 0.6 * math.exp(-0.3 * layer)
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.balance = nn.Parameter(0.1 * torch.randn(2, 2, dim // heads // 2))  # [[a, b], [a', b']]
        self.norm = RMSNorm(dim // heads, eps=1e-5)

    def update_cache(self, x: Features, state: State) -> Any:
        k = rotate(split_heads(self.k(x), 2 * self.heads), new_positions(x, state))
        return append_cache(state, self.Memory(k, split_heads(self.v(x), self.heads)))

    def attend(self, x: Chosen, where: Positions, kept: Any) -> Chosen:
        q = rotate(split_heads(self.q(x), 2 * self.heads), where)
        first, second = attend(q, kept.k, kept.v, unless_last(where)).unflatten(1, (-1, 2)).unbind(2)
        one, other = (self.balance[:, 0] * self.balance[:, 1]).sum(-1).exp().unbind()
        y = self.norm(first - (one - other + self.start) * second)
        return self.out(merge_heads((1 - self.start) * y))
