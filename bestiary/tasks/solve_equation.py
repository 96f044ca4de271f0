"""Solving an equation in modular arithmetic, a context-free task (Delétang et al., 2022, section 4)."""

from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._expressions import MOST, SIGNS, count_bracketed, draw_bracketed, evaluate, evaluate_rows
from bestiary.tasks._strings import StringBatch, Strings


class SolveEquation(Strings):
    """Which number is x?

        tokens   ( 3 - ( x + - 1 ) ) = 0 ?
        targets  . . . . . . . . . . . . 4

    Tokens 0 to modulus - 1 are numbers, those after them + - * ( ) x = and the blank, in this order. The left side is
    an expression as in `modular_arithmetic` with brackets and the operators + and -, with one of its numbers replaced
    by x; the right side is its value. As x stands there once there is one solution; it is read at the first blank, and
    blanks pad the row. The length of the equation is uniform from `least` to `length`.

    Facets: `length` of the equation, `depth` of its brackets and `hole`, the place of x from 0. Departs from the paper
    in that each number is equally likely to become x, where the paper takes the next one after a random place and so
    favours those after brackets, and in that lengths are mixed in a batch. Token * is not used.
    """

    shortest: ClassVar = 3
    variants: ClassVar = ("least=9, length=16", "least=20, length=50", "modulus=2, least=12, length=24")
    axes: ClassVar = {**Strings.axes, "modulus": (2, 5, 11, 23)}

    def __init__(self, *, least: Positive = 3, length: Positive = 40, modulus: Positive = 5) -> None:
        if not 2 <= modulus <= MOST:
            raise ValueError(f"solve_equation(modulus={modulus}): remainders need a modulus of 2 to {MOST}")
        self.modulus, self.unknown = modulus, modulus + len(SIGNS)
        self.equals, self.blank = self.unknown + 1, self.unknown + 2
        super().__init__(least=least, length=length)

    def count_strings(self, size: int) -> int:
        return count_bracketed(size - 2, self.modulus, 2)[size - 2]

    def expected_counts(self, size: int) -> list[float]:
        return [1 / self.modulus] * self.modulus

    def draw_strings(self, sizes: Int[Tensor, " rows"], rng: torch.Generator) -> StringBatch:
        left = sizes - 2
        symbols = draw_bracketed(left, self.longest, self.modulus, rng, signs="+-")
        values, depth = evaluate_rows(symbols, left, self.modulus)
        within = torch.arange(self.longest, device=rng.device) < left.unsqueeze(1)
        lottery = torch.rand(symbols.shape, generator=rng, device=rng.device)
        hole = lottery.masked_fill((symbols >= self.modulus) | ~within, -1).argmax(1, keepdim=True)
        answer = symbols.gather(1, hole)
        symbols.scatter_(1, hole, self.unknown)
        symbols.scatter_(1, left.unsqueeze(1), self.equals)
        symbols.scatter_(1, left.unsqueeze(1) + 1, values.unsqueeze(1))
        facets = {"depth": depth, "hole": hole.squeeze(1)}
        return StringBatch(symbols, sizes, answer, torch.ones_like(sizes), facets)

    def solve_string(self, string: list[int]) -> list[int]:
        *left, _, value = string
        symbols = [token if token < self.modulus else (SIGNS + "x")[token - self.modulus] for token in left]
        for candidate in range(self.modulus):
            if evaluate([candidate if symbol == "x" else symbol for symbol in symbols], self.modulus) == value:
                return [candidate]
        return []
