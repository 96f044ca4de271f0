"""Native sparse attention, NSA (Yuan et al., 2025): compressed blocks, the best blocks in full, and a window, gated.

    y_i = W_o sum_c g_ic Attention(q_i, K_c, V_c),   g_i = sigmoid(W_g x_i), per head and branch c
    compressed: k_b, v_b = MLP(the keys, values of block b), for blocks that are complete; p_ib its softmax weights
    selected:   all tokens j <= i of the `selected` blocks with the highest p_ib summed over the heads of a group,
                the first block, the own and the one before among them always
    window:     the last `window` tokens

Each branch has its own keys and values, shared by the heads of a group. The MLP reads a block's concatenated keys, so
its first bias is what an encoding of places in the block would add. Linear maps are drawn N(0, 0.02), the MLPs as
PyTorch does, as the paper does not say; positions are rotary but for the compressed branch, whose keys
stand for many. A branch without anything to read yet gives zero.
Departs from the paper: compression blocks do not overlap and are the blocks of the selection; 16 tokens each, 4 of them
selected, a window of 32, for shorter sequences; gates are linear in x instead of an MLP.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, State, head_width, linear
from bestiary.mixers._softmax import (
    CachedAttention,
    Positions,
    append_cache,
    merge_heads,
    new_positions,
    query_column,
    split_heads,
)
from bestiary.mixers.attention import LONG
from bestiary.ops.attention import attend, rotate, sliding_window
from bestiary.ops.growth import append
from bestiary.ops.selection import attend_to_blocks, split_queries, top_places
from bestiary.spec import Positive

Queries = Float[Tensor, "batch heads asked key"]


class NSA(CachedAttention):
    """y_i = g_i1 attention to compressed blocks + g_i2 attention to selected blocks + g_i3 attention to a window."""

    family: ClassVar = "sparse"
    variants: ClassVar = ("heads=4, groups=2, block=4, window=5",)

    class Memory(NamedTuple):
        """Axis 1 holds keys and values."""

        all: Float[Tensor, "batch 2 groups past key"]
        near: Float[Tensor, "batch 2 groups window key"]
        block: Float[Tensor, "batch 2 groups open key"]  # the present one, as long as it is not complete
        blocks: Float[Tensor, "batch 2 groups blocks key"]  # compressed

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        groups: Positive = 1,
        block: Positive = 16,
        selected: Positive = 4,
        window: Positive = 32,
    ) -> None:
        super().__init__()
        key = head_width(dim, heads)
        if key % 2:
            raise ValueError(f"rotary positions need an even head width, {dim} / {heads} is odd")
        if heads % groups:
            raise ValueError(f"{groups} groups do not divide {heads} heads")
        if selected < 3:
            raise ValueError(f"the first block, the own and the one before are selected always, {selected} are too few")
        self.heads, self.groups, self.block, self.selected, self.window = heads, groups, block, selected, window
        self.q, self.kv, self.out = linear(dim, dim), linear(dim, 6 * groups * key), linear(dim, dim)
        self.gate = linear(dim, 3 * heads)
        self.compress = nn.ModuleList(
            nn.Sequential(nn.Linear(block * key, key), nn.ReLU(), nn.Linear(key, key)) for _ in range(2)
        )

    def forward(self, x: Features, state: State = None) -> tuple[Features, State]:
        y, kept = super().forward(x, state)
        return y, kept._replace(near=kept.near[..., max(0, kept.near.shape[-2] - self.window + 1) :, :])

    def largest_state(self, time: int) -> int:
        return (
            time // self.block * self.block - 1 if time >= self.block > 1 else time
        )  # just before a block is complete

    def update_cache(self, x: Features, state: State) -> Any:
        branches, place = (
            self.kv(x).unflatten(-1, (3, 2, self.groups, -1)).movedim(1, -2).unbind(1),
            new_positions(x, state),
        )
        new, near = (torch.stack([rotate(z[:, 0], place), z[:, 1]], dim=1) for z in branches[:2])
        kept = append_cache(state, self.Memory(new, near, branches[2], branches[2][..., :0, :]))
        whole = kept.block.shape[-2] // self.block
        done, rest = kept.block.tensor_split([whole * self.block], dim=-2)
        done = done.unflatten(-2, (whole, self.block)).flatten(-2).unbind(1)
        blocks = torch.stack([press(z) for press, z in zip(self.compress, done, strict=True)], dim=1)
        return kept._replace(block=rest, blocks=append(kept.blocks, blocks) if whole else kept.blocks)

    def attend(self, x: Chosen, where: Positions, kept: Any) -> Chosen:
        q = split_heads(self.q(x), self.heads)
        turned, (coarse, blocks) = rotate(q, where), self.attend_compressed(q, where, kept)
        fine = attend_to_blocks(turned, kept.all[:, 0], kept.all[:, 1], blocks, where, size=self.block)
        near = self.attend_window(turned, where, kept)
        one, two, three = self.gate(x).sigmoid().unflatten(-1, (3, self.heads, 1)).transpose(1, 3).unbind(2)
        return self.out(merge_heads(one * coarse + two * fine + three * near))

    def attend_window(self, q: Queries, where: Positions, kept: Any) -> Queries:
        """Attention to the last `window` tokens."""
        k, v = self.keys_values(kept.near)
        before = k.shape[2] - q.shape[2]
        if where.ndim == 1 and q.shape[2] >= LONG * self.window:  # with idle queries for the keys before
            return sliding_window(F.pad(q, (0, 0, before, 0)), k, v, window=self.window)[:, :, before:]
        return attend(q, k, v, where - kept.all.shape[-2] + k.shape[2], window=self.window)

    def attend_compressed(
        self, q: Queries, where: Positions, kept: Any
    ) -> tuple[Queries, Int[Tensor, "batch groups asked chosen"]]:
        """Attention to compressed blocks, and the numbers of those that each query reads in full."""
        outputs, chosen, (k, v) = [], [], self.keys_values(kept.blocks)
        ends = self.block * torch.arange(1, k.shape[2] + 1, device=q.device) - 1
        for part, time in split_queries(where, kept.all.shape[-2]):
            done, place = time // self.block, query_column(where[..., part])
            scores = (q[:, :, part] * q.shape[-1] ** -0.5) @ k[:, :, :done].mT
            weights = scores.masked_fill(ends[:done] > place, torch.finfo(q.dtype).min).softmax(-1)
            outputs.append(weights @ v[:, :, :done] * (place >= self.block - 1))
            chosen.append(self.choose_blocks(weights.detach().unflatten(1, (self.groups, -1)).sum(2), place))
        return torch.cat(outputs, dim=2), torch.cat(chosen, dim=2)

    def choose_blocks(
        self, value: Float[Tensor, "batch groups asked complete"], place: Int[Tensor, "*batch asked 1"]
    ) -> Int[Tensor, "batch groups asked chosen"]:
        """The first block, the own, the one before, and the others with the highest values; -1 for none."""
        own, other = place // self.block, torch.arange(value.shape[-1], device=value.device)
        best = top_places(value.masked_fill((other < 1) | (other >= own - 1), -torch.inf), self.selected - 3)
        always = [own.clamp(max=0).masked_fill(own < 1, -1), (own - 1).masked_fill(own < 2, -1), own]
        return torch.cat([torch.cat(always, dim=-1).expand(*value.shape[:-1], 3), best], dim=-1)

    def keys_values(self, kept: Float[Tensor, "batch 2 groups time key"]) -> tuple[Tensor, Tensor]:
        """Keys and values for every head."""
        k, v = kept.repeat_interleave(self.heads // self.groups, dim=2).unbind(1)
        return k, v
