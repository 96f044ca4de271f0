"""Recall among writes that must not count, the case of anti-pollution (after Zou & Donz, 2026)."""

from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Natural, Positive
from bestiary.tasks._count import choice_bits, from_bits
from bestiary.tasks._draw import distinct, draw_in_blocks, random_orders
from bestiary.tasks._layout import place_values
from bestiary.tasks._task import SILENT, Batch, Task

WRITE, LURE = 0, 1


class InterferenceRecall(Task):
    """Read assignments of values to keys, some of which are void; then say what each key was last validly given.

        tokens   W k1 v1  W k2 v5  X k1 v3  W k2 v2  X k2 v6    k2  k1
        targets   .  .  .  .  .  .  .  .  .  .  .  .  .  .  .   v2  v1

    Token 0 is the mark W of an assignment, token 1 the mark X of a lure, half of the others are keys and the rest
    values. `pairs` different keys are assigned once each, keys drawn with replacement `updates` times more, and others
    drawn likewise have `lures` lures. All of these come in random order, each with a value of its own, so that neither
    the first nor the last value of a key is always the right one. After them each key is asked once, in random order.

    In `overwriting_mqar` the last value counts, so that a memory may write whatever comes. Here a mark before the key
    says whether to write at all: the memory must be protected. lures=0 is overwriting with marks, updates=0 protection
    alone.

    Facets: `updates` and `lures` (how often the asked key was assigned again, and lured), `lured` (1 if a lure of it
    came after its last assignment), `distance` from a question back to the key of that assignment, and `load` (the
    keys).

    The task is ours. The paper, in its abstract, names the case (a fact is to be protected from distractors) beside
    overwriting and versions of a fact; its generator is not public, so that neither sizes nor marks are taken from it.
    """

    family: ClassVar = "recall"
    variants: ClassVar = (
        "vocab=60, pairs=3, updates=0, lures=6",
        "vocab=60, pairs=6, updates=4, lures=0",
        "vocab=200, pairs=8, updates=8, lures=16",
    )
    axes: ClassVar = {"lures": (0, 2, 4, 8, 16), "updates": (0, 2, 4, 8), "pairs": (2, 4, 8, 16)}

    def __init__(self, *, vocab: Positive = 512, pairs: Positive = 4, updates: Natural = 4, lures: Natural = 4) -> None:
        self.vocab, self.pairs, self.updates, self.lures = vocab, pairs, updates, lures
        self.writes = pairs + updates + lures
        self.keys, self.body = (vocab - 2) // 2, 3 * self.writes
        if vocab < (least := 2 + 2 * self.writes):
            raise ValueError(f"interference_recall(vocab={vocab}): {self.writes} assignments and lures need {least}")
        values = vocab - 2 - self.keys
        self.length, self.chance, self.plateau = self.body + pairs, 1 / values, 1 / pairs
        self.space = from_bits(choice_bits(self.keys, pairs) + choice_bits(values, self.writes))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""
        keys = 2 + distinct(count, self.pairs, self.keys, rng)
        values = 2 + self.keys + distinct(count, self.writes, self.vocab - 2 - self.keys, rng)
        every = torch.arange(self.pairs, device=rng.device).expand(count, -1)
        more = torch.randint(self.pairs, (count, self.updates + self.lures), generator=rng, device=rng.device)
        order = random_orders(count, self.writes, rng)
        which, void = torch.cat([every, more], dim=1).gather(1, order), order >= self.pairs + self.updates
        marks = torch.where(void, LURE, WRITE)
        body = torch.stack([marks, keys.gather(1, which), values], dim=2).flatten(1)
        asked = random_orders(count, self.pairs, rng)
        mine = which.unsqueeze(1) == asked.unsqueeze(2)  # which writes are about the key of each question
        valid, place = mine & ~void.unsqueeze(1), torch.arange(self.writes, device=rng.device)
        last, end = (torch.where(part, place, -1).amax(2) for part in (valid, mine))
        where = self.body + torch.arange(self.pairs, device=rng.device).expand_as(asked)
        facets = {"updates": valid.sum(2) - 1, "lures": (mine & ~valid).sum(2), "lured": (end > last).long()}
        facets |= {"distance": where - (3 * last + 1), "load": torch.full_like(asked, self.pairs)}
        return Batch(
            torch.cat([body, keys.gather(1, asked)], dim=1),
            place_values(where, values.gather(1, last), self.length, SILENT),
            {name: place_values(where, facet.int(), self.length) for name, facet in facets.items()},
        )

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            value_of: dict[int, int] = {}
            for time in range(2, min(len(sequence), self.body), 3):
                if sequence[time - 2] == WRITE:
                    value_of[sequence[time - 1]] = sequence[time]
            for time in range(self.body, len(sequence)):
                answers[row, time] = value_of[sequence[time]]
        return answers
