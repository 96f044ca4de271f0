"""Softmax attention with a short convolution on its queries, keys or values (Okpekpe & Orvieto, 2025, section 5).

    q = conv_q(W_q x),  k = conv_k(W_k x),  v = conv_v(W_v x),   then `attention` on q, k and v

`q`, `k` and `v` count the taps of each causal convolution per channel; 0 leaves it out. A convolution on keys or values
lets one layer bind a token to the one before it, which attention alone needs two layers for. As in `attention`, weights
are drawn N(0, 0.02) and rotations follow; convolutions are drawn as PyTorch draws a Conv1d.
Departs from the paper: no biases.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._mixer import Chosen, Features, Mixer, Past, ShortConv, Where, head_width, linear, take
from bestiary.mixers._softmax import merge_heads, split_heads
from bestiary.ops.attention import attend, rotate
from bestiary.ops.growth import append
from bestiary.spec import Natural, Positive

Heads = Float[Tensor, "batch heads _ key"]


class ConvAttention(Mixer):
    """y_i = sum_j softmax_j(q_i . k_j / sqrt(key)) v_j, with q, k or v mixed with those of the last few positions."""

    family: ClassVar = "softmax"
    variants: ClassVar = ("heads=2, q=3, k=0, v=2", "heads=4, v=3, rotary=False")

    class Memory(NamedTuple):
        """Keys and values of all positions so far, and what each convolution has read and still needs."""

        k: Heads
        v: Heads
        pasts: tuple[Past, ...]

    def __init__(
        self, dim: int, *, heads: Positive = 1, q: Natural = 0, k: Natural = 3, v: Natural = 0, rotary: bool = True
    ) -> None:
        super().__init__()
        if head_width(dim, heads) % 2 and rotary:
            raise ValueError(f"rotary positions need an even head width, {dim} / {heads} is odd")
        if not (q or k or v):
            raise ValueError("conv_attention without a convolution is attention: let q, k or v be at least 1")
        self.heads, self.rotary = heads, rotary
        self.q, self.k, self.v, self.out = (linear(dim, dim) for _ in range(4))
        taps = {"q": q, "k": k, "v": v}
        self.convs = nn.ModuleDict({name: ShortConv(dim, count) for name, count in taps.items() if count})

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        (q, k, v), pasts = self.streams(x, state)
        if state is not None:
            k, v = append(state.k, k), append(state.v, v)
        now = torch.arange(k.shape[2] - x.shape[1], k.shape[2], device=x.device)
        return self.out(merge_heads(attend(q, k, v, None if state is None else now))), self.Memory(k, v, pasts)

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        (q, k, v), _ = self.streams(x, None)
        q = split_heads(take(merge_heads(q), where), self.heads)
        return self.out(merge_heads(attend(q, k, v, where)))

    def streams(self, x: Features, state: Memory | None) -> tuple[list[Heads], tuple[Past, ...]]:
        """Queries, keys and values of new positions, rotated to them, and what the convolutions still need."""
        before = dict(zip(self.convs, () if state is None else state.pasts, strict=False))
        start = 0 if state is None else state.k.shape[2]
        now, streams, after = torch.arange(start, start + x.shape[1], device=x.device), [], []
        for name, project in (("q", self.q), ("k", self.k), ("v", self.v)):
            y = project(x)
            if name in self.convs:
                y, past = self.convs[name](y, before.get(name))
                after.append(past)
            y = split_heads(y, self.heads)
            streams.append(rotate(y, now) if self.rotary and name != "v" else y)
        return streams, tuple(after)
