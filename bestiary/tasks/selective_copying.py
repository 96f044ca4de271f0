"""Selective copying, as Mamba and MAD ask it (Gu & Dao, 2023, section 4.1.1; Poli et al., 2024, section 3.1)."""

from math import log2
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import from_bits, mean_inverse_distinct, subset_bits
from bestiary.tasks._draw import draw_in_blocks, sorted_subsets
from bestiary.tasks._task import SILENT, Batch, Task


class SelectiveCopying(Task):
    """Read tokens strewn among blanks, and give them back in order.

        tokens   .  . 5 . 9  .  . 2 => . . .
        targets                        5 9 2

    Token vocab - 2 is the blank, vocab - 1 the mark, and the others are drawn uniformly. The last `copied` positions
    ask for what was read, the first of them first; the answers are not shown. `length` counts everything.

    `gaps="mad"` puts each blank before one of the tokens, each equally likely, so that gaps are alike and the last
    token is followed by the mark; `gaps="even"` draws the places of the tokens, every choice equally likely.
    `mark="once"` marks the end of the text, and blanks stand where answers are asked (MAD); `mark="each"` puts the mark
    there instead, as the generator of S4 does, which Gu & Dao take up: the preset `mamba` is 4096 positions of text and
    16 questions.

    MAD's settings are the defaults and one value of one of the axes at a time, or other numbers of training rows.

    Facets: `distance` from a question back to its token and `place` (of the token among those to copy, from 0).

    Departs from the papers: MAD's code draws the places of blanks from a global generator, so that its seed does not
    fix them. Gu & Dao publish no generator, and whether their length of 4096 includes the questions is not said.
    """

    family: ClassVar = "mad"
    variants: ClassVar = (
        "length=193, copied=96",
        "vocab=4, length=200, gaps='even'",
        "length=200, gaps='even', mark='each'",
    )
    presets: ClassVar = {"mamba": "length=4112, gaps='even', mark='each'"}
    axes: ClassVar = {"vocab": (16, 32, 64, 128), "length": (256, 512, 1024), "copied": (16, 32, 64, 96)}

    def __init__(
        self,
        *,
        vocab: Positive = 16,
        length: Positive = 256,
        copied: Positive = 16,
        gaps: Literal["mad", "even"] = "mad",
        mark: Literal["once", "each"] = "once",
    ) -> None:
        self.vocab, self.length, self.copied, self.gaps, self.mark = vocab, length, copied, gaps, mark
        self.text = length - copied - (mark == "once")
        if vocab < 4:
            raise ValueError(f"selective_copying(vocab={vocab}): two tokens, the blank and the mark need 4")
        if self.text < copied:
            least = length - self.text + copied
            raise ValueError(f"selective_copying(length={length}): copying {copied} tokens needs a length of {least}")
        self.chance, self.plateau = 1 / (vocab - 2), mean_inverse_distinct(copied, vocab - 2)
        self.space = from_bits(copied * log2(vocab - 2) + (subset_bits(self.text, copied) if gaps == "even" else 0))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""
        letters = torch.randint(self.vocab - 2, (count, self.copied), generator=rng, device=rng.device)
        where = self.where(count, rng)
        tokens = torch.full((count, self.length), self.vocab - 2, device=rng.device).scatter_(1, where, letters)
        tokens[:, self.text : self.length if self.mark == "each" else self.text + 1] = self.vocab - 1
        targets = torch.full_like(tokens, SILENT)
        targets[:, -self.copied :] = letters
        distance, place = (torch.zeros_like(tokens, dtype=torch.int32) for _ in range(2))
        order = torch.arange(self.copied, device=rng.device)
        distance[:, -self.copied :] = self.length - self.copied + order - where
        place[:, -self.copied :] = order
        return Batch(tokens, targets, {"distance": distance, "place": place})

    def where(self, count: int, rng: torch.Generator) -> Int[Tensor, "count copied"]:
        """The places of the tokens to copy."""
        if self.gaps == "even":
            return sorted_subsets(count, self.copied, self.text, rng)
        blanks = torch.randint(self.copied, (count, self.text - self.copied), generator=rng, device=rng.device)
        before = torch.zeros(count, self.copied, dtype=torch.long, device=rng.device)
        before.scatter_add_(1, blanks, torch.ones_like(blanks))
        return before.cumsum(1) + torch.arange(self.copied, device=rng.device)

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            read: list[int] = []
            given = 0
            for time, token in enumerate(sequence):
                if token < self.vocab - 2:
                    read.append(token)
                elif time >= self.length - self.copied:
                    answers[row, time] = read[given]
                    given += 1
        return answers
