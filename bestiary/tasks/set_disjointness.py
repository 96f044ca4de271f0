"""Set disjointness: which token do two lists share (Arora et al., 2024, "Just read twice")."""

from math import log2
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import choice_bits, from_bits
from bestiary.tasks._draw import distinct, draw_in_blocks
from bestiary.tasks._layout import place_values
from bestiary.tasks._task import SILENT, Batch, Task

TRAINED = ((4, 16), (8, 32), (16, 64), (4, 128), (16, 256), (4, 256))
TESTED = ((1, 32), (4, 32), (16, 512), (4, 512), (8, 768), (16, 768), (4, 768))


class SetDisjointness(Task):
    """Read two lists of tokens and name the one token that is in both.

        tokens   <  a  b  c  |  e  f  b  d  g  >
        targets  .  .  .  .  .  .  .  .  .  .  b

    "<" is token 1, "|" token 2 and ">" token 3; token 0 does not occur. All others are drawn: `first` and `second`
    different tokens for the two lists, then one of the second list, any, is replaced by one of the first, any.

    A reader that keeps the first list finds the answer while it reads the second, so that its memory is good enough if
    the first list is short; a causal one gains nothing from a short second list. Presets `sizes4_16`, `sizes16_4` and
    so on are the sizes with which the authors train, and longer ones with which they test.

    Facets: `distance` from the question back to the shared token in the second list, `gap` from there back to it in
    the first, and `load` (the size of the first list).

    Departs from the source: there either list comes from its own half of the shuffled tokens, which is the same as
    drawing them all at once, but limits either list to half of the vocabulary.
    """

    family: ClassVar = "recall"
    variants: ClassVar = ("vocab=64, first=4, second=16", "vocab=24, first=16, second=4", "vocab=70, first=1, second=9")
    presets: ClassVar = {f"sizes{a}_{b}": f"first={a}, second={b}" for x in TRAINED + TESTED for a, b in (x, x[::-1])}
    axes: ClassVar = {"first": (4, 16, 64, 256, 768), "second": (4, 16, 64, 256, 768)}

    def __init__(self, *, vocab: Positive = 2048, first: Positive = 16, second: Positive = 64) -> None:
        if vocab < 4 + first + second:
            raise ValueError(
                f"set_disjointness(vocab={vocab}): lists of {first} and {second} need {4 + first + second}"
            )
        self.vocab, self.first, self.second, self.length = vocab, first, second, first + second + 3
        self.chance, self.plateau = 1 / (vocab - 4), 1 / min(first, second)
        self.space = from_bits(choice_bits(vocab - 4, first + second - 1) + log2(first * second))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""
        drawn = 4 + distinct(count, self.first + self.second, self.vocab - 4, rng)
        here = torch.randint(self.first, (count, 1), generator=rng, device=rng.device)
        there = torch.randint(self.second, (count, 1), generator=rng, device=rng.device)
        one, two = drawn.split([self.first, self.second], dim=1)
        shared = one.gather(1, here)
        start, bar, end = (torch.full_like(shared, mark) for mark in (1, 2, 3))
        tokens = torch.cat([start, one, bar, two.scatter(1, there, shared), end], dim=1)
        load = torch.full_like(shared, self.first)
        facets = {"distance": self.second - there, "gap": self.first - here + 1 + there, "load": load}
        return Batch(
            tokens,
            place_values(end * 0 + self.length - 1, shared, self.length, SILENT),
            {name: place_values(end * 0 + self.length - 1, facet.int(), self.length) for name, facet in facets.items()},
        )

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            first: set[int] = set()
            shared, after = SILENT, False
            for time, token in enumerate(sequence):
                if token == 3:
                    answers[row, time] = shared
                elif token == 2:
                    after = True
                elif not after:
                    first.add(token)
                elif token in first:
                    shared = token
        return answers
