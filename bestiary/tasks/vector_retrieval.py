"""Vector retrieval (Park et al., 2024)."""

import math
from functools import cache
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bestiary.spec import Positive
from bestiary.tasks._draw import distinct
from bestiary.tasks._layout import gather_vectors
from bestiary.tasks._task import SILENT, Batch, Task, stream


class VectorRetrieval(Task):
    """Read pairs of vectors, then answer which value goes with the key that is most like the query.

        tokens   k1 v9 k2 v4 k3 v5 ~k2     each a vector of `width` numbers
        targets   .  .  .  .  .  .   4     the class of the value

    All vectors have the norm sqrt(width) and any direction, each equally likely. Keys are new in each sequence; values
    are `pairs` different ones of `classes` fixed vectors, those of the stream ("vector_retrieval", "values"). Each of
    `questions` queries is another of the keys, plus `noise` times a vector of independent normal numbers, brought back
    to the norm. The answer is the class of the value whose key has the largest inner product with the query.

    Facets: `distance` from the query back to that key, and `pair` (its place, from 0).

    Departs from the paper: values come from a fixed set and their class is the answer, where the paper regresses on a
    fresh vector, so that accuracy and chance mean the same as in other tasks; and a query is always one of the keys,
    where the paper's code sometimes draws another vector.
    """

    family: ClassVar = "recall"
    variants: ClassVar = (
        "width=5, pairs=6, classes=8, noise=0.5, questions=3",
        "width=2, pairs=2, classes=40",
    )
    presets: ClassVar = {"paper": "width=20, pairs=64, classes=64"}
    axes: ClassVar = {"noise": (0.0, 0.2, 0.5, 1.0), "pairs": (3, 4, 6, 8)}

    def __init__(
        self,
        *,
        width: Positive = 20,
        pairs: Positive = 16,
        classes: Positive = 64,
        questions: Positive = 1,
        noise: float = 0.0,
    ) -> None:
        if width < 2:
            raise ValueError(f"vector_retrieval(width={width}): directions need a width of 2")
        if classes < pairs:
            raise ValueError(f"vector_retrieval(classes={classes}): {pairs} pairs of different values need {pairs}")
        if questions > pairs:
            raise ValueError(f"vector_retrieval(questions={questions}): of {pairs} keys at most {pairs} can be asked")
        if not 0 <= noise < math.inf:
            raise ValueError(f"vector_retrieval(noise={noise}): it must be a number from 0 on")
        self.features, self.pairs, self.vocab, self.questions, self.noise = width, pairs, classes, questions, noise
        self.length = 2 * pairs + questions
        self.chance, self.plateau = 1 / classes, 1 / pairs

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        def normal(vectors: int) -> Tensor:
            return torch.randn(count, vectors, self.features, generator=rng, device=rng.device)

        classes, asked = (distinct(count, *of, rng) for of in ((self.pairs, self.vocab), (self.questions, self.pairs)))
        tokens = torch.empty(count, self.length, self.features, device=rng.device)
        context, queries = tokens[:, : 2 * self.pairs], tokens[:, 2 * self.pairs :]
        context[:, ::2] = keys = normalize(normal(self.pairs))
        context[:, 1::2] = value_vectors(self.vocab, self.features).to(rng.device)[classes]
        queries.copy_(gather_vectors(keys, asked))
        if self.noise:
            queries.copy_(normalize(queries + self.noise * normal(self.questions)))
        nearest = (queries.double() @ keys.double().transpose(1, 2)).argmax(2)
        targets = torch.full(tokens.shape[:2], SILENT, device=rng.device)
        distance, pair = (torch.zeros_like(targets, dtype=torch.int32) for _ in range(2))
        targets[:, 2 * self.pairs :] = classes.gather(1, nearest)
        distance[:, 2 * self.pairs :] = torch.arange(2 * self.pairs, self.length, device=rng.device) - 2 * nearest
        pair[:, 2 * self.pairs :] = nearest
        return Batch(tokens, targets, {"distance": distance, "pair": pair})

    def solve(self, tokens: Float[Tensor, "batch time width"]) -> Int[Tensor, "batch time"]:
        answers = torch.full(tokens.shape[:2], SILENT)
        class_of = {tuple(value): i for i, value in enumerate(value_vectors(self.vocab, self.features).tolist())}
        for row, sequence in enumerate(tokens.tolist()):
            keys, shown = sequence[: 2 * self.pairs : 2], sequence[1 : 2 * self.pairs : 2]
            for time in range(2 * self.pairs, len(sequence)):
                likeness = [sum(a * b for a, b in zip(key, sequence[time], strict=True)) for key in keys]
                answers[row, time] = class_of[tuple(shown[likeness.index(max(likeness))])]
        return answers


def normalize(vectors: Float[Tensor, "*some width"]) -> Float[Tensor, "*some width"]:
    """Brought to the norm sqrt(width)."""
    return F.normalize(vectors, dim=-1) * vectors.shape[-1] ** 0.5


@cache
def value_vectors(classes: int, width: int) -> Float[Tensor, "classes width"]:
    """The value of each class."""
    return normalize(torch.randn(classes, width, generator=stream("vector_retrieval", "values")))
