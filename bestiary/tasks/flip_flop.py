"""The flip-flop language (Liu et al., 2023, section 3)."""

from math import log2
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Lt
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import from_bits
from bestiary.tasks._layout import add_filler
from bestiary.tasks._task import SILENT, Batch, Task


class FlipFlop(Task):
    """Write bits, ignore bits, and when told to read say the bit written last.

        tokens   w 1 i 0 i 1 r 1 w 0 ... r 0
        targets  . . . . . . 1 . . . ... 0 .

    Tokens 0 and 1 are the bits, 2, 3 and 4 the instructions write, read and ignore. The first instruction is write and
    the last read; each between is ignore with probability `ignore`, and otherwise write or read, equally likely. Bits
    are uniform, but that of a read is the one written last; it is the answer, and shown after it.

    The paper trains on 256 instructions with 0.8 of them ignored (preset `train`) and tests where nearly all are
    (`sparse`: answers lie far back) or few (`dense`: many writes lie between), counting the errors on all reads.

    Facets: `distance` from a question back to the instruction written last, and `writes`, how often was written yet.
    """

    family: ClassVar = "copying"
    variants: ClassVar = ("ignore=0.98", "ignore=0.1, pairs=32", "ignore=0.5, pairs=12")
    presets: ClassVar = {
        "train": "pairs=256",
        "sparse": "pairs=256, ignore=0.98",
        "dense": "pairs=256, ignore=0.1",
    }
    axes: ClassVar = {"ignore": (0.1, 0.5, 0.8, 0.9, 0.98), "pairs": (16, 32, 64, 128, 256)}

    def __init__(self, *, pairs: Positive = 64, ignore: Annotated[float, Ge(0), Lt(1)] = 0.8) -> None:
        if pairs < 2:
            raise ValueError(f"flip_flop(pairs={pairs}): to write and to read takes 2 pairs")
        self.pairs, self.ignore = pairs, ignore
        self.vocab, self.length, self.chance, self.plateau = 5, 2 * pairs, 0.5, 0.5
        acts = (1 - ignore) / 2
        same = (acts**2 + ignore**2) / 2 + acts**2  # the probability that two rows agree in a pair
        self.space = from_bits(1 - (pairs - 2) * log2(same))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        drawn = torch.rand(count, self.pairs, generator=rng, device=rng.device)
        acts = torch.where(drawn < self.ignore, 4, torch.where(drawn < (1 + self.ignore) / 2, 3, 2))
        acts[:, 0], acts[:, -1] = 2, 3
        place = torch.arange(self.pairs, device=rng.device)
        last = place.masked_fill(acts != 2, 0).cummax(1).values
        bits = torch.randint(2, acts.shape, generator=rng, device=rng.device)
        reads, written = acts == 3, bits.gather(1, last)
        bits = torch.where(reads, written, bits)
        tokens = torch.stack([acts, bits], dim=2).flatten(1)
        facets = {"distance": 2 * (place - last), "writes": (acts == 2).cumsum(1)}
        return Batch(
            tokens,
            add_filler(written.masked_fill(~reads, SILENT), 0, 1, SILENT),
            {name: add_filler(x * reads, 0, 1, 0).int() for name, x in facets.items()},
        )

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            written = SILENT
            for time, token in enumerate(sequence):
                if token == 3:
                    answers[row, time] = written
                elif time and sequence[time - 1] == 2:
                    written = token
        return answers
