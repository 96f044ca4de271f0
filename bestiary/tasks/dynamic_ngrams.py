"""Dynamic N-grams, estimating transition probabilities while reading (Graves et al., 2014, section 4.4)."""

import math
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from bestiary.spec import Positive
from bestiary.tasks._count import measure_once
from bestiary.tasks._draw import draw_in_blocks
from bestiary.tasks._task import SILENT, Batch, Task, stream


class DynamicNgrams(Task):
    """Read bits drawn by a table that is new in each row, and predict each as well as can be done.

        tokens   1 0 1 1 0 1 0 ...      (context=2: after 1 0 came a 1, so that 1 is the best guess next time)
        targets  . 1 1 0 1 0 . ...

    For every word of `context` bits the table holds the probability of a 1 after it, drawn from Beta(1/2, 1/2). The
    first `context` bits are fair, the others follow the table. The next bit is asked after each whole context.

    The target is the bit that comes. Right is the answer of the best predictor: the bit that came more often in the row
    after the same context, and either if both came as often; it expects a 1 with probability (ones + 1/2) / (ones +
    zeros + 1). `excess` is the loss of a model beyond that of this predictor, in nats.

    Facets: `seen` (how often the context came before) and `margin` (by how much the commoner bit leads).

    Departs from the paper: accuracy compares with the best predictor, since nobody knows the next bit. The
    default is smaller, for a laptop; the paper's size is a preset.
    """

    family: ClassVar = "in-context rules"
    variants: ClassVar = ("context=2, length=100", "context=3, length=60")
    presets: ClassVar = {"paper": "context=5, length=200"}
    axes: ClassVar = {"context": (2, 3, 4, 5)}

    def __init__(self, *, context: Positive = 4, length: Positive = 100) -> None:
        if not 2 <= context <= 16:
            raise ValueError(f"dynamic_ngrams(context={context}): 2 to 16 bits; behind one, too many rows are alike")
        if length < 2 * context + 1:
            raise ValueError(f"dynamic_ngrams(length={length}): {context} bits need a length of {2 * context + 1}")
        self.vocab, self.context, self.length = 2, context, length
        self.chance, self.plateau = measure_once(("dynamic_ngrams", context, length), self.guesses)
        self.space = 2.0 ** (2 * context) * math.pi * (length - context) / 2  # equal bits throughout recur this often

    def guesses(self) -> tuple[float, float]:
        """How often 1, or 0, is the best guess, and how often the one that is so more often in its row is."""
        batch = self.sample(max(40, 2**17 // self.length), stream("dynamic_ngrams"))
        asked = batch.targets != SILENT
        right = torch.stack([self.right(batch, torch.full_like(batch.targets, bit)) & asked for bit in (0, 1)])
        share = right.sum(2).double() / asked.sum(1)
        return share.mean().item(), share.amax(0).mean().item()

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return draw_in_blocks(self.draw_block, count, 2 ** (self.context + 1), rng, most=2**22)

    def draw_block(self, count: int, rng: torch.Generator) -> Batch:
        """Draw `count` sequences at once."""
        lottery = torch.rand(count, self.length + 1, generator=rng, device=rng.device, dtype=torch.float64)
        angle = torch.rand(count, 2**self.context, generator=rng, device=rng.device, dtype=torch.float64)
        table = (math.pi / 2 * angle).sin() ** 2  # Beta(1/2, 1/2) is the arcsine law
        bits = (lottery < 0.5).long()
        seen = torch.zeros(count, 2**self.context, 2, dtype=torch.long, device=rng.device)
        counts, row = (
            torch.zeros(count, self.length, 2, dtype=torch.long, device=rng.device),
            torch.arange(count, device=rng.device),
        )
        weights = 2 ** torch.arange(self.context, device=rng.device).flip(0)
        for time in range(self.context, self.length + 1):
            word = (bits[:, time - self.context : time] * weights).sum(1)
            bits[:, time] = (lottery[:, time] < table[row, word]).long()
            counts[:, time - 1] = seen[row, word]
            seen[row, word, bits[:, time]] += 1
        targets = bits[:, 1:].clone()
        targets[:, : self.context - 1] = SILENT
        facets = {"seen": counts.sum(2).int(), "margin": (counts[..., 1] - counts[..., 0]).abs().int()}
        return Batch(bits[:, :-1], targets, facets, {"counts": counts})

    def right(self, batch: Batch, answers: Int[Tensor, "batch time"]) -> Bool[Tensor, "batch time"]:
        lead = batch.truth["counts"][..., 1] - batch.truth["counts"][..., 0]
        return ((answers == 1) & (lead >= 0)) | ((answers == 0) & (lead <= 0))

    def extra_scores(
        self, batch: Batch, logits: Float[Tensor, "answers vocab"]
    ) -> dict[str, Float[Tensor, " answers"]]:
        asked = batch.targets != SILENT
        best = (batch.truth["counts"][asked] + 0.5).log()  # cross_entropy divides by the sum
        own, least = (F.cross_entropy(x, batch.targets[asked], reduction="none") for x in (logits, best))
        return {"excess": own - least}

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers: list[list[int]] = []
        for sequence in tokens.tolist():
            lead: dict[tuple[int, ...], int] = {}
            row = [SILENT] * min(self.context - 1, len(sequence))
            for time in range(self.context - 1, len(sequence)):
                word = tuple(sequence[time + 1 - self.context : time + 1])
                if time >= self.context:
                    before = tuple(sequence[time - self.context : time])
                    lead[before] = lead.get(before, 0) + (1 if sequence[time] else -1)
                row.append(int(lead.get(word, 0) > 0))
            answers.append(row)
        return torch.tensor(answers, device=tokens.device)
