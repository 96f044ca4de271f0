"""What stands where in rows: earlier occurrences, and things picked, placed, spaced out or packed to one side."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F


class Occurrences(NamedTuple):
    """Where each symbol first stood in its row, where it did `back` occurrences ago (or -1), and how often before."""

    first: Int[Tensor, "rows time"]
    last: Int[Tensor, "rows time"]
    times: Int[Tensor, "rows time"]


def earlier_occurrences(symbols: Int[Tensor, "rows time"], back: int = 1) -> Occurrences:
    """The earlier occurrences of the symbol at every position."""
    ordered, order = symbols.sort(dim=1, stable=True)
    same = torch.zeros_like(ordered, dtype=torch.bool)
    same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    rank = torch.arange(symbols.shape[1], device=symbols.device).expand_as(order)
    begin = rank.masked_fill(same, 0).cummax(dim=1).values
    times = rank - begin
    found = order.gather(1, begin), order.roll(back, dims=1).masked_fill(times < back, -1), times
    return Occurrences(*(torch.empty_like(x).scatter_(1, order, x) for x in found))


def gather_vectors(things: Tensor, where: Int[Tensor, "rows asked"]) -> Tensor:
    """The things at these places of each row; a thing is a vector, (rows, things, width)."""
    return things.gather(1, where.unsqueeze(2).expand(-1, -1, things.shape[2]))


def place_values(where: Int[Tensor, "rows asked"], values: Tensor, length: int, blank: int = 0) -> Tensor:
    """Rows of `length` that hold `values` at the positions `where`, and `blank` elsewhere."""
    return torch.full((len(where), length), blank, dtype=values.dtype, device=where.device).scatter_(1, where, values)


def add_filler(x: Int[Tensor, "rows some"], before: int, after: int, filler: int) -> Int[Tensor, "rows time"]:
    """Each number with so many fillers before and after it."""
    return F.pad(x.unsqueeze(2), (before, after), value=filler).flatten(1)


def pack_rows(
    kept: Bool[Tensor, "rows *parts"], *columns: tuple[Tensor, int], length: int, right: bool = False
) -> list[Int[Tensor, "rows length"]]:
    """What is kept of each array, in reading order, moved to one side of a row, and its filler in what is left.

    Of what is too much, the end is lost, or the beginning if moved to the right.
    """
    kept = kept.flatten(1)
    place = kept.cumsum(1) - 1
    if right:
        place += length - kept.sum(1, keepdim=True)
    place = place.masked_fill(~kept | (place < 0), length).clamp(max=length)
    return [place_values(place, x.flatten(1), length + 1, filler)[:, :length] for x, filler in columns]
