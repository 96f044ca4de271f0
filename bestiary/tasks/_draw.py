"""Draws that tasks share: for each row at once, from a generator, uniform unless said otherwise."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from bestiary.tasks._task import Batch, concatenate

BLOCK = 2**18  # tokens drawn at a time, so that memory beyond the output stays small


def blocks(count: int, length: int, most: int = BLOCK) -> Iterator[slice]:
    """The rows in parts of about `most` numbers, if each row takes `length`; one empty part if there is no row."""
    rows = max(1, most // length)
    return (slice(start, min(start + rows, count)) for start in range(0, max(1, count), rows))


def draw_in_blocks(
    draw: Callable[[int, torch.Generator], Batch], count: int, length: int, rng: torch.Generator, most: int = BLOCK
) -> Batch:
    """`count` rows, of which `draw` makes a block at a time."""
    return concatenate([draw(part.stop - part.start, rng) for part in blocks(count, length, most)])


def distinct(count: int, size: int, among: int, rng: torch.Generator) -> Int[Tensor, "count size"]:
    """`size` different numbers below `among`, in random order, for each of `count` rows, uniformly.

    Draws them independently and draws again those that repeat an earlier one. The procedure treats all numbers
    alike, so every ordered choice of different numbers is equally likely.
    """
    return redraw_repeats(
        (count, size), among, lambda *shape: torch.randint(among, shape, generator=rng, device=rng.device)
    )


def redraw_repeats(
    shape: tuple[int, int], among: int, draw: Callable[..., Int[Tensor, "..."]]
) -> Int[Tensor, "count size"]:
    """Different numbers below `among` in each row, each from `draw(*shape)` as if drawn until it is a new one."""
    drawn = draw(*shape)
    rows = torch.arange(len(drawn), device=drawn.device)
    while len(rows):
        again = repeats_earlier(drawn[rows], among)
        fresh = draw(int(again.sum()))
        bad = again.any(1)
        rows, again = rows[bad], again[bad]
        drawn[rows] = drawn[rows].masked_scatter(again, fresh)
    return drawn


def repeats_earlier(drawn: Int[Tensor, "count size"], among: int) -> Bool[Tensor, "count size"]:
    """Where a number below `among` already stands earlier in its row."""
    if drawn.shape[1] <= 16 or among > 64 * drawn.shape[1]:
        ordered, place = drawn.sort(dim=1, stable=True)
        same = F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
        return torch.zeros_like(same).scatter_(1, place, same)
    place = torch.arange(drawn.shape[1], device=drawn.device, dtype=torch.int32).expand_as(drawn)
    first = torch.full((len(drawn), among), drawn.shape[1], dtype=torch.int32, device=drawn.device)
    first.scatter_reduce_(1, drawn, place, "amin")
    return first.gather(1, drawn) != place


def random_orders(count: int, size: int, rng: torch.Generator) -> Int[Tensor, "count size"]:
    """A random order of `size` things for each of `count` rows."""
    return torch.rand(count, size, generator=rng, device=rng.device, dtype=torch.float64).argsort(1)


def sorted_subsets(count: int, size: int, among: int, rng: torch.Generator) -> Int[Tensor, "count size"]:
    """`size` different numbers below `among`, in order, for each of `count` rows, every choice equally likely."""
    lottery = torch.rand(count, among, generator=rng, device=rng.device, dtype=torch.float64)
    return lottery.topk(size, dim=1).indices.sort(dim=1).values


def uniform_below(limit: Int[Tensor, "..."], rng: torch.Generator) -> Int[Tensor, "..."]:
    """A number from 0 to limit - 1 for each limit."""
    return (torch.rand(limit.shape, generator=rng, device=rng.device, dtype=torch.float64) * limit).long()
