"""Duplicating a string, a context-sensitive task (Delétang et al., 2022, section 4)."""

from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from bestiary.tasks._rearranged import Rearrangement


class Duplicate(Rearrangement):
    """Say the string twice.

        tokens   0 1 1 ? ? ? ? ? ?
        targets  . . . 0 1 1 0 1 1

    The string is of tokens 0 to symbols - 1, uniform; its length is uniform from `least` to `length`. Twice as many
    blanks follow, token `symbols`, at which the answer is read, and more blanks pad the row. Answers are not shown.

    Facets: `length` of the string and `place` of the answer from 0. Departs from the paper in that lengths are mixed
    in a batch, which is the same distribution.
    """

    copies = 2
    variants: ClassVar = (*Rearrangement.variants, "symbols=20, length=20")
    axes: ClassVar = {**Rearrangement.axes, "symbols": (2, 8, 32, 128)}

    def source_positions(self, place: Int[Tensor, " most"], sizes: Int[Tensor, "rows 1"], symbols: Tensor) -> Tensor:
        return place % sizes

    def solve_string(self, string: list[int]) -> list[int]:
        return string + string
