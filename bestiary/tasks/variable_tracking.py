"""Variable tracking, as in RULER but on a synthetic vocabulary (Hsieh et al., 2024)."""

from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Natural, Positive
from bestiary.tasks._count import choice_bits, from_bits, subset_bits
from bestiary.tasks._draw import blocks, distinct
from bestiary.tasks._haystack import insert_sentences, sentence_starts
from bestiary.tasks._task import SILENT, Batch, Task

GETS, STOP, WHAT, WORDS = range(4)  # filler begins at WORDS
FILLER = 20
WIDTH = 4  # of an assignment


class VariableTracking(Task):
    """Read assignments in which variables pass a number on; then name all variables that have the number.

        tokens   the x3 GETS 71 STOP grass x9 GETS x3 STOP is ... WHAT 71 GETS x3
        targets   .   .    .  .    .     .  .    .  .    .  .      .   .   x3  x9

    The first three tokens are marks, then come 20 words of filler; of the rest the first half are variables, the others
    numbers. Each of `chains` chains begins with one variable that gets a number and goes on with `hops` more that get
    the variable before; all variables are different, and so are the numbers. The assignments lie in filler (the 20
    words in the same order, again and again), every depth equally likely, a chain in its order and chains mixed. One
    chain is asked, for all its variables in their order; each is asked after the ones before it have been given.

    Facets: `hop` (the place of the variable in its chain, from 0), `distance` back to where it is assigned, and
    `load` (how many assignments there are).

    Departs from RULER: a name or number is one token, assignments lie between any two tokens, and the order of the
    answers is fixed, where RULER takes the names in any.
    """

    family: ClassVar = "reasoning"
    variants: ClassVar = (
        "vocab=64, length=60, hops=2",
        "vocab=123, length=128, hops=3, chains=3",
    )
    presets: ClassVar = {"ruler": "length=1024", "ruler_distracted": "length=1024, chains=4"}
    axes: ClassVar = {"hops": (1, 2, 4), "chains": (1, 2)}

    def __init__(
        self, *, vocab: Positive = 512, length: Positive = 256, chains: Positive = 1, hops: Natural = 4
    ) -> None:
        self.vocab, self.length, self.chains, self.size = vocab, length, chains, hops + 1
        self.load = chains * self.size
        self.first = WORDS + FILLER
        self.names = (vocab - self.first) // 2
        self.room = length - 2 - self.size
        if self.names < self.load:
            needed = self.first + 2 * self.load
            raise ValueError(f"variable_tracking(vocab={vocab}): {self.load} variables need {needed}")
        if self.room < WIDTH * self.load:
            least = WIDTH * self.load + 2 + self.size
            raise ValueError(f"variable_tracking(length={length}): {self.load} assignments and a question need {least}")
        numbers = vocab - self.first - self.names
        bits = choice_bits(self.names, self.load) + choice_bits(numbers, chains)
        self.space = from_bits(bits + subset_bits(self.room - (WIDTH - 1) * self.load, self.load))
        self.chance = 1 / self.names
        self.plateau = sum(1 / (self.load - given) for given in range(self.size)) / self.size

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        tokens = torch.empty(count, self.length, dtype=torch.long, device=rng.device)
        targets = torch.full_like(tokens, SILENT)
        facets = {name: torch.zeros_like(tokens, dtype=torch.int32) for name in ("hop", "distance")}
        for part in blocks(count, self.length):
            self.draw_into(tokens[part], targets[part], {name: facet[part] for name, facet in facets.items()}, rng)
        load = torch.tensor(self.load, dtype=torch.int32, device=rng.device).expand_as(tokens)
        return Batch(tokens, targets, {**facets, "load": load})

    def draw_into(self, tokens: Tensor, targets: Tensor, facets: dict[str, Tensor], rng: torch.Generator) -> None:
        """Draw some rows in place."""
        count = len(tokens)
        names = self.first + distinct(count, self.load, self.names, rng).view(count, self.chains, self.size)
        numbers = distinct(count, self.chains, self.vocab - self.first - self.names, rng).unsqueeze(2)
        sources = torch.cat([self.first + self.names + numbers, names[:, :, :-1]], dim=2)
        gets, stop = torch.full_like(names, GETS), torch.full_like(names, STOP)
        starts = sentence_starts(count, self.room, groups=self.chains, size=self.size, width=WIDTH, rng=rng)
        haystack = (WORDS + torch.arange(self.room, device=rng.device) % FILLER).repeat(count, 1)
        insert_sentences(haystack, torch.stack([names, gets, sources, stop], dim=3).flatten(1, 2), starts)
        tokens[:, : self.room] = haystack
        tokens[:, self.room], tokens[:, self.room + 2] = WHAT, GETS
        tokens[:, self.room + 1], tokens[:, self.room + 3 :] = sources[:, 0, 0], names[:, 0, :-1]
        asked = torch.arange(self.size, device=rng.device)
        targets[:, self.room + 2 :] = names[:, 0]
        facets["hop"][:, self.room + 2 :] = asked
        facets["distance"][:, self.room + 2 :] = self.room + 2 + asked - starts[:, 0]

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            number_of: dict[int, int] = {}
            for time in range(1, min(self.room, len(sequence) - 1)):
                if sequence[time] == GETS:
                    source: int = sequence[time + 1]
                    number_of[sequence[time - 1]] = number_of.get(source, source)
            asked = sequence[self.room + 1 : self.room + 2]
            names = [name for name, number in number_of.items() if [number] == asked]
            for time in range(self.room + 2, len(sequence)):
                answers[row, time] = names[time - self.room - 2]
        return answers
