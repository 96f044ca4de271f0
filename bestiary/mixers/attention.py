"""Softmax attention (Vaswani et al., 2017), over the whole past or a sliding window, with or without rotation.

    q, k, v = W x,   y_i = sum_j softmax_j(q_i . k_j / sqrt(key)) v_j,   output = W_o y

Heads are `key` wide, by default so that all of them are as wide as the model. A few narrow heads beside another mixer
in `parallel` are a hybrid by heads.
`kv_heads` keys and values are shared by groups of `heads` queries: 1 is multi-query (Shazeer, 2019), fewer than
`heads` grouped-query attention (Ainslie et al., 2023). Beside a `window` the first `sinks` positions stay visible
(Xiao et al., 2023). Positions are rotary (Su et al., 2021) unless switched off; the model may add learned ones.
Weights, by `init`:

    "gpt2"       N(0, 0.02), no biases
    "zoology23"  biases in all four maps, zero at first; W_o N(0, 0.02 / sqrt(2 layers)), the others N(0, 0.02): the
                 code that made Figure 2 of Zoology (HazyResearch/zoology, 890786b, 25 October 2023), of 2 `layers`

Departs from the paper: no biases by default, dropout only on the weights and only when asked for; sinks keep their
positions, where Xiao et al. count positions within the cache.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bestiary.mixers._mixer import Chosen, Features, Mixer, Where, head_width, linear, take
from bestiary.mixers._start import output_std
from bestiary.ops.attention import attend, rotate, sliding_window
from bestiary.ops.growth import append
from bestiary.spec import Natural, Positive

LONG = 8  # windows, from which on working block by block is faster (ours, measured)


class Attention(Mixer):
    """y_i = sum_j softmax_j(q_i . k_j / sqrt(key)) v_j over the last `window` positions j <= i, or all of them."""

    family: ClassVar = "softmax"
    variants: ClassVar = (
        "heads=4, kv_heads=2, rotary=False",
        "heads=2, window=5",
        "heads=4, window=40, sinks=3",
        "init='zoology23'",
        "heads=3, key=4, window=7",
    )
    later_options: ClassVar = ("init", "layers", "key")

    class Cache(NamedTuple):
        """Keys and values that later positions can see."""

        k: Float[Tensor, "batch heads past key"]
        v: Float[Tensor, "batch heads past key"]
        time: int  # positions read so far

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 1,
        kv_heads: Positive | None = None,
        window: Positive | None = None,
        sinks: Natural = 0,
        rotary: bool = True,
        dropout: float = 0.0,
        init: Literal["gpt2", "zoology23"] = "gpt2",
        layers: Positive = 2,
        key: Positive | None = None,
    ) -> None:
        super().__init__()
        wide = head_width(dim, heads) if key is None else key
        if rotary and wide % 2:
            given = f"{dim} / {heads}" if key is None else f"key={key}"
            raise ValueError(f"rotary positions need an even head width, {given} is odd")
        self.heads, self.kv_heads = heads, heads if kv_heads is None else kv_heads
        if sinks and window is None:
            raise ValueError(f"sinks={sinks} without a window change nothing: every position is visible")
        if layers != 2 and init != "zoology23":
            raise ValueError(f"layers={layers} with init={init!r} changes nothing: it is of init='zoology23'")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: a share of at least 0 and below 1")
        if heads % self.kv_heads:
            raise ValueError(f"{heads} heads cannot be grouped around {kv_heads} heads of keys and values")
        self.window, self.sinks, self.rotary, self.dropout = window, sinks, rotary, dropout
        inner, shared = heads * wide, self.kv_heads * wide
        bias = init == "zoology23"
        self.q, self.k, self.v = (linear(dim, width, bias=bias) for width in (inner, shared, shared))
        self.out = linear(inner, dim, bias=bias, std=output_std(layers) if bias else 0.02)

    def forward(self, x: Features, state: Cache | None = None) -> tuple[Features, Cache]:
        time = state.time if state is not None else 0
        now = torch.arange(time, time + x.shape[1], device=x.device)
        k, v = self.keys(x, now), self.split(self.v(x), self.kv_heads)
        if state is not None:
            join = append if self.window is None else concatenate
            k, v = join(state.k, k), join(state.v, v)
        end, count = time + x.shape[1], k.shape[2]
        if self.window is None:
            return self.attend(x, k, v, now), self.Cache(k, v, end)
        first, at = min(self.sinks, count), torch.arange(count, device=x.device)
        at = torch.where(at < first, at, at + end - count)
        y = self.attend(x, k, v, now, None if state is None else at)
        begin = count - self.window + 1
        k, v = (concatenate(z[:, :, :first], z[:, :, max(first, begin) :]) for z in (k, v))
        return y, self.Cache(k, v, end)

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        now = torch.arange(x.shape[1], device=x.device)
        k, v = self.keys(x, now), self.split(self.v(x), self.kv_heads)
        if where is None or self.works_in_blocks(where.shape[1]):
            return take(self.attend(x, k, v, now), where)
        return self.attend(take(x, where), k, v, where)

    def works_in_blocks(self, asked: int) -> bool:
        """Whether so many outputs come with less work block by block."""
        return self.window is not None and asked >= LONG * self.window

    def attend(self, x: Chosen, k: Tensor, v: Tensor, where: Tensor, at: Tensor | None = None) -> Chosen:
        """Outputs for the inputs x at positions `where`, given keys and values at positions `at`, or at all."""
        q = self.split(self.q(x), self.heads)
        q = rotate(q, where) if self.rotary else q
        dropout = self.dropout if self.training else 0.0
        last = where.ndim == 1 and at is None
        if last and self.window is not None and self.works_in_blocks(len(where)):
            k, v = (z.repeat_interleave(self.heads // self.kv_heads, dim=1) for z in (k, v))
            y = sliding_window(q, k, v, window=self.window, sinks=self.sinks, dropout=dropout)
        else:
            asked = None if last else where
            y = attend(q, k, v, asked, at=at, window=self.window, sinks=self.sinks, dropout=dropout)
        return self.out(y.transpose(1, 2).flatten(2))

    def keys(self, x: Features, where: Tensor) -> Tensor:
        """The keys of the inputs x, which stand at the positions `where`."""
        k = self.split(self.k(x), self.kv_heads)
        return rotate(k, where) if self.rotary else k

    def split(self, x: Chosen, heads: int) -> Float[Tensor, "batch heads _ key"]:
        """(batch, time, heads * key) to (batch, heads, time, key)."""
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def concatenate(old: Tensor, new: Tensor) -> Tensor:
    """The old entries, then the new."""
    return torch.cat([old, new], dim=2)
