"""Forgetting attention, FoX (Lin, Nikishin, He & Courville, 2025): softmax attention with a forget gate in its logits.

    f_t = sigmoid(w x_t + b) per head
    y_i = W_o sum_j softmax_j(q_i . k_j / sqrt(key) + log f_{j+1} + ... + log f_i) v_j

The gates take the place of positions. The first token's gate closes on nothing and is not kept. Weights are drawn
N(0, 0.02), b is zero, so that every gate starts near one half: the authors' code.
Departs from the paper: this is its layer in the plain (LLaMA) block; output gate and norm, query-key norm and the
shift of keys and values of its Pro block are left out.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, State, linear
from bestiary.mixers._softmax import (
    MultiHeadAttention,
    Positions,
    append_cache,
    causal_mask,
    gather_positions,
    merge_heads,
    split_heads,
)
from bestiary.ops.attention import masked_attention
from bestiary.ops.precision import exact, upcast
from bestiary.spec import Positive


class ForgettingAttention(MultiHeadAttention):
    """y_i = sum_j softmax_j(q_i . k_j / sqrt(key) + sum_{j<l<=i} log f_l) v_j."""

    family: ClassVar = "softmax"
    variants: ClassVar = ("heads=4",)

    class Gated(NamedTuple):
        """Keys, values and forget gates of all positions so far."""

        k: Float[Tensor, "batch heads past key"]
        v: Float[Tensor, "batch heads past key"]
        gates: Float[Tensor, "batch heads later 1"]  # log f of all positions but the first

    def __init__(self, dim: int, *, heads: Positive = 2) -> None:
        super().__init__(dim, heads, rotary=False)
        self.gate = linear(dim, heads, bias=True)

    def update_cache(self, x: Features, state: State) -> Any:
        k, v = split_heads(self.k(x), self.heads), split_heads(self.v(x), self.heads)
        gates = F.logsigmoid(upcast(split_heads(self.gate(x), self.heads)))
        return append_cache(state, self.Gated(k, v, gates[:, :, 1:] if state is None else gates))

    def attend(self, x: Chosen, where: Positions, kept: Any) -> Chosen:
        k, v, gates = kept
        total = F.pad(exact(gates).cumsum(2), (0, 0, 1, 0))
        bias = differences(gather_positions(total, where), total, gates.dtype)
        return self.out(
            merge_heads(masked_attention(self.queries(x, where), k, v, causal_mask(where, k.shape[2]), bias))
        )


def differences(
    x: Float[Tensor, "batch heads asked 1"],
    y: Float[Tensor, "batch heads time 1"],
    kind: torch.dtype,
    *,
    size: int = 32,
) -> Float[Tensor, "batch heads asked time"]:
    """x_i - y_j of large numbers, rounded to another type only once they are small.

    Each is subtracted from the first y of a block of so many, so that the large table is made in that type.
    """
    blocks = F.pad(y, (0, 0, 0, -y.shape[2] % size)).squeeze(-1).unflatten(2, (-1, size))
    first = blocks[..., :1]
    far, near = (x - first.mT).to(kind), (blocks - first).to(kind)
    return (far.unsqueeze(-1) - near.unsqueeze(2)).flatten(3)[..., : y.shape[2]]
