"""Associative recall with one question, as asked of H3 and Hyena (Fu, Dao et al., 2023; Poli et al., 2023)."""

from collections import deque
from collections.abc import Iterator
from math import log2
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import from_bits
from bestiary.tasks._draw import draw_in_blocks
from bestiary.tasks._task import OPEN_REASONS, SILENT, Batch, Scored, Task


class AssociativeRecall(Task):
    """Read pairs of key and value, then answer one key. Zoology shows it too easy to tell architectures apart.

        tokens   k3 v7 k1 v2 k3 v7 ... => k1
        targets   .  .  .  .  .  . ...  . v2

    The first half of the ordinary tokens are keys, the rest values; the last two tokens are "=>" and ".". Each sequence
    draws a map from keys to values, in which values may recur, and shows `pairs` of its pairs with replacement; a key
    is a tuple of `key_length` tokens. The question is one of the keys shown, each equally likely; with `absent` it is
    any key, and "." is the answer to those not shown.

    `scored="answer"` asks at the end only, as the papers test; `"all"` asks for the next token everywhere, as they
    train, and `solve` then knows only the last; `chance` and `plateau` are those of the last. The papers' length of 40
    and 20 tokens is `pairs=20`.

    Facets: `distance` back to the last showing of the key and `shown`, how often it was shown (0 if never).
    """

    family: ClassVar = "recall"
    variants: ClassVar = ("vocab=10, pairs=10", "vocab=8, pairs=5", "absent=True", "vocab=12, pairs=8, key_length=2")
    presets: ClassVar = {"h3": "", "short": "vocab=10, pairs=10", "hyena": "vocab=30, pairs=512"}
    axes: ClassVar = {"pairs": (5, 10, 20, 40), "vocab": (8, 20, 40), "key_length": (1, 2, 3)}

    def __init__(
        self,
        *,
        vocab: Positive = 20,
        pairs: Positive = 20,
        key_length: Positive = 1,
        absent: bool = False,
        scored: Scored = "answer",
    ) -> None:
        if vocab < 4:
            raise ValueError(f"associative_recall(vocab={vocab}): a key, a value, '=>' and '.' need 4 tokens")
        self.vocab, self.pairs, self.key_length, self.absent = vocab, pairs, key_length, absent
        self.scored, self.open = scored, OPEN_REASONS[scored]
        self.letters, self.values = (vocab - 2) // 2, vocab - 2 - (vocab - 2) // 2
        self.keys = self.letters**key_length
        if self.keys > 2**16:
            raise ValueError(
                f"associative_recall: {self.letters} letters make {self.keys} keys of {key_length}; at most 65536"
            )
        self.body = pairs * (key_length + 1)
        self.length = self.body + 1 + key_length
        seen = deque(occupancies(pairs, self.keys), maxlen=1).pop()
        missed = 1 - float(seen @ np.arange(len(seen))) / self.keys if absent else 0.0
        self.chance = max(missed, (1 - missed) / self.values)
        lucky = [
            float(filled[1:] @ (1 / np.arange(1, len(filled)))) for filled in occupancies(len(seen) - 1, self.values)
        ]
        self.plateau = max(missed, (1 - missed) * float(seen @ lucky))
        self.space = self.count_rows(seen)

    def count_rows(self, seen: np.ndarray) -> float:
        """The inverse of how often two rows are alike, if so many different keys are shown with these probabilities."""
        shown = np.arange(1, len(seen))
        alike = seen[1:] @ (float(self.values) ** -shown / (self.keys if self.absent else shown))  # values and question
        return from_bits(self.pairs * log2(self.keys) - log2(max(float(alike), 1e-300)))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.keys, rng, most=2**24)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""

        def draw(among: int, *shape: int) -> Tensor:
            return torch.randint(among, (count, *shape), generator=rng, device=rng.device)

        value_of, shown = self.letters + draw(self.values, self.keys), draw(self.keys, self.pairs)
        times = torch.zeros_like(value_of).scatter_add_(1, shown, torch.ones_like(shown))
        lottery = torch.rand(count, self.keys, generator=rng, device=rng.device)
        asked = (lottery if self.absent else lottery.masked_fill(times == 0, -1)).argmax(1, keepdim=True)
        pairs = torch.cat([self.spell(shown), value_of.gather(1, shown).unsqueeze(2)], dim=2)
        arrow = torch.full_like(asked, self.vocab - 2)
        tokens = torch.cat([pairs.flatten(1), arrow, self.spell(asked).flatten(1)], dim=1)
        count_shown = times.gather(1, asked)
        answer = torch.where(count_shown > 0, value_of.gather(1, asked), self.vocab - 1)
        targets = torch.cat([tokens[:, 1:], answer], dim=1)
        if self.scored == "answer":
            targets[:, :-1] = SILENT
        places = torch.arange(self.pairs, device=rng.device).expand_as(shown)
        last = places.masked_fill(shown != asked, -1).amax(1, keepdim=True)
        distance = (self.length - 1 - ((self.key_length + 1) * last + self.key_length - 1)).masked_fill(last < 0, 0)
        blank = torch.zeros_like(tokens[:, 1:])
        return Batch(
            tokens,
            targets,
            {"distance": torch.cat([blank, distance], 1), "shown": torch.cat([blank, count_shown], 1)},
        )

    def spell(self, keys: Int[Tensor, "rows keys"]) -> Int[Tensor, "rows keys letters"]:
        """The tokens of each key."""
        return torch.stack([keys // self.letters**i % self.letters for i in reversed(range(self.key_length))], dim=2)

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            if len(sequence) == self.length:
                size, value_of = self.key_length, {}
                for start in range(0, self.body, size + 1):
                    value_of[tuple(sequence[start : start + size])] = sequence[start + size]
                answers[row, -1] = value_of.get(tuple(sequence[-size:]), self.vocab - 1)
        return answers


def occupancies(balls: int, bins: int) -> Iterator[np.ndarray]:
    """The probabilities that 0, 1, ... and at last `balls` thrown into `bins` fill just 0, 1, 2, ... of them."""
    places = np.arange(min(balls, bins) + 1)
    filled = (places == 0).astype(float)
    yield filled
    for _ in range(balls):
        stay = filled * places / bins
        stay[1:] += filled[:-1] * (bins - places[:-1]) / bins
        yield (filled := stay)
