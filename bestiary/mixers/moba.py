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
from jaxtyping import Float, Int
from torch import Tensor

from bestiary.mixers._mixer import Chosen
from bestiary.mixers._softmax import (
    MultiHeadAttention,
    Positions,
    merge_heads,
    query_column,
)
from bestiary.ops.selection import attend_to_blocks, split_queries, top_places
from bestiary.spec import Positive


class MoBA(MultiHeadAttention):
    """y_i = sum_j softmax_j(q_i . k_j / sqrt(key)) v_j over the own block and the earlier ones with the best mean."""

    family: ClassVar = "sparse"
    variants: ClassVar = ("heads=1, block=5, top=2",)

    def __init__(self, dim: int, *, heads: Positive = 2, block: Positive = 16, top: Positive = 3) -> None:
        super().__init__(dim, heads, rotary=True)
        self.block, self.top = block, top

    def attend(self, x: Chosen, where: Positions, kept: Any) -> Chosen:
        q, (k, v) = self.queries(x, where), kept
        y = attend_to_blocks(q, k, v, self.choose_blocks(q.detach(), k.detach(), where), where, size=self.block)
        return self.out(merge_heads(y))

    def choose_blocks(
        self, q: Float[Tensor, "batch heads asked key"], k: Float[Tensor, "batch heads time key"], where: Positions
    ) -> Int[Tensor, "batch heads asked top"]:
        """The numbers of the blocks that each query reads, -1 for none."""
        count, chosen = k.shape[2] // self.block, []
        means = k[:, :, : count * self.block].unflatten(2, (count, self.block)).mean(3)
        for part, time in split_queries(where, k.shape[2]):
            own, other = query_column(where[..., part]) // self.block, torch.arange(time // self.block, device=q.device)
            scores = (q[:, :, part] @ means[:, :, : len(other)].mT).masked_fill(other >= own, -torch.inf)
            best = top_places(scores, self.top - 1)
            chosen.append(torch.cat([own.expand(*best.shape[:-1], 1), best], dim=-1))
        return torch.cat(chosen, dim=2)
