"""Stick-breaking attention (Tan, Yang, Courville, Panda & Shen, 2024): the nearest match takes its share first.

    z_ij = q_i . k_j / sqrt(key),   A_ij = sigmoid(z_ij) prod_{j<l<i} (1 - sigmoid(z_il))   for j < i
    y_i = W_o GroupNorm(sum_{j<i} A_ij v_j + (1 - sum_{j<i} A_ij) r),   r a learned vector per head

No softmax and no positions: going back from i, each token breaks its share off what is left of a stick of length 1,
computed as sums of logarithms; nothing attends to itself. Weights are drawn N(0, 0.02), r is zero; remainder and
norm (one group per head) are those of the authors' language model.
Departs from the paper: nothing known.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen
from bestiary.mixers._norm import check_normed
from bestiary.mixers._softmax import MultiHeadAttention, Positions, causal_mask, merge_heads
from bestiary.spec import Positive


class StickBreaking(MultiHeadAttention):
    """y_i = sum_{j<i} sigmoid(z_ij) prod_{j<l<i} (1 - sigmoid(z_il)) v_j, and what is left for a learned vector."""

    family: ClassVar = "softmax"
    variants: ClassVar = ("heads=4",)
    without_decay: ClassVar = ("rest",)

    def __init__(self, dim: int, *, heads: Positive = 2) -> None:
        super().__init__(dim, heads, rotary=False)
        check_normed(dim // heads, f"heads={heads}")
        self.rest = nn.Parameter(torch.zeros(heads, 1, dim // heads))
        self.norm = nn.GroupNorm(heads, dim)

    def attend(self, x: Chosen, where: Positions, kept: Any) -> Chosen:
        k, v = kept
        z = (self.queries(x, where) * k.shape[-1] ** -0.5) @ k.mT
        hidden = ~causal_mask(where - 1, k.shape[2])
        left = F.logsigmoid(-z).masked_fill(hidden, 0.0)
        between = F.pad(left, (0, 1))[..., 1:].flip(-1).cumsum(-1).flip(-1)  # of the positions after j, before i
        weights = (F.logsigmoid(z) + between).masked_fill(hidden, -torch.inf).exp()
        y = merge_heads(weights @ v + left.sum(-1, keepdim=True).exp() * self.rest)
        return self.out(self.norm(y.flatten(0, 1)).unflatten(0, y.shape[:2]))
