"""Needles in a haystack, as in RULER but on a synthetic vocabulary (Hsieh et al., 2024)."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import choice_bits, from_bits, guess_accuracy, subset_bits
from bestiary.tasks._draw import blocks, distinct
from bestiary.tasks._haystack import draw_prose, insert_sentences, sentence_starts
from bestiary.tasks._task import SILENT, Batch, Task

NEEDLE, IS, STOP, WHAT, WORDS = range(16, 21)  # 0 to 15 are digits; words begin at WORDS
PERIOD = 20  # words of the repeated filler


class Needle(Task):
    """Read a haystack with sentences that give keys their values; then say the values of some keys.

        tokens   the NEEDLE cat IS 4 0 7 STOP grass is ... WHAT cat IS 4 0
        targets   .       .   .  . . . .    .     .  .       .    .  4 0 7

    Tokens 0 to 15 are digits, then the four marks; of the rest the first half are names, the others filler. A key is a
    `key` and a value a `value`: "word" (one name), "number" (seven decimal digits, the first not 0) or "uuid" (32
    hexadecimal digits). Each of `keys` different keys has `values` values; values and depths are uniform. `filler` is
    "repeated" (20 words in one order), "prose" (words drawn by Zipf's law) or "needles": as many keys as fit, and
    "repeated" in the little that remains. After the haystack `queries` of the keys are asked, each for its values in
    the order of the text. A token of an answer is asked after the ones before it have been given.

    Facets: `depth` (of the sentence asked, in tenths, 0 at the top of the haystack and 9 at its end), `place` (of the
    token in the value, from 0) and `load` (how many sentences there are).

    Departs from RULER: a vocabulary of its own, four marks for its phrases, prose without grammar, sentences between
    any two tokens, one question after another, and values in the order of the text, which RULER leaves free.
    """

    family: ClassVar = "recall"
    variants: ClassVar = (
        "vocab=80, length=80, value='word', filler='repeated', keys=4, queries=3",
        "vocab=80, length=120, keys=2, values=2, queries=2",
        "vocab=140, length=100, filler='needles', value='word', queries=2",
    )
    presets: ClassVar = {
        "s1": "length=1024, filler='repeated'",
        "s2": "length=1024",
        "s3": "length=1024, value='uuid'",
        "mk1": "length=1024, keys=4",
        "mk2": "length=1024, filler='needles'",
        "mk3": "length=1024, filler='needles', key='uuid', value='uuid'",
        "mv": "length=1024, values=4",
        "mq": "length=1024, keys=4, queries=4",
    }
    axes: ClassVar = {"length": (128, 192, 256), "value": ("word", "number")}

    def __init__(
        self,
        *,
        vocab: Positive = 1024,
        length: Positive = 256,
        filler: Literal["repeated", "prose", "needles"] = "prose",
        key: Literal["word", "uuid"] = "word",
        value: Literal["word", "number", "uuid"] = "number",
        keys: Positive = 1,
        values: Positive = 1,
        queries: Positive = 1,
    ) -> None:
        self.vocab, self.length, self.filler, self.values, self.queries = vocab, length, filler, values, queries
        self.names = (vocab - WORDS) // 2
        if self.names < PERIOD:
            raise ValueError(f"needle(vocab={vocab}): digits, marks, names and words need {WORDS + 2 * PERIOD}")
        words = range(WORDS, WORDS + self.names)
        kinds = {"word": [words], "number": [range(1, 10), *[range(10)] * 6], "uuid": [range(16)] * 32}
        self.key, self.value = kinds[key], kinds[value]  # the range of each of their tokens
        self.width = 3 + len(self.key) + len(self.value)
        self.question = 2 + len(self.key) + values * len(self.value)
        self.room = length + 1 - queries * self.question
        fit = self.room // (self.width * values)
        if fit < max(needed := queries if filler == "needles" else keys, 1):
            least = needed * values * self.width + queries * self.question - 1
            raise ValueError(f"needle(length={length}): the sentences and questions asked for need {least}")
        self.keys = fit if filler == "needles" else keys
        if self.keys < queries:
            raise ValueError(f"needle(queries={queries}): at most all {keys} keys can be asked")
        if key == "word" and self.names < self.keys:
            raise ValueError(f"needle(vocab={vocab}): {self.keys} keys of one word need {WORDS + 2 * self.keys}")
        self.load = self.keys * values
        others = self.room - self.load * self.width
        bits = choice_bits(self.names, self.keys) if key == "word" else 128 * self.keys
        bits += self.load * sum(choice_bits(len(part), 1) for part in self.value)
        bits += subset_bits(self.load + others, self.load) + others * (
            filler == "prose"
        )  # at least a bit for each word
        self.space = from_bits(bits)
        share = max(sum(1 / len(part) for part in self.value if token in part) for token in (1, WORDS))
        self.chance, self.plateau = (
            share / len(self.value),
            guess_accuracy(self.load, [len(part) for part in self.value]),
        )

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        tokens = torch.empty(count, self.length, dtype=torch.long, device=rng.device)
        targets = torch.full_like(tokens, SILENT)
        depth, place = (torch.zeros_like(tokens, dtype=torch.int32) for _ in range(2))
        load = torch.tensor(self.load, dtype=torch.int32, device=rng.device).expand_as(tokens)
        for part in blocks(count, self.length):
            self.draw_into(tokens[part], targets[part], depth[part], place[part], rng)
        return Batch(tokens, targets, {"depth": depth, "place": place, "load": load})

    def draw_into(self, tokens: Tensor, targets: Tensor, depth: Tensor, place: Tensor, rng: torch.Generator) -> None:
        """Draw some rows in place."""
        count, size = len(tokens), len(self.value)

        def draw(ranges: list[range], *shape: int) -> Tensor:
            parts = [torch.randint(r.start, r.stop, shape, generator=rng, device=rng.device) for r in ranges]
            return torch.stack(parts, dim=-1)

        names = WORDS + distinct(count, self.keys, self.names, rng).unsqueeze(2) if len(self.key) == 1 else None
        keys = draw(self.key, count, self.keys) if names is None else names
        values = draw(self.value, count, self.keys, self.values)
        what, needle, equals, stop = (torch.full_like(values[..., :1], mark) for mark in (WHAT, NEEDLE, IS, STOP))
        again = keys.unsqueeze(2).expand(-1, -1, self.values, -1)
        starts = sentence_starts(count, self.room, groups=self.keys, size=self.values, width=self.width, rng=rng)
        haystack = (WORDS + self.names + torch.arange(self.room, device=rng.device) % PERIOD).repeat(count, 1)
        if self.filler == "prose":
            haystack = WORDS + self.names + draw_prose(count, self.room, self.vocab - WORDS - self.names, rng)
        insert_sentences(haystack, torch.cat([needle, again, equals, values, stop], dim=3).flatten(1, 2), starts)
        questions = torch.cat([what[:, :, 0], keys, equals[:, :, 0], values.flatten(2)], dim=2)
        text = torch.cat([haystack, questions[:, : self.queries].flatten(1)], dim=1)
        tokens.copy_(text[:, :-1])
        for query in range(self.queries):
            first = self.room + query * self.question + 1 + len(self.key)
            where = slice(first, first + self.values * size)
            targets[:, where] = text[:, 1:][:, where]
            depth[:, where] = (starts[:, query] * 10 // (self.room - self.width + 1)).repeat_interleave(size, 1)
            place[:, where] = torch.arange(size, device=rng.device).repeat(self.values)

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            values_of: dict[tuple[int, ...], list[int]] = {}
            time = 0
            while time < len(sequence):
                if sequence[time] in (NEEDLE, WHAT) and IS in sequence[time:]:
                    equals = sequence.index(IS, time)
                    known = values_of.setdefault(tuple(sequence[time + 1 : equals]), [])
                    if sequence[time] == NEEDLE:
                        known += sequence[equals + 1 : equals + 1 + len(self.value)]
                    for later, answer in enumerate(known if sequence[time] == WHAT else [], start=equals):
                        if later < len(sequence):
                            answers[row, later] = answer
                    time = equals
                time += 1
        return answers
