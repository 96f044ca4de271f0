"""Retrieval of a position: where in the sequence does this item stand? (Pantazopoulos et al., 2026, Retrievit)."""

from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import choice_bits, from_bits
from bestiary.tasks._draw import draw_in_blocks, random_orders
from bestiary.tasks._layout import place_values
from bestiary.tasks._task import SILENT, Batch, Task


class PositionRetrieval(Task):
    """Read all items in some order, and say at which place one of them stands.

        tokens           $ d a c b ? c       prefix   ? c $ d a c b
        targets          . . . . . . 2                . . . . . . 2      (places are counted from 0)

    Tokens 0 to items - 1 are items, the next `items` tokens are the places that are answered with, and then come start
    `$` and question `?`. Every item stands in the sequence once, in uniform order, and the one asked for is uniform.
    With `prefix` the question comes first, and its answer is due at the last item.

    The answer is a number that is not in the text, unlike that of all other recall tasks here: a model has to know how
    far from the start something stood, not what stood near it.

    Presets `retrievit` and `retrievit_prefix` have the paper's 200 items.

    Facets: `place` (the answer) and `distance` from the last token of the row back to the item asked for.

    Departs from the paper: the answer ends the row, where the paper also trains on the start token after it. Its second
    form, with items that repeat and rows of several lengths, is left out.
    """

    family: ClassVar = "recall"
    variants: ClassVar = ("items=8", "items=30, prefix=True")
    presets: ClassVar = {"retrievit": "items=200", "retrievit_prefix": "items=200, prefix=True"}
    axes: ClassVar = {"items": (8, 16, 32, 64, 128, 200)}

    def __init__(self, *, items: Positive = 32, prefix: bool = False) -> None:
        if items < 2:
            raise ValueError(f"position_retrieval(items={items}): there is a place to ask for from 2 items on")
        self.items, self.prefix = items, prefix
        self.vocab, self.length = 2 * items + 2, items + 3
        self.chance = self.plateau = 1 / items
        self.space = from_bits(choice_bits(items, items) + choice_bits(items, 1))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""
        order = random_orders(count, self.items, rng)
        place = torch.randint(self.items, (count, 1), generator=rng, device=rng.device)
        start, what = (torch.full_like(place, mark) for mark in (self.vocab - 2, self.vocab - 1))
        parts = [start, order], [what, order.gather(1, place)]
        tokens = torch.cat([*parts[1], *parts[0]] if self.prefix else [*parts[0], *parts[1]], dim=1)
        last = torch.full_like(place, self.length - 1)
        stands = place + (3 if self.prefix else 1)
        facets = {"place": place, "distance": last - stands}
        return Batch(
            tokens,
            place_values(last, self.items + place, self.length, SILENT),
            {name: place_values(last, facet.int(), self.length) for name, facet in facets.items()},
        )

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            if len(sequence) == self.length:
                asked = sequence[sequence.index(self.vocab - 1) + 1]
                begin = sequence.index(self.vocab - 2) + 1
                answers[row, -1] = self.items + sequence[begin : begin + self.items].index(asked)
        return answers
