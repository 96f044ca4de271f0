"""Group words, the state-tracking problem (Merrill et al., 2024, section 5; after Liu et al., 2023)."""

import math
import re
from collections.abc import Mapping
from functools import cache
from itertools import permutations
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Natural, Positive
from bestiary.tasks._task import SILENT, Batch, Task

MOST = 360  # the largest order of a group, as its table has the square of it
Permutation = tuple[int, ...]


class GroupWords(Task):
    """What is the product of the elements so far?

        tokens   x1  x2     x3         blanks=1   x1  .   x2     .
        targets  x1  x1*x2  x1*x2*x3               .  x1   .  x1*x2

    Tokens 0 to order - 1 are the elements of a group of permutations in lexical order, so that 0 is the identity; the
    blank is the token after. The product carries out the left factor first. The word is of `length` elements, each
    uniform; with `moved` they are uniform among those that move at most so many points (moved=2 is the swaps and the
    identity), 0 meaning any. `blanks` follow each element, and its product is asked at the last of them.

    A group is Sn, An or Zn (rotations of n points), or a product of such as A4xZ5.

    Facet: `position`, how many elements have been read. Departs from the paper in that words are drawn and dealt to
    the splits by hash, where its files hold unique words split once.
    """

    family: ClassVar = "state tracking"
    variants: ClassVar = ("group='Z3', length=12", "group='A4xZ5', length=30, blanks=2", "moved=2, length=64")
    presets: ClassVar[Mapping[str, str]] = {
        "s3": "group='S3'",
        "s4": "group='S4'",
        "s5": "group='S5'",
        "s5_test": "group='S5', length=512",
        "a5": "group='A5'",
        "a4xz5": "group='A4xZ5'",
        "z60": "group='Z60'",
        "swaps": "group='S5', moved=2",
        "three_moved": "group='S5', moved=3",
        "four_tokens": "group='S5', blanks=3",
    }
    axes: ClassVar = {"length": (4, 16, 64, 256)}

    def __init__(self, *, group: str = "S5", length: Positive = 128, moved: Natural = 0, blanks: Natural = 0) -> None:
        self.elements, self.table, self.blanks = *build_group(group), blanks
        fits = [sum(x != i for i, x in enumerate(element)) <= (moved or math.inf) for element in self.elements]
        self.letters = np.flatnonzero(fits)
        if len(self.letters) < 2:
            least = min(sum(x != i for i, x in enumerate(element)) for element in self.elements[1:])
            raise ValueError(f"group_words(moved={moved}): the elements of {group} move {least} points or more")
        self.words, self.length, self.vocab = length, length * (blanks + 1), len(self.elements) + 1
        self.space = float(min(len(self.letters) ** length, 2**62))
        self.chance = self.plateau = self.most_common_share() if moved else 1 / len(self.elements)

    def most_common_share(self) -> float:
        """The share of the commonest of all products."""
        order = len(self.elements)
        step, product, every = np.zeros((order, order)), np.eye(order)[0], np.zeros(order)
        for letter in self.letters:
            step[np.arange(order), self.table[:, letter]] += 1 / len(self.letters)
        for _ in range(self.words):
            product = product @ step
            every += product / self.words
        return float(every.max())

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        table, letters = (torch.from_numpy(x).to(rng.device) for x in (self.table, self.letters))
        word = letters[torch.randint(len(letters), (count, self.words), generator=rng, device=rng.device)]
        tokens = torch.full((count, self.length), len(table), device=rng.device)
        targets, product = torch.full_like(tokens, SILENT), torch.zeros_like(word[:, 0])
        tokens[:, :: self.blanks + 1] = word
        for time, element in enumerate(word.unbind(1), 1):
            product = table[product, element]
            targets[:, time * (self.blanks + 1) - 1] = product
        read = torch.arange(self.length, device=rng.device, dtype=torch.int32) // (self.blanks + 1) + 1
        return Batch(tokens, targets, {"position": read.expand_as(tokens)})

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        rank = {element: place for place, element in enumerate(self.elements)}
        answers = []
        for sequence in tokens.tolist():
            points, row = self.elements[0], []  # where each point has got to
            for token in sequence:
                if token < len(self.elements):
                    points = tuple(self.elements[token][point] for point in points)
                row.append(rank[points])
            answers.append(row)
        return torch.tensor(answers, device=tokens.device).view(tokens.shape)


@cache
def build_group(group: str) -> tuple[list[Permutation], np.ndarray]:
    """The elements in lexical order, and the table of products, left factor by right factor."""
    factors = [re.fullmatch(r"([SAZ])([1-9]\d{0,3})", factor) for factor in group.split("x")]
    known = "known are S2, S3, ..., A3, A4, ..., Z2, Z3, ... and products such as A4xZ5"
    if not all(factors):
        raise ValueError(f"group_words(group={group!r}): no such group; {known}")
    kinds = [(found[1], int(found[2])) for found in factors if found]
    order = math.prod(
        {"Z": n, "S": math.factorial(min(n, 9)), "A": math.factorial(min(n, 9)) // 2}[k] for k, n in kinds
    )
    if not 1 < order <= MOST:
        raise ValueError(f"group_words(group={group!r}): its order is not between 2 and {MOST}; {known}")
    elements: list[Permutation] = [()]
    for kind, points in kinds:
        elements = [
            one + tuple(x + len(one) for x in other) for one in elements for other in simple_group(kind, points)
        ]
    rank, rows = {element: place for place, element in enumerate(elements)}, np.array(elements)
    return elements, np.array([[rank[tuple(both)] for both in rows[:, one].tolist()] for one in elements])


def simple_group(kind: str, points: int) -> list[Permutation]:
    """The permutations of Sn, An or Zn, in lexical order."""
    if kind == "Z":
        return [tuple((point + turn) % points for point in range(points)) for turn in range(points)]
    every = permutations(range(points))
    return [found for found in every if kind == "S" or is_even(found)]


def is_even(found: Permutation) -> bool:
    """Whether a permutation is even."""
    return sum(one > other for place, one in enumerate(found) for other in found[place + 1 :]) % 2 == 0
