"""Does an induction head learnt on short sequences work on long ones? After the figure of Mamba (section 4.1.2).

Models see induction heads at one length and are tested at others, up to 2^20 tokens in `paper`, where the training
length is 256. They are steered by sequences of the training length. Mamba was published as exact up to 2^20, and
every other model as failing beyond twice the length it was trained on.
Departs from the source: batches of 128 rather than 8 and fewer steps, one learning rate in `small`, our cosine
schedule instead of a constant rate; attention is tested up to 2^14 only.
"""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._lines import at_best_rate, lines_by, name_mixers, seeds_note
from bestiary.report.plot import panels
from bestiary.training.recipe import Recipe, clean

MIXERS = {
    "Attention, rotary": "attention",
    "Attention, NoPE": "attention(rotary=False)",
    "Mamba": "mamba",
    "Mamba-2": "mamba2",
    "Gated DeltaNet": "gated_delta",
    "RWKV-7": "rwkv7, rwkv7(layer=1)",
}
GROUP = ("mixer", "length")


def recipes(scale: str) -> Iterator[Recipe]:
    """Every mixer, trained at one length and tested at many."""
    match scale:
        case "smoke":
            yield from grid(16, (16, 64), (3e-3,), range(2), steps=20, every=10, test_rows=16, selection_rows=16)
        case "small":
            lengths = tuple(2**k for k in range(4, 12))
            yield from grid(64, lengths, (3e-3,), range(3), steps=1500, every=50, test_rows=200, selection_rows=256)
        case "paper":
            lengths = tuple(2**k for k in range(6, 21))
            yield from grid(256, lengths, (2e-4, 1e-3), range(3), steps=25_600, every=200, test_rows=100)


def grid(
    length: int, lengths: tuple[int, ...], rates: tuple[float, ...], seeds: range, **changes: int
) -> Iterator[Recipe]:
    """Every mixer, rate and seed; attention is tested up to 2^14 only."""
    task = f"induction_heads(length={length})"
    for name, pattern in MIXERS.items():
        reach = [n for n in lengths if n <= 2**14 or not name.startswith("Attention")]
        tests = ", ".join(f"induction_heads(length={n})" for n in reach)
        for rate in rates:
            for seed in seeds:
                settings = {"train": task, "select": task, "test": tests, "rate": rate, "seed": seed, **changes}
                yield clean(pattern, **settings)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy at each length of each model at its best rate, chosen at the training length."""
    return at_best_rate(name_mixers(table, MIXERS), GROUP)


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Accuracy against the length of the tested sequence."""
    found = summary(table)
    contents = {"Induction heads": lines_by(found, x="length", by="mixer")}
    yield (
        "",
        panels(
            contents, x="Tokens", y="Accuracy", levels={"Induction heads": {"chance": 1 / 15}}, note=seeds_note(found)
        ),
    )
