"""What attention-like mixers share: a cache with an entry for every position, and softmax over chosen ones.

In every tensor of a cache, time is the second axis from the right, so one rule extends them all. Queries are at
explicit positions `where`, the same for all sequences or different ones.
"""

from abc import abstractmethod
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bestiary.mixers._mixer import Chosen, Features, Mixer, State, Where, head_width, linear, take
from bestiary.ops.attention import rotate
from bestiary.ops.growth import append

Positions = Int[Tensor, " asked"] | Int[Tensor, "batch asked"]
Cache = TypeVar("Cache", bound=tuple[Tensor, ...])


class CachedAttention(Mixer):
    """A mixer that keeps an entry for every position and attends to all of them."""

    @abstractmethod
    def update_cache(self, x: Features, state: State) -> Any:
        """The cache after reading x: a tuple of tensors, the first of which has an entry for every position."""

    @abstractmethod
    def attend(self, x: Chosen, where: Positions, kept: Any) -> Chosen:
        """Outputs for the inputs x at the positions `where`: with one axis, the last ones of those kept."""

    def forward(self, x: Features, state: State = None) -> tuple[Features, State]:
        kept = self.update_cache(x, state)
        end = kept[0].shape[-2]
        return self.attend(x, torch.arange(end - x.shape[1], end, device=x.device), kept), kept

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        places = torch.arange(x.shape[1], device=x.device) if where is None else where
        return self.attend(take(x, where), places, self.update_cache(x, None))


class MultiHeadAttention(CachedAttention):
    """Keys and values of several heads are kept; weights are drawn N(0, 0.02)."""

    class Memory(NamedTuple):
        """Keys and values of all positions so far."""

        k: Float[Tensor, "batch heads past key"]
        v: Float[Tensor, "batch heads past key"]

    def __init__(self, dim: int, heads: int, *, rotary: bool) -> None:
        super().__init__()
        if head_width(dim, heads) % 2 and rotary:
            raise ValueError(f"rotary positions need an even head width, {dim} / {heads} is odd")
        self.heads, self.rotary = heads, rotary
        self.q, self.k, self.v, self.out = (linear(dim, dim) for _ in range(4))

    def update_cache(self, x: Features, state: State) -> Any:
        k, v = split_heads(self.k(x), self.heads), split_heads(self.v(x), self.heads)
        return append_cache(state, self.Memory(rotate(k, new_positions(x, state)) if self.rotary else k, v))

    def queries(self, x: Chosen, where: Positions) -> Float[Tensor, "batch heads asked key"]:
        """The queries of each head, rotated to their positions where positions are rotary."""
        q = split_heads(self.q(x), self.heads)
        return rotate(q, where) if self.rotary else q


def new_positions(x: Features, state: State) -> Int[Tensor, " time"]:
    """The positions of inputs that come after a state."""
    start = 0 if state is None else state[0].shape[-2]
    return torch.arange(start, start + x.shape[1], device=x.device)


def append_cache(old: Cache | None, new: Cache) -> Cache:
    """The old entries, then the new."""
    return new if old is None else type(new)(*map(append, old, new))


def split_heads(x: Chosen, heads: int) -> Float[Tensor, "batch heads _ key"]:
    """(batch, time, heads * key) to (batch, heads, time, key)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(y: Float[Tensor, "batch heads asked value"]) -> Float[Tensor, "batch asked dim"]:
    """(batch, heads, time, value) to (batch, time, heads * value)."""
    return y.transpose(1, 2).flatten(2)


def unless_last(where: Positions) -> Positions | None:
    """The positions of queries for `bestiary.ops.attention.attend`, where None means the last ones."""
    return None if where.ndim == 1 else where


def query_column(where: Positions) -> Int[Tensor, "*batch asked 1"]:
    """Positions of queries, to be compared with those of keys beside it; with an axis for heads if rows differ."""
    return where.unsqueeze(-1) if where.ndim == 1 else where.unsqueeze(-1).unsqueeze(1)


def causal_mask(where: Positions, count: int) -> Bool[Tensor, "*batch asked keys"]:
    """Which of `count` positions each query may read: its own and all before."""
    return torch.arange(count, device=where.device) <= query_column(where)


def gather_positions(
    x: Float[Tensor, "batch heads time width"], where: Positions
) -> Float[Tensor, "batch heads asked width"]:
    """The entries of x at the positions `where`."""
    if where.ndim == 1:
        return x[:, :, where]
    return x.gather(2, where[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1]))


def hash_numbers(seed: int, *keys: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Random numbers below 2^32 that depend on the keys alone, and so not on where a sequence is cut."""
    mask = 2**32 - 1
    x = torch.zeros_like(keys[0]) + (seed & mask)
    for key in keys:
        x = ((x ^ key) + 0x9E3779B9) & mask
        for factor in (0x21F0AAAD, 0x2C1B3C6D):  # odd and below 2^31, so no product exceeds 64 bits
            x = ((x ^ (x >> 16)) * factor) & mask
        x = x ^ (x >> 15)
    return x


def find_repeats(ids: Int[Tensor, "batch time"]) -> Bool[Tensor, "batch time"]:
    """Which numbers occurred earlier in their row: in a stable order, those equal to the one before them."""
    ordered, place = ids.sort(dim=1, stable=True)
    again = torch.cat([torch.zeros_like(ordered[:, :1], dtype=torch.bool), ordered[:, 1:] == ordered[:, :-1]], dim=1)
    return torch.zeros_like(again).scatter(1, place, again)


def fingerprints(x: Float[Tensor, "batch time dim"]) -> Int[Tensor, "batch time"]:
    """A number for each vector, the same for the same bits on any machine, since integer sums do not round."""
    bits = (x.detach() + 0.0).contiguous().view(torch.int16).long()
    return (bits * (2 * hash_numbers(0, torch.arange(bits.shape[-1], device=x.device)) + 1)).sum(-1)
