"""Induction heads, and their extrapolation to long sequences (Fu, Dao et al., 2023; Gu & Dao, 2023)."""

import math
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import from_bits
from bestiary.tasks._task import OPEN_REASONS, SILENT, Batch, Scored, Task


class InductionHeads(Task):
    """Read random tokens, among them a trigger; when the trigger comes again at the end, say what followed it.

        tokens    a  c => b  d  a  c ... a =>  b      following=2
        targets   .  .  .  .  .  .  .     .  b  d

    The last token of the vocabulary is the trigger `=>`, the others are ordinary and each equally likely. Somewhere in
    the first `early` part of the text it stands before `following` tokens, and again at the end, where those tokens are
    the answers; the answer before is given as input. At least one token stands between.

    With `triggers` above 1, half of the sequences draw so many places for the trigger, each before the same tokens,
    of which those that would overlap an earlier drawn one are left out; the other half have one.

    `length` counts all tokens of the input, the answers after the trigger but the last included. `scored="answer"`
    asks for the answers only, as the papers test; `"all"` asks for the next token everywhere, and `solve` then knows
    only the answers; `chance` and `plateau` are those of the answers.

    Facets: `distance` from a question back to where its answer last came after the same token, `place` (of the answer,
    from 0) and `shown` (how often the trigger came before the end).

    Departs from the papers: the rule by which Gu & Dao place the trigger early is not published; it is uniform here.
    """

    family: ClassVar = "recall"
    variants: ClassVar = (
        "vocab=5, length=64, following=3, triggers=3",
        "vocab=16, length=130, early=0.1",
        "vocab=3, length=20",
    )
    presets: ClassVar = {
        "h3": "vocab=20, length=31",
        "mamba": "vocab=16, length=256",
        "mamba_long": "vocab=16, length=16384",
    }
    axes: ClassVar = {"length": (32, 64, 256, 1024, 4096)}

    def __init__(
        self,
        *,
        vocab: Positive = 16,
        length: Positive = 256,
        following: Positive = 1,
        triggers: Positive = 1,
        early: float = 1.0,
        scored: Scored = "answer",
    ) -> None:
        self.vocab, self.length, self.following, self.triggers = vocab, length, following, triggers
        self.scored, self.open, self.body = scored, OPEN_REASONS[scored], length - following
        if vocab < 3:
            raise ValueError(f"induction_heads(vocab={vocab}): two ordinary tokens and the trigger need 3")
        if self.body < following + 2:
            raise ValueError(f"induction_heads(length={length}): {following} following need {2 * following + 2}")
        if not 0 < early <= 1:
            raise ValueError(f"induction_heads(early={early}): the part of the text must be above 0 and at most 1")
        self.starts = math.ceil(early * (self.body - following - 1))
        self.space = from_bits((self.body - 1) * math.log2(vocab - 1) + math.log2(self.starts))
        self.chance = self.plateau = 1 / (vocab - 1)

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        text = torch.randint(self.vocab - 1, (count, self.length + 1), generator=rng, device=rng.device)
        text[:, self.body] = self.vocab - 1
        copied = text[:, self.body :]  # the trigger and what follows it
        starts, kept = self.draw_triggers(count, rng)
        offsets = torch.arange(1 + self.following, device=rng.device)
        for start, keep in zip(starts.unbind(1), kept.unbind(1), strict=True):
            where = start.unsqueeze(1) + offsets
            text.scatter_(1, where, torch.where(keep.unsqueeze(1), copied, text.gather(1, where)))
        tokens, targets = text[:, :-1], text[:, 1:].clone()
        if self.scored == "answer":
            targets[:, : self.body] = SILENT
        last = starts.masked_fill(~kept, -1).amax(1, keepdim=True)
        distance = torch.zeros_like(tokens, dtype=torch.int32)
        distance[:, self.body :] = self.body - last
        place = (torch.arange(self.length, device=rng.device, dtype=torch.int32) - self.body).clamp(min=0)
        shown = kept.sum(1, keepdim=True, dtype=torch.int32).expand_as(tokens)
        return Batch(tokens, targets, {"distance": distance, "place": place.expand_as(tokens), "shown": shown})

    def draw_triggers(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Where triggers may come in each row, and which of them do."""
        starts = torch.randint(self.starts, (count, self.triggers), generator=rng, device=rng.device)
        several = torch.rand(count, generator=rng, device=rng.device) < 0.5
        kept = torch.ones_like(starts, dtype=torch.bool)
        for i in range(1, self.triggers):
            near = (starts[:, :i] - starts[:, i : i + 1]).abs() <= self.following
            kept[:, i] = several & ~(near & kept[:, :i]).any(1)
        return starts, kept

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            for time in range(self.body, len(sequence)):
                answers[row, time] = sequence[sequence.index(self.vocab - 1) + 1 + time - self.body]
        return answers
