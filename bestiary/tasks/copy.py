"""Copying over a silence, and repeat copy (Arjovsky et al., 2016; Gu et al., 2022; Graves et al., 2014)."""

from math import log2
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Natural, Positive
from bestiary.tasks._count import from_bits, mean_inverse_distinct
from bestiary.tasks._draw import draw_in_blocks, random_orders, sorted_subsets
from bestiary.tasks._task import SILENT, Batch, Task


class Copy(Task):
    """Read a few tokens, wait, and give them back in order, once or several times.

        tokens   5 9 2 . . . . => => =>                       copied=3, noise=4
        targets                 5  9  2

        tokens   5 9 . x2 => => => => => => => => =>          least=1, copied=3, noise=0, repeats=3
        targets           5  9  5  9 =>

    Token 0 is silence, vocab - 1 the mark, and the others are drawn uniformly. A row begins with `copied` tokens and
    `noise` cells of silence; with `variable` the tokens stand at random places among them instead, every choice as
    likely. Then come marks, at which the tokens are asked one by one; the answers are not shown.

    With `least` (0: none) a row draws how many tokens it has, from `least` to `copied`, and is silent in the cells of
    the others. With `repeats` above 1 it draws how often to give them back, from 1 to that, and says so before the
    marks: tokens vocab - 1 - repeats to vocab - 2 stand for 1, 2, ... With either, the mark itself is asked once after
    the last answer, to say that this is all, and nothing after it.

    Facets: `distance` from a question back to its token (0 where the end is asked) and `place` (of the answer, from 0).

    Departs from the papers: the machine of Graves et al. reads vectors of bits and a real number that says how often;
    here they are tokens, 64 or 256 of them in the presets, which also bound the number of rows of short strings.
    """

    family: ClassVar = "copying"
    variants: ClassVar = (
        "variable=True, noise=30, copied=14",
        "vocab=30, noise=0, copied=8, least=6, repeats=4",
        "vocab=12, copied=20, noise=0, least=10",
    )
    presets: ClassVar = {
        "s4": "noise=1000",
        "s4_variable": "noise=1000, variable=True",
        "ntm": "vocab=258, copied=20, least=1, noise=0",
        "ntm_repeat": "vocab=76, copied=10, least=1, noise=0, repeats=10",
    }
    axes: ClassVar = {"noise": (100, 300, 1000, 3000), "copied": (10, 20, 40, 80)}

    def __init__(
        self,
        *,
        vocab: Positive = 10,
        copied: Positive = 10,
        noise: Natural = 100,
        variable: bool = False,
        least: Natural = 0,
        repeats: Positive = 1,
    ) -> None:
        self.vocab, self.copied, self.noise, self.variable, self.repeats = vocab, copied, noise, variable, repeats
        self.least, self.ends = least or copied, bool(least) or repeats > 1
        self.letters, self.text = vocab - 2 - repeats * (repeats > 1), copied + noise
        if self.letters < 2:
            raise ValueError(f"copy(vocab={vocab}): two tokens to copy and the others need {vocab + 2 - self.letters}")
        if least > copied:
            raise ValueError(f"copy(least={least}): at least {least} of {copied} tokens cannot be; try {copied}")
        self.marks = self.text + (repeats > 1)
        self.length = self.marks + copied * repeats + self.ends
        answers = (self.least + copied) / 2 * (1 + repeats) / 2
        share = answers / (answers + self.ends)
        self.chance = max(share / self.letters, 1 - share)
        self.plateau = max(share * mean_inverse_distinct((self.least + copied) / 2, self.letters), 1 - share)
        self.space = from_bits(self.least * log2(self.letters))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""

        def draw(least: int, most: int, *shape: int) -> Tensor:
            return torch.randint(least, most + 1, (count, *shape), generator=rng, device=rng.device)

        place, letters = torch.arange(self.copied, device=rng.device), draw(1, self.letters, self.copied)
        size, times = draw(self.least, self.copied, 1), draw(1, self.repeats, 1)
        where = self.scattered_places(size, rng) if self.variable else place.expand(count, -1)
        tokens = torch.full((count, self.length), self.vocab - 1, device=rng.device)
        tokens[:, : self.text] = 0
        tokens.scatter_(1, where, letters.masked_fill(place >= size, 0))
        if self.repeats > 1:
            tokens[:, self.text] = self.vocab - 2 - self.repeats + times[:, 0]
        answer = torch.arange(self.length - self.marks, device=rng.device).expand(count, -1)
        which, last = answer % size, size * times
        targets = torch.full_like(tokens, SILENT)
        targets[:, self.marks :] = letters.gather(1, which).masked_fill(answer >= last, SILENT)
        targets[:, self.marks :].masked_fill_(answer == last, self.vocab - 1)
        distance = (self.marks + answer - where.gather(1, which)).masked_fill(answer >= last, 0)
        facets = {name: torch.zeros_like(tokens, dtype=torch.int32) for name in ("distance", "place")}
        facets["distance"][:, self.marks :] = distance
        facets["place"][:, self.marks :] = answer.masked_fill(answer > last, 0)
        return Batch(tokens, targets, facets)

    def scattered_places(self, size: Int[Tensor, "count 1"], rng: torch.Generator) -> Int[Tensor, "count copied"]:
        """Random places in order, so many as a row has tokens, and then the places of those that it has not."""
        where = sorted_subsets(len(size), self.copied, self.text, rng)
        left_out = random_orders(len(size), self.copied, rng) >= size
        return where.gather(1, left_out.byte().argsort(dim=1, stable=True))

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            read: list[int] = []
            todo: list[int] | None = None
            times = 1
            for time, token in enumerate(sequence):
                if token == self.vocab - 1:
                    todo = read * times + [token] * self.ends if todo is None else todo
                    answers[row, time] = todo.pop(0) if todo else SILENT
                elif token > self.letters:
                    times = token - self.letters
                elif token:
                    read.append(token)
        return answers
