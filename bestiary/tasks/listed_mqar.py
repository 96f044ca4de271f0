"""Multi-query associative recall with the questions in a list (Kimi Team, 2025, "Kimi Linear")."""

from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import choice_bits, from_bits
from bestiary.tasks._draw import distinct, draw_in_blocks, random_orders
from bestiary.tasks._mqar import solve_recall
from bestiary.tasks._task import SILENT, Batch, Task


class ListedMQAR(Task):
    """Read pairs, then a list of keys, and give the value of each.

        tokens   k1 v1 k2 v2 k3 v3  |  k3 k1 k2
        targets   .  .  .  .  .  .  .  v3 v1 v2

    Token 0 is "|", keys are tokens 1 to vocab/2 - 1 and values vocab/2 to vocab - 1, new in each sequence. The list
    holds `queries` different keys of the `pairs` in random order, all of them by default. There is no filler, and the
    questions follow each other, so that, unlike in `mqar`, nothing after the pairs need be ignored and only the tail of
    the sequence is asked.

    The presets `kimi256` to `kimi2048` are the lengths of the paper with every key asked.

    Facets: `distance` from a question back to its key, `pair` (the place of its pair, from 0), `place` (of the
    question in the list, from 0) and `load` (how many pairs there are).

    Departs from the source: it gives neither the vocabulary nor the number of pairs; the presets take as many pairs as
    fill the length.
    """

    family: ClassVar = "recall"
    variants: ClassVar = ("vocab=40, pairs=16", "vocab=64, pairs=16, queries=1", "vocab=11, pairs=4, queries=2")
    presets: ClassVar = {f"kimi{length}": f"pairs={(length - 1) // 3}" for length in (256, 512, 1024, 2048)}
    axes: ClassVar = {"pairs": (4, 8, 16, 32, 64, 128, 256), "vocab": (64, 512, 8192)}

    def __init__(self, *, vocab: Positive = 8192, pairs: Positive = 16, queries: Positive | None = None) -> None:
        self.vocab, self.pairs, self.queries = vocab, pairs, pairs if queries is None else queries
        if self.queries > pairs:
            raise ValueError(f"listed_mqar(queries={queries}): there are {pairs} pairs; ask for at most {pairs}")
        if vocab < 2 * (pairs + 1):
            raise ValueError(f"listed_mqar(vocab={vocab}): {pairs} pairs need {2 * (pairs + 1)} tokens")
        self.half, self.context = vocab // 2, 2 * pairs + 1
        self.length, values = self.context + self.queries, vocab - self.half
        self.chance, self.plateau = 1 / values, 1 / pairs
        self.space = from_bits(
            choice_bits(self.half - 1, pairs) + choice_bits(values, pairs) + choice_bits(pairs, self.queries)
        )

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""
        keys = 1 + distinct(count, self.pairs, self.half - 1, rng)
        values = self.half + distinct(count, self.pairs, self.vocab - self.half, rng)
        asked = random_orders(count, self.pairs, rng)[:, : self.queries]
        bar = keys.new_zeros(count, 1)
        tokens = torch.cat([torch.stack([keys, values], dim=2).flatten(1), bar, keys.gather(1, asked)], dim=1)
        place = torch.arange(self.queries, device=rng.device).expand_as(asked)
        facets = {"distance": self.context + place - 2 * asked, "pair": asked, "place": place}
        facets["load"] = torch.full_like(asked, self.pairs)
        silent = keys.new_zeros(count, self.context)
        marked = {name: torch.cat([silent, facet], dim=1).int() for name, facet in facets.items()}
        return Batch(tokens, torch.cat([silent + SILENT, values.gather(1, asked)], dim=1), marked)

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        return solve_recall(tokens, self.context)
