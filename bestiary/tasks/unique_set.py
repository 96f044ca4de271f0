"""The set of a string's symbols, a task of formal languages (Beck et al., 2024)."""

from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._draw import repeats_earlier
from bestiary.tasks._strings import StringBatch, Strings


class UniqueSet(Strings):
    """Say the distinct symbols in the order in which they appeared.

        tokens   7 3 7 9 3 ? ? ?
        targets  . . . . . 7 3 9

    The string is of tokens 0 to symbols - 1, uniform; its length is uniform from `least` to `length`. Blanks follow,
    token `symbols`, at which the answer is read, and more blanks pad the row. Answers are not shown, and no mark is
    asked for at their end.

    Facets: `length` of the string and `place` of the answer from 0. `plateau` is one symbol of the string given to
    every question.
    """

    variants: ClassVar = (*Strings.variants, "symbols=8", "symbols=20, length=60")
    axes: ClassVar = {**Strings.axes, "symbols": (8, 32, 128, 512)}

    def __init__(self, *, least: Positive = 3, length: Positive = 40, symbols: Positive = 128) -> None:
        if symbols < 2:
            raise ValueError(f"unique_set(symbols={symbols}): one symbol leaves nothing to ask; take 2 or more")
        self.blank = symbols
        super().__init__(least=least, length=length)
        sizes = range(least, length + 1)
        self.plateau = len(sizes) / sum(sum(self.expected_counts(size)) for size in sizes)

    def max_answers(self, size: int) -> int:
        return min(size, self.blank)

    def expected_counts(self, size: int) -> list[float]:
        return [1 - (1 - 1 / self.blank) ** size] * self.blank

    def draw_strings(self, sizes: Int[Tensor, " rows"], rng: torch.Generator) -> StringBatch:
        symbols = self.uniform_symbols(len(sizes), self.blank, rng)
        beyond = torch.arange(self.longest, device=rng.device) >= sizes.unsqueeze(1)
        left_out = repeats_earlier(symbols, self.blank) | beyond
        order = left_out.byte().argsort(dim=1, stable=True)[:, : self.max_answers(self.longest)]
        return StringBatch(symbols, sizes, symbols.gather(1, order), (~left_out).sum(1))

    def solve_string(self, string: list[int]) -> list[int]:
        seen: list[int] = []
        for symbol in string:
            if symbol not in seen:
                seen.append(symbol)
        return seen
