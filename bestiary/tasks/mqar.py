"""Multi-query associative recall (Arora et al., 2023, section 3 and Algorithm 1)."""

from math import log2
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import choice_bits, from_bits
from bestiary.tasks._draw import blocks, distinct
from bestiary.tasks._mqar import Kind, draw_filler, draw_slots, preset_options, solve_recall
from bestiary.tasks._task import SILENT, Batch, Task

BASED = ((64, 4), (64, 8), (64, 16), (128, 8), (128, 32), (256, 16), (256, 32), (256, 64), (512, 128), (1024, 256))
SMALL = ((64, 4), (128, 8), (256, 16), (512, 64))


class MQAR(Task):
    """Read key-value pairs, then answer every key once, among filler.

        tokens   k1 v1 k2 v2  .  k2  .  .  .  k1  .
        targets   .  .  .  .  .  v2  .  .  .  v1  .

    Keys are tokens 1 to vocab/2 - 1 and values vocab/2 to vocab - 1, each pair new in each sequence, the context shown
    `passes` times over. After it come slots of two positions, of which each question takes one, at its first position;
    slot g is drawn with weight (g + 1)^(power - 1), so that near slots are likelier and power = 1 is uniform. The value
    is not shown after its question.

    `mode="clean"` asks in random order and draws random filler that is never a key of its sequence.
    `mode="paper"` is the generator of the paper: the first pair draws its slot first, so that queries tend to
    return in the order of the pairs, and random filler is any token, keys of the sequence included.
    `filler="zero"` puts token 0 instead of random filler.

    Presets, all with `mode="paper"`: `zoology64` to `zoology512`, figure 2 of the paper, with filler zero; with random
    filler `based64_4` to `based2048_512` (Arora et al., 2024), by length and pairs, `mamba2_256_8` to `mamba2_1024_256`
    (Dao & Gu, 2024), the four stages of its curriculum at each length, of which the last is tested and `mamba2` is the
    hardest, `xlstm48` to `xlstm256` at length 2048 (Beck et al., 2024) and `rwkv64` to `rwkv2048` (Peng et al., 2025).
    Where the last three papers are silent (the law of the slots, the filler), they are taken to follow Based.

    Facets: `distance` from a question back to its key, `pair` (the place of its pair in the context, from 0) and
    `load` (how many pairs there are).
    """

    family: ClassVar = "recall"
    variants: ClassVar = (
        "length=128, pairs=32",
        "pairs=8, passes=2",
        "mode='paper'",
        "mode='paper', filler='zero', power=1.0",
    )
    presets: ClassVar = {
        **{f"zoology{length}": preset_options(length, pairs) + ", filler='zero'" for length, pairs in SMALL},
        **{f"based{length}_{pairs}": preset_options(length, pairs) for length, pairs in (*BASED, (2048, 512))},
        **{
            f"mamba2_{size}_{size // k}": preset_options(size, size // k)
            for size in (256, 512, 1024)
            for k in (32, 16, 8, 4)
        },
        "mamba2": preset_options(1024, 256),
        **{f"xlstm{pairs}": preset_options(2048, pairs) for pairs in (48, 96, 256)},
        **{f"rwkv{length}": preset_options(length, pairs) for length, pairs in (*SMALL, (1024, 128), (2048, 256))},
    }
    axes: ClassVar = {
        "pairs": (4, 8, 16),
        "length": (64, 128, 256, 512, 1024),
        "vocab": (128, 512, 2048, 8192),
        "power": (0.01, 0.5, 1.0),
    }

    def __init__(
        self,
        *,
        vocab: Positive = 8192,
        length: Positive = 64,
        pairs: Positive = 4,
        passes: Positive = 1,
        power: float = 0.01,
        filler: Literal["random", "zero"] = "random",
        mode: Literal["clean", "paper"] = "clean",
    ) -> None:
        self.vocab, self.length, self.pairs, self.passes, self.power = vocab, length, pairs, passes, power
        self.mode = mode
        self.kind: Kind = "zero" if filler == "zero" else mode
        self.context, self.half = 2 * pairs * passes, vocab // 2
        least = self.context + 2 * pairs
        if length % 2:
            raise ValueError(f"mqar(length={length}): the length must be even; try {length + 1}")
        if length < least:
            raise ValueError(f"mqar(length={length}): {pairs} pairs and their questions need a length of {least}")
        if vocab < 2 * (pairs + 1) or vocab <= length:
            raise ValueError(
                f"mqar(vocab={vocab}): {pairs} pairs at length {length} need {max(2 * pairs + 2, length + 1)}"
            )
        self.chance, self.plateau = 1 / (vocab - self.half), 1 / pairs
        self.among, spare = (length - self.context) // 2, length - self.context - pairs
        bits = (
            choice_bits(self.half - 1, pairs) + choice_bits(vocab - self.half, pairs) + choice_bits(self.among, pairs)
        )
        self.space = from_bits(bits + (spare * log2(vocab - pairs) if filler == "random" else 0))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        tokens = torch.empty(count, self.length, dtype=torch.long, device=rng.device)
        targets = torch.full_like(tokens, SILENT)
        distance, pair = (torch.zeros_like(tokens, dtype=torch.int32) for _ in range(2))
        load = torch.tensor(self.pairs, dtype=torch.int32, device=rng.device).expand_as(tokens)
        for part in blocks(count, self.length):
            self.draw_into(tokens[part], targets[part], distance[part], pair[part], rng)
        return Batch(tokens, targets, {"distance": distance, "pair": pair, "load": load})

    def draw_into(self, tokens: Tensor, targets: Tensor, distance: Tensor, pair: Tensor, rng: torch.Generator) -> None:
        """Draw some rows in place."""
        count = len(tokens)
        keys = 1 + distinct(count, self.pairs, self.half - 1, rng)
        values = self.half + distinct(count, self.pairs, self.vocab - self.half, rng)
        tokens[:, : self.context] = torch.stack([keys, values], dim=2).flatten(1).repeat(1, self.passes)
        tokens[:, self.context :] = draw_filler(self.kind, keys, self.length - self.context, self.vocab, rng)
        where = self.context + 2 * self.slots(count, rng)
        shown = self.context - 2 * self.pairs + 2 * torch.arange(self.pairs, device=rng.device)
        tokens.scatter_(1, where, keys)
        targets.scatter_(1, where, values)
        distance.scatter_(1, where, (where - shown).int())
        pair.scatter_(1, where, torch.arange(self.pairs, device=rng.device, dtype=torch.int32).expand_as(where))

    def slots(self, count: int, rng: torch.Generator) -> Int[Tensor, "count pairs"]:
        """The slot of each pair's question."""
        return draw_slots(count, self.pairs, self.among, power=self.power, paper=self.mode == "paper", rng=rng)

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        return solve_recall(tokens, self.context)
