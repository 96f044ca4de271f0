"""Recall of some pairs, asked for in a list and written out (Arora et al., 2024, "Just read twice")."""

from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import choice_bits, from_bits
from bestiary.tasks._draw import distinct, draw_in_blocks, random_orders
from bestiary.tasks._task import SILENT, Batch, Task


class JustReadTwice(Task):
    """Read pairs and then a list of some of their keys, and write out those pairs.

        tokens   k1 v1 k2 v2 k3 v3  |  k3 k1  |  .  .  .
        targets   .  .  .  .  .  .  .   .  . k3 v3 k1 v1

    Keys are tokens 2 to vocab/2 - 1 and values vocab/2 to vocab - 1, new in each sequence. "|" is token 1; the keys
    asked for are `queries` of the `pairs`, in random order. The answers are read at token 0, from the second "|" on:
    key, value, key, value, in the order of the list. Nothing of the answer is shown.

    The text up to the second "|" is read `passes` times before the answers. A reader with a small memory does not know
    at first which pairs to keep; `passes=2` (the preset `twice`), the prompt that gave the paper its name, lets it read
    the pairs knowing the list.

    Facets: `value` (1 where the answer is a value, 0 where it is a key of the list), `place` (of the answered key in
    the list, from 0), `distance` back to the answer in the last reading and `load` (the pairs).

    Departs from the source: there the list has a nominal length of at least 8 positions for each pair, which nothing
    else depends on; its generator shows the text once only.
    """

    family: ClassVar = "recall"
    variants: ClassVar = ("vocab=16, pairs=4, queries=1", "vocab=64, pairs=6, queries=6", "vocab=65, passes=2")
    presets: ClassVar = {"twice": "passes=2"}
    axes: ClassVar = {"pairs": (2, 4, 8, 16, 32, 64, 128), "queries": (1, 2, 4, 8), "passes": (2, 1)}

    def __init__(
        self, *, vocab: Positive = 8192, pairs: Positive = 8, queries: Positive = 2, passes: Positive = 1
    ) -> None:
        if queries > pairs:
            raise ValueError(f"just_read_twice(queries={queries}): there are {pairs} pairs; ask for at most {pairs}")
        if vocab < (least := 2 * (pairs + 2)):
            raise ValueError(f"just_read_twice(vocab={vocab}): {pairs} pairs need {least} tokens")
        self.vocab, self.pairs, self.queries, self.passes = vocab, pairs, queries, passes
        self.half, self.text = vocab // 2, 2 * pairs + queries + 2
        self.length = passes * self.text + 2 * queries - 1
        keys, values = self.half - 2, vocab - self.half
        self.chance = 1 / keys / 2  # half of the answers are keys, of which there are fewer
        self.plateau = (1 / queries + 1 / pairs) / 2  # any key of the list, any value of the text
        self.space = from_bits(choice_bits(keys, pairs) + choice_bits(values, pairs) + choice_bits(pairs, queries))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""
        keys = 2 + distinct(count, self.pairs, self.half - 2, rng)
        values = self.half + distinct(count, self.pairs, self.vocab - self.half, rng)
        asked = random_orders(count, self.pairs, rng)[:, : self.queries]
        pairs = torch.stack([keys, values], dim=2)
        bar, blank = keys.new_ones(count, 1), keys.new_zeros(count, 2 * self.queries - 1)
        text = torch.cat([pairs.flatten(1), bar, keys.gather(1, asked), bar], dim=1)
        tokens = torch.cat([*[text] * self.passes, blank], dim=1)

        answers = torch.stack([keys.gather(1, asked), values.gather(1, asked)], dim=2).flatten(1)
        number = torch.arange(2 * self.queries, device=rng.device)
        listed = 2 * self.pairs + 1 + number[::2].expand_as(asked) // 2
        source = torch.stack([listed, 2 * asked + 1], dim=2).flatten(1)  # in the text
        facets = {"value": number % 2, "place": number // 2, "distance": self.text - 1 + number - source}
        facets["load"] = number * 0 + self.pairs
        silent = (count, self.length - 2 * self.queries)
        marked = {
            name: torch.cat([facet.new_zeros(silent), facet.expand_as(answers)], dim=1).int()
            for name, facet in facets.items()
        }
        return Batch(tokens, torch.cat([tokens.new_full(silent, SILENT), answers], dim=1), marked)

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        start = self.passes * self.text - 1
        for row, sequence in enumerate(tokens.tolist()):
            value_of = dict(zip(sequence[0 : 2 * self.pairs : 2], sequence[1 : 2 * self.pairs : 2], strict=False))
            asked = sequence[2 * self.pairs + 1 : self.text - 1]
            written = [token for key in asked for token in (key, value_of.get(key, SILENT))]
            for time in range(start, len(sequence)):
                answers[row, time] = written[time - start]
        return answers
