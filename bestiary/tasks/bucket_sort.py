"""Sorting a string, a context-sensitive task (Delétang et al., 2022, section 4)."""

from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._rearranged import Rearrangement


class BucketSort(Rearrangement):
    """Say the symbols from the smallest to the largest.

        tokens   3 0 4 0 ? ? ? ?
        targets  . . . . 0 0 3 4

    The string is of tokens 0 to symbols - 1, uniform; its length is uniform from `least` to `length`. As many blanks
    follow, token `symbols`, at which the answer is read, and more blanks pad the row. Answers are not shown.

    Facets: `length` of the string and `place` of the answer from 0. Departs from the paper in that lengths are mixed
    in a batch, which is the same distribution.
    """

    variants: ClassVar = (*Rearrangement.variants, "symbols=60")
    axes: ClassVar = {**Rearrangement.axes, "symbols": (2, 5, 20, 80)}

    def __init__(self, *, least: Positive = 3, length: Positive = 40, symbols: Positive = 5) -> None:
        super().__init__(least=least, length=length, symbols=symbols)

    def source_positions(self, place: Int[Tensor, " most"], sizes: Int[Tensor, "rows 1"], symbols: Tensor) -> Tensor:
        return symbols.masked_fill(place >= sizes, self.blank).argsort(dim=1, stable=True)

    def solve_string(self, string: list[int]) -> list[int]:
        return sorted(string)
