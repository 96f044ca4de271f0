"""Mixture of block attention, MoBA (Lu et al., 2025): each query attends within the blocks with the best mean key.

    s_ib = q_i . mean of the keys in block b,   S_i = {j <= i: block(j) is block(i), or among the best of the earlier}
    y_i = W_o sum_{j in S_i} softmax_j(q_i . k_j / sqrt(key)) v_j

per head, with `top` blocks in all, the own one among them and seen only up to the query; an earlier block is always
complete. The choice needs no weights of its own and passes no gradient. Positions are rotary, and block means are of
rotated keys. Weights are drawn N(0, 0.02).
Departs from the paper: blocks have 16 tokens instead of 512, for shorter sequences; decoding is as sparse as training.
"""

from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen
from bestiary.mixers._softmax import (
    MultiHeadAttention,
    Positions,
    causal_mask,
    expand_blocks,
    merge_heads,
    query_column,
    top_mask,
)
from bestiary.ops.attention import masked_attention
from bestiary.spec import Positive


class MoBA(MultiHeadAttention):
    """y_i = sum_j softmax_j(q_i . k_j / sqrt(key)) v_j over the own block and the earlier ones with the best mean."""

    family: ClassVar = "sparse"
    variants: ClassVar = ("heads=1, block=5, top=2",)

    def __init__(self, dim: int, *, heads: Positive = 2, block: Positive = 16, top: Positive = 3) -> None:
        super().__init__(dim, heads, rotary=True)
        self.block, self.top = block, top

    def attend(self, x: Chosen, where: Positions, kept: Any) -> Chosen:
        k, v = kept
        q, time = self.queries(x, where), k.shape[2]
        means = F.pad(k.detach(), (0, 0, 0, -time % self.block)).unflatten(2, (-1, self.block)).mean(3)
        own, other = query_column(where) // self.block, torch.arange(means.shape[2], device=x.device)
        scores = (q.detach() @ means.mT).masked_fill(other > own, -torch.inf).masked_fill(other == own, torch.inf)
        seen = expand_blocks(top_mask(scores, self.top), self.block, time) & causal_mask(where, time)
        return self.out(merge_heads(masked_attention(q, k, v, seen)))
