"""Attention whose keys every later token reflects (PaTH), in blocks of tokens.

    logit_ij = q_i^T H_i H_{i-1} ... H_{j+1} k_j,   H_t = I - b_t w_t w_t^T

Within a block all products of reflections come from one triangular system: with U the rows w_t^T H_{t-1} ... H_1,
(I + A) U = W, A_tr = b_r w_t . w_r for r < t, and H_i ... H_1 = I - sum_{t<=i} b_t w_t U_t. So a block has queries that
read the keys before it, logits among its own tokens, its own keys moved to its end, and one matrix, its `turn`, that
moves every earlier key across it. From block to block only keys are moved: two products of matrices over the past, and
no matrix of all tokens by all tokens is kept, since segments of blocks are computed again for their gradient.

For decoding, keys stay where they are for up to BLOCK tokens. Meanwhile the query is turned back to them, so each
token reads them once and writes none of them.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bestiary.ops.backend import under_transform
from bestiary.ops.precision import upcast, without_autocast

BLOCK = 64  # tokens
SEGMENT = 8  # blocks whose logits are kept together for the gradient (ours, measured)

Heads = Float[Tensor, "batch heads time key"]


class Keys(NamedTuple):
    """Keys in float32 at least: earlier ones as of some past token, and those of the tokens since, as of now."""

    past: Float[Tensor, "batch heads past key"]
    recent: Float[Tensor, "batch heads recent key"]
    turn: Float[Tensor, "batch heads key key"]  # the product of the reflections since


class Block(NamedTuple):
    """What the reflections within each block make of its queries and keys; the axis after heads counts blocks."""

    q: Tensor  # reads keys as of the start of the block
    logits: Tensor  # of the block's own tokens, minus infinity for later ones
    k: Tensor  # as of the end of the block
    turn: Tensor


def no_keys(like: Float[Tensor, "batch time dim"], heads: int, key: int) -> Keys:
    """The keys before the first token."""
    none = upcast(like.new_zeros(len(like), heads, 0, key))
    return Keys(none, none, identity(none))


def identity(keys: Heads) -> Float[Tensor, "batch heads key key"]:
    """The product of no reflections."""
    one = torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
    return one.expand(*keys.shape[:2], -1, -1)


def move(keys: Keys) -> Heads:
    """All keys as of now."""
    return torch.cat([keys.past @ keys.turn.mT, keys.recent], dim=2)


@without_autocast
def step(
    q: Heads, k: Heads, w: Heads, beta: Float[Tensor, "batch heads 1 1"], keys: Keys
) -> tuple[Float[Tensor, "batch heads 1 keys"], Keys]:
    """The logits of one token for all keys up to its own, and the keys after it."""
    q, k, w, beta = (upcast(x) for x in (q, k, w, beta))
    turn = keys.turn - beta * w.mT * (w @ keys.turn)
    recent = torch.cat([keys.recent - beta * (keys.recent @ w.mT) * w, k], dim=2)
    logits = torch.cat([(q @ turn) @ keys.past.mT, q @ recent.mT], dim=-1)
    after = Keys(keys.past, recent, turn)
    if recent.shape[2] == BLOCK:
        after = Keys(move(after), recent[:, :, :0], identity(recent))
    return logits, after


@without_autocast
def attend(
    q: Heads,
    k: Heads,
    v: Float[Tensor, "batch heads all value"],
    w: Heads,
    beta: Float[Tensor, "batch heads time 1"],
    keys: Keys,
) -> tuple[Float[Tensor, "batch heads time value"], Keys]:
    """Softmax attention from each of the last `time` tokens to all up to its own, and the keys after the last.

    `v` holds the values of the tokens before, too.
    """
    given, time, kept = v.dtype, q.shape[2], move(keys)
    q, k, w, beta, v = (upcast(x) for x in (q, k, w, beta, v))
    whole = solve_blocks(*(split_blocks(x) for x in (q, k, w, beta)))
    count = whole.q.shape[2]
    again = torch.is_grad_enabled() and count > SEGMENT and not (under_transform() or q.is_meta)
    outputs = []
    for start in range(0, count, SEGMENT):
        part = Block(*(x[:, :, start : start + SEGMENT] for x in whole))
        y, kept = (
            checkpoint(attend_segment, part, v, kept, use_reentrant=False, preserve_rng_state=False)
            if again
            else attend_segment(part, v, kept)
        )
        outputs.append(y)
    kept = kept[:, :, : v.shape[2]]
    return torch.cat(outputs, dim=2)[:, :, :time].to(given), Keys(kept, kept[:, :, :0], identity(kept))


def attend_segment(part: Block, v: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs of some blocks, given the values and the keys before them, and the keys after them."""
    outputs = []
    for q, logits, k, turn in zip(*(x.unbind(2) for x in part), strict=True):
        weights = torch.cat([q @ kept.mT, logits], dim=-1) if kept.shape[2] else logits
        seen = v[:, :, : weights.shape[-1]]
        outputs.append(weights.softmax(-1)[..., : seen.shape[2]] @ seen)
        kept = torch.cat([kept @ turn.mT, k], dim=2)
    return torch.cat(outputs, dim=2), kept


def split_blocks(x: Heads) -> Float[Tensor, "batch heads blocks size key"]:
    """Blocks of at most BLOCK tokens, the last filled up with zeros, which reflect nothing."""
    size = min(BLOCK, x.shape[2])
    return F.pad(x, (0, 0, 0, -x.shape[2] % size)).unflatten(2, (-1, size))


def solve_blocks(q: Tensor, k: Tensor, w: Tensor, beta: Tensor) -> Block:
    """What the reflections within each block do, with queries scaled by 1 / sqrt(key)."""
    q, pull = q * q.shape[-1] ** -0.5, beta * w
    turned, crossed = solve_reflections(w, pull, w, within(w, k, -1)).split([w.shape[-1], w.shape[-2]], dim=-1)
    echo, one = within(q, pull), torch.eye(w.shape[-1], dtype=q.dtype, device=q.device)
    return Block(q - echo @ turned, mask(q @ k.mT - echo @ crossed), k - crossed.mT @ pull, one - pull.mT @ turned)


@without_autocast
def block_logits(
    q: Heads, k: Heads, w: Heads, beta: Float[Tensor, "batch heads time 1"]
) -> Float[Tensor, "batch heads time time"]:
    """The logits of a sequence, divided by sqrt(key), as one block; minus infinity for later tokens."""
    given = q.dtype
    q, k, w, beta = (upcast(x) for x in (q * q.shape[-1] ** -0.5, k, w, beta))
    crossed = solve_reflections(w, beta * w, within(w, k, -1))
    return mask(q @ k.mT - within(q, beta * w) @ crossed).to(given)


def solve_reflections(w: Tensor, pull: Tensor, *known: Tensor) -> Tensor:
    """U of (I + A) U = known, side by side."""
    return torch.linalg.solve_triangular(within(w, pull, -1), torch.cat(known, -1), upper=False, unitriangular=True)


def within(x: Tensor, y: Tensor, reach: int = 0) -> Tensor:
    """x_i . y_j for j <= i + reach, zero elsewhere."""
    return (x @ y.mT).tril(reach)


def mask(logits: Tensor) -> Tensor:
    """The logits, minus infinity for later tokens."""
    seen = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    return logits.masked_fill(~seen, -torch.inf)
