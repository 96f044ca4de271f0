"""DeepSeek sparse attention, DSA (DeepSeek-V3.2, DeepSeek-AI, 2025): an indexer picks the tokens to attend to.

    I_ij = sum_h w_ih ReLU(a_ih . b_j / sqrt(index)) / sqrt(index heads),   b_j = rotate(LayerNorm(W_b x_j))
    S_i = the `top` tokens j <= i with the highest I_ij;   y_i = latent attention over S_i alone

a_i are rotated queries, made from what the attention's own are made from, w_i = W_w x_i; one index key b_j serves all.
Only as many channels as rotary keys have are rotated. Of tokens with equal scores the later is picked. Weights are
drawn N(0, 0.02) as in the authors' code.
Departs from the paper: the indexer learns without its KL loss. Picking passes no gradient, so I_ij is added to the
logits and its value taken away again, I - stop(I): outputs are the paper's, the indexer's gradient is that of the
logits, and like the paper's it goes no further than its own weights. `top` is 32 instead of 2048, index heads 4
instead of 64, for shorter sequences and smaller widths; no Hadamard transform and no 8-bit numbers, which save time
alone.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._mixer import Chosen, Features, State, linear
from bestiary.mixers._softmax import Positions, append_cache, causal_mask, new_positions, split_heads, top_mask
from bestiary.mixers.latent_attention import LatentAttention
from bestiary.ops.attention import masked_attention, rotate, share
from bestiary.spec import Positive


class DSA(LatentAttention):
    """y_i = latent attention over the `top` tokens with the highest sum_h w_ih ReLU(a_ih . b_j)."""

    family: ClassVar = "sparse"
    variants: ClassVar = ("heads=4, queries=20, index_heads=3, index=10, top=8",)

    class Indexed(NamedTuple):
        """Latents, rotary keys and index keys of all positions so far."""

        latent: Float[Tensor, "batch past latent"]
        turned: Float[Tensor, "batch past rotary"]
        index_keys: Float[Tensor, "batch past index"]  # index keys

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        latent: Positive | None = None,
        queries: Positive | None = None,
        index_heads: Positive = 4,
        index: Positive | None = None,
        top: Positive = 32,
    ) -> None:
        super().__init__(dim, heads=heads, latent=latent, queries=queries)
        index = 2 * self.rotary if index is None else index
        if index < self.rotary:
            raise ValueError(f"an index of {index} channels has no room for the {self.rotary} rotated ones")
        self.top, self.index_heads = top, index_heads
        self.index_q = linear(queries or dim, index_heads * index)
        self.index_k, self.index_norm = linear(dim, index), nn.LayerNorm(index, eps=1e-6)
        self.index_weight = linear(dim, index_heads)

    def update_cache(self, x: Features, state: State) -> Any:
        marks = self.rotate_part(
            self.index_norm(self.index_k(x.detach())).unsqueeze(1), new_positions(x, state)
        ).squeeze(1)
        return append_cache(state, self.Indexed(*self.entries(x, state), marks))

    def attend(self, x: Chosen, where: Positions, kept: Any) -> Chosen:
        scores, seen = self.scores(x, where, kept.index_keys), causal_mask(where, kept.index_keys.shape[1])
        fixed = scores.detach()
        seen = top_mask(fixed.masked_fill(~seen, -torch.inf), self.top) & seen
        k, v = (share(z, self.heads) for z in self.keys_values(kept))
        return self.read(masked_attention(self.queries(x, where), k, v, seen, scores - fixed))

    def scores(
        self, x: Chosen, where: Positions, marks: Float[Tensor, "batch time index"]
    ) -> Float[Tensor, "batch 1 asked time"]:
        """What the indexer thinks of each token, for each query."""
        q = self.rotate_part(split_heads(self.index_q(self.low(x).detach()), self.index_heads), where)
        found = ((q * q.shape[-1] ** -0.5) @ marks.unsqueeze(1).mT).relu()
        weight = split_heads(self.index_weight(x.detach()), self.index_heads) * self.index_heads**-0.5
        return (weight * found).sum(1, keepdim=True)

    def rotate_part(self, x: Float[Tensor, "batch heads _ index"], where: Positions) -> Tensor:
        """x with as many channels rotated as rotary keys have."""
        return torch.cat([rotate(x[..., : self.rotary], where), x[..., self.rotary :]], dim=-1)
