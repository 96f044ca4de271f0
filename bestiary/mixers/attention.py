"""Softmax attention (Vaswani et al., 2017), over the whole past or a sliding window, with or without rotation.

Departs from the paper: no biases, dropout only on the weights and only when asked for. Weights are drawn
N(0, 0.02) as in GPT-2. Positions are rotary (Su et al., 2021) unless switched off; the model may add learned ones.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bestiary.mixers._mixer import Chosen, Features, Mixer, Where, heads_of, linear, take
from bestiary.ops.attention import attend, rotate
from bestiary.spec import Positive


class Attention(Mixer):
    """y_i = sum_j softmax_j(q_i . k_j / sqrt(key)) v_j over the last `window` positions j <= i, or all of them."""

    family: ClassVar = "softmax"
    variants: ClassVar = ("rotary=False", "heads=2, window=5", "heads=4, window=40, rotary=False")

    class Cache(NamedTuple):
        k: Float[Tensor, "batch heads past key"]
        v: Float[Tensor, "batch heads past key"]
        time: int  # positions read so far

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 1,
        window: Positive | None = None,
        rotary: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if rotary and heads_of(dim, heads) % 2:
            raise ValueError(f"rotary positions need an even head width, {dim} / {heads} is odd")
        self.heads, self.window, self.rotary, self.dropout = heads, window, rotary, dropout
        self.q, self.k, self.v = linear(dim, dim), linear(dim, dim), linear(dim, dim)
        self.out = linear(dim, dim)

    def forward(self, x: Features, state: Cache | None = None) -> tuple[Features, Cache]:
        time = state.time if state is not None else 0
        now = torch.arange(time, time + x.shape[1], device=x.device)
        k, v = self.keys(x, now), self.split(self.v(x))
        if state is not None:
            k, v = torch.cat([state.k, k], dim=2), torch.cat([state.v, v], dim=2)
        y = self.attend(x, k, v, now, first=time + x.shape[1] - k.shape[2])
        kept = 0 if self.window is None else max(0, k.shape[2] - self.window + 1)
        return y, self.Cache(k[:, :, kept:], v[:, :, kept:], time + x.shape[1])

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        now = torch.arange(x.shape[1], device=x.device)
        k, v = self.keys(x, now), self.split(self.v(x))
        return self.attend(take(x, where), k, v, now if where is None else where)

    def attend(self, x: Chosen, k: Tensor, v: Tensor, where: Tensor, *, first: int = 0) -> Chosen:
        """Outputs for the inputs x at positions `where`, given keys and values from position `first` on."""
        q = self.split(self.q(x))
        q = rotate(q, where) if self.rotary else q
        dropout = self.dropout if self.training else 0.0
        y = attend(q, k, v, where - first, window=self.window, dropout=dropout)
        return self.out(y.transpose(1, 2).flatten(2))

    def keys(self, x: Features, where: Tensor) -> Tensor:
        k = self.split(self.k(x))
        return rotate(k, where) if self.rotary else k

    def split(self, x: Chosen) -> Float[Tensor, "batch heads _ key"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
