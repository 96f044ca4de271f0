"""How soon, and how reliably, does each mixer learn to recall? Steps until 99 % of the selection answers are right.

The clean recipe on its default task (64 tokens, 4 pairs, 8,192 symbols; two layers of width 64), ten seeds of
attention and three of every other mixer. `small` gives them 1,000 steps at one learning rate, `paper` 10,000 steps
at each of four rates, of which the best on the selection stream counts. A run that its budget ended first is drawn
at the budget, hollow.
"""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from bestiary.report.plot import DotRow, dots
from bestiary.runs.table import best, curve
from bestiary.training.recipe import Recipe, clean

GROUP = ("pattern", "dim", "rate")
PATTERNS = (
    "attention",
    "base_conv",
    "base_conv, based(features=8)",
    "gated_delta",
    "h3",
    "hyena",
    "long_conv",
    "mamba",
    "rwkv4, rwkv4(layer=1)",
)


def recipes(scale: str) -> Iterator[Recipe]:
    """Every mixer with its seeds, at one rate or at four."""
    tiny = {"train": "mqar(vocab=32, length=16, pairs=2)", "steps": 40, "every": 10, "selection_rows": 64}
    for pattern in PATTERNS:
        seeds, rate = (10, 3e-3) if pattern == "attention" else (3, 1e-2)
        match scale:
            case "smoke":
                yield from (clean(pattern, rate=rate, seed=seed, **tiny) for seed in range(2))
            case "small":
                yield from (clean(pattern, rate=rate, seed=seed) for seed in range(seeds))
            case "paper":
                for tried in (1e-3, 3e-3, 1e-2, 3e-2):
                    yield from (clean(pattern, rate=tried, seed=seed, steps=10_000) for seed in range(seeds))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Of each mixer at its best rate: seeds that solved the task, their steps, test accuracy, seconds of a run."""
    chosen = best(table, group=GROUP[:2])
    found = curve(chosen, group=(*GROUP, "tried")).set_index("pattern")
    steps = chosen.groupby("pattern")["solved"]
    found = found.assign(fewest=steps.min(), median=steps.median(), most=steps.max()).reset_index()
    found["longest"] = found["pattern"].map(chosen.groupby("pattern")["seconds"].max())
    columns = ["pattern", "rate", "tried", "seeds", "solves", "fewest", "median", "most", "accuracy", "low", "high"]
    return found.sort_values(["solves", "median"], ascending=[False, True])[[*columns, "seconds", "longest"]]


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """One row for each mixer, one mark for each seed."""
    chosen = best(table, group=GROUP[:2]).set_index("pattern")
    rows = []
    for pattern in summary(table)["pattern"]:
        runs = chosen.loc[[pattern]]
        unsolved = runs["solved"].isna()
        rows.append(DotRow(pattern, runs["solved"][~unsolved].tolist(), runs["steps"][unsolved].tolist()))
    yield "", dots(rows, x="Steps to 99 % on the selection stream", note="One mark a seed; hollow: not solved by then.")
