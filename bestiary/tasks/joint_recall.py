"""Joint recall: the same key has another value in each context (Zhan et al., 2025)."""

from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import choice_bits, from_bits
from bestiary.tasks._draw import distinct, random_orders
from bestiary.tasks._task import SILENT, Batch, Task


class JointRecall(Task):
    """Read blocks, each a context and then all keys with their values there; answer pairs of context and key.

        tokens   c1 k2 v1 k1 v2 c2 k1 v3 k2 v4   c2 k2 c1 k2
        targets   .  .  .  .  .  .  .  .  .  .    . v4  . v1

    Contexts, keys and values are the first, second and last third of the vocabulary. Every context has the same
    `keys` keys, in an order of its own, and no value occurs twice, so that neither context nor key is enough. Each
    question is a context and a key, asked at the key; `questions` different ones come in random order (0: all of
    them). Their values are not shown.

    Facets: `distance` from a question back to its key in the block, `block` (the place of its context, from 0) and
    `load` (how many values there are).

    Departs from the paper: contexts have one level, and values differ within a sequence, so that the guess that
    knows only the key is right 1 / contexts of the time.
    """

    family: ClassVar = "recall"
    variants: ClassVar = ("vocab=120, contexts=2, keys=2", "vocab=600, contexts=8, keys=5, questions=10")
    axes: ClassVar = {"contexts": (2, 4, 8, 16), "keys": (2, 4, 8, 16)}

    def __init__(
        self, *, vocab: Positive = 8192, contexts: Positive = 4, keys: Positive = 8, questions: int = 0
    ) -> None:
        cells, third = contexts * keys, vocab // 3
        if third < max(contexts, keys) or vocab - 2 * third < cells:
            needed = max(3 * max(contexts, keys), 3 * cells)
            raise ValueError(f"joint_recall(vocab={vocab}): {contexts} contexts of {keys} keys need {needed}")
        if not 0 <= questions <= cells:
            raise ValueError(f"joint_recall(questions={questions}): {cells} can be asked; 0 asks them all")
        self.vocab, self.contexts, self.keys, self.questions = vocab, contexts, keys, questions or cells
        self.cells, self.third = cells, third
        self.body = contexts * (1 + 2 * keys)
        self.length = self.body + 2 * self.questions
        bits = choice_bits(third, contexts) + choice_bits(third, keys) + choice_bits(vocab - 2 * third, cells)
        bits += (contexts - 1) * choice_bits(keys, keys)  # the first block's order is that in which the keys are drawn
        self.space = from_bits(bits + choice_bits(cells, self.questions))
        self.chance, self.plateau = 1 / (vocab - 2 * third), 1 / cells

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        contexts = distinct(count, self.contexts, self.third, rng)
        keys = self.third + distinct(count, self.keys, self.third, rng)
        values = 2 * self.third + distinct(count, self.cells, self.vocab - 2 * self.third, rng)
        order = random_orders(count * self.contexts, self.keys, rng).view(count, -1)
        shown = keys.gather(1, order)  # the key of each cell, in the order of the text
        pairs = torch.stack([shown, values], dim=2).view(count, self.contexts, 2 * self.keys)
        blocks = torch.cat([contexts.unsqueeze(2), pairs], dim=2).flatten(1)
        asked = random_orders(count, self.cells, rng)[:, : self.questions]
        block = asked // self.keys
        questions = torch.stack([contexts.gather(1, block), shown.gather(1, asked)], dim=2).flatten(1)
        tokens = torch.cat([blocks, questions], dim=1)
        targets = torch.full_like(tokens, SILENT)
        targets[:, self.body + 1 :: 2] = values.gather(1, asked)
        where = torch.arange(self.body + 1, self.length, 2, device=rng.device)
        facets = {name: torch.zeros_like(tokens, dtype=torch.int32) for name in ("distance", "block")}
        facets["distance"][:, self.body + 1 :: 2] = where - (1 + block + 2 * asked)
        facets["block"][:, self.body + 1 :: 2] = block
        load = torch.tensor(self.cells, dtype=torch.int32, device=rng.device).expand_as(tokens)
        return Batch(tokens, targets, {**facets, "load": load})

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            value_of: dict[tuple[int, int], int] = {}
            context = key = -1
            for time, token in enumerate(sequence):
                if token < self.third:
                    context = token
                elif token < 2 * self.third:
                    key = token
                    answers[row, time] = value_of.get((context, key), SILENT)
                else:
                    value_of[context, key] = token
        return answers
