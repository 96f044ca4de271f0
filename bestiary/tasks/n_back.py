"""The n-back test of working memory (Kirchner, 1958; as in SymSeq, 2026)."""

from math import log2
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import from_bits, subset_bits
from bestiary.tasks._draw import draw_in_blocks, sorted_subsets
from bestiary.tasks._task import SILENT, Batch, Task


class NBack(Task):
    """Say at every symbol whether it is the one `back` symbols before.

        tokens   3 5 3 1 3 1 1 ...      back=2
        targets  . . m . m m - ...      (m: match; each other from the third on asks too)

    The tokens of the input are 0 to symbols - 1; the answers are token `symbols` for no match and symbols + 1 for a
    match, and are never input. Every position that has a symbol `back` before it is asked. Of those positions
    `matches`, a share that is rounded to a whole number, are matches, every choice equally likely; elsewhere the symbol
    is any but the one `back` before, so that there are no others.

    `lures` is the share of the other positions that repeat the symbol back - 1 or back + 1 before (each equally
    likely), where there is one and it is no match; it takes the place of a uniform symbol.

    Facets: `match` (1 or 0) and `lure`: 1 where a non-match repeats the symbol back - 1 before, 2 where it repeats the
    one back + 1 before only, 0 elsewhere, whether meant or by chance.
    """

    family: ClassVar = "state tracking"
    variants: ClassVar = (
        "back=1, symbols=4, length=60",
        "back=3, lures=0.5",
        "back=5, matches=0.5, length=100, lures=1.0",
    )
    axes: ClassVar = {"back": (1, 2, 3, 4, 6, 8), "lures": (0.0, 0.25, 0.5, 1.0)}

    def __init__(
        self,
        *,
        symbols: Positive = 8,
        length: Positive = 30,
        back: Positive = 2,
        matches: Annotated[float, Ge(0), Le(1)] = 0.3,
        lures: Annotated[float, Ge(0), Le(1)] = 0.0,
    ) -> None:
        if symbols < 2:
            raise ValueError(f"n_back(symbols={symbols}): a symbol that does not match needs 2")
        if length <= back:
            raise ValueError(f"n_back(length={length}): {back} back needs a length of {back + 1}")
        self.symbols, self.length, self.back, self.lures = symbols, length, back, lures
        self.vocab, self.asked = symbols + 2, length - back
        self.hits = round(matches * self.asked)
        self.chance = self.plateau = max(self.hits, self.asked - self.hits) / self.asked
        free = max(0.0, -log2(min(1.0, lures + (1 - lures) / (symbols - 1))))  # bits of a symbol that is no match
        self.space = from_bits(
            subset_bits(self.asked, self.hits) + back * log2(symbols) + (self.asked - self.hits) * free
        )

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""

        def draw(among: int) -> Tensor:
            return torch.randint(among, (count, self.length), generator=rng, device=rng.device)

        tokens, steps, nearer = draw(self.symbols), draw(self.symbols - 1), draw(2) == 1
        lured = torch.rand(count, self.length, generator=rng, device=rng.device) < self.lures
        match = torch.zeros_like(tokens, dtype=torch.bool)
        match.scatter_(1, self.back + sorted_subsets(count, self.hits, self.asked, rng), True)
        for time in range(self.back, self.length):
            there = tokens[:, time - self.back]
            symbol = (there + 1 + steps[:, time]) % self.symbols
            near = tokens[:, time - self.back + 1] if self.back > 1 else there
            far = tokens[:, time - self.back - 1] if time > self.back else there
            lure = torch.where(nearer[:, time], near, far)
            symbol = torch.where(lured[:, time] & (lure != there), lure, symbol)
            tokens[:, time] = torch.where(match[:, time], there, symbol)
        targets = self.symbols + match.long()
        targets[:, : self.back] = SILENT
        near, far = (self.same(tokens, back) & (targets == self.symbols) for back in (self.back - 1, self.back + 1))
        return Batch(tokens, targets, {"match": match.int(), "lure": torch.where(near, 1, 2 * far).int()})

    def same(self, tokens: Int[Tensor, "count time"], back: int) -> Tensor:
        """Where a token is the one so many before it."""
        found = torch.zeros_like(tokens, dtype=torch.bool)
        if 0 < back < self.length:
            found[:, back:] = tokens[:, back:] == tokens[:, :-back]
        return found

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            for time in range(self.back, len(sequence)):
                answers[row, time] = self.symbols + (sequence[time] == sequence[time - self.back])
        return answers
