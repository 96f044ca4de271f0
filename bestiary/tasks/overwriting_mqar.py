"""Associative recall where keys are given new values, the forgetting task (HazyResearch's Zoology, 2026)."""

from math import log2
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Natural, Positive
from bestiary.tasks._count import choice_bits, from_bits
from bestiary.tasks._draw import distinct, draw_in_blocks, random_orders
from bestiary.tasks._layout import place_values
from bestiary.tasks._mqar import ZOOLOGY, Kind, draw_filler, draw_slots, solve_recall
from bestiary.tasks._task import SILENT, Batch, Task


class OverwritingMQAR(Task):
    """Read assignments of values to keys, of which later ones replace earlier ones; answer every key once.

        tokens   k1 v1 k2 v5 k1 v3 k3 v2 k1 v6 k2 v4   .  .  k3  .  .  .  k1  .  k2  .
        targets   .  .  .  .  .  .  .  .  .  .  .  .   .  .  v2  .  .  .  v6  .  v4  .

    Keys are tokens 1 to vocab/2 - 1 and values vocab/2 to vocab - 1. `pairs` keys are assigned once each, and keys
    drawn with replacement `updates` times more; all these assignments come in random order, so that place does not tell
    which is final, and each has a value of its own. Questions stand in slots of two positions after them, as in `mqar`,
    by the law of `power`. Random filler is none of the keys of its sequence.

    `mode="paper"` is the generator of the authors: first all keys once, then `updates` of them, all different, once
    more; questions tend to come in the order of the first assignments, and random filler is any token. Its new values
    are drawn one by one and differ from the first value of some key, not always the one they are given to, so that
    values recur and a few updates change nothing. `filler="zero"` puts token 0 instead of random filler. Presets
    `zoology64_4` to `zoology2048_256`, by length and pairs, are the segments of the authors, in this mode.

    Facets: `updates` (how often the asked key was assigned again; 0 is untouched), `distance` from a question back to
    the last assignment of its key, `pair` (the place of that among all assignments, from 0) and `load` (the keys).

    Departs from the source, unless `mode="paper"`: there, late assignments are always final, no key changes twice, and
    with four updates of many keys nearly all questions are about untouched ones.
    """

    family: ClassVar = "recall"
    variants: ClassVar = (
        "vocab=64, pairs=8, updates=12",
        "vocab=12, length=24, pairs=3, updates=3, filler='zero', power=1.0",
        "vocab=64, mode='paper'",
        "vocab=16, length=40, pairs=6, updates=2, mode='paper'",
        "vocab=64, pairs=4, updates=0",
    )
    presets: ClassVar = ZOOLOGY
    axes: ClassVar = {"updates": (0, 1, 2, 4, 8, 16, 24), "pairs": (2, 4, 8, 14), "length": (32, 64, 128, 256, 512)}

    def __init__(
        self,
        *,
        vocab: Positive = 8192,
        length: Positive = 64,
        pairs: Positive = 4,
        updates: Natural = 4,
        power: float = 0.01,
        filler: Literal["random", "zero"] = "random",
        mode: Literal["clean", "paper"] = "clean",
    ) -> None:
        self.vocab, self.length, self.pairs, self.updates, self.power = vocab, length, pairs, updates, power
        self.paper, self.half, self.context = mode == "paper", vocab // 2, 2 * (pairs + updates)
        self.kind: Kind = "zero" if filler == "zero" else mode
        needed = self.context + 2 * pairs
        if length < needed:
            raise ValueError(f"overwriting_mqar(length={length}): {pairs} pairs, {updates} updates need {needed}")
        if self.paper and updates > pairs:
            raise ValueError(
                f"overwriting_mqar(updates={updates}): in mode='paper' at most one for each of {pairs} pairs"
            )
        if vocab < (least := 2 * (pairs + max(1, updates))):
            raise ValueError(f"overwriting_mqar(vocab={vocab}): {pairs} pairs and {updates} updates need {least}")
        values = vocab - self.half
        self.chance, self.plateau = 1 / values, 1 / pairs
        self.among, spare = (length - self.context) // 2, length - self.context - pairs
        bits = choice_bits(self.half - 1, pairs) + choice_bits(values, pairs + updates)  # a few more in either mode
        bits += choice_bits(self.among, pairs) + (spare * log2(vocab - pairs) if filler == "random" else 0)
        self.space = from_bits(bits)

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""
        keys = 1 + distinct(count, self.pairs, self.half - 1, rng)
        order, values = self.assignments(count, rng)
        context = torch.stack([keys.gather(1, order), values], dim=2).flatten(1)
        tokens = torch.cat([context, draw_filler(self.kind, keys, self.length - self.context, self.vocab, rng)], dim=1)
        where = self.context + 2 * draw_slots(
            count, self.pairs, self.among, power=self.power, paper=self.paper, rng=rng
        )
        place = torch.arange(self.pairs + self.updates, device=rng.device).expand_as(order)
        last = torch.zeros_like(keys).scatter_reduce_(1, order, place, "amax", include_self=True)
        times = torch.zeros_like(keys).scatter_add_(1, order, torch.ones_like(order)) - 1
        load = torch.full_like(keys, self.pairs)
        facets = {"updates": times, "distance": where - 2 * last, "pair": last, "load": load}
        return Batch(
            tokens.scatter_(1, where, keys),
            place_values(where, values.gather(1, last), self.length, SILENT),
            {name: place_values(where, facet.int(), self.length) for name, facet in facets.items()},
        )

    def assignments(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The number of the key of each assignment, and its value."""
        among, total = self.vocab - self.half, self.pairs + self.updates
        each = torch.arange(self.pairs, device=rng.device).expand(count, -1)
        if self.paper:
            values = distinct(count, self.pairs, among, rng)
            fresh = torch.randint(among - 1, (count, self.updates), generator=rng, device=rng.device)
            fresh = fresh + (fresh >= values[:, : self.updates])
            changed = random_orders(count, self.pairs, rng)[:, : self.updates]
            return torch.cat([each, changed], dim=1), self.half + torch.cat([values, fresh], dim=1)
        again = torch.randint(self.pairs, (count, self.updates), generator=rng, device=rng.device)
        order = torch.cat([each, again], dim=1).gather(1, random_orders(count, total, rng))
        return order, self.half + distinct(count, total, among, rng)

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        return solve_recall(tokens, self.context)
