"""What the recall tasks of MAD share: pairs with returning keys, noise between them, one question or many."""

from math import log2

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from bestiary.tasks._count import from_bits, mean_inverse_distinct
from bestiary.tasks._draw import draw_in_blocks
from bestiary.tasks._layout import earlier_occurrences
from bestiary.tasks._task import OPEN_REASONS, SILENT, Batch, Scored, Task

Pairs = Int[Tensor, "count pairs"]


class PairRecall(Task):
    """Pairs drawn with replacement, some slots filled with noise, and at the end a pair that was shown before."""

    def __init__(
        self, *, vocab: int, length: int, multi_query: bool, noise: float, noise_vocab: int, scored: Scored
    ) -> None:
        name = "noisy_recall" if noise_vocab else "in_context_recall"
        self.vocab, self.multi_query, self.noise, self.noise_vocab = vocab, multi_query, noise, noise_vocab
        self.scored, self.open, self.pairs = scored, OPEN_REASONS[scored], length // 2
        self.ordinary = vocab - noise_vocab - (not multi_query)
        self.keys, self.values = self.ordinary // 2, self.ordinary - self.ordinary // 2
        if self.keys < 1:
            least = 2 + noise_vocab + (not multi_query)
            raise ValueError(f"{name}(vocab={vocab}): a key and a value need a vocabulary of {least}")
        if length % 2 or length < 4:
            raise ValueError(f"{name}(length={length}): two pairs or more need an even length from 4; try 128")
        self.length = length - multi_query
        slot = (1 - noise) ** 2 / self.keys + (noise**2 / noise_vocab**2 if noise_vocab else 0)
        self.space = from_bits(log2(self.values) - (self.pairs - 2) * log2(slot) + log2(self.keys))
        shown = 1 + (self.pairs - 2) * (1 - noise)
        self.chance = 1 / self.values
        self.plateau = mean_inverse_distinct(1 / mean_inverse_distinct(shown, self.keys), self.values)

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, self.length, rng)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        def draw(among: int, *shape: int) -> Tensor:
            return torch.randint(among, (count, *shape), generator=rng, device=rng.device)

        slots = self.pairs - 1
        key, value_of = draw(self.keys, slots), self.keys + draw(self.values, self.keys)
        noisy = torch.rand(count, slots, generator=rng, device=rng.device) < self.noise
        noisy.scatter_(1, draw(slots, 1), False)
        key = torch.cat([key, self.draw_probe(key, noisy, rng)], dim=1)
        noisy = F.pad(noisy, (0, 1))
        asked_about, pairs = self.questions(key, noisy), torch.stack([key, value_of.gather(1, key)], dim=2)
        if self.noise_vocab:
            pairs = torch.where(noisy.unsqueeze(2), self.ordinary + draw(self.noise_vocab, self.pairs, 2), pairs)
        key, value = pairs.unbind(2)
        tokens = self.lay_out(key, value, self.vocab - 1)
        asked, facets = asked_about
        silent = torch.full_like(value, SILENT)
        targets = self.lay_out(torch.where(asked, value, silent), silent, SILENT)
        if self.scored == "all":
            targets = torch.cat([tokens[:, 1:], value[:, -1:]], dim=1)
        blank = torch.zeros_like(key, dtype=torch.int32)
        return Batch(tokens, targets, {name: self.lay_out(x.int(), blank, 0) for name, x in facets.items()})

    def draw_probe(self, key: Tensor, noisy: Tensor, rng: torch.Generator) -> Int[Tensor, "count 1"]:
        """One of the different keys shown, each equally likely."""
        shown = key.new_zeros(len(key), self.keys + 1).scatter_(1, key.masked_fill(noisy, self.keys), 1)[:, :-1]
        lottery = torch.rand(shown.shape, generator=rng, device=rng.device)
        return lottery.masked_fill(shown == 0, -1).argmax(1, keepdim=True)

    def questions(self, key: Tensor, noisy: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Which pairs are asked about, and the facets of each."""
        place = torch.arange(self.pairs, device=key.device)
        _, last, times = earlier_occurrences(torch.where(noisy, self.keys + place, key))
        asked = last >= 0
        distance = 2 * (place - last)
        if not self.multi_query:
            asked[:, :-1] = False
            distance[:, -1] += 1
        load = ((times == 0) & ~noisy).cumsum(1)
        return asked, {name: x * asked for name, x in (("distance", distance), ("shown", times), ("load", load))}

    def lay_out(self, keys: Pairs, values: Pairs, mark: int) -> Int[Tensor, "count time"]:
        """What stands at keys and at values in reading order, the mark before the last pair, without the last value."""
        flat = torch.stack([keys, values], dim=2).flatten(1)
        if not self.multi_query:
            flat = torch.cat([flat[:, :-2], torch.full_like(flat[:, :1], mark), flat[:, -2:]], dim=1)
        return flat[:, :-1]

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            key, value_of = -1, {}
            for time, token in enumerate(sequence):
                if token < self.keys:
                    key = token
                    answers[row, time] = value_of.get(key, SILENT)
                elif token < self.ordinary:
                    value_of[key] = token
        return answers
