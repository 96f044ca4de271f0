"""Associative recall with a gap between each key and its value (ours, 2026; after Arora et al., 2023)."""

from math import log2
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Natural, Positive
from bestiary.tasks._count import choice_bits, from_bits
from bestiary.tasks._draw import distinct, draw_in_blocks
from bestiary.tasks._layout import place_values
from bestiary.tasks._mqar import draw_slots
from bestiary.tasks._task import SILENT, Batch, Task


class GappedMQAR(Task):
    """Read keys and, some filler later, the value of each; then answer every key once, among filler.

        tokens   k1  .  . v1 k2  .  . v2   .  k2  .  .  k1  .        gap=2
        targets   .  .  .  .  .  .  .  .   .  v2  .  .  v1  .

    Token 0 and those up to vocab/3 - 1 are filler, then as many keys, and the rest are values; keys and values are
    different within a row. Each pair takes `gap` + 2 positions: its key, filler, its value. With `gaps="varied"` the
    number of fillers between the two is uniform from 0 to `gap`, and the others follow the value, so that the value
    is the next one in the text and not the token at a fixed distance. Questions stand in slots of two positions after
    all pairs, as in `mqar`, by the law of `power`. `filler="zero"` puts token 0 instead of random filler.

    In `mqar` a key and its value are neighbours: a convolution of width 2 or a shift by one token joins them, and the
    memory behind it has only to look up. A gap wider than the short convolution of a mixer (mostly 4 tokens) leaves
    that to the memory itself. gap=0 is plain MQAR with filler that is neither a key nor a value.

    Facets: `gap` (fillers between the asked key and its value), `distance` from a question back to its key, `pair` (the
    place of its pair, from 0) and `load` (how many pairs there are).

    The definition is ours. No paper was found that defines a gapped MQAR; public code has the name both for filler
    between key and value and for filler between pairs, of which `gaps="varied"` has some as well.
    """

    family: ClassVar = "recall"
    variants: ClassVar = (
        "vocab=60, length=40, gap=1",
        "gaps='varied', vocab=90, gap=6, pairs=3",
        "vocab=48, filler='zero', power=1.0",
    )
    axes: ClassVar = {"gap": (0, 1, 2, 4, 8), "pairs": (2, 4, 6), "length": (64, 128, 256)}

    def __init__(
        self,
        *,
        vocab: Positive = 768,
        length: Positive = 64,
        pairs: Positive = 4,
        gap: Natural = 4,
        gaps: Literal["fixed", "varied"] = "fixed",
        power: float = 0.01,
        filler: Literal["random", "zero"] = "random",
    ) -> None:
        self.vocab, self.length, self.pairs, self.gap, self.power = vocab, length, pairs, gap, power
        self.varied, self.zero, self.third = gaps == "varied", filler == "zero", vocab // 3
        self.context = pairs * (gap + 2)
        if length < (needed := self.context + 2 * pairs):
            raise ValueError(f"gapped_mqar(length={length}): {pairs} pairs and their questions need {needed}")
        if self.third < max(pairs, 2):
            raise ValueError(f"gapped_mqar(vocab={vocab}): {pairs} pairs need {3 * max(pairs, 2)}")
        values = vocab - 2 * self.third
        self.chance, self.plateau = 1 / values, 1 / pairs
        self.among, spare = (length - self.context) // 2, length - 3 * pairs
        bits = choice_bits(self.third, pairs) + choice_bits(values, pairs) + choice_bits(self.among, pairs)
        bits += pairs * log2(gap + 1) if self.varied else 0
        self.space = from_bits(bits + (0 if self.zero else spare * log2(self.third)))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""
        keys = self.third + distinct(count, self.pairs, self.third, rng)
        values = 2 * self.third + distinct(count, self.pairs, self.vocab - 2 * self.third, rng)
        tokens = torch.randint(self.third, (count, self.length), generator=rng, device=rng.device)
        tokens = 0 * tokens if self.zero else tokens
        gap = torch.full_like(keys, self.gap)
        if self.varied:
            gap = torch.randint(self.gap + 1, keys.shape, generator=rng, device=rng.device)
        pair = torch.arange(self.pairs, device=rng.device).expand_as(keys)
        shown = (self.gap + 2) * pair
        slots = draw_slots(count, self.pairs, self.among, power=self.power, paper=False, rng=rng)
        where = self.context + 2 * slots
        tokens.scatter_(1, shown, keys).scatter_(1, shown + 1 + gap, values).scatter_(1, where, keys)
        load = torch.full_like(keys, self.pairs)
        facets = {"gap": gap, "distance": where - shown, "pair": pair, "load": load}
        return Batch(
            tokens,
            place_values(where, values, self.length, SILENT),
            {name: place_values(where, facet.int(), self.length) for name, facet in facets.items()},
        )

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            value_of: dict[int, int] = {}
            waiting = -1
            for time, token in enumerate(sequence):
                if token >= 2 * self.third:
                    value_of[waiting] = token
                elif token >= self.third and token not in value_of:
                    waiting = token
                elif token >= self.third:
                    answers[row, time] = value_of[token]
        return answers
