"""Retrieval by n-gram: what follows these letters? (Pantazopoulos et al., 2026, Retrievit)."""

from math import log2
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import from_bits, mean_inverse_distinct
from bestiary.tasks._draw import draw_in_blocks, uniform_below
from bestiary.tasks._layout import place_values
from bestiary.tasks._task import SILENT, Batch, Task


class NgramRetrieval(Task):
    """Read letters, and copy the few that follow a query, a run of letters that stands in the sequence only once.

        tokens           $ c a d a b d $ ? c a ? d a        prefix   ? c a $ c a d a b d $ ? d a
        targets          . . . . . . . . . . . d a b                 . . . . . . . . . . . d a b

    Tokens 0 to letters - 1 are letters, and then come start `$`, question `?` and padding. A row has `least` to `most`
    letters, each number equally likely and each letter uniform, and padding on the right. The query is `query` of
    them, from any place that `answer` letters follow; the whole row is drawn again until the query stands in it only
    once. With `prefix` the query comes first. A letter of the answer is asked after the ones before it were given.

    A single letter of the query stands in many places, so that it is found only as a whole. The task is `suffix` of
    `repeat_after_me` with marks, an answer that never ends early, and queries that are drawn among all places rather
    than among those that are unique.

    Preset `retrievit` is what the paper trains on, `retrievit_prefix` with the query first, and `retrievit_125` to
    `retrievit_400` are its tests on longer sequences.

    Facets: `distance` from a question back to its answer in the sequence, `place` (in the answer) and `size` (the
    letters of the row).

    Departs from the paper: its test in which the query stands four times, with four continuations, is left out.
    """

    family: ClassVar = "copying"
    variants: ClassVar = ("letters=6, query=3, answer=2, least=9, most=20", "prefix=True, query=1, answer=1, most=30")
    presets: ClassVar = {
        "retrievit": "least=50, most=100",
        "retrievit_prefix": "least=50, most=100, prefix=True",
        **{f"retrievit_{size}": f"least={size}, most={size}" for size in (125, 150, 175, 200, 300, 400)},
    }
    axes: ClassVar = {"most": (30, 50, 100, 200, 400), "query": (1, 2, 3)}

    def __init__(
        self,
        *,
        letters: Positive = 30,
        least: Positive = 20,
        most: Positive = 40,
        query: Positive = 2,
        answer: Positive = 3,
        prefix: bool = False,
    ) -> None:
        if not query + answer <= least <= most:
            raise ValueError(f"ngram_retrieval(least={least}): from query + answer = {query + answer} to most={most}")
        if letters < 2 or most > 8 * letters**query:
            runs = f"{letters}^{query} different runs of letters"
            raise ValueError(f"ngram_retrieval(most={most}): with {runs} hardly any stands there only once")
        self.letters, self.least, self.most = letters, least, most
        self.query, self.answer, self.prefix = query, answer, prefix
        self.start, self.what, self.padding = range(letters, letters + 3)
        self.vocab, self.length = letters + 3, most + query + answer + 3
        self.chance, self.plateau = 1 / letters, mean_inverse_distinct((least + most) / 2, letters)
        self.space = from_bits(least * log2(letters) + log2(least - query - answer + 1))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once, and those again whose query stands in them more than once."""
        drawn = self.draw_letters(count, rng)
        while (again := ~self.stands_once(drawn[0], drawn[2])).any():
            fresh = self.draw_letters(int(again.sum()), rng)
            for part, new in zip(drawn, fresh, strict=True):
                part[again] = new
        text, size, begin = drawn
        take = torch.arange(self.query + self.answer, device=rng.device)
        run = text.gather(1, begin + take)
        asked, said = run[:, : self.query], run[:, self.query :]
        start, what = (torch.full_like(size, mark) for mark in (self.start, self.what))
        begins = [what, asked, start] if self.prefix else [start]
        ends = [start, what] if self.prefix else [start, what, asked, what]
        before, after = torch.cat(begins, dim=1), torch.cat([*ends, said[:, :-1]], dim=1)
        tokens = torch.full((count, self.length + 1), self.padding, device=rng.device)
        tokens[:, : before.shape[1] + self.most] = torch.cat([before, text], dim=1)
        where = before.shape[1] + size + torch.arange(after.shape[1], device=rng.device)
        tokens = tokens.scatter_(1, where, after)[:, : self.length]
        where = where[:, -self.answer :]
        stands = before.shape[1] + begin + take[self.query :]
        facets = {"distance": where - stands, "place": take[: self.answer].expand_as(where)}
        facets["size"] = size.expand_as(where)
        return Batch(
            tokens,
            place_values(where, said, self.length, SILENT),
            {name: place_values(where, facet.int(), self.length) for name, facet in facets.items()},
        )

    def draw_letters(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Letters with padding after them, how many there are, and where the query begins."""
        size = torch.randint(self.least, self.most + 1, (count, 1), generator=rng, device=rng.device)
        text = torch.randint(self.letters, (count, self.most), generator=rng, device=rng.device)
        text[torch.arange(self.most, device=rng.device) >= size] = self.padding
        return text, size, uniform_below(size - self.query - self.answer + 1, rng)

    def stands_once(self, text: Int[Tensor, "count most"], begin: Int[Tensor, "count 1"]) -> Bool[Tensor, " count"]:
        """Whether the query occurs in no other place of the text."""
        runs = text.unfold(1, self.query, 1)
        asked = text.gather(1, begin + torch.arange(self.query, device=text.device))
        return (runs == asked.unsqueeze(1)).all(2).sum(1) == 1

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            marks = [time for time, token in enumerate(sequence) if token == self.what]
            if len(marks) == 2:
                first, last = marks
                asked = sequence[first + 1 : first + 1 + self.query]
                text = sequence[sequence.index(self.start) + 1 : last]
                found = next(i for i in range(len(text)) if text[i : i + self.query] == asked) + self.query
                for place in range(min(self.answer, len(sequence) - last)):
                    answers[row, last + place] = text[found + place]
        return answers
