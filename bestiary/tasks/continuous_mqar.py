"""Associative recall on vectors, key and value side by side (HazyResearch's Zoology, 2026)."""

from functools import cache
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bestiary.spec import Positive
from bestiary.tasks._count import choice_bits, from_bits
from bestiary.tasks._draw import distinct, random_orders
from bestiary.tasks._task import SILENT, Batch, Task, stream


class ContinuousMQAR(Task):
    """Read vectors that hold a key and its value, then say which value belongs to each key.

        tokens   [K3;V7] [K1;V2] [K8;V5]   [K8;0] [K3;0] [K1;0]
        targets     .       .       .         5      7      2

    Two tables of `vocab` random vectors of length 1 and `width` numbers each, one of keys and one of values, are fixed
    once for all. A sequence draws `pairs` keys and as many values, shows the pairs `passes` times, each time in a new
    order, and then asks every key once, in random order, with zeros in place of the value. The answer is the number of
    the value. As no token need be moved to meet another, one layer suffices: the task measures what a state holds.

    `pairing="sequence"` pairs keys and values anew in each sequence; with `"fixed"` key number i has the same value in
    all sequences, and what is shown could be remembered by the weights instead. Presets `zoology4` to `zoology256` are
    the numbers of pairs on which the authors train (to 64) and test.

    Facets: `distance` from a question back to its key and `load` (how many pairs there are).

    Departs from the source: the tables do not depend on the model, and `width` need not be its width (the presets take
    128, the middle of the authors' models); `"fixed"` does hold over all sequences, as there it was meant to; the loss
    is that of a classifier and not of products with the table of values, which a model may learn.
    """

    family: ClassVar = "recall"
    variants: ClassVar = (
        "vocab=16, width=8, pairs=8",
        "vocab=12, width=4, pairs=3, passes=2",
        "vocab=64, width=8, pairs=5, pairing='fixed'",
    )
    presets: ClassVar = {f"zoology{pairs}": f"pairs={pairs}, width=128" for pairs in (4, 8, 16, 32, 64, 128, 256)}
    axes: ClassVar = {"pairs": (4, 8, 16, 32, 64, 128, 256), "width": (256, 128, 64, 32, 16), "vocab": (16, 256, 4096)}

    def __init__(
        self,
        *,
        vocab: Positive = 4096,
        width: Positive = 64,
        pairs: Positive = 4,
        passes: Positive = 1,
        pairing: Literal["sequence", "fixed"] = "sequence",
    ) -> None:
        if vocab < pairs:
            raise ValueError(f"continuous_mqar(vocab={vocab}): {pairs} pairs need as many keys; try vocab={pairs}")
        if width < 2:
            raise ValueError(f"continuous_mqar(width={width}): only two numbers have length 1; try width=2")
        for name in ("keys", "values"):
            vectors(name, vocab, width)  # raises if they are not all different
        self.vocab, self.width, self.pairs, self.passes, self.pairing = vocab, width, pairs, passes, pairing
        self.features, self.length = 2 * width, (passes + 1) * pairs
        self.chance, self.plateau = 1 / vocab, 1 / pairs
        tables = 2 if pairing == "sequence" else 1
        self.space = from_bits(tables * choice_bits(vocab, pairs) + passes * choice_bits(pairs, pairs))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        keys = distinct(count, self.pairs, self.vocab, rng)
        values = distinct(count, self.pairs, self.vocab, rng)
        if self.pairing == "fixed":
            values = fixed_values(self.vocab).to(rng.device)[keys]
        table, meanings = (vectors(name, self.vocab, self.width).to(rng.device) for name in ("keys", "values"))
        orders = [random_orders(count, self.pairs, rng) for _ in range(self.passes + 1)]
        tokens = torch.zeros(count, self.length, self.features, device=rng.device)
        for number, order in enumerate(orders):
            part = tokens[:, number * self.pairs : (number + 1) * self.pairs]
            part[:, :, : self.width] = table[keys.gather(1, order)]
            if number < self.passes:
                part[:, :, self.width :] = meanings[values.gather(1, order)]
        shown, asked = self.length - 2 * self.pairs, self.length - self.pairs
        place = orders[-2].argsort(1).gather(1, orders[-1])  # of the asked key in the last pass
        back = torch.arange(asked, self.length, device=rng.device) - shown - place
        targets = values.new_full((count, self.length), SILENT)
        targets[:, asked:] = values.gather(1, orders[-1])
        load = torch.tensor(self.pairs, dtype=torch.int32, device=rng.device).expand_as(targets)
        return Batch(tokens, targets, {"distance": F.pad(back.int(), (asked, 0)), "load": load})

    def solve(self, tokens: Float[Tensor, "batch time features"]) -> Int[Tensor, "batch time"]:
        answers = torch.full(tokens.shape[:2], SILENT)
        number_of = vector_numbers(self.vocab, self.width)
        for row, sequence in enumerate(tokens.tolist()):
            value_of: dict[tuple[float, ...], tuple[float, ...]] = {}
            for time, vector in enumerate(sequence):
                key, value = tuple(vector[: self.width]), tuple(vector[self.width :])
                if any(value):
                    value_of[key] = value
                else:
                    answers[row, time] = number_of[value_of[key]]
        return answers


@cache
def vectors(name: str, size: int, width: int) -> Float[Tensor, "size width"]:
    """The table of keys or of values: random directions, different from each other."""
    with torch.device("cpu"):
        drawn = F.normalize(torch.randn(size, width, generator=stream("continuous_mqar", name, width)), dim=1)
    if len(drawn.unique(dim=0)) < size:
        raise ValueError(
            f"continuous_mqar(width={width}): {size} directions of so few numbers are not all different; "
            f"try width={width + 1}"
        )
    return drawn


@cache
def fixed_values(size: int) -> Int[Tensor, " size"]:
    """The value of each key where pairs are the same in all sequences."""
    return torch.randperm(size, generator=stream("continuous_mqar", "pairs"), device="cpu")


@cache
def vector_numbers(size: int, width: int) -> dict[tuple[float, ...], int]:
    """The number of each vector of the table of values."""
    return {tuple(vector): number for number, vector in enumerate(vectors("values", size, width).tolist())}
