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
from jaxtyping import Bool
from torch import Tensor

from bestiary.mixers._mixer import Chosen
from bestiary.mixers._softmax import (
    MultiHeadAttention,
    Positions,
    causal_mask,
    expand_blocks,
    hash_numbers,
    merge_heads,
    query_column,
    top_mask,
)
from bestiary.ops.attention import masked_attention
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
        k, v = kept
        seen = expand_blocks(self.blocks(where, k.shape[2]), self.block, k.shape[2]) & causal_mask(where, k.shape[2])
        return self.out(merge_heads(masked_attention(self.queries(x, where), k, v, seen)))

    def blocks(self, where: Positions, count: int) -> Bool[Tensor, "*batch heads asked blocks"]:
        """Which blocks of keys each query may look into."""
        own, head = query_column(where) // self.block, torch.arange(self.heads, device=where.device)[:, None, None]
        other = torch.arange(-(-count // self.block), device=where.device)
        between = (other >= self.first) & (other <= own - self.window)
        draw = hash_numbers(self.seed, head, own, other).masked_fill(~between, -1)
        return (~between & (other <= own)) | (between & top_mask(draw, self.random))
