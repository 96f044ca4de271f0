"""Multi-query recall with a quarter of the sequence as pairs, after Figure 8 of Mamba-2 (Dao & Gu, 2024).

Four sets of L/32, L/16, L/8 and L/4 pairs are visited in turn; tested at L/4. The figure is accuracy against width,
with the size of the state as another line of the same mixer.
Departs from the source, whose code is not public: a cosine over all steps instead of a linear decay by the epoch,
fresh rows instead of 2^18 for each set, questions as in `mqar` (at L/4 every slot is taken, so their law does not
matter there). `small` asks it at a length of 64 with a vocabulary of 256.
"""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._lines import at_best_rate, lines_by, name_mixers, seeds_note
from bestiary.report.plot import panels
from bestiary.training.recipe import Recipe, clean

MIXERS = {
    "Attention": "attention",
    "Based": "base_conv, based(features=8)",
    "Mamba, N = 16": "mamba",
    "Mamba-2, N = 16": "mamba2(state=16)",
    "Mamba-2, N = 64": "mamba2(state=64)",
    "Mamba-2, N = 256": "mamba2(state=256)",
}
GROUP = ("length", "mixer", "dim")


def recipes(scale: str) -> Iterator[Recipe]:
    """Every mixer at several widths."""
    match scale:
        case "smoke":
            yield from grid((32,), (16,), (3e-3,), range(2), vocab=64, steps=20, batch=16, every=10)
        case "small":
            yield from grid((64,), (32, 64, 128), (3e-3,), range(2), vocab=256, steps=1200, batch=64, every=100)
        case "paper":
            for length in (256, 512, 1024):
                rates, batch = (10**-3.5, 10**-3, 10**-2.5, 10**-2), 2**18 // length
                yield from grid(
                    (length,), (32, 64, 128, 256), rates, range(3), vocab=8192, steps=32 * length, batch=batch
                )


def grid(
    lengths: tuple[int, ...],
    dims: tuple[int, ...],
    rates: tuple[float, ...],
    seeds: range,
    *,
    vocab: int,
    steps: int,
    batch: int,
    every: int = 200,
) -> Iterator[Recipe]:
    """Every length, width, mixer, rate and seed, trained on four loads in turn; the widest first."""
    for length in lengths:
        stages = [f"mqar(vocab={vocab}, length={length}, pairs={length // part})" for part in (32, 16, 8, 4)]
        for dim in reversed(dims):
            for pattern in MIXERS.values():
                for rate in rates:
                    for seed in seeds:
                        settings = {
                            "train": ", ".join(stages),
                            "test": stages[-1],
                            "dim": dim,
                            "rate": rate,
                            "seed": seed,
                        }
                        yield clean(pattern, steps=steps, batch=batch, every=every, **settings)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy at a quarter of the sequence as pairs, of each mixer at its best rate."""
    return at_best_rate(name_mixers(table, MIXERS), GROUP)


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Accuracy against width, one panel for each length."""
    found = summary(table)
    contents, levels = {}, {}
    for length, rows in found.groupby("length"):
        title = f"length {length}, {length // 4} pairs"
        contents[title], levels[title] = lines_by(rows, x="dim", by="mixer"), {"1 / pairs": 4 / length}
    yield "", panels(contents, x="Model width", levels=levels, note=seeds_note(found))
