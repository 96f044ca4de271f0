"""Brevo, reasoning in breadth: all that a node depends on, in order (Allen-Zhu, 2025, part 4.1)."""

import math
from collections import Counter
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from bestiary.spec import Positive
from bestiary.tasks._count import from_bits, measure_once
from bestiary.tasks._dependence import dependences_of, draw_graph, legal_letters, topological_places
from bestiary.tasks._draw import draw_in_blocks
from bestiary.tasks._layout import gather_vectors, pack_rows
from bestiary.tasks._reasoning import Sizes, Words, chosen_first, draw_sizes, size_weights
from bestiary.tasks._task import SILENT, Batch, Task, stream

BLOCK = 2**21  # numbers in the largest temporary tensor


class Brevo(Task):
    """Read which node depends on which, then list all that the asked one depends on, each after what it depends on.

        tokens   BOS a c b c c d a b e c ? c = e a b c
        targets   .  . . . . . . . . . . . . e a b c EOS      ("a c" says that c depends on a; a e b c is right, too)

    A node is a word of `shortest` to `longest` letters, and words of a row differ. Letters are tokens 1 to m within a
    word and m + 1 to 2m at its end (m = `letters`), then come BOS, "?", "=" and EOS; 0 pads the row on the right. The
    first l nodes of n, l uniform in 1 to (n - 1) // 4 + 1, depend on nothing; each later one depends on 1 to 4 earlier
    nodes that fewer than 4 depend on, their number and choice uniform. The last is asked about and ends the answer.

    A right order, drawn by taking at random one after another, from the end, of those that nothing left depends on,
    is shown token by token. Every letter is right that continues what is shown to a node that may come next: one not
    listed yet, all of whose dependences are. `sizes="mixed"` draws n in 3 to `nodes` with weight 1 / (n + sqrt(nodes)),
    as the paper trains; "largest" takes n = `nodes`, as it tests.

    Facets: `place` (how many nodes are listed already), `nodes` (n) and `legal` (how many may come next; 1 at EOS).

    Departs from the paper: each row holds one instance, since rows are independent here, and not a window of many; an
    answer is scored token by token after a right beginning, not as a whole; the paper's larger sizes are presets.
    """

    family: ClassVar = "reasoning"
    variants: ClassVar = ("nodes=4", "nodes=5, letters=5, shortest=2, longest=3", "sizes='largest', nodes=7")
    presets: ClassVar = {
        **{f"brevo1_{n}": f"nodes={n}, letters={n}" for n in (70, 90, 110)},
        **{f"brevo2_{n}": f"nodes={n}, letters=4, shortest=2, longest=4" for n in (30, 40, 50)},
    }
    axes: ClassVar = {"nodes": (4, 6, 8, 12)}

    def __init__(
        self,
        *,
        nodes: Positive = 8,
        letters: Positive = 16,
        shortest: Positive = 1,
        longest: Positive = 1,
        sizes: Sizes = "mixed",
    ) -> None:
        self.nodes, self.letters, self.width = nodes, letters, longest
        self.words, self.sizes = Words("brevo", letters, shortest, longest), size_weights("brevo", nodes, sizes)
        self.words.check("brevo", nodes)
        self.start, self.query, self.equals, self.end = range(2 * letters + 1, 2 * letters + 5)
        self.vocab, self.edges = 2 * letters + 5, sum(min(node, 4) for node in range(1, nodes))
        self.length = 3 + (2 * self.edges + 1 + nodes) * longest
        least = self.sizes[0][0]
        self.space = from_bits(1 + sum(math.log2(max(1.0, self.words.effective - i)) for i in range(least)))
        self.chance, self.plateau = measure_once(("brevo", nodes, letters, shortest, longest, sizes), self.guesses)

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        largest = self.nodes * max(self.nodes, self.vocab) * self.width
        return draw_in_blocks(self.draw_block, count, largest, rng, most=BLOCK)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""
        words, size = self.words.draw(count, self.nodes, rng), draw_sizes(count, self.sizes, rng)
        depends = draw_graph(size, self.nodes, rng)
        chosen = dependences_of(depends, size - 1)
        place = topological_places(depends, chosen, rng)

        def spelled(nodes: Tensor, kept: Tensor) -> Tensor:
            return gather_vectors(words, nodes) * kept[:, :, None]

        edges = chosen_first(depends.flatten(1), rng)[:, : self.edges]
        there = torch.arange(self.edges, device=rng.device) < depends.sum((1, 2))[:, None]
        facts = [spelled(edges % self.nodes, there), spelled(edges // self.nodes, there)]
        many = chosen.sum(1, keepdim=True)
        listed = place.masked_fill(~chosen, self.nodes).argsort(1)
        steps = torch.arange(self.nodes, device=rng.device)
        answer = F.pad(spelled(listed, steps < many), (0, 0, 0, 1))
        sign, asked = torch.full_like(many, self.start), words[torch.arange(count, device=rng.device), size - 1]
        head = [sign, torch.cat(facts, 2).flatten(1), sign + 1, asked, sign + 2]
        last = F.one_hot(many[:, 0], self.nodes + 1)
        answer[:, :, 0] += self.end * last
        before = place[:, None].masked_fill(~depends, -1).amax(2)  # the last place of what a node depends on
        legal = chosen[:, None] & (place[:, None] >= steps[:, None]) & (before[:, None] < steps[:, None])
        slots = torch.cat([*head, answer.flatten(1)], dim=1)
        known = slots.shape[1] - answer[0].numel()
        told = torch.arange(self.nodes + 1, device=rng.device).expand(count, -1), F.pad(legal.sum(2), (0, 1)) + last
        told = [F.pad(x.repeat_interleave(self.width, 1), (known, 0)) for x in told]
        tokens, place, free = pack_rows(slots > 0, *((x, 0) for x in (slots, *told)), length=self.length + 1)
        times, sign = torch.arange(self.length, device=rng.device), (tokens == self.equals).int().argmax(1)
        asked = (times >= sign[:, None]) & (tokens[:, 1:] > 0)
        facets = {"place": place[:, 1:], "legal": free[:, 1:], "nodes": size[:, None].expand_as(asked)}
        facets = {name: facet.int() for name, facet in facets.items()}
        shown, targets = tokens[:, :-1].masked_fill(tokens[:, :-1] == self.end, 0), tokens[:, 1:]
        truth = {"legal": legal_letters(legal, words, answer, self.end)}
        return Batch(shown, targets.masked_fill(~asked, SILENT), facets, truth)

    def right(self, batch: Batch, answers: Int[Tensor, "batch time"]) -> Bool[Tensor, "batch time"]:
        where = batch.question_positions()
        given = answers.gather(1, where).clamp(min=0)  # token 0 is never right
        right = batch.truth["legal"][:, : where.shape[1]].gather(2, given[:, :, None])[:, :, 0]
        return torch.zeros_like(answers, dtype=torch.bool).scatter_(1, where, right)

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            words: list[tuple[int, ...]] = []
            missing: set[tuple[int, ...]] = set()
            needs: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
            word, answering = (), False
            for time, token in enumerate(sequence):
                if token == self.query:
                    for cause, node in zip(words[::2], words[1::2], strict=True):
                        needs.setdefault(node, set()).add(cause)
                elif token == self.equals:
                    answering, missing, todo = True, set(), {words[-1]}
                    while todo:
                        missing |= todo
                        todo = {cause for node in todo for cause in needs.get(node, ())} - missing
                elif 0 < token < self.start:
                    word = (*word, token)
                    if token > self.letters:
                        missing.discard(word)
                        words, word = [*words, word], ()
                if answering:
                    free = [w for w in missing if w[: len(word)] == word and not needs.get(w, set()) & missing]
                    answers[row, time] = min(free)[len(word)] if free else self.end
        return answers

    def guesses(self) -> tuple[float, float]:
        """How often the best single token is right, and the commonest continuation to a node still to be listed."""
        batch = self.draw_block(max(40, min(1000, 2**16 // self.length)), stream("brevo"))
        share = batch.truth["legal"].sum((0, 1)) / (batch.targets != SILENT).sum()
        kinds = share[1 : 1 + self.letters].mean(), share[1 + self.letters : self.start].mean(), share[self.end]
        lucky: list[float] = []
        for row, legal in zip(batch.targets.tolist(), batch.truth["legal"].tolist(), strict=True):
            shown, steps = [token for token in row if token != SILENT], iter(legal)
            ends = [0, *(place for place, token in enumerate(shown, start=1) if token > self.letters)]
            words = [tuple(shown[begin:end]) for begin, end in pairwise(ends)]  # EOS is the last of them
            for place, word in enumerate(words):
                for i, right in zip(range(len(word)), steps, strict=False):
                    after = Counter(other[i] for other in words[place:-1] or [word] if other[:i] == word[:i])
                    best = [letter for letter, times in after.items() if times == max(after.values())]
                    lucky.append(sum(right[letter] for letter in best) / len(best))
        return max(kinds).item(), sum(lucky) / len(lucky)
