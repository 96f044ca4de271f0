"""Repeat after me: copying and looking up in strings (Jelassi et al., 2024)."""

from math import log2
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from bestiary.spec import Natural, Positive
from bestiary.tasks._count import from_bits, mean_inverse_distinct
from bestiary.tasks._draw import draw_in_blocks, uniform_below
from bestiary.tasks._layout import earlier_occurrences, pack_rows
from bestiary.tasks._task import SILENT, Batch, Task


class RepeatAfterMe(Task):
    """Read a string, and copy it, or say what follows a few letters given before or after it.

        copy     $ c a t s | c a t s * *    answers c a t s . from the last bar on
        prefix   $ a | c a t s | t s * *    answers t s . from the last bar on; gram=1
        suffix   $ c a t s | a t s * * *    answers t s . from the letter after the bar on

    Tokens 0 to letters - 1 are letters, drawn uniformly, and then come start `$`, bar `|`, stop `.` and padding `*`. A
    string has `least` to `most` letters, each length equally likely; shorter rows are padded on the right. The answer
    is shown as it is given, and its end is asked; the stop itself is never input. With `answer` above 0 only so many
    letters are asked for.

    A look-up gives `gram` letters and asks what stands after their first occurrence. They are drawn among the places
    that enough letters follow, from those whose letters occur once if there are any. `duplicate` is `copy` where `gram`
    letters have been written over others that they do not overlap, to test those who continue what they saw.

    Facets: `distance` from a question back to the answer in the string (0 at the end), `place` (in the answer), `size`
    (of the string) and `shown`, how often the letters of a look-up occur (0 in the others).

    Departs from the paper: its code draws the letters of a look-up from all places, unique or not, and keeps two
    letters after them; replaces every occurrence in `duplicate`; and packs several rows into a context of 220.
    """

    family: ClassVar = "copying"
    variants: ClassVar = (
        "form='prefix', letters=10",
        "form='suffix', answer=4, least=8, most=30",
        "form='duplicate', least=10, most=25",
    )
    presets: ClassVar = {
        "train": "most=300",
        "test": "least=1000, most=1000",
        "duplicate": "form='duplicate', least=20, most=100, gram=8",
    }
    axes: ClassVar = {"most": (30, 50, 100, 300, 1000), "gram": (2, 3, 4)}

    def __init__(
        self,
        *,
        form: Literal["copy", "prefix", "suffix", "duplicate"] = "copy",
        letters: Positive = 26,
        least: Positive = 5,
        most: Positive = 20,
        gram: Positive = 3,
        answer: Natural = 0,
    ) -> None:
        self.form, self.letters, self.least, self.most, self.gram = form, letters, least, most, gram
        self.look_up, self.answer = form in ("prefix", "suffix"), answer
        need = max(2 * gram if form == "duplicate" else 1, gram * self.look_up + (answer or 1))
        if not need <= least <= most:
            raise ValueError(f"repeat_after_me(least={least}, most={most}): {form} needs {need} <= least <= most")
        if letters < 2 or (self.look_up and not most <= letters**gram < 2**60):
            wanted = f"2 or more, of which {gram} make {most} to 2**60 words in a look-up"
            raise ValueError(f"repeat_after_me(letters={letters}, gram={gram}): letters must be {wanted}")
        self.vocab, (self.start, self.bar, self.stop, self.padding) = letters + 4, range(letters, letters + 4)
        self.longest = answer or most - gram * self.look_up
        self.length = 2 + most + self.longest + gram * self.look_up + (form == "prefix")
        mean = (least + most) / 2
        asked = answer or ((mean - gram + 1) / 2 if self.look_up else mean)
        self.chance = max(asked / letters, 1) / (asked + 1)
        self.plateau = max(asked * mean_inverse_distinct(mean, letters), 1) / (asked + 1)
        self.space = from_bits((least - gram * (form == "duplicate")) * log2(letters))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""
        size = torch.randint(self.least, self.most + 1, (count, 1), generator=rng, device=rng.device)
        string = torch.randint(self.letters, (count, self.most), generator=rng, device=rng.device)
        if self.form == "duplicate":
            string = self.duplicate_gram(string, size, rng)
        begin, shown = self.find_answer(string, size, rng) if self.look_up else (torch.zeros_like(size), 0 * size)
        index = torch.arange(self.longest + 1, device=rng.device)
        asked = torch.full_like(size, self.answer) if self.answer else size - begin
        answer = string.gather(1, (begin + index).clamp(max=self.most - 1)).masked_fill(index == asked, self.stop)
        start, bar = (torch.full_like(size, token) for token in (self.start, self.bar))
        given = string.gather(1, (begin - self.gram + torch.arange(self.gram, device=rng.device)).clamp(min=0))
        middle = {"prefix": [given, bar, string, bar], "suffix": [string, bar, given]}.get(self.form, [string, bar])
        tokens = torch.cat([start, *middle, answer[:, :-1]], dim=1)
        before = self.gram + 2 if self.form == "prefix" else 1  # what stands before the string
        cell, ask = torch.arange(tokens.shape[1], device=rng.device), tokens.shape[1] - self.longest - 1
        kept = ((cell < before + size) | (cell >= before + self.most)) & (cell - ask <= asked)
        distance = (ask - self.most + size - before - begin).masked_fill(index == asked, 0)
        facets = {"distance": distance, "place": index, "size": size, "shown": shown}
        columns = [(x.expand_as(answer), 0) for x in facets.values()]
        asking = [(F.pad(x, (ask, 0), value=filler), filler) for x, filler in [(answer, SILENT), *columns]]
        tokens, targets, *told = pack_rows(kept, (tokens, self.padding), *asking, length=self.length)
        return Batch(tokens, targets, {name: x.int() for name, x in zip(facets, told, strict=True)})

    def duplicate_gram(self, string: Tensor, size: Tensor, rng: torch.Generator) -> Tensor:
        """The string, some letters of it written over others that they do not overlap."""
        room = size - 2 * self.gram + 1
        one, other = uniform_below(room + 1, rng), uniform_below(room, rng)
        other = other + (other >= one)
        source = other + (self.gram - 1) * (other > one)
        target = one + (self.gram - 1) * (one > other)
        index = torch.arange(self.gram, device=string.device)
        return string.scatter(1, target + index, string.gather(1, source + index))

    def find_answer(self, string: Tensor, size: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Where the answer to a look-up begins, and how often its letters occur."""
        place = torch.arange(self.most - self.gram + 1, device=rng.device)
        code = (string.unfold(1, self.gram, 1) * self.letters ** torch.arange(self.gram, device=rng.device)).sum(2)
        first = earlier_occurrences(torch.where(place > size - self.gram, -1 - place, code)).first
        shown = torch.zeros_like(first).scatter_add_(1, first, torch.ones_like(first)).gather(1, first)
        lottery = torch.rand(first.shape, generator=rng, device=rng.device) + (shown == 1)
        fits = place <= size - self.gram - (self.answer or 1)
        chosen = lottery.masked_fill(~fits, -1).argmax(1, keepdim=True)
        return first.gather(1, chosen) + self.gram, shown.gather(1, chosen)

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            parts: list[list[int]] = [[]]
            for time, token in enumerate(sequence):
                if token == self.bar:
                    parts.append([])
                elif token < self.letters:
                    parts[-1].append(token)
                todo = self.remaining_answer(parts) if token <= self.bar else []
                answers[row, time] = todo[0] if todo else SILENT
        return answers

    def remaining_answer(self, parts: list[list[int]]) -> list[int]:
        """What is still to be said, if what stands between the bars is a question."""
        string, said = parts[-2:] if len(parts) == 2 + (self.form == "prefix") else ([], [])
        begin = 0
        if self.look_up:
            given, said = (parts[0], said) if self.form == "prefix" else (said[: self.gram], said[self.gram :])
            ends = [i for i in range(self.gram, len(string)) if string[i - self.gram : i] == given]
            begin = ends[0] if ends else len(string)
        whole = string[begin : begin + self.answer if self.answer else None] + [self.stop]
        return whole[len(said) :] if string and begin < len(string) else []
