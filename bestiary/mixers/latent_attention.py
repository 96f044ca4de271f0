"""Multi-head latent attention (DeepSeek-V2, DeepSeek-AI, 2024, section 2.1): keys and values grow from a small latent.

    c_t = RMSNorm(W_down x_t),   r_t = rotate(W_r x_t)   are all that is kept of a token, for all heads together
    k_t, v_t = W_up c_t per head,   q_t, p_t = W_q x_t per head,   p_t rotated
    y_i = W_o sum_j softmax_j((q_i . k_j + p_i . r_j) / sqrt(key + rotary)) v_j

W_up is absorbed: q_i . W_k c_j = (W_k^T q_i) . c_j, and sum_j w_j W_v c_j = W_v sum_j w_j c_j, so that attention reads
the latents themselves, in training too. With `queries`, W_q x is W_q' RMSNorm(W_low x) of that rank. Proportions are
those of DeepSeek-V2-Lite: a latent of a quarter of the width, rotary keys half as wide as a head, queries not
compressed. Weights are drawn N(0, 0.02) as in the authors' code; the paper's own runs used 0.006.
Departs from the paper: heads share the width of the model, where the largest DeepSeek models have wider ones.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._mixer import Chosen, Features, State, check_rank, head_width, linear
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
from bestiary.ops.precision import upcast
from bestiary.spec import Positive


class LatentAttention(CachedAttention):
    """y_i = sum_j softmax_j(q_i . W_k c_j + p_i . r_j) W_v c_j, keeping the latent c_j and one rotary key r_j."""

    family: ClassVar = "softmax"
    variants: ClassVar = ("heads=4, latent=12, queries=20",)

    class Memory(NamedTuple):
        """Latents and rotary keys of all positions so far."""

        latent: Float[Tensor, "batch past latent"]
        turned: Float[Tensor, "batch past rotary"]

    def __init__(
        self, dim: int, *, heads: Positive = 2, latent: Positive | None = None, queries: Positive | None = None
    ) -> None:
        super().__init__()
        self.heads, self.head = heads, head_width(dim, heads)
        self.rotary, latent = 2 * max(1, self.head // 4), max(1, dim // 4) if latent is None else latent
        check_rank(dim, max(latent, queries or 0))
        self.down, self.norm, self.turn = linear(dim, latent), RMSNorm(latent, eps=1e-6), linear(dim, self.rotary)
        self.up = linear(latent, heads * 2 * self.head)
        self.low = nn.Sequential()
        if queries is not None:
            self.low.extend([linear(dim, queries), RMSNorm(queries, eps=1e-6)])
        self.q = linear(queries or dim, heads * (self.head + self.rotary))
        self.out = linear(dim, dim)

    def update_cache(self, x: Features, state: State) -> Any:
        return append_cache(state, self.Memory(*self.entries(x, state)))

    def entries(self, x: Features, state: State) -> tuple[Tensor, Tensor]:
        """What is kept of each input: its latent and its rotary key."""
        turned = rotate(self.turn(x).unsqueeze(1), new_positions(x, state)).squeeze(1)
        return self.norm(self.down(x)), turned

    def attend(self, x: Chosen, where: Positions, kept: Any) -> Chosen:
        q, last = self.queries(x, where), unless_last(where)
        once = last is None and x.shape[1] == 1
        return self.read(self.attend_once(q, kept) if once else attend(q, *self.keys_values(kept), last))

    def attend_once(self, q: Float[Tensor, "batch heads 1 inner"], kept: Any) -> Float[Tensor, "batch heads 1 latent"]:
        """What the newest token reads, without joining latents and rotary keys."""
        plain, turned = (q.squeeze(2) * q.shape[-1] ** -0.5).split([kept.latent.shape[-1], self.rotary], dim=-1)
        weights = upcast(plain @ kept.latent.mT + turned @ kept.turned.mT).softmax(-1).to(q.dtype)
        return (weights @ kept.latent).unsqueeze(2)

    def queries(self, x: Chosen, where: Positions) -> Float[Tensor, "batch heads asked inner"]:
        """Queries to latents and rotary keys, such that division by the root of their width is the paper's scale."""
        plain, turned = split_heads(self.q(self.low(x)), self.heads).split([self.head, self.rotary], dim=-1)
        q = torch.cat([plain @ self.key_value_maps()[0], rotate(turned, where)], dim=-1)
        return q * (q.shape[-1] / (self.head + self.rotary)) ** 0.5

    def keys_values(self, kept: Any) -> tuple[Tensor, Tensor]:
        """Keys and values, which all heads share."""
        return torch.cat([kept.latent, kept.turned], dim=-1).unsqueeze(1), kept.latent.unsqueeze(1)

    def read(self, y: Float[Tensor, "batch heads asked latent"]) -> Chosen:
        """The output from what was read out of memory."""
        return self.out(merge_heads(y @ self.key_value_maps()[1].mT))

    def key_value_maps(self) -> tuple[Float[Tensor, "heads head latent"], Float[Tensor, "heads head latent"]]:
        """W_up as the maps from latents to keys and to values."""
        k, v = self.up.weight.unflatten(0, (self.heads, 2, self.head)).unbind(1)
        return k, v
