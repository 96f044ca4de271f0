"""The missing symbol of a string said twice, a context-sensitive task (Delétang et al., 2022, section 4)."""

from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._strings import StringBatch, Strings


class MissingDuplicate(Strings):
    """A word stands twice, but for one hole: what is missing?

        tokens   0 1 1 0 _ 1 ?
        targets  . . . . . . 1

    The word is of tokens 0 to symbols - 1, uniform, "_" is the hole, token `symbols`, anywhere in the two words, and
    "?" is the blank, the token after: the answer is read there, and blanks pad the row. The length of both words
    together is uniform from `least` to `length`, and cut by one if odd.

    Facets: `length` of both words and `hole`, its place from 0. Departs from the paper in that an odd length has no
    padding inside the string, which tells a model nothing, and in that lengths are mixed in a batch.
    """

    shortest: ClassVar = 2
    variants: ClassVar = ("least=14, length=22", "least=20, length=80", "symbols=20")
    axes: ClassVar = {**Strings.axes, "symbols": (2, 8, 32, 128)}

    def __init__(self, *, least: Positive = 3, length: Positive = 40, symbols: Positive = 2) -> None:
        if symbols < 2:
            raise ValueError(f"missing_duplicate(symbols={symbols}): one symbol leaves nothing to ask; take 2 or more")
        self.symbols, self.blank = symbols, symbols + 1
        super().__init__(least=least, length=length)

    def count_strings(self, size: int) -> int:
        return self.symbols ** (size // 2) * 2 * (size // 2)

    def expected_counts(self, size: int) -> list[float]:
        return [1 / self.symbols] * self.symbols

    def draw_strings(self, sizes: Int[Tensor, " rows"], rng: torch.Generator) -> StringBatch:
        sizes = sizes - sizes % 2
        word, half = self.uniform_symbols(len(sizes), self.symbols, rng), sizes.unsqueeze(1) // 2
        twice = word.gather(1, torch.arange(self.longest, device=rng.device) % half)
        share = torch.rand(len(sizes), generator=rng, device=rng.device, dtype=torch.float64)
        hole = (share * sizes).long().unsqueeze(1)
        answer = twice.gather(1, hole)
        return StringBatch(
            twice.scatter(1, hole, self.symbols), sizes, answer, torch.ones_like(sizes), {"hole": hole.squeeze(1)}
        )

    def solve_string(self, string: list[int]) -> list[int]:
        half, hole = len(string) // 2, string.index(self.symbols)
        return [string[hole + half] if hole < half else string[hole - half]]
