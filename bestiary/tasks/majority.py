"""Majority, of bits or of many symbols, and its count (Arora et al., 2024; Beck et al., 2024)."""

import math
from collections import Counter
from collections.abc import Mapping
from functools import cache, reduce
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._strings import StringBatch, Strings


class Majority(Strings):
    """Which symbol occurs most often, or how often?

        tokens   2 0 2 1 1 2 ?     cumulative   2 0 2 1 1 2 ?     count   2 0 2 1 1 2 ?
        targets  . . . . . . 2                  2 2 2 2 2 2 .             . . . . . . 3

    The string is of tokens 0 to symbols - 1, uniform; its length is uniform from `least` to `length`. Blanks, token
    `symbols`, pad the row; the answer is read at the first. With `cumulative` it is asked at every symbol, about the
    string so far. Of symbols that occur equally often `ties` takes the "smallest", the "largest" or that which came
    "first". With `count` the answer is how often it occurs, at most symbols - 1, as that token.

    Facets: `length` of the string and, if cumulative, `place` of the symbol from 0. The circuits of Arora et al. give
    a tie to 0 at the end and to 1 if cumulative, which the presets keep; their many-symbol version, which overwrites
    a symbol of a tie, is left out. Beck et al. count in a vocabulary that other symbols share, as here.
    """

    variants: ClassVar = (*Strings.variants, "symbols=20, ties='first'", "symbols=30, cumulative=True, count=True")
    presets: ClassVar[Mapping[str, str]] = {
        "circuit": "least=127, length=127",
        "cumulative_circuit": "least=128, length=128, cumulative=True, ties='largest'",
        "xlstm": "symbols=63, ties='first'",
        "xlstm_test": "symbols=63, ties='first', least=40, length=256",
        "xlstm_count": "symbols=63, count=True",
        "xlstm_count_test": "symbols=63, count=True, least=40, length=256",
    }

    def __init__(
        self,
        *,
        least: Positive = 3,
        length: Positive = 40,
        symbols: Positive = 2,
        ties: Literal["smallest", "largest", "first"] = "smallest",
        cumulative: bool = False,
        count: bool = False,
    ) -> None:
        if symbols < 2:
            raise ValueError(f"majority(symbols={symbols}): one symbol is always the majority; take 2 or more")
        if count and symbols * (symbols - 1) <= length:
            raise ValueError(
                f"majority(symbols={symbols}, count=True): most counts would be cut at {symbols - 1}; "
                f"take {math.isqrt(length) + 2} symbols"
            )
        self.blank, self.ties, self.running, self.count = symbols, ties, cumulative, count
        super().__init__(least=least, length=length)

    def constant_accuracy(self) -> float:
        sizes = np.arange(self.longest + 1)
        asked = self.longest + 1 - np.maximum(sizes, self.least) if self.running else sizes >= self.least
        shares = (asked * (sizes > 0)) / asked[1:].sum()
        if (self.blank == 2 or self.ties == "first") and not self.count:
            tied = np.cumprod(1 - 1 / sizes[2::2]) * (self.ties != "first")  # half of 2, 4, ... bits are ones
            return 1 / self.blank + float(tied @ shares[2::2]) / 2
        if self.longest > 1000:
            raise ValueError(f"majority(length={self.longest}): the chance of such options is known up to length 1000")
        times, ahead = majority_distribution(self.blank, self.longest)
        if not self.count:
            return float(ahead @ shares)
        told = times @ shares
        return float(max(*told[: self.blank - 1], told[self.blank - 1 :].sum()))

    def draw_strings(self, sizes: Int[Tensor, " rows"], rng: torch.Generator) -> StringBatch:
        symbols = self.uniform_symbols(len(sizes), self.blank, rng)
        winner, times = self.lead(symbols)
        answers = times.clamp(max=self.blank - 1) if self.count else winner
        if self.running:
            return StringBatch(symbols, sizes, answers, sizes)
        return StringBatch(symbols, sizes, answers.gather(1, sizes.unsqueeze(1) - 1), torch.ones_like(sizes))

    def lead(self, symbols: Int[Tensor, "rows time"]) -> tuple[Tensor, Tensor]:
        """The majority of the string so far at each symbol, and how often it has occurred."""
        count = torch.zeros(len(symbols), self.blank, dtype=torch.long, device=symbols.device)
        since = torch.zeros_like(count)
        score, leader = torch.full_like(symbols[:, :1], -1), torch.zeros_like(symbols[:, :1])
        scale, leaders, scores = max(self.longest, self.blank) + 1, [], []
        for time, symbol in enumerate(symbols.unsqueeze(2).unbind(1)):
            times = count.gather(1, symbol) + 1
            count.scatter_(1, symbol, times)
            first = since.gather(1, symbol).masked_fill(times == 1, time)
            since.scatter_(1, symbol, first)
            rank = {"smallest": scale - 1 - symbol, "largest": symbol, "first": scale - 1 - first}[self.ties]
            leader = torch.where(times * scale + rank > score, symbol, leader)
            score = torch.maximum(score, times * scale + rank)
            leaders, scores = [*leaders, leader], [*scores, score]
        return torch.cat(leaders, 1), torch.cat(scores, 1) // scale

    def solve_string(self, string: list[int]) -> list[int]:
        times, answers = Counter[int](), []
        for symbol in string:
            times[symbol] += 1
            most = max(times.values())
            tied = [known for known, count in times.items() if count == most]  # in order of appearance
            winner = {"smallest": min(tied), "largest": max(tied), "first": tied[0]}[self.ties]
            answers.append(min(most, self.blank - 1) if self.count else winner)
        return answers if self.running else answers[-1:]


@cache
def majority_distribution(symbols: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """For each size of a uniform string: how likely a majority of 0, 1, ... times is; and one of symbol 0, tied or not.

    If the size had a Poisson law, the counts of the symbols would be independent and had one too.
    """
    sizes = np.arange(longest + 1)
    factorials, rate = np.array([math.lgamma(size + 1) for size in sizes]), longest / 2
    alone, together = (np.exp(sizes * math.log(r) - r - factorials) for r in (rate / symbols, rate))
    at_most, ahead = [np.zeros(longest + 1)], np.zeros(longest + 1)
    for most in sizes:
        one = np.where(sizes <= most, alone, 0)
        others = reduce(lambda x, y: np.convolve(x, y)[: longest + 1], [one] * (symbols - 1))
        ahead[most:] += alone[most] * others[: longest + 1 - most]
        at_most.append(np.convolve(one, others)[: longest + 1])
        if (at_most[-1] >= (1 - 1e-12) * together).all():
            break
    return np.diff(np.array(at_most) / together, axis=0), ahead / together
