"""Does linear attention need a short convolution in front of it to recall? An experiment of one's own.

The same mixer, alone and behind a short convolution, at several widths, with three seeds each.
"""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from bestiary.report.plot import Line, panels
from bestiary.runs.table import best, curve
from bestiary.training.recipe import Recipe, clean

NAMES = {"linear_attention": "alone", "short_conv, linear_attention": "behind a convolution"}


def recipes(scale: str) -> Iterator[Recipe]:
    """Every mixer at every width, with every seed."""
    widths, seeds, steps = {"smoke": ((8, 16), 2, 20), "small": ((16, 32, 64), 3, 400)}.get(
        scale, ((16, 32, 64, 128), 5, 4000)
    )
    for pattern in NAMES:
        for dim in widths:
            for seed in range(seeds):
                task = "mqar(vocab=64, length=32, pairs=4, filler='zero')"
                yield clean(pattern, train=task, dim=dim, depth=2, rate=1e-2, steps=steps, seed=seed)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy over seeds with its interval, at the rate that is best on the selection stream."""
    chosen = best(table, group=("pattern", "dim"))
    found = curve(chosen, group=("pattern", "dim"))
    found["mixer"] = found["pattern"].map(NAMES)
    return found[["mixer", "dim", "accuracy", "low", "high", "seeds", "answers"]]


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Accuracy against width."""
    lines = [
        Line(mixer, *(rows[column].tolist() for column in ("dim", "accuracy", "low", "high")))
        for mixer, rows in summary(table).groupby("mixer")
    ]
    title = "4 pairs in 32 tokens"
    yield "", panels({title: lines}, x="Model width", levels={title: {"1 / pairs": 0.25}})
