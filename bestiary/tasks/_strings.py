"""Strings of varying length with their answers read at blanks: what the tasks of formal languages share."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._draw import draw_in_blocks
from bestiary.tasks._task import SILENT, Batch, Task

MEASURED = 20_000  # strings from which a share without closed form is measured


class StringBatch(NamedTuple):
    """Strings in the first `sizes` columns, the answers in the first `due`, and facets of each row or each symbol."""

    symbols: Int[Tensor, "rows longest"]
    sizes: Int[Tensor, " rows"]
    answers: Int[Tensor, "rows most"]
    due: Int[Tensor, " rows"]
    facets: Mapping[str, Int[Tensor, "rows *longest"]] = MappingProxyType({})


class Strings(Task):
    """A string of `least` to `length` symbols, each length equally likely, then blanks to the end of the row.

    The answer is read at the blanks from the first on, one symbol at each; later blanks are padding. A `running`
    task is asked along the string instead, and all its blanks are padding.

    Short strings return, whatever the longest: `space` counts each length as if it had no more strings than the
    shortest, so that rows are dealt to the splits by hash wherever the shortest strings could meet.
    """

    family: ClassVar = "formal languages"
    variants: ClassVar[tuple[str, ...]] = ("least=9, length=16", "least=20, length=80")
    presets: ClassVar[Mapping[str, str]] = {
        "xlstm": "least=3, length=40",
        "xlstm_test": "least=40, length=256",
        "chomsky_test": "least=41, length=500",
    }
    axes: ClassVar = {"length": (20, 40, 80, 160, 320)}
    shortest: ClassVar = 1  # length of the shortest string that the task can ask about
    blank: int  # the token, above all symbols and answers
    running: bool = False

    def __init__(self, *, least: Positive = 3, length: Positive = 40) -> None:
        if least < self.shortest:
            raise ValueError(f"{self.name}(least={least}): the shortest string has length {self.shortest}")
        if length < least:
            raise ValueError(
                f"{self.name}(length={length}): the shortest strings have least={least}; length must be as much"
            )
        self.least, self.longest, self.vocab = least, length, self.blank + 1
        self.length = length + (0 if self.running else self.max_answers(length))
        self.chance = self.plateau = self.constant_accuracy()
        self.space = float(min((length - least + 1) * self.count_strings(least), 2**62))

    @property
    def name(self) -> str:
        """The task's name in a spec."""
        return type(self).__module__.rpartition(".")[2]

    def max_answers(self, size: int) -> int:
        """The most answers that a string of this size may call for."""
        return 1

    def count_strings(self, size: int) -> int:
        """How many strings of this size there are."""
        return self.blank**size

    def constant_accuracy(self) -> float:
        """The accuracy of the best single answer."""
        every = np.sum([self.expected_counts(size) for size in range(self.least, self.longest + 1)], axis=0)
        return float(every.max() / every.sum())

    def expected_counts(self, size: int) -> Sequence[float]:
        """How often each answer is due on average for a string of this size."""
        raise NotImplementedError

    @abstractmethod
    def draw_strings(self, sizes: Int[Tensor, " rows"], rng: torch.Generator) -> StringBatch:
        """Strings of about these sizes, with their answers."""

    @abstractmethod
    def solve_string(self, string: list[int]) -> list[int]:
        """The answers to a string."""

    def uniform_symbols(self, rows: int, below: int, rng: torch.Generator) -> Int[Tensor, "rows longest"]:
        """Uniform symbols below `below`, for strings of the longest size."""
        return torch.randint(below, (rows, self.longest), generator=rng, device=rng.device)

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, max(self.length, self.vocab), rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        drawn = torch.randint(self.least, self.longest + 1, (count,), generator=rng, device=rng.device)
        symbols, sizes, answers, due, facets = self.draw_strings(drawn, rng)
        place, order = (torch.arange(n, device=rng.device) for n in (self.length, answers.shape[1]))
        tokens = torch.full((count, self.length), self.blank, device=rng.device)
        written = place[: self.longest] < sizes.unsqueeze(1)
        tokens[:, : self.longest] = symbols.masked_fill(~written, self.blank)
        start = torch.zeros_like(sizes) if self.running else sizes
        targets = torch.full_like(tokens, SILENT)
        answers = answers.masked_fill(order >= due.unsqueeze(1), SILENT)
        targets.scatter_(1, start.unsqueeze(1) + order, answers)
        known = {"length": sizes, **facets}
        spread = {name: x.int().view(count, -1).expand_as(tokens) for name, x in known.items()}
        if len(order) > 1:
            spread["place"] = (place - start.unsqueeze(1)).clamp(min=0).int()
        return Batch(tokens, targets, spread)

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = []
        for sequence in tokens.tolist():
            size = sequence.index(self.blank) if self.blank in sequence else len(sequence)
            silent = [] if self.running else sequence[:size]
            found = self.solve_string(sequence[:size]) if self.running or size < len(sequence) else []
            row = [SILENT] * len(silent) + found + [SILENT] * len(sequence)
            answers.append(row[: len(sequence)])
        return torch.tensor(answers, device=tokens.device).view(tokens.shape)
