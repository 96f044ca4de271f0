"""What a task is: a seeded source of sequences with questions in them."""

from abc import ABC, abstractmethod
from hashlib import sha256
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

SILENT = -100  # the target where nothing is asked


class Batch(NamedTuple):
    """Predict `targets` from `tokens` wherever a target is not SILENT; `facets` say what was asked there."""

    tokens: Int[Tensor, "batch time"]
    targets: Int[Tensor, "batch time"]
    facets: dict[str, Int[Tensor, "batch time"]]

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(self.tokens.to(device), self.targets.to(device), {f: x.to(device) for f, x in self.facets.items()})

    def asked(self) -> Int[Tensor, "batch asked"]:
        """The positions of the questions of each row, in order; short rows are filled up with silent ones."""
        silent = self.targets == SILENT
        most = int((~silent).sum(1).max())
        return silent.byte().argsort(dim=1, stable=True)[:, :most]


class Task(ABC):
    """A distribution over sequences, with an exact solver and the score of those who cannot recall.

    A subclass takes keyword options, each with a type and a default, checks them when it is made, and sets
    `vocab` (the number of tokens), `length` (of a sequence), `chance` (the accuracy of the best guess without
    reading the sequence) and `plateau` (the accuracy of the best guess that knows which answers occur in the
    sequence but not which belongs to which question).
    """

    variants: ClassVar[tuple[str, ...]] = ()  # further options under which the laws are checked

    vocab: int
    length: int
    chance: float
    plateau: float

    @abstractmethod
    def sample(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` fresh sequences on the generator's device; a pure function of the generator's state."""

    @abstractmethod
    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        """The right answer at every position that may be asked, by reading from the left in plain Python."""


def stream(*path: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """An independent generator per name: batch 7 of ("train", 0) is the same however training got there."""
    digest = sha256(repr(path).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def distinct(count: int, size: int, among: int, rng: torch.Generator) -> Int[Tensor, "count size"]:
    """`size` different numbers below `among`, in random order, for each of `count` rows, uniformly.

    Draws them independently and draws again those that repeat an earlier one. The procedure treats all numbers
    alike, so every ordered choice of different numbers is equally likely.
    """
    drawn = torch.randint(among, (count, size), generator=rng, device=rng.device)
    rows = torch.arange(count, device=rng.device)
    while len(rows):
        again = repeats(drawn[rows], among)
        fresh = torch.randint(among, (int(again.sum()),), generator=rng, device=rng.device)
        bad = again.any(1)
        rows, again = rows[bad], again[bad]
        drawn[rows] = drawn[rows].masked_scatter(again, fresh)
    return drawn


def repeats(drawn: Int[Tensor, "count size"], among: int) -> Bool[Tensor, "count size"]:
    """Where a number below `among` already stands earlier in its row."""
    if drawn.shape[1] <= 16:
        ordered, place = drawn.sort(dim=1, stable=True)
        same = F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
        return torch.zeros_like(same).scatter_(1, place, same)
    place = torch.arange(drawn.shape[1], device=drawn.device, dtype=torch.int32).expand_as(drawn)
    first = torch.full((len(drawn), among), drawn.shape[1], dtype=torch.int32, device=drawn.device)
    first.scatter_reduce_(1, drawn, place, "amin")
    return first.gather(1, drawn) != place


def shuffled(count: int, size: int, rng: torch.Generator) -> Int[Tensor, "count size"]:
    """A random order of `size` things for each of `count` rows."""
    return torch.rand(count, size, generator=rng, device=rng.device, dtype=torch.float64).argsort(1)
