"""BigBird (Zaheer et al., 2020), causal: a window of blocks, the first blocks, and some random earlier ones.

    y_i = W_o sum_{j in S_i} softmax_j(q_i . k_j / sqrt(key)) v_j
    S_i = {j <= i: block(j) > block(i) - window, or block(j) < first, or (block(i), block(j)) is drawn for the head}

Each head draws `random` distinct blocks between the first ones and the window for each block of queries, from a seed
and the two block numbers alone, so the pattern does not depend on where a sequence is cut or how long it is. A later
block may draw any earlier one, so all keys are kept. Weights are drawn N(0, 0.02).
Departs from the paper, an encoder: nothing later is seen, so the window is its left half and the last block is not
global; first blocks do not themselves see everything; blocks have 16 tokens instead of 64, for shorter sequences;
positions are rotary unless switched off, where the paper has learned ones; no biases.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.mixers._mixer import Chosen
from bestiary.mixers._softmax import MultiHeadAttention, Positions, hash_numbers, merge_heads
from bestiary.ops.selection import attend_to_blocks, top_places
from bestiary.spec import Positive


class BigBird(MultiHeadAttention):
    """y_i = sum_j softmax_j(q_i . k_j / sqrt(key)) v_j over near, first and random blocks."""

    family: ClassVar = "sparse"
    variants: ClassVar = ("heads=1, block=4, window=2, seed=1, rotary=False",)

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        block: Positive = 16,
        window: Positive = 3,
        first: Positive = 1,
        random: Positive = 3,
        seed: int = 0,
        rotary: bool = True,
    ) -> None:
        super().__init__(dim, heads, rotary=rotary)
        self.block, self.window, self.first, self.random, self.seed = block, window, first, random, seed

    def attend(self, x: Chosen, where: Positions, kept: Any) -> Chosen:
        q, (k, v) = self.queries(x, where), kept
        blocks = self.choose_blocks(where, k.shape[2]).expand(len(x), -1, -1, -1)
        return self.out(merge_heads(attend_to_blocks(q, k, v, blocks, where, size=self.block)))

    def choose_blocks(self, where: Positions, time: int) -> Int[Tensor, "_ heads asked chosen"]:
        """The numbers of the blocks that each query reads, -1 for none; the last of `time` queries, or each row's."""
        count = -(-time // self.block)
        if where.ndim == 2:
            return self.draw_blocks(where.unsqueeze(1) // self.block, count)
        start = (time - len(where)) // self.block  # all queries of a block read the same
        drawn = self.draw_blocks(torch.arange(start, count, device=where.device)[None, None], count)
        return drawn[:, :, where // self.block - start]

    def draw_blocks(self, own: Int[Tensor, "batch 1 rows"], count: int) -> Int[Tensor, "batch heads rows chosen"]:
        """The numbers of the blocks, of `count`, that queries in the blocks `own` read."""
        own, other = own.unsqueeze(-1), torch.arange(count, device=own.device)
        head = torch.arange(self.heads, device=own.device)[:, None, None]
        between = (other >= self.first) & (other <= own - self.window)
        draw = hash_numbers(self.seed, head, own, other).double().masked_fill(~between, -torch.inf)
        near, first = (
            own - torch.arange(self.window, device=own.device),
            other[: self.first].expand(*own.shape[:-1], -1),
        )
        fixed = torch.cat([near.masked_fill(near < self.first, -1), first.masked_fill(first > own, -1)], dim=-1)
        return torch.cat([fixed.expand(*draw.shape[:-1], -1), top_places(draw, self.random)], dim=-1)
