"""What the reasoning tasks share: words of several tokens, and sizes of instances."""

from collections import Counter
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from bestiary.tasks._draw import random_orders, redraw_repeats, uniform_below
from bestiary.tasks._task import stream

Sizes = Literal["mixed", "largest"]


class Words:
    """Words of `shortest` to `longest` letters, each length equally likely; the last letter is of a kind of its own.

    Letters are tokens 1 to `letters` within a word and `letters` + 1 to 2 * `letters` at its end; 0 fills up.
    """

    def __init__(self, task: str, letters: int, shortest: int, longest: int) -> None:
        if not 0 < shortest <= longest:
            raise ValueError(f"{task}(shortest={shortest}): words have 1 to longest={longest} letters")
        self.letters, self.lengths = letters, range(shortest, longest + 1)
        self.kinds = [letters**length for length in self.lengths]
        self.number = sum(self.kinds)
        if self.number > 2**40:
            raise ValueError(f"{task}: {letters} letters make more than 2^40 words of {longest}; make them shorter")
        self.effective = len(self.lengths) ** 2 / sum(1 / kind for kind in self.kinds)

    def check(self, task: str, nodes: int) -> None:
        """Raises ValueError if there are not enough words for all nodes, with some to spare."""
        least = nodes if len(self.kinds) == 1 else 2 * nodes
        if self.number < least:
            raise ValueError(f"{task}(letters={self.letters}): {nodes} nodes need {least} words, not {self.number}")

    def draw(self, count: int, nodes: int, rng: torch.Generator) -> Int[Tensor, "count nodes letters"]:
        """Different words for each row, spelled; each as if drawn until it is a new one."""
        kinds = torch.tensor(self.kinds, device=rng.device)
        first = kinds.cumsum(0) - kinds

        def draw(*shape: int) -> Tensor:
            length = torch.randint(len(kinds), shape, generator=rng, device=rng.device)
            return first[length] + uniform_below(kinds[length], rng)

        if len(kinds) == 1 and self.number <= 16 * nodes:
            codes = random_orders(count, self.number, rng)[:, :nodes]
        else:
            codes = redraw_repeats((count, nodes), self.number, draw)
        spelled = torch.zeros(count, nodes, self.lengths[-1], dtype=torch.long, device=rng.device)
        for length, start, kind in zip(self.lengths, first.tolist(), self.kinds, strict=True):
            here = (codes >= start) & (codes < start + kind)
            for place in range(length):
                letter = 1 + (codes - start) // self.letters**place % self.letters
                last = self.letters if place == length - 1 else 0
                spelled[:, :, place] = torch.where(here, letter + last, spelled[:, :, place])
        return spelled


def size_weights(task: str, nodes: int, sizes: Sizes) -> list[tuple[int, float]]:
    """How many nodes there are, with which probability: 1 / (n + sqrt(nodes)), or all of them always."""
    if nodes < 3:
        raise ValueError(f"{task}(nodes={nodes}): an instance has at least 3 nodes")
    if sizes == "largest":
        return [(nodes, 1.0)]
    share = {n: 1 / (n + nodes**0.5) for n in range(3, nodes + 1)}
    return [(n, weight / sum(share.values())) for n, weight in share.items()]


def draw_sizes(count: int, choices: list[tuple[int, float]], rng: torch.Generator) -> Int[Tensor, " count"]:
    """A number of nodes for each row."""
    sizes, share = zip(*choices, strict=True)
    chance = torch.tensor(share, device=rng.device, dtype=torch.float64)
    return torch.tensor(sizes, device=rng.device)[torch.multinomial(chance, count, replacement=True, generator=rng)]


def continuation_accuracy(words: Words, sizes: list[tuple[int, float]], questions: int) -> float:
    """How often the commonest continuation, among the words of a row, of what is shown of a word is right.

    A row asks for `questions` of its words, or for as many as it has.
    """
    rng, right, shown = stream("continuation"), 0.0, 0.0
    rows = max(100, 2**13 // sizes[-1][0])
    drawn, spelled = draw_sizes(rows, sizes, rng), words.draw(rows, sizes[-1][0], rng)
    for size, row in zip(drawn.tolist(), spelled.tolist(), strict=True):
        branches: dict[tuple[int, ...], Counter[int]] = {}
        for word in row[:size]:
            for place, letter in enumerate(word):
                if letter:
                    branches.setdefault(tuple(word[:place]), Counter())[letter] += 1
        asked = min(size, questions) / size
        right += asked * sum(max(counts.values()) for counts in branches.values())
        shown += asked * sum(counts.total() for counts in branches.values())
    return right / shown


def chosen_first(chosen: Bool[Tensor, "count size"], rng: torch.Generator) -> Int[Tensor, "count size"]:
    """The places of the chosen in random order, and the others after them."""
    lottery = torch.rand(chosen.shape, generator=rng, device=rng.device, dtype=torch.float64)
    return lottery.masked_fill(~chosen, 2.0).argsort(1)
