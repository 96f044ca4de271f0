"""How soon, and how reliably, does each mixer learn to recall? Steps until 99 % of the selection answers are right.

The clean recipe on its default task (64 tokens, 4 pairs, 8,192 symbols; two layers of width 64). One rule for all: the
first seed tries four learning rates, and the other seeds, ten of attention and three of every other mixer in all, run
at the rate that solved the task soonest or, if none did, had the highest selection accuracy, the lowest of equal ones.
`small` gives them 1,000 steps of 128 rows, `paper` 10,000. A run that its budget ended first is drawn at the budget,
hollow, and one that diverged where it did, whether or not it had solved the task before.
"""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._lines import name_mixers
from bestiary.report.plot import DotRow, dots
from bestiary.runs.table import curve, diverged_as_zero
from bestiary.training.recipe import Recipe, clean

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
MIXERS = {
    "Attention": "attention",
    "BaseConv": "base_conv",
    "Based": "base_conv, based(features=8)",
    "GLA": "base_conv, gla",
    "DeltaNet": "delta_net",
    "Gated DeltaNet": "gated_delta",
    "Gated DeltaNet, short start": "gated_delta(init='short')",
    "H3": "h3",
    "Hyena": "hyena",
    "KDA": "kda",
    "Long convolution": "long_conv",
    "Mamba": "mamba",
    "Mamba, D = 0": "mamba(skip=0.0)",
    "Mamba-2": "mamba2",
    "Mamba-2, D = 0": "mamba2(skip=0.0)",
    "RWKV-4": "rwkv4, rwkv4(layer=1)",
    "RWKV-7": "rwkv7, rwkv7(layer=1)",
}


def seeds(pattern: str) -> range:
    """The seeds of a mixer."""
    return range(10 if pattern == "attention" else 3)


def recipe(pattern: str, scale: str, rate: float, seed: int) -> Recipe:
    """A run of a mixer."""
    tiny = {"train": "mqar(vocab=32, length=16, pairs=2)", "steps": 40, "every": 10, "selection_rows": 64}
    settings = {"smoke": tiny, "small": {}, "paper": {"steps": 10_000}}[scale]
    return clean(pattern, rate=rate, seed=seed, **settings)


def recipes(scale: str) -> Iterator[Recipe]:
    """Every mixer at four rates, with its first seed."""
    for pattern in MIXERS.values():
        yield from first_runs(pattern, scale)


def first_runs(pattern: str, scale: str) -> list[Recipe]:
    """The runs from which the rate of a mixer is chosen."""
    return [recipe(pattern, scale, rate, 0) for rate in (RATES[1:3] if scale == "smoke" else RATES)]


def next_recipes(table: pd.DataFrame, scale: str) -> list[Recipe]:
    """The other seeds of mixers whose rates have all been tried, at the best of them."""
    more = []
    for pattern in MIXERS.values():
        tried = first_runs(pattern, scale)
        rows = table[table["key"].isin([one.key for one in tried])]
        if len(rows) == len(tried):
            more += [recipe(pattern, scale, best_rate(rows), seed) for seed in seeds(pattern)[1:]]
    return more


def best_rate(tried: pd.DataFrame) -> float:
    """The rate that solved the task soonest or, if none did, scored best on selection; the lowest of equal ones."""
    tried = diverged_as_zero(tried).sort_values("rate", ignore_index=True)
    best = tried["solved"].idxmin() if tried["solved"].notna().any() else tried["selection"].idxmax()
    return float(tried["rate"][best])


def at_best_rate(table: pd.DataFrame) -> pd.DataFrame:
    """The runs of each mixer at the rate that its first seed chose, with the number of rates that it tried.

    One that diverged has not solved the task.
    """
    kept = []
    for _, rows in name_mixers(table, MIXERS).groupby("mixer", sort=False):
        tried = rows[rows["seed"] == rows["seed"].min()]
        kept.append(rows[rows["rate"] == best_rate(tried)].assign(tried=len(tried)))
    return diverged_as_zero(pd.concat(kept))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Of each mixer at its best rate: seeds that solved the task, their steps, test accuracy, seconds of a run."""
    chosen = at_best_rate(table)
    found = curve(chosen, group=("mixer", "dim", "rate", "tried")).set_index("mixer")
    steps = chosen.groupby("mixer")["solved"]
    found = found.assign(fewest=steps.min(), median=steps.median(), most=steps.max()).reset_index()
    found["longest"] = found["mixer"].map(chosen.groupby("mixer")["seconds"].max())
    columns = ["mixer", "rate", "tried", "seeds", "solves", "fewest", "median", "most", "accuracy", "low", "high"]
    found["share"] = found["solves"] / found["seeds"]
    return found.sort_values(["share", "median"], ascending=[False, True])[[*columns, "seconds", "longest"]]


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """One row for each mixer, one mark for each seed."""
    chosen = at_best_rate(table).set_index("mixer")
    rows = []
    for mixer in summary(table)["mixer"]:
        runs = chosen.loc[[mixer]]
        unsolved = runs["solved"].isna()
        rows.append(DotRow(mixer, runs["solved"][~unsolved].tolist(), runs["steps"][unsolved].tolist()))
    yield "", dots(rows, x="Steps to 99 % on the selection stream", note="One mark a seed; hollow: not solved by then.")
