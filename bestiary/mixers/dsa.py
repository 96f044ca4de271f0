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
from jaxtyping import Float, Int
from torch import Tensor, nn

from bestiary.mixers._mixer import Chosen, Features, State, linear
from bestiary.mixers._softmax import Positions, append_cache, causal_mask, new_positions, split_heads
from bestiary.mixers.latent_attention import LatentAttention
from bestiary.ops.attention import masked_attention, rotate, share
from bestiary.ops.precision import upcast
from bestiary.ops.selection import split_queries, take_entries, top_mask, top_places
from bestiary.spec import Positive

MASKED = 12  # times as many keys as are picked, up to which all of them and a mask are as fast (ours, measured)
PART = 64  # queries whose scores are computed together, so that they stay in the cache of a CPU (ours, measured)


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
        if x.shape[1] == 1 or kept.latent.shape[1] > MASKED * self.top:
            return self.read(self.attend_chosen(x, where, kept)) if x.numel() else x.clone()
        scores, seen = self.scores(x, where, kept.index_keys), causal_mask(where, kept.latent.shape[1])
        fixed = scores.detach()
        seen = top_mask(fixed.masked_fill(~seen, -torch.inf), self.top) & seen
        k, v = (share(z, self.heads) for z in self.keys_values(kept))
        return self.read(masked_attention(self.queries(x, where), k, v, seen, scores - fixed))

    def attend_chosen(self, x: Chosen, where: Positions, kept: Any) -> Float[Tensor, "batch heads asked latent"]:
        """What the masked form gives, from the entries of the chosen tokens alone."""
        index, weight = self.index_queries(x, where)
        there = self.choose(index.detach(), weight.detach(), where, kept.index_keys.detach())
        scores = score(index, weight, take_entries(kept.index_keys, there))
        latent = take_entries(kept.latent, there)
        k, q = torch.cat([latent, take_entries(kept.turned, there)], dim=-1), self.queries(x, where).transpose(1, 2)
        logits = (q * q.shape[-1] ** -0.5) @ k.mT + (scores - scores.detach())
        weights = upcast(logits).masked_fill(there.unsqueeze(2) < 0, -torch.inf).softmax(-1)
        return (weights.to(latent.dtype) @ latent).transpose(1, 2)

    def choose(
        self, q: Tensor, weight: Tensor, where: Positions, marks: Float[Tensor, "batch time index"]
    ) -> Int[Tensor, "batch asked top"]:
        """The positions of the tokens that each query reads, -1 for none."""
        chosen = []
        for part, time in split_queries(where, marks.shape[1], PART):
            place = where[..., part].unsqueeze(-1)
            scores = score(q[:, part], weight[:, part], marks[:, None, :time]).squeeze(2)
            later = torch.arange(time, device=q.device) > place
            chosen.append(top_places(scores.masked_fill(later, -torch.inf), self.top))
        return torch.cat(chosen, dim=1)

    def scores(
        self, x: Chosen, where: Positions, marks: Float[Tensor, "batch time index"]
    ) -> Float[Tensor, "batch 1 asked time"]:
        """What the indexer thinks of each token, for each query."""
        return score(*self.index_queries(x, where), marks.unsqueeze(1)).transpose(1, 2)

    def index_queries(
        self, x: Chosen, where: Positions
    ) -> tuple[Float[Tensor, "batch asked heads index"], Float[Tensor, "batch asked 1 heads"]]:
        """The queries of the indexer, and what each of its heads counts."""
        q = self.rotate_part(split_heads(self.index_q(self.low(x).detach()), self.index_heads), where)
        weight = self.index_weight(x.detach()).unsqueeze(2) * self.index_heads**-0.5
        return (q * q.shape[-1] ** -0.5).transpose(1, 2), weight

    def rotate_part(self, x: Float[Tensor, "batch heads _ index"], where: Positions) -> Tensor:
        """x with as many channels rotated as rotary keys have."""
        return torch.cat([rotate(x[..., : self.rotary], where), x[..., self.rotary :]], dim=-1)


def score(
    q: Float[Tensor, "batch asked heads index"],
    weight: Float[Tensor, "batch asked 1 heads"],
    marks: Float[Tensor, "batch _ keys index"],
) -> Float[Tensor, "batch asked 1 keys"]:
    """sum_h weight_h ReLU(q_h . mark), of marks for each query or for all."""
    if marks.shape[1] > 1:
        return weight @ (q @ marks.mT).relu()
    together = q.flatten(1, 2) @ marks.squeeze(1).mT  # one product of matrices for all queries
    return weight @ together.unflatten(1, q.shape[1:3]).relu()
