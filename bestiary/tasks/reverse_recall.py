"""Recall of keys by their values, as in tinylang (Arora et al., 2025)."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import choice_bits, from_bits
from bestiary.tasks._draw import distinct
from bestiary.tasks._task import OPEN_REASONS, SILENT, Batch, Scored, Task

PAD, BEGIN, END, FIRST = range(4)  # FIRST is the first key


class ReverseRecall(Task):
    """Read key-value pairs, then answer the key before a value, which an induction head cannot do.

        tokens   BEGIN k1 v1 k2 v2 END v2 PAD     ask="value"
        targets      .  .  .  .  .   . k2   .

    Tokens are PAD, BEGIN, END, then `symbols`, of which the lower half are keys and the others values, each at most
    once in a sequence. There are `least` to `pairs` pairs, each number equally likely (`least=None`: always `pairs`),
    and short rows are filled up with PAD on the right. Every pair is equally likely to be asked: with `ask="key"` for
    its value, with `"value"` for its key, with `"both"` for either, a coin deciding.

    `scored="answer"` asks at the question only; `"all"` asks for the next token everywhere up to the answer, and
    `solve` then knows only the last; `chance` and `plateau` are those of the last.

    Facets, the same at all that is asked of a row: `distance` from its question back to the pair's token of the same
    kind as the question's, `load` (how many pairs) and `reverse` (1 where a value is asked for its key).

    Departs from the source: no END follows the answer, as it tells nothing of recall, and no combinations of key and
    value are held out, since none recurs.
    """

    family: ClassVar = "recall"
    variants: ClassVar = ("symbols=16, pairs=8, least=4, ask='both'", "symbols=256, pairs=60, ask='key'")
    axes: ClassVar = {"pairs": (4, 6, 8)}
    presets: ClassVar = {"tinylang": "symbols=8192, pairs=32, least=4, ask='both'"}

    def __init__(
        self,
        *,
        symbols: Positive = 64,
        pairs: Positive = 16,
        least: Positive | None = None,
        ask: Literal["key", "value", "both"] = "value",
        scored: Scored = "answer",
    ) -> None:
        self.half, self.pairs, self.ask = symbols // 2, pairs, ask
        self.scored, self.open = scored, OPEN_REASONS[scored]
        self.least = pairs if least is None else least
        if symbols % 2 or self.half < pairs:
            raise ValueError(f"reverse_recall(symbols={symbols}): {pairs} pairs need an even {2 * pairs} or more")
        if self.least > pairs:
            raise ValueError(f"reverse_recall(least={least}): it must be at most pairs={pairs}")
        self.vocab, self.length = FIRST + symbols, 2 * pairs + 3
        numbers = range(self.least, pairs + 1)
        self.space = from_bits(2 * choice_bits(self.half, self.least))  # the short ones, which recur first
        self.chance = (0.5 if ask == "both" else 1.0) / self.half
        self.plateau = sum(1 / number for number in numbers) / len(numbers)

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        def draw(least: int, most: int) -> Tensor:
            return torch.randint(least, most + 1, (count, 1), generator=rng, device=rng.device)

        keys, values = (distinct(count, self.pairs, self.half, rng) + FIRST + side * self.half for side in (0, 1))
        load, asked = draw(self.least, self.pairs), torch.rand(count, 1, generator=rng, device=rng.device)
        asked = (asked * load).long().clamp(max=self.pairs - 1)
        reverse = draw(0, 1) if self.ask == "both" else torch.full_like(load, self.ask == "value")
        key, value = keys.gather(1, asked), values.gather(1, asked)
        text = torch.full((count, self.length + 1), PAD, dtype=torch.long, device=rng.device)
        text[:, 0] = BEGIN
        text[:, 1:-3:2], text[:, 2:-2:2] = keys, values
        end, place = 1 + 2 * load, torch.arange(self.length + 1, device=rng.device)
        text = text.masked_fill(place > end, PAD).scatter_(1, end, END)
        text.scatter_(1, end + 1, torch.where(reverse > 0, value, key))
        text.scatter_(1, end + 2, torch.where(reverse > 0, key, value))
        tokens, targets = text[:, :-1].masked_fill(place[:-1] > end + 1, PAD), text[:, 1:].clone()
        silent = place[:-1] > end + 1 if self.scored == "all" else place[:-1] != end + 1
        distance = (end - 2 * asked - reverse).expand_as(tokens).masked_fill(silent, 0).int()
        facets = {"load": load, "reverse": reverse}
        return Batch(
            tokens,
            targets.masked_fill(silent, SILENT),
            {"distance": distance, **{name: facet.int().expand_as(tokens) for name, facet in facets.items()}},
        )

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            if END in sequence[:-1]:
                end = sequence.index(END)
                asked = sequence.index(sequence[end + 1])
                answers[row, end + 1] = sequence[asked + 1 if asked % 2 else asked - 1]
        return answers
