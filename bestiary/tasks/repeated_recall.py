"""Repeated associative recall, and of values some assignments ago (Tan et al., 2024; Yang et al., 2025)."""

import math
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import from_bits
from bestiary.tasks._draw import blocks, distinct
from bestiary.tasks._layout import earlier_occurrences
from bestiary.tasks._task import SILENT, Batch, Task


class RepeatedRecall(Task):
    """Read assignments of values to keys, in which keys return; each return asks what the key had before.

        tokens   k1 v1 k2 v2 k1 v3 k1 v4 k2 v5
        targets   .  .  .  . v1  . v3  . v2  .     back=1
        targets   .  .  .  .  .  . v1  .  .  .     back=2

    Keys are the lower half of the vocabulary, values the upper. Each sequence has `keys` different keys, of which every
    assignment takes one, each equally likely, and gives it any value. A key that was assigned `back` times or more is a
    question: the value of `back` assignments ago. The new value follows as input. `back=1` is MQRAR of stick-breaking
    attention, `back` 2 to 4 its N-back form of PaTH attention.

    Facets: `distance` from a question back to the key whose value it asks, and `times`, how often the key was
    assigned before.

    Departs from the papers, which publish no generator: keys and values are uniform, and there is no filler.
    """

    family: ClassVar = "recall"
    variants: ClassVar = ("vocab=20, length=40, keys=4", "vocab=100, length=128, keys=8, back=3")
    presets: ClassVar = {
        "stick_breaking": "length=768, keys=32",
        "path_2": "length=768, keys=32, back=2",
        "path_3": "length=768, keys=32, back=3",
        "path_4": "length=768, keys=32, back=4",
    }
    axes: ClassVar = {"back": (1, 2, 3, 4), "keys": (1, 2, 4)}

    def __init__(self, *, vocab: Positive = 8192, length: Positive = 256, keys: Positive = 16, back: Positive = 1):
        self.vocab, self.length, self.keys, self.back = vocab, length, keys, back
        self.half, self.assignments = vocab // 2, length // 2
        if length % 2:
            raise ValueError(f"repeated_recall(length={length}): assignments are two tokens; try {length + 1}")
        if self.assignments <= keys * back:
            raise ValueError(
                f"repeated_recall(length={length}): with {keys} keys and back={back} a question is sure from a length "
                f"of {2 * keys * back + 2}"
            )
        if self.half < keys:
            raise ValueError(f"repeated_recall(vocab={vocab}): {keys} keys and as many values need {2 * keys}")
        values = vocab - self.half
        self.space = from_bits(self.assignments * math.log2(values * keys))
        self.chance, self.plateau = 1 / values, max(1 / values, 1 / keys)

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        tokens = torch.empty(count, self.length, dtype=torch.long, device=rng.device)
        targets = torch.full_like(tokens, SILENT)
        distance, times = (torch.zeros_like(tokens, dtype=torch.int32) for _ in range(2))
        for part in blocks(count, self.length):
            self.draw_into(tokens[part], targets[part], distance[part], times[part], rng)
        return Batch(tokens, targets, {"distance": distance, "times": times})

    def draw_into(self, tokens: Tensor, targets: Tensor, distance: Tensor, times: Tensor, rng: torch.Generator) -> None:
        """Draw some rows in place."""
        shape = len(tokens), self.assignments
        key = torch.randint(self.keys, shape, generator=rng, device=rng.device)
        values = torch.randint(self.half, self.vocab, shape, generator=rng, device=rng.device)
        tokens[:, ::2] = distinct(len(tokens), self.keys, self.half, rng).gather(1, key)
        tokens[:, 1::2] = values
        _, asked, before = earlier_occurrences(key, self.back)
        silent = asked < 0
        targets[:, ::2] = values.gather(1, asked.clamp(min=0)).masked_fill(silent, SILENT)
        place = torch.arange(self.assignments, device=rng.device)
        distance[:, ::2] = (2 * (place - asked)).masked_fill(silent, 0)
        times[:, ::2] = before.masked_fill(silent, 0)

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            history: dict[int, list[int]] = {}
            for time, token in enumerate(sequence):
                if time % 2:
                    history.setdefault(sequence[time - 1], []).append(token)
                elif len(history.get(token, [])) >= self.back:
                    answers[row, time] = history[token][-self.back]
        return answers
