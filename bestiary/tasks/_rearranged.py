"""Tasks whose answer is the string itself in another order."""

from abc import abstractmethod
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._strings import MEASURED, StringBatch, Strings


class Rearrangement(Strings):
    """The answer is symbols of the string in another order."""

    shortest: ClassVar = 1
    copies: ClassVar = 1  # how often each symbol is due

    def __init__(self, *, least: Positive = 3, length: Positive = 40, symbols: Positive = 2) -> None:
        if symbols < 2:
            raise ValueError(f"{self.name}(symbols={symbols}): one symbol leaves nothing to ask; take 2 or more")
        self.blank = symbols
        super().__init__(least=least, length=length)
        self.plateau = most_frequent(symbols, least, length)

    def max_answers(self, size: int) -> int:
        return self.copies * size

    def expected_counts(self, size: int) -> list[float]:
        return [self.copies * size / self.blank] * self.blank

    @abstractmethod
    def source_positions(self, place: Int[Tensor, " most"], sizes: Int[Tensor, "rows 1"], symbols: Tensor) -> Tensor:
        """Which place of the string each answer comes from, (rows, most)."""

    def draw_strings(self, sizes: Int[Tensor, " rows"], rng: torch.Generator) -> StringBatch:
        symbols = self.uniform_symbols(len(sizes), self.blank, rng)
        place = torch.arange(self.max_answers(self.longest), device=rng.device)
        source = self.source_positions(place, sizes.unsqueeze(1), symbols).clamp(0, self.longest - 1)
        return StringBatch(symbols, sizes, symbols.gather(1, source), self.copies * sizes)


@cache
def most_frequent(symbols: int, least: int, longest: int) -> float:
    """The share of the most frequent symbol of a string in all its symbols, over lengths, measured."""
    sizes = np.linspace(least, longest, MEASURED).round().astype(int)
    found = np.random.default_rng(0).multinomial(sizes, np.full(symbols, 1 / symbols))
    return float(found.max(1).sum() / found.sum())
