"""Navigation on a cycle, a regular language (Delétang et al., 2022, section 4)."""

import math
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._strings import StringBatch, Strings


class CycleNavigation(Strings):
    """Where on a cycle does a walk end?

        tokens   2 2 1 0 2 ?
        targets  . . . . . 2

    A walk begins at position 0 of a cycle of `cycle` positions. Tokens 0, 1 and 2 go one back, stay, go one on, each
    equally likely. Blanks, which follow all symbols and positions, pad the row; at the first the position is asked,
    which is token 0 to cycle - 1. The length of the walk is uniform from `least` to `length`.

    Facet: `length` of the walk. Departs from the paper in that one alphabet serves moves and positions, and in that
    lengths are mixed in a batch, which is the same distribution.
    """

    variants: ClassVar = (*Strings.variants, "cycle=2, least=5, length=30")
    axes: ClassVar = {**Strings.axes, "cycle": (2, 5, 10, 20)}

    def __init__(self, *, least: Positive = 3, length: Positive = 40, cycle: Positive = 5) -> None:
        if cycle < 2:
            raise ValueError(f"cycle_navigation(cycle={cycle}): a cycle has at least 2 positions")
        self.cycle, self.blank = cycle, max(3, cycle)
        super().__init__(least=least, length=length)

    def count_strings(self, size: int) -> int:
        return 3**size

    def expected_counts(self, size: int) -> list[float]:
        """The distribution of the walk's end, from the eigenvalues of a step."""
        angles = [2 * math.pi * wave / self.cycle for wave in range(self.cycle)]
        left = [((1 + 2 * math.cos(angle)) / 3) ** size / self.cycle for angle in angles]
        return [
            sum(part * math.cos(angle * end) for part, angle in zip(left, angles, strict=True))
            for end in range(self.cycle)
        ]

    def draw_strings(self, sizes: Int[Tensor, " rows"], rng: torch.Generator) -> StringBatch:
        symbols = self.uniform_symbols(len(sizes), 3, rng)
        position = (symbols - 1).cumsum(1) % self.cycle
        return StringBatch(symbols, sizes, position.gather(1, sizes.unsqueeze(1) - 1), torch.ones_like(sizes))

    def solve_string(self, string: list[int]) -> list[int]:
        position = 0
        for move in string:
            position = (position + {0: -1, 1: 0, 2: 1}[move]) % self.cycle
        return [position]
