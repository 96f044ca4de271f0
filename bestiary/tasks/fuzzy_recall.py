"""Fuzzy in-context recall of MAD (Poli et al., 2024, section 3.1)."""

from math import log2, perm
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import from_bits, guess_accuracy, mean_inverse_distinct
from bestiary.tasks._draw import distinct, draw_in_blocks, uniform_below
from bestiary.tasks._layout import earlier_occurrences, gather_vectors, pack_rows
from bestiary.tasks._task import OPEN_REASONS, SILENT, Batch, Scored, Task


class FuzzyRecall(Task):
    """Read pairs of keys and values of several tokens, and say the values of keys that were shown before.

        tokens   .. k1 k4 k2 v8 v9 k5 k1 k3 v7 ... k1 k4 k2 v8
        targets   .  .  .  .  .  .  .  .  .  . ...  .  . v8 v9

    The last token of the vocabulary is padding on the left; of the others the lower half are letters of keys, the rest
    letters of values. Keys and values are ordered choices of different letters: values of 1 to `value_size`, keys of
    `key_size`, or with `keys="mixed"` of 1 to that, each size equally likely. Keys return at random, with the same
    value. One pair is drawn first, stands where the body first reaches a random offset, and again at the end. All
    tokens of a returning value are asked, after those before them. `multi_query=False` asks the last only, with token
    vocab - 1 as a mark before it, and vocab - 2 as padding.

    The defaults are what MAD tests, the preset `train` what it trains on: the next token everywhere (`scored="all"`;
    `chance` and `plateau` are those of the answers). MAD's settings change one of the axes, in training and test alike,
    or the number of training rows.

    Facets: `distance` to the token before the answer where the key was last shown, `shown` (how often it was) and
    `place` (of the answer in its value, from 0).

    Departs from the paper: in its code the offset may lie beyond the body, and a pair is then asked that was never
    shown; here it may not. Where chance draws the probe's key before the offset, it is here shown again at that.
    """

    family: ClassVar = "mad"
    variants: ClassVar = "keys='mixed', length=64", "multi_query=False", "length=40, key_size=2, value_size=1"
    presets: ClassVar = {"train": "keys='mixed', scored='all'"}
    axes: ClassVar = {"vocab": (16, 32, 64, 128), "length": (128, 256, 512, 1024)}

    def __init__(
        self,
        *,
        vocab: Positive = 16,
        length: Positive = 128,
        key_size: Positive = 3,
        value_size: Positive = 3,
        keys: Literal["largest", "mixed"] = "largest",
        multi_query: bool = True,
        scored: Scored = "answer",
    ) -> None:
        self.vocab, self.length, self.key_size, self.value_size = vocab, length, key_size, value_size
        self.keys, self.multi_query, self.scored, self.open = keys, multi_query, scored, OPEN_REASONS[scored]
        self.ordinary = vocab - 2 + multi_query
        self.letters = self.ordinary // 2
        values, most = self.ordinary - self.letters, key_size + value_size
        if self.letters < key_size or values < value_size:
            least = 2 * max(key_size, value_size) + 2 - multi_query
            raise ValueError(f"fuzzy_recall(vocab={vocab}): words of {key_size} and {value_size} letters need {least}")
        if length < 3 * most:
            raise ValueError(f"fuzzy_recall(length={length}): pairs of {most} tokens need a length of {3 * most}")
        if (self.letters + 1) ** key_size >= 2**62:
            raise ValueError(
                f"fuzzy_recall(key_size={key_size}): {self.letters} letters make too many keys of that size"
            )
        self.shortest = 1 if keys == "mixed" else key_size
        sizes = range(self.shortest, key_size + 1)
        pairs = (length - 1.5 * most) / ((self.shortest + 1 + most) / 2)
        among = 1 / sum(1 / perm(self.letters, size) for size in sizes) * len(sizes)
        self.chance = 1 / values
        letters = range(values, values - value_size, -1)
        self.plateau = guess_accuracy(1 / mean_inverse_distinct(pairs, round(among)), letters, any_length=True)
        self.space = from_bits((length - 2 * most) // most * log2(among * len(sizes)) + log2(values))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""
        words, device = self.length // (self.shortest + 1) + 1, rng.device  # the probe, and as many as a body may hold
        key_size = torch.randint(self.shortest, self.key_size + 1, (count, words), generator=rng, device=device)
        value_size = torch.randint(1, self.value_size + 1, (count, words), generator=rng, device=device)
        keys = distinct(count * words, self.key_size, self.letters, rng).view(count, words, -1)
        values = distinct(count * words, self.value_size, self.ordinary - self.letters, rng).view(count, words, -1)
        inside = torch.arange(self.key_size, device=device)
        code = ((keys + 1) * (inside < key_size.unsqueeze(2)) * (self.letters + 1) ** inside).sum(2)
        first = earlier_occurrences(code).first
        value_size = value_size.gather(1, first)
        order, pairs = self.arrange(key_size + value_size, rng)
        sizes = gather_vectors(torch.stack([key_size, value_size], dim=2), order)
        values = self.letters + gather_vectors(values, first.gather(1, order))
        return self.write_out(gather_vectors(keys, order), values, sizes, code.gather(1, order), pairs)

    def arrange(self, sizes: Int[Tensor, "count words"], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The order in which the words stand, word 0 being the probe, and how many pairs come before the last."""
        most = self.key_size + self.value_size
        limit = self.length - most - sizes[:, :1]
        starts = sizes[:, 1:].cumsum(1) - sizes[:, 1:]
        before = (starts < uniform_below(limit - most + 1, rng)).sum(1, keepdim=True)
        place = torch.arange(sizes.shape[1], device=sizes.device).expand_as(sizes)
        order = torch.where(place < before, place + 1, place).masked_fill(place == before, 0)
        ordered = sizes.gather(1, order)
        pairs = (ordered.cumsum(1) - ordered < limit).sum(1, keepdim=True)
        return order.scatter(1, pairs, 0), pairs

    def write_out(self, keys: Tensor, values: Tensor, sizes: Tensor, code: Tensor, pairs: Tensor) -> Batch:
        """The words written out from the left, `sizes` letters of each, the last pair in its place."""
        place = torch.arange(code.shape[1], device=code.device).expand_as(code)
        final, mark = place == pairs, not self.multi_query
        _, last, times = earlier_occurrences(torch.where(place > pairs, -1 - place, code))
        asked = (last >= 0) & (final | self.multi_query)
        start = (sizes.sum(2) + (final & mark)).cumsum(1) - sizes.sum(2)  # of the key
        letters = torch.cat([torch.full_like(keys[:, :, :1], self.vocab - 1), keys, values], dim=2)
        inside = torch.arange(letters.shape[2], device=code.device) - 1
        whole = torch.where(inside < self.key_size, sizes[:, :, :1], self.key_size + sizes[:, :, 1:])
        kept = (inside < whole) & (place <= pairs).unsqueeze(2)
        kept[:, :, 0] = final & mark
        answer = torch.full_like(letters, SILENT)
        answer[:, :, 1 + self.key_size :] = values.masked_fill(~asked.unsqueeze(2), SILENT)
        distance = start - start.gather(1, last.clamp(min=0))
        facets = {"distance": distance.unsqueeze(2), "shown": times.unsqueeze(2), "place": inside - self.key_size}
        columns = [(letters, self.vocab - 2 + self.multi_query), (answer, SILENT)]
        columns += [(x.masked_fill(answer == SILENT, 0).int(), 0) for x in facets.values()]
        tokens, targets, *told = pack_rows(kept, *columns, length=self.length + 1, right=True)
        targets = tokens if self.scored == "all" else targets
        return Batch(tokens[:, :-1], targets[:, 1:], {name: x[:, 1:] for name, x in zip(facets, told, strict=True)})

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        unsure = self.scored == "all" and self.keys == "mixed"  # whether the key has ended
        for row, sequence in enumerate(tokens.tolist()):
            key, value, value_of = (), (), {}
            for time, token in enumerate(sequence):
                if token < self.letters:
                    if value:
                        value_of[key], key, value = value, (), ()
                    key += (token,)
                elif token < self.ordinary:
                    value += (token,)
                known = value_of.get(key, ())
                if len(value) < len(known) and (value or not unsure):
                    answers[row, time] = known[len(value)]
        return answers
