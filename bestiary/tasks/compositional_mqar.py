"""Compositional associative recall: two keys name a value (HazyResearch's Zoology, 2026)."""

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import choice_bits, from_bits, subset_bits
from bestiary.tasks._draw import distinct, draw_in_blocks, random_orders
from bestiary.tasks._layout import place_values
from bestiary.tasks._mqar import ZOOLOGY, Kind, draw_filler, draw_slots
from bestiary.tasks._task import SILENT, Batch, Task


class CompositionalMQAR(Task):
    """Read triples of first key, second key and value; answer every pair of keys once.

        tokens   a1 b2 v3  a2 b2 v1  a1 b1 v4  a2 b1 v2   .  .  .  a2 b2  .   .  .  .  a1 b1  .
        targets   .  .  .   .  .  .   .  .  .   .  .  .   .  .  .   . v1  .   .  .  .   . v4  .

    First keys are tokens 1 to third - 1, second keys third to 2 third - 1 and values 2 third to vocab - 1, with third =
    vocab/3 rounded down. A sequence draws g of either key, where g^2 = `pairs`, and gives each of the g^2 combinations
    a value of its own, in random order. After them come slots of three positions, of which each question takes one,
    first key first; it is answered at the second key. The law of the slots, by `power`, is that of `mqar`.

    Neither key alone says more than which g values may be meant: a model that heeds one key is right 1/g of the time.

    `mode="clean"` asks in random order and draws random filler that is none of the keys of its sequence;
    `mode="paper"` places the questions in the order of the context, so that early triples tend to be asked early, and
    its filler is any token. `filler="zero"` puts token 0 instead. Presets `zoology64_4` to `zoology2048_256`, by length
    and pairs, are the segments on which the authors train and test, with `mode="paper"`.

    Facets: `distance` from a question back to its combination, `pair` (the place of that in the context, from 0) and
    `load` (how many there are).

    Departs from the source: the length may be odd, as nothing depends on it.
    """

    family: ClassVar = "recall"
    variants: ClassVar = (
        "vocab=30, length=60, pairs=9",
        "vocab=64, length=96, pairs=16",
        "vocab=64, pairs=4, filler='zero', power=1.0",
        "vocab=64, mode='paper'",
    )
    presets: ClassVar = ZOOLOGY
    axes: ClassVar = {"pairs": (4, 9), "length": (32, 64, 128, 256, 512), "power": (0.01, 0.5, 1.0)}

    def __init__(
        self,
        *,
        vocab: Positive = 8192,
        length: Positive = 64,
        pairs: Positive = 4,
        power: float = 0.01,
        filler: Literal["random", "zero"] = "random",
        mode: Literal["clean", "paper"] = "clean",
    ) -> None:
        self.vocab, self.length, self.pairs, self.power, self.mode = vocab, length, pairs, power, mode
        self.kind: Kind = "zero" if filler == "zero" else mode
        self.side, self.third, self.context = math.isqrt(pairs), vocab // 3, 3 * pairs
        if self.side**2 != pairs:
            near = sorted({self.side**2, (self.side + 1) ** 2})
            raise ValueError(f"compositional_mqar(pairs={pairs}): all combinations are a square; try {near}")
        if length < 6 * pairs:
            raise ValueError(f"compositional_mqar(length={length}): {pairs} triples and questions need {6 * pairs}")
        if vocab < (least := max(3 * (self.side + 1), 3 * pairs - 2)):
            raise ValueError(f"compositional_mqar(vocab={vocab}): {pairs} pairs need {least} tokens, in thirds")
        values = vocab - 2 * self.third
        self.chance, self.plateau = 1 / values, 1 / pairs
        self.among, spare = (length - self.context) // 3, length - self.context - 2 * pairs
        bits = subset_bits(self.third - 1, self.side) + subset_bits(self.third, self.side) + choice_bits(pairs, pairs)
        bits += choice_bits(values, pairs) + choice_bits(self.among, pairs)
        self.space = from_bits(bits + (spare * math.log2(vocab - 2 * self.side) if filler == "random" else 0))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""
        one = 1 + distinct(count, self.side, self.third - 1, rng)
        two = self.third + distinct(count, self.side, self.third, rng)
        values = 2 * self.third + distinct(count, self.pairs, self.vocab - 2 * self.third, rng)
        cell = random_orders(count, self.pairs, rng)  # of the grid of first and second keys
        first, second = one.gather(1, cell // self.side), two.gather(1, cell % self.side)
        triples = torch.stack([first, second, values], dim=2).flatten(1)
        gaps = draw_filler(self.kind, torch.cat([one, two], 1), self.length - self.context, self.vocab, rng)
        slot = draw_slots(count, self.pairs, self.among, power=self.power, paper=self.mode == "paper", rng=rng)
        where = self.context + 3 * slot
        tokens = torch.cat([triples, gaps], dim=1).scatter_(1, where, first).scatter_(1, where + 1, second)
        place = torch.arange(self.pairs, device=rng.device, dtype=torch.int32).expand_as(where)
        facets = {"distance": (where - 3 * place).int(), "pair": place, "load": torch.full_like(place, self.pairs)}
        marked = {name: place_values(where + 1, facet, self.length) for name, facet in facets.items()}
        return Batch(tokens, place_values(where + 1, values, self.length, SILENT), marked)

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            value_of: dict[tuple[int, int], int] = {}
            for time, token in enumerate(sequence):
                if time < self.context:
                    if time % 3 == 2:
                        value_of[sequence[time - 2], sequence[time - 1]] = token
                else:
                    answers[row, time] = value_of.get((sequence[time - 1], token), SILENT)
        return answers
