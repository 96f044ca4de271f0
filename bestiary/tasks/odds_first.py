"""Odd places first, a context-sensitive task (Delétang et al., 2022, section 4)."""

from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.tasks._rearranged import Rearrangement


class OddsFirst(Rearrangement):
    """Say the symbols at the odd places, then those at the even places.

        tokens   a b c d e ? ? ? ? ?
        targets  . . . . . a c e b d

    Places count from 1. The string is of tokens 0 to symbols - 1, uniform; its length is uniform from `least` to
    `length`. As many blanks follow, token `symbols`, at which the answer is read, and more blanks pad the row. Answers
    are not shown.

    Facets: `length` of the string and `place` of the answer from 0. Departs from the released code, which says the
    second, fourth, ... symbol first where the paper's text says the first, third, ...: the text is followed. Lengths
    are mixed in a batch, which is the same distribution.
    """

    variants: ClassVar = (*Rearrangement.variants, "symbols=20")
    axes: ClassVar = {**Rearrangement.axes, "symbols": (2, 8, 32, 128)}

    def source_positions(self, place: Int[Tensor, " most"], sizes: Int[Tensor, "rows 1"], symbols: Tensor) -> Tensor:
        odd = (sizes + 1) // 2
        return torch.where(place < odd, 2 * place, 2 * (place - odd) + 1)

    def solve_string(self, string: list[int]) -> list[int]:
        return string[::2] + string[1::2]
