"""Memorisation of MAD (Poli et al., 2024, section 3.1)."""

from math import log2
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Lt
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import from_bits
from bestiary.tasks._draw import random_orders
from bestiary.tasks._layout import add_filler, earlier_occurrences
from bestiary.tasks._task import SILENT, Batch, Task, stream


class Memorisation(Task):
    """Say the value of each key, from one map that is the same in every sequence and shown in none.

        tokens   k3  => k1  => k3  => ...
        targets   . v9   . v4   . v9  ...

    This tests knowledge in the weights, not recall in context. Tokens 0 to (vocab - 1)//2 - 1 are keys, the last
    token asks, and the others are values. The map gives each key a value of its own; it is drawn once from `seed`,
    which training and test must share. Each sequence holds length/2 keys, each drawn uniformly.

    Training and test rows never meet, as in every task, but here that means little: what is learnt are the pairs,
    and a test row is another order of the same. What a model has not seen in training it cannot know. MAD's settings
    change the vocabulary alone, and train on 256 rows.

    Facets: `key` (which) and `shown` (how often it was asked before in the row; the answers are not in the input).
    """

    family: ClassVar = "mad"
    variants: ClassVar = ("vocab=17, length=24, seed=1", "vocab=40, length=16")
    axes: ClassVar = {"vocab": (256, 512, 1024, 2048, 4096, 8192)}

    def __init__(
        self, *, vocab: Positive = 256, length: Positive = 32, seed: Annotated[int, Ge(0), Lt(2**31)] = 12345
    ) -> None:
        if vocab < 5:
            raise ValueError(f"memorisation(vocab={vocab}): two keys, their values and the last token need 5")
        if length % 2:
            raise ValueError(f"memorisation(length={length}): the length must be even; try {length + 1}")
        self.vocab, self.length, self.keys = vocab, length, (vocab - 1) // 2
        values = self.keys + random_orders(1, vocab - 1 - self.keys, stream("memorisation", seed))[0, : self.keys]
        self.value_of = tuple(values.tolist())
        self.chance = self.plateau = 1 / self.keys
        self.space = from_bits(length // 2 * log2(self.keys))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        keys = torch.randint(self.keys, (count, self.length // 2), generator=rng, device=rng.device)
        values = torch.tensor(self.value_of, device=rng.device)[keys]
        facets = {"key": keys, "shown": earlier_occurrences(keys).times}
        return Batch(
            add_filler(keys, 0, 1, self.vocab - 1),
            add_filler(values, 1, 0, SILENT),
            {name: add_filler(x, 1, 0, 0).int() for name, x in facets.items()},
        )

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            for time in range(1, len(sequence), 2):
                answers[row, time] = self.value_of[sequence[time - 1]]
        return answers
