"""Recall in the form in which the theorems are stated: rows of key, value and query (Arora et al., 2024, G.1.2)."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.tasks._draw import distinct
from bestiary.tasks._task import SILENT, Batch


def draw_triplets(
    count: int, pairs: int, vocab: int, rng: torch.Generator, *, distances: Sequence[int] | None = None
) -> Batch:
    """Rows (k_i, v_i, q_i), three tokens each; the answer to q_i is v_j of the j < i with k_j = q_i, if there is one.

    Keys differ within a sequence, values are any tokens. A query is the key `distance` rows before, drawn from
    `distances` (from all of them if not given); where nothing is that far back, it is the key of its own row, which is
    not before it. Raises ValueError where the vocabulary is smaller than the number of pairs.
    """
    if vocab < pairs:
        raise ValueError(f"{pairs} different keys need a vocabulary of {pairs}, not {vocab}")
    keys = distinct(count, pairs, vocab, rng)
    values = torch.randint(vocab, (count, pairs), generator=rng)
    row = torch.arange(pairs)
    if distances is None:
        back = 1 + (torch.rand(count, pairs, generator=rng) * row.clamp(min=1)).long()
    else:
        back = torch.tensor(distances)[torch.randint(len(distances), (count, pairs), generator=rng)]
    there = torch.where(row >= back, row - back, row)
    queries = keys.gather(1, there.expand(count, -1))
    tokens = torch.stack([keys, values, queries], dim=2).flatten(1)
    return Batch(tokens, solve_triplets(tokens), {})


def solve_triplets(tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """The answers, by reading from the left in plain Python: at the third token of each row, or SILENT."""
    answers = torch.full_like(tokens, SILENT)
    for sequence, found in zip(tokens.tolist(), answers, strict=True):
        value_of: dict[int, int] = {}
        for i in range(0, len(sequence), 3):
            key, value, query = sequence[i : i + 3]
            found[i + 2] = value_of.get(query, SILENT)
            value_of[key] = value
    return answers
