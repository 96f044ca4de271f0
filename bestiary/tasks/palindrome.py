"""Palindromes (Kimi Team, 2025, section 5.1)."""

from math import log2
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import from_bits, mean_inverse_distinct
from bestiary.tasks._task import SILENT, Batch, Task


class Palindrome(Task):
    """Read a string, and say it backwards.

        tokens   5 9 2 7 => 7 2 9
        targets             2 9 5

    The last token of the vocabulary stands between, the others are drawn uniformly. The string read backwards is
    shown too, so that each of its tokens asks for the next. The first of them is input and not asked, and the last
    is not shown: a string of n tokens makes a row of 2n, which is `length`.

    Facets: `distance` from a question back to the token that is its answer and `place` (of that token, from 0).

    Departs from the paper: it states no vocabulary. Its lengths run from 256 to 2048.
    """

    family: ClassVar = "copying"
    variants: ClassVar = ("vocab=4, length=64", "vocab=1000, length=32", "length=16")
    presets: ClassVar = {"kimi": "length=256", "kimi_long": "length=2048"}
    axes: ClassVar = {"length": (32, 64, 128, 256, 512, 1024, 2048)}

    def __init__(self, *, vocab: Positive = 64, length: Positive = 128) -> None:
        if vocab < 3:
            raise ValueError(f"palindrome(vocab={vocab}): two tokens and the one between need 3")
        if length % 2 or length < 4:
            raise ValueError(f"palindrome(length={length}): the length is twice that of a string of 2 or more; try 256")
        self.vocab, self.length, self.size = vocab, length, length // 2
        self.chance, self.plateau = 1 / (vocab - 1), mean_inverse_distinct(self.size, vocab - 1)
        self.space = from_bits(self.size * log2(vocab - 1))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        string = torch.randint(self.vocab - 1, (count, self.size), generator=rng, device=rng.device)
        back = string.flip(1)
        between = torch.full_like(string[:, :1], self.vocab - 1)
        tokens = torch.cat([string, between, back[:, :-1]], dim=1)
        targets = torch.full_like(tokens, SILENT)
        targets[:, self.size + 1 :] = back[:, 1:]
        time = torch.arange(self.length, dtype=torch.int32, device=rng.device)
        place = self.length - 1 - time
        distance = time - place
        facets = {
            name: x.masked_fill(place > self.size - 2, 0) for name, x in (("distance", distance), ("place", place))
        }
        return Batch(tokens, targets, {name: x.expand_as(tokens) for name, x in facets.items()})

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            stack: list[int] = []
            backwards = False
            for time, token in enumerate(sequence):
                if token == self.vocab - 1:
                    backwards = True
                elif not backwards:
                    stack.append(token)
                else:
                    stack.pop()
                    answers[row, time] = stack[-1]
        return answers
