"""Modular arithmetic, regular without brackets and context-free with them (Delétang et al., 2022, section 4)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._expressions import (
    MOST,
    SIGNS,
    bracketed_distribution,
    count_bracketed,
    draw_bracketed,
    draw_flat,
    evaluate,
    evaluate_rows,
    flat_distribution,
)
from bestiary.tasks._strings import StringBatch, Strings


class ModularArithmetic(Strings):
    """What is the value of an expression?

        tokens   1 + 2 * 3 ?      brackets   ( 3 - ( 4 + - 1 ) ) ?
        targets  . . . . . 2                 . . . . . . . . . . 0

    Tokens 0 to modulus - 1 are numbers, those after them + - * ( ) and the blank, in this order. The answer, a number,
    is read at the first blank; blanks pad the row. The length of the expression is uniform from `least` to `length`.
    Operators are those in `operators`, each equally likely; numbers are uniform; products come first.

    Without brackets numbers and operators alternate, and an even length is cut by one. With `brackets` expressions of
    length 1 to 4 are d, -d, (d) and (-d), and longer ones (left operator right), all lengths of the left equally
    likely.

    Facets: `length` of the expression and `depth` of its brackets. Departs from the paper in that both kinds have
    the same tokens, and in that lengths are mixed in a batch. The paper's operators with brackets are + and -.
    """

    variants: ClassVar = (
        *Strings.variants,
        "brackets=True",
        "brackets=True, modulus=7, operators='+-', least=20, length=50",
    )
    presets: ClassVar[Mapping[str, str]] = {
        **Strings.presets,
        **{f"{name}_brackets": f"{text}, brackets=True, operators='+-'" for name, text in Strings.presets.items()},
    }
    axes: ClassVar = {**Strings.axes, "modulus": (2, 5, 11, 23)}

    def __init__(
        self,
        *,
        least: Positive = 3,
        length: Positive = 40,
        modulus: Positive = 5,
        brackets: bool = False,
        operators: str = "+-*",
    ) -> None:
        if not 2 <= modulus <= MOST:
            raise ValueError(f"modular_arithmetic(modulus={modulus}): remainders need a modulus of 2 to {MOST}")
        if not operators or set(operators) - set("+-*") or len(set(operators)) < len(operators):
            raise ValueError(f"modular_arithmetic(operators={operators!r}): take some of +-*, each once")
        self.modulus, self.brackets, self.operators, self.blank = modulus, brackets, operators, modulus + len(SIGNS)
        super().__init__(least=least, length=length)

    def count_strings(self, size: int) -> int:
        if self.brackets:
            return count_bracketed(size, self.modulus, len(self.operators))[size]
        return self.modulus ** ((size + 1) // 2) * len(self.operators) ** ((size - 1) // 2)

    def expected_counts(self, size: int) -> list[float]:
        if self.brackets:
            return bracketed_distribution(self.longest, self.modulus, self.operators)[size].tolist()
        return flat_distribution(self.longest, self.modulus, self.operators)[(size - 1) // 2].tolist()

    def draw_strings(self, sizes: Int[Tensor, " rows"], rng: torch.Generator) -> StringBatch:
        if self.brackets:
            symbols = draw_bracketed(sizes, self.longest, self.modulus, rng, signs=self.operators)
        else:
            sizes = sizes - 1 + sizes % 2
            symbols = draw_flat((len(sizes), self.longest), self.modulus, rng, signs=self.operators)
        values, depth = evaluate_rows(symbols, sizes, self.modulus)
        return StringBatch(symbols, sizes, values.unsqueeze(1), torch.ones_like(sizes), {"depth": depth})

    def solve_string(self, string: list[int]) -> list[int]:
        symbols = [token if token < self.modulus else SIGNS[token - self.modulus] for token in string]
        return [evaluate(symbols, self.modulus)]
