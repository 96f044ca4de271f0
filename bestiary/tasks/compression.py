"""Compression of MAD (Poli et al., 2024, section 3.1)."""

from math import log2
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import from_bits, mean_inverse_distinct
from bestiary.tasks._task import Batch, Task


class Compression(Task):
    """Read random tokens and a mark, and give all of them back from the output at the mark alone.

        tokens   5 9 5 2 ... 7 =>
        targets  5 9 5 2 ... 7 =>

    The last token of the vocabulary is the mark, the others are drawn uniformly. Every position is asked for its own
    token, the mark included. The task has a `bottleneck`: a model's output at the last position, to which a code of
    each position is added, is all that the answers are read from. Without that the task would be to echo.

    MAD's settings are the defaults and one value of one of the axes at a time, or other numbers of training rows.

    Facets: `distance` from the token to the mark.
    """

    family: ClassVar = "mad"
    bottleneck: ClassVar = True
    variants: ClassVar = ("vocab=3, length=40", "vocab=64, length=8", "vocab=40, length=5")
    axes: ClassVar = {"vocab": (16, 32, 64, 128), "length": (32, 64, 128, 256)}

    def __init__(self, *, vocab: Positive = 16, length: Positive = 32) -> None:
        if vocab < 3:
            raise ValueError(f"compression(vocab={vocab}): two tokens and the mark need 3")
        if length < 2:
            raise ValueError(f"compression(length={length}): a token and the mark need a length of 2")
        self.vocab, self.length = vocab, length
        letters, share = vocab - 1, (length - 1) / length
        self.chance = max(share / letters, 1 - share)
        self.plateau = max(share * mean_inverse_distinct(length - 1, letters), 1 - share)
        self.space = from_bits((length - 1) * log2(letters))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        tokens = torch.randint(self.vocab - 1, (count, self.length), generator=rng, device=rng.device)
        tokens[:, -1] = self.vocab - 1
        distance = torch.arange(self.length - 1, -1, -1, dtype=torch.int32, device=rng.device)
        return Batch(tokens, tokens.clone(), {"distance": distance.expand_as(tokens)})

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        return torch.tensor([list(sequence) for sequence in tokens.tolist()], device=tokens.device)
