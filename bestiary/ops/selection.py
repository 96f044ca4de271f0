"""Softmax attention in which each query reads a few blocks of keys, in a time that does not depend on the other blocks.

`attend_to_blocks` is given the blocks of each query. Gathering their keys for each query would move `size` keys and
values for one query, so pairs of a query and a block are sorted by block instead, and cut into tiles of TILE queries of
one block each. A tile is two small products of matrices: logits, which go back to their queries for a softmax over all
their blocks, and weighted values, which are summed there. The number of tiles is bounded by that of pairs and blocks,
so all shapes are known beforehand. A single query, as in decoding, gathers its keys; short sequences are masked.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from bestiary.ops.attention import masked_attention, share
from bestiary.ops.backend import shows_numbers

MASKED = 6  # times as many keys as are selected, up to which all keys and a mask are as fast (ours, measured)
FEW = 8  # places that are found one after the other (ours, measured)
TILE = 16  # queries (ours, measured)
PART = 256  # queries for which blocks are chosen together, so that their scores stay in the cache of a CPU

Positions = Int[Tensor, " asked"] | Int[Tensor, "batch asked"]


def split_queries(where: Positions, time: int, size: int = PART) -> list[tuple[slice, int]]:
    """Parts of the queries, and for each how many keys it can see at most; with one axis, `where` are the last ones."""
    if where.ndim == 2:
        return [(slice(None), time)]
    begin = time - len(where)
    return [(slice(i, i + size), min(time, begin + i + size)) for i in range(0, len(where), size)]


def top_places(scores: Float[Tensor, "*rows options"], count: int) -> Int[Tensor, "*rows _"]:
    """Where the `count` highest scores of each row are, of equal ones the later; -1 for those of minus infinity."""
    few = min(count, scores.shape[-1])
    places, found = (find_in_turn if few <= FEW else find_at_once)(scores, few)
    return F.pad(places.masked_fill(found == -torch.inf, -1), (0, count - few), value=-1)


def find_in_turn(scores: Tensor, count: int) -> tuple[Int[Tensor, "*rows count"], Float[Tensor, "*rows count"]]:
    """The places of the highest scores, and the scores, from the highest to lower ones."""
    number = torch.arange(scores.shape[-1], device=scores.device, dtype=torch.float32)  # exact below 2^24
    places, found = [], []
    for _ in range(count):
        scores = scores.masked_fill(number == places[-1], -torch.inf) if places else scores
        found.append(scores.amax(-1, keepdim=True))
        places.append(torch.where(scores == found[-1], number, -1.0).amax(-1, keepdim=True))
    none = scores[..., :0]
    return torch.cat([none, *places], dim=-1).long(), torch.cat([none, *found], dim=-1)


def find_at_once(scores: Tensor, count: int) -> tuple[Int[Tensor, "*rows count"], Float[Tensor, "*rows count"]]:
    """The same for many, in any order."""
    found, places = scores.topk(count)
    last = found[..., -1:]
    tied = (scores == last).sum(-1, keepdim=True) > (found == last).sum(
        -1, keepdim=True
    )  # with some that are not found
    if shows_numbers(tied):
        some = (tied & (last > -torch.inf)).squeeze(-1).nonzero(as_tuple=True)
        return places.index_put(some, find_latest(scores[some], count)), found
    places = find_latest(scores, count)
    return places, scores.gather(-1, places)


def find_latest(scores: Tensor, count: int) -> Int[Tensor, "*rows count"]:
    """The places of the highest scores from left to right, of equal ones the later."""
    return (top_mask(scores, count) * torch.arange(scores.shape[-1], 0, -1, device=scores.device)).topk(count).indices


def top_mask(scores: Tensor, count: int) -> Bool[Tensor, "*rows options"]:
    """Where the `count` >= 1 highest scores of each row are; of equal scores, the later win."""
    last = scores.topk(min(count, scores.shape[-1]), dim=-1).values[..., -1:]
    above, level = scores > last, scores == last
    later = level.flip(-1).cumsum(-1).flip(-1)  # how many equals from here on
    return above | (level & (later <= count - above.sum(-1, keepdim=True)))


def attend_to_blocks(
    q: Float[Tensor, "batch heads asked key"],
    k: Float[Tensor, "batch groups time key"],
    v: Float[Tensor, "batch groups time value"],
    blocks: Int[Tensor, "batch groups asked chosen"],
    where: Positions,
    *,
    size: int,
) -> Float[Tensor, "batch heads asked value"]:
    """Attend from queries at the positions `where` to the tokens up to there in the given blocks of `size` tokens.

    No block may be given twice. Those that begin later are passed over, and so are negative ones; at least one has to
    begin earlier. Each group of heads shares keys, values and blocks.
    """
    place = where.unsqueeze(-1) if where.ndim == 1 else where[:, None, :, None]
    blocks = blocks.masked_fill(blocks > place // size, -1)
    if q.shape[2] != 1 and (k.shape[2] <= MASKED * blocks.shape[-1] * size or q.numel() == 0):
        return attend_masked(q, k, v, blocks, place, size)
    grouped = (q * q.shape[-1] ** -0.5).unflatten(1, (k.shape[1], -1)).transpose(2, 3)  # batch groups asked heads key
    at = blocks.unsqueeze(-1) * size + torch.arange(size, device=q.device)
    seen = ((at >= 0) & (at <= place.unsqueeze(-1))).unsqueeze(3)  # batch groups asked 1 chosen size
    y = gather_once(grouped, k, v, at, seen) if q.shape[2] == 1 else attend_in_tiles(grouped, k, v, blocks, seen)
    return y.transpose(2, 3).flatten(1, 2)


def attend_masked(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, place: Tensor, size: int) -> Tensor:
    """`attend_to_blocks`, all keys with a mask."""
    count, at = -(-k.shape[2] // size), torch.arange(k.shape[2], device=q.device)
    chosen = torch.zeros(*blocks.shape[:-1], count + 1, dtype=torch.bool, device=q.device)
    chosen = chosen.scatter(-1, blocks.masked_fill(blocks < 0, count), torch.ones_like(blocks, dtype=torch.bool))
    seen = chosen[..., at // size] & (at <= place)
    k, v, seen = (share(x, q.shape[1]) for x in (k, v, seen))
    return masked_attention(q, k, v, seen)


def gather_once(q: Tensor, k: Tensor, v: Tensor, at: Tensor, seen: Tensor) -> Tensor:
    """`attend_to_blocks` of one query, which gathers its keys and values."""
    there = at.flatten(2).clamp(0, k.shape[2] - 1).unsqueeze(-1)
    k, v = (x.gather(2, there.expand(-1, -1, -1, x.shape[-1])).unsqueeze(2) for x in (k, v))
    return (q @ k.mT).masked_fill(~seen.flatten(-2), -torch.inf).softmax(-1) @ v


class Tiles(NamedTuple):
    """Where pairs of a query and a block stand in tiles, for each group of each sequence."""

    slots: Int[Tensor, "groups pairs"]
    pairs: Int[Tensor, "groups slots"]  # any where `empty`
    empty: Bool[Tensor, "groups slots 1"]
    blocks: Int[Tensor, "groups tiles"]


def plan_tiles(blocks: Int[Tensor, "groups pairs"], count: int) -> Tiles:
    """Tiles for pairs with these blocks, of `count`; -1 is a block as well, whose keys may be any."""
    pairs, tiles = blocks.shape[1], blocks.shape[1] // TILE + count + 1
    block, order = (blocks + 1).sort(dim=1, stable=True)
    many = torch.zeros_like(block[:, :1]).expand(-1, count + 1).scatter_add(1, block, torch.ones_like(block))
    begin, needed = many.cumsum(1) - many, (many + TILE - 1) // TILE
    first = (needed.cumsum(1) - needed) * TILE - begin
    slot = torch.arange(pairs, device=blocks.device) + first.gather(1, block)
    filled = (begin[:, :1] * 0 - 1).expand(-1, tiles * TILE).scatter(1, slot, order)
    some = filled.clamp(min=0)
    used = blocks.gather(1, some[:, ::TILE]).clamp(min=0)
    return Tiles(torch.zeros_like(order).scatter(1, order, slot), some, (filled < 0).unsqueeze(-1), used)


def attend_in_tiles(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, seen: Tensor) -> Tensor:
    """`attend_to_blocks`, pairs sorted by block."""
    (batch, groups, asked, heads, _), chosen, size = q.shape, blocks.shape[-1], seen.shape[-1]
    tiles = plan_tiles(blocks.flatten(0, 1).flatten(1), -(-k.shape[2] // size))
    k, v = (rows_of_blocks(x, tiles.blocks, size) for x in (k, v))
    queries = _ToTiles.apply(q.reshape(batch * groups, asked, -1), chosen, *tiles[:3])
    logits = queries.unflatten(1, (-1, TILE)).unflatten(-1, (heads, -1)).flatten(2, 3) @ k.mT
    logits = _ToQueries.apply(logits.reshape(batch * groups, -1, heads * size), 1, *tiles[:3])
    logits = logits.reshape(batch, groups, asked, chosen, heads, size).transpose(3, 4)
    weights = logits.masked_fill(~seen, -torch.inf).flatten(-2).softmax(-1).unflatten(-1, (chosen, size))
    weights = weights.transpose(3, 4).reshape(batch * groups, asked * chosen, -1)
    weights = _ToTiles.apply(weights, 1, *tiles[:3]).reshape(batch * groups, -1, TILE * heads, size)
    values = (weights @ v).reshape(batch * groups, -1, heads * v.shape[-1])
    return _ToQueries.apply(values, chosen, *tiles[:3]).reshape(batch, groups, asked, heads, -1)


def rows_of_blocks(x: Tensor, blocks: Int[Tensor, "groups tiles"], size: int) -> Float[Tensor, "groups tiles size _"]:
    """The keys or values of the block of each tile."""
    rows = F.pad(x, (0, 0, 0, -x.shape[2] % size)).flatten(0, 1).unflatten(1, (-1, size)).flatten(2)
    return select_rows(rows, blocks).unflatten(-1, (size, -1))


def select_rows(
    x: Shaped[Tensor, "groups _ width"], there: Int[Tensor, "groups new"]
) -> Shaped[Tensor, "groups new width"]:
    """x[g, there[g]] for each g."""
    start = torch.arange(len(x), device=x.device).unsqueeze(1) * x.shape[1]
    return x.flatten(0, 1).index_select(0, (there + start).flatten()).unflatten(0, there.shape)


def take_entries(
    x: Float[Tensor, "batch time width"], there: Int[Tensor, "batch asked chosen"]
) -> Float[Tensor, "batch asked chosen width"]:
    """The entries of x at the positions `there`, any for negative ones."""
    return select_rows(x, there.clamp(min=0).flatten(1)).unflatten(1, there.shape[1:])


class _ToTiles(torch.autograd.Function):
    """Rows of queries, each for `repeat` pairs, or of pairs (`repeat` 1), where their slots are; zeros in the others.

    Pairs and slots belong together one to one, so gradients are gathered, too, which is faster than to add them up.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, repeat: int, *places: Tensor) -> Tensor:
        _, pairs, empty = places
        return select_rows(x, pairs // repeat).masked_fill_(empty, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        ctx.repeat = inputs[1]
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _ToQueries.apply(grads[0], ctx.repeat, *ctx.saved_tensors), None, None, None, None


class _ToQueries(torch.autograd.Function):
    """The way back from slots to pairs, and the sum of each query's `repeat` pairs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, repeat: int, *places: Tensor) -> Tensor:
        found = select_rows(x, places[0])
        return found if repeat == 1 else found.unflatten(1, (-1, repeat)).sum(2)

    setup_context = _ToTiles.setup_context

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _ToTiles.apply(grads[0], ctx.repeat, *ctx.saved_tensors), None, None, None, None
