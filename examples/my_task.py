"""A task of one's own: read a list, then name the item at a given place."""

import math
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks import SILENT, Batch, Task


class Lookup(Task):
    """Which item stands at this place?

        tokens    5 12  0  9  18
        targets   .  .  .  .   0

    Items are tokens 0 to symbols - 1, all different; token symbols + i asks for place i, counted from 0.

    Facets: `place`, the place that is asked for.
    """

    family: ClassVar = "recall"
    variants: ClassVar = ("items=3, symbols=5", "items=20, symbols=40")
    axes: ClassVar = {"items": (4, 8, 16)}

    def __init__(self, *, items: Positive = 8, symbols: Positive = 16) -> None:
        if items > symbols:
            raise ValueError(f"lookup(items={items}): {items} different items need symbols={items} or more")
        self.items, self.symbols = items, symbols
        self.vocab, self.length = symbols + items, items + 1
        self.chance, self.plateau = 1 / symbols, 1 / items
        self.space = float(math.perm(symbols, items) * items)

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        order = torch.rand(count, self.symbols, generator=rng, device=rng.device).argsort(dim=1)[:, : self.items]
        place = torch.randint(self.items, (count, 1), generator=rng, device=rng.device)
        tokens = torch.cat([order, self.symbols + place], dim=1)
        targets = torch.full_like(tokens, SILENT)
        targets[:, -1:] = order.gather(1, place)
        return Batch(tokens, targets, {"place": place.int().expand_as(tokens)})

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            for time, token in enumerate(sequence):
                if token >= self.symbols:
                    answers[row, time] = sequence[token - self.symbols]
        return answers
