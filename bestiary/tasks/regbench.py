"""RegBench, in-context learning of regular languages (Akyürek et al., 2024)."""

import math
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import from_bits, measure_once
from bestiary.tasks._draw import random_orders
from bestiary.tasks._layout import pack_rows
from bestiary.tasks._task import SILENT, Batch, Task, stream


class RegBench(Task):
    """Read strings of an automaton that is new in each row, and say how each goes on.

        tokens   c a c | c b | c a ...      (from its start go c to a state with a and b, ...)
        targets  a c .  c b .  c a . ...    (any other letter on an edge of the state reached would be right, too)

    An automaton has 4 to `states` states and an alphabet of 4 to `letters` of the letters 0 to letters - 1, both
    uniform. From each state go one to three edges, their number uniform, with different letters and to different
    other states. A string of 1 to `longest` letters starts in state 0 and takes every edge of a state with the same
    probability; each state accepts. A row holds `least` to `strings` strings, separated by token `letters`; token
    letters + 1 fills it on the right. The next letter is asked everywhere but before the first string and the
    separators.

    Every letter on an edge of the state reached is right. `tvd` is the total variation distance between what a model
    expects and the uniform distribution over these letters. `solve` answers where it has seen the same beginning of a
    string in the row.

    Facets: `legal` (how many letters are right), `visits` (how often its state was left before), `string` and `place`
    (of the asked letter in its string, both from 0).

    Departs from the paper: automata are not minimised and trimmed, since neither changes any string or probability:
    states merged have the same letters, all equally likely, and states out of reach are never met. The default has
    fewer and shorter strings, for a laptop; the paper's are a preset.
    """

    family: ClassVar = "in-context rules"
    open: str = "a beginning of a string that was not shown before leaves its state unknown"
    variants: ClassVar = ("states=4, letters=4, strings=6, least=4", "longest=5", "longest=3, letters=30")
    presets: ClassVar = {"paper": "strings=19, least=10, longest=49"}
    axes: ClassVar = {"states": (4, 6, 8, 12), "letters": (4, 8, 18)}

    def __init__(
        self,
        *,
        states: Positive = 12,
        letters: Positive = 18,
        strings: Positive = 10,
        least: Positive = 6,
        longest: Positive = 10,
    ) -> None:
        if states < 4 or not 4 <= letters <= 62:
            raise ValueError(f"regbench(states={states}, letters={letters}): 4 or more states, and 4 to 62 letters")
        if not 1 < least <= strings:
            raise ValueError(f"regbench(least={least}): from 2 to strings={strings} strings are in a row")
        self.states, self.letters, self.strings = states, letters, strings
        self.least, self.longest = least, longest
        self.vocab, self.length = letters + 2, strings * (longest + 1) - 1
        self.space = from_bits(math.log2(letters) + least * math.log2(longest))
        key = "regbench", states, letters, strings, least, longest
        self.chance, self.plateau = measure_once(key, self.guesses)

    def guesses(self) -> tuple[float, float]:
        """How often any one letter is right, and how often the best for the row."""
        batch = self.sample(max(50, 2**17 // self.length), stream("regbench"))
        asked = batch.targets != SILENT
        letters = torch.arange(self.letters, device="cpu")
        right = [((batch.truth["legal"] >> letter & 1) * asked).sum(1) for letter in letters.tolist()]
        share = torch.stack(right, 1).double() / asked.sum(1, keepdim=True)
        return (batch.facets["legal"][asked].double().mean() / self.letters).item(), share.amax(1).mean().item()

    def automata(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The out-degree of each state, and the letters and the states of its edges."""

        def draw(most: int, *shape: int) -> Tensor:
            return torch.randint(most, (count, *shape), generator=rng, device=rng.device)

        used = random_orders(count, self.letters, rng) < 4 + draw(self.letters - 3, 1)
        able = (torch.arange(self.states, device=rng.device) < 4 + draw(self.states - 3, 1))[:, None]
        able = able & ~torch.eye(self.states, dtype=torch.bool, device=rng.device)
        letters = torch.rand(count, self.states, self.letters, generator=rng, device=rng.device)
        states = torch.rand(count, self.states, self.states, generator=rng, device=rng.device)
        letters = letters.masked_fill(~used[:, None], -1).topk(3, dim=2).indices
        return 1 + draw(3, self.states), letters, states.masked_fill(~able, -1).topk(3, dim=2).indices

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        degree, letters, onward = self.automata(count, rng)
        legal = ((1 << letters) * (torch.arange(3, device=rng.device) < degree[:, :, None])).sum(2)
        shape = count, self.strings, self.longest + 1  # a string and the separator after it
        lottery = torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64)
        state = torch.zeros(shape[:2], dtype=torch.long, device=rng.device)
        walked: list[Tensor] = []
        for chance in lottery.unbind(2):
            edge = 3 * state + (chance * degree.gather(1, state)).long()
            letter, right = letters.flatten(1).gather(1, edge), legal.gather(1, state)
            walked.append(torch.stack([letter, state, right, degree.gather(1, state)]))
            state = onward.flatten(1).gather(1, edge)
        size = 1 + torch.randint(self.longest, (count, self.strings, 1), generator=rng, device=rng.device)
        many = torch.randint(self.least, self.strings + 1, (count, 1, 1), generator=rng, device=rng.device)
        string = torch.arange(self.strings, device=rng.device)[:, None].expand(shape)
        place = torch.arange(self.longest + 1, device=rng.device).expand(shape)
        tokens, *known = torch.stack(walked, 3).masked_fill(place == size, 0)
        tokens = tokens.masked_fill(place == size, self.letters)
        kept = (place < size + (string < many - 1)) & (string < many)
        parts = (tokens, self.letters + 1), *((part, 0) for part in (*known, string, place))
        tokens, state, *parts = pack_rows(kept, *parts, length=self.length + 1)
        told = dict(zip(("right", "legal", "string", "place"), parts, strict=True)) | {
            "visits": torch.zeros_like(state)
        }
        for s in range(self.states):
            here = (state == s) & (tokens < self.letters)
            told["visits"] += (here.cumsum(1) - 1) * here
        targets = tokens[:, 1:].masked_fill(tokens[:, 1:] >= self.letters, SILENT)
        told = {name: part[:, 1:] for name, part in told.items()}
        truth = {"legal": told.pop("right")}
        return Batch(tokens[:, :-1], targets, {name: facet.int() for name, facet in told.items()}, truth)

    def right(self, batch: Batch, answers: Int[Tensor, "batch time"]) -> Bool[Tensor, "batch time"]:
        return (batch.truth["legal"] >> answers.clamp(min=0) & 1).bool() & (answers != SILENT)

    def extra_scores(
        self, batch: Batch, logits: Float[Tensor, "answers vocab"]
    ) -> dict[str, Float[Tensor, " answers"]]:
        legal = batch.truth["legal"][batch.targets != SILENT][:, None]
        wanted = (legal >> torch.arange(self.vocab, device=logits.device) & 1).float()
        return {"tvd": (logits.softmax(-1) - wanted / wanted.sum(1, keepdim=True)).abs().sum(1) / 2}

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers: list[list[int]] = []
        for sequence in tokens.tolist():
            onward: dict[tuple[int, ...], int] = {}
            read: tuple[int, ...] = ()
            answers.append([])
            for token in sequence:
                if token < self.letters:
                    onward[read] = token
                    read = (*read, token)
                else:
                    read = ()
                answers[-1].append(onward.get(read, SILENT))
        return torch.tensor(answers, device=tokens.device)
