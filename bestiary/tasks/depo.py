"""Depo, reasoning in depth: several steps along a hidden cycle (Allen-Zhu, 2025, part 4.1)."""

import math
from functools import cache
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import choice_bits, from_bits
from bestiary.tasks._layout import gather_vectors, pack_rows
from bestiary.tasks._reasoning import Sizes, Words, chosen_first, continuation_accuracy, draw_sizes, size_weights
from bestiary.tasks._task import SILENT, Batch, Task


class Depo(Task):
    """Read the edges of a directed cycle in random order, then name the k-th successor of some of its nodes.

        tokens   BOS a c b a c b <2> a = b <1> c = b ...    (the cycle is a -> c -> b -> a)
        targets   .  . . . . . .  .  . b .  .  . b . ...

    A node is a word of `shortest` to `longest` letters, each length equally likely, and words of a row differ. Letters
    are tokens 1 to m within a word and m + 1 to 2m at its end (m = `letters`); 2m + 1 is BOS, 2m + 2 is "=", 2m + 2 + k
    asks for k steps, and 0 pads the row on the right. The answer is shown after "=", letter by letter, and asked at "="
    and at each of its letters but the last.

    `sizes="mixed"` draws n in 3 to `nodes` with weight 1 / (n + sqrt(nodes)) and k in 1 to `hops`, as the paper
    trains; "largest" takes n = `nodes` and k a power of two, 24 of 32, or `hops`, as it tests. There are `questions`
    about different nodes, or as many as nodes.

    Facets: `hops` (k), `nodes` (n) and `letter` (the place of the asked letter in its word, from 0).

    Departs from the paper: each row holds one instance, since rows are independent here, and not a window of many.
    The defaults are smaller, for a laptop; its own sizes are presets.
    """

    family: ClassVar = "reasoning"
    variants: ClassVar = (
        "nodes=4, hops=2, questions=2, letters=70, longest=1",
        "nodes=6, hops=3, questions=3, letters=3, shortest=2, longest=4",
        "sizes='largest', hops=5, questions=3",
    )
    presets: ClassVar = {
        **{
            f"depo1_{n}": f"nodes={n}, hops=8, questions=10, letters=50, shortest=1, longest=2" for n in (225, 300, 375)
        },
        **{f"depo2_{n}": f"nodes={n}, hops=16, questions=10, letters=3, shortest=5, longest=7" for n in (75, 100, 125)},
    }
    axes: ClassVar = {"nodes": (4, 8, 16, 32), "hops": (1, 2, 4, 8)}

    def __init__(
        self,
        *,
        nodes: Positive = 12,
        hops: Positive = 4,
        questions: Positive = 6,
        letters: Positive = 16,
        shortest: Positive = 1,
        longest: Positive = 2,
        sizes: Sizes = "mixed",
    ) -> None:
        self.nodes, self.hops, self.questions = nodes, hops, min(questions, nodes)
        self.words, self.sizes = Words("depo", letters, shortest, longest), size_weights("depo", nodes, sizes)
        self.words.check("depo", nodes)
        self.letters, self.width = letters, longest
        self.vocab, self.start, self.equals = 2 * letters + 3 + hops, 2 * letters + 1, 2 * letters + 2
        powers = [2**i for i in range(hops.bit_length())]
        self.steps = sorted({*powers, hops, *([24] if hops == 32 else [])})
        self.steps = self.steps if sizes == "largest" else list(range(1, hops + 1))
        self.length = 1 + 2 * nodes * longest + self.questions * (2 + 2 * longest)
        self.chance, self.plateau = guesses(letters, shortest, longest, tuple(self.sizes), self.questions)
        self.space = self.instances(self.sizes[0][0])

    def instances(self, nodes: int) -> float:
        """About how many rows there are of so many nodes, counting words as if all were as likely as the average."""
        asked = min(self.questions, nodes)
        words = max(nodes * math.log2(self.words.effective), choice_bits(nodes, nodes)) - math.log2(nodes)
        return from_bits(
            words + choice_bits(nodes, nodes) + choice_bits(nodes, asked) + asked * math.log2(len(self.steps))
        )

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        words, size = self.words.draw(count, self.nodes, rng), draw_sizes(count, self.sizes, rng)[:, None]
        there = torch.arange(self.nodes, device=rng.device) < size
        edges, asked = chosen_first(there, rng), chosen_first(there, rng)[:, : self.questions]
        steps = torch.randint(len(self.steps), asked.shape, generator=rng, device=rng.device)
        hops = torch.tensor(self.steps, device=rng.device)[steps]

        def spelled(nodes: Tensor, kept: Tensor) -> Tensor:
            return gather_vectors(words, nodes % size) * kept[:, : nodes.shape[1], None]

        facts = torch.cat([spelled(edges, there), spelled(edges + 1, there)], dim=2).flatten(1)
        answer, real = spelled(asked + hops, there), there[:, : self.questions, None].long()
        sign, blank = self.equals * real, torch.full_like(real, SILENT)
        question = torch.cat([sign + hops[:, :, None] * real, spelled(asked, there), sign, answer], dim=2)
        target = torch.cat([answer, torch.zeros_like(real)], dim=2)
        target = torch.cat([blank.expand(-1, -1, 1 + self.width), target.masked_fill(target == 0, SILENT)], dim=2)
        place = (torch.arange(target.shape[2], device=rng.device) - 1 - self.width).clamp(min=0).expand_as(target)
        begin = torch.full_like(size, self.start)
        tokens = torch.cat([begin, facts, question.flatten(1)], dim=1)
        silent = torch.full_like(tokens[:, : 1 + facts.shape[1]], SILENT)
        parts = [(tokens, 0), (torch.cat([silent, target.flatten(1)], 1), SILENT)]
        for facet in (hops[:, :, None].expand_as(target), place):
            parts.append((torch.cat([torch.zeros_like(silent), facet.flatten(1)], 1), 0))
        tokens, targets, hops, place = pack_rows(tokens > 0, *parts, length=self.length)
        facets = {"hops": hops, "nodes": size.expand_as(tokens), "letter": place}
        return Batch(tokens, targets, {name: facet.int() for name, facet in facets.items()})

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            after: dict[tuple[int, ...], tuple[int, ...]] = {}
            words: list[tuple[int, ...]] = []
            word, answer, hops = (), (), 0
            for time, token in enumerate(sequence):
                if token > self.equals:
                    after, hops = after or dict(zip(words[::2], words[1::2], strict=True)), token - self.equals
                elif token == self.equals:
                    answer = words[-1]
                    for _ in range(hops):
                        answer = after[answer]
                elif 0 < token < self.start:
                    word = (*word, token)
                    if token > self.letters:
                        words, word = [*words, word], ()
                if answer:
                    answers[row, time], answer = answer[0], answer[1:]
        return answers


@cache
def guesses(
    letters: int, shortest: int, longest: int, sizes: tuple[tuple[int, float], ...], questions: int
) -> tuple[float, float]:
    """How often the commonest letter is right, and the commonest continuation among the words of the row."""
    words = Words("depo", letters, shortest, longest)
    ends = total = 0.0
    used = [0.0] * len(words.kinds)
    share = dict(sizes)
    for n in range(1, sizes[-1][0] + 1):
        free = [1 - u / kind for u, kind in zip(used, words.kinds, strict=True)]
        used = [u + f / sum(free) for u, f in zip(used, free, strict=True)]  # the expected words of each length
        asked = share.get(n, 0.0) * min(n, questions)
        ends += asked
        total += asked * sum(u * length for u, length in zip(used, words.lengths, strict=True)) / n
    return max(ends, total - ends) / total / letters, continuation_accuracy(words, list(sizes), questions)
