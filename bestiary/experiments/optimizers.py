"""Does a mixer's place depend on the optimizer? Recall of five mixers under AdamW, Muon and Adafactor.

The optimizer is that of the hidden linear maps; AdamW has all else (`Recipe.optimizer`). Rates are chosen alike: as
many for each optimizer, the first seed tries them all, and the others take the best. The task is the mixture of
`frontier` at small, where the load of the hardest slice goes beyond what was trained.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments import frontier
from bestiary.experiments._protocol import Part, first_runs, next_runs, score_matrix, score_parts
from bestiary.training.recipe import Recipe

MIXERS = {
    "Attention": "base_conv, attention(rotary=False)",
    "Gated DeltaNet, short start": "base_conv, gated_delta(heads=1, init='short')",
    "GLA": "base_conv, gla(heads=1)",
    "Based": "base_conv, based(features=8)",
    "Mamba-2, D = 0": "base_conv, mamba2(state=16, skip=0.0)",
}
RATES = {"adamw": (2e-3, 5e-3, 1.25e-2), "muon": (2e-3, 5e-3, 1.25e-2), "adafactor": (1e-2, 3e-2, 1e-1)}
SIZES: dict[str, dict[str, Any]] = {
    "smoke": {"dim": 16, "steps": 4, "every": 2, "warmup": 0, "batch": 8, "selection_rows": 8, "test_rows": 8},
    "small": {"dim": 32, "steps": 1500, "every": 100, "batch": 64, "selection_rows": 128, "test_rows": 512},
    "paper": {"dim": 128, "steps": 20_000, "every": 200, "batch": 256, "selection_rows": 512, "test_rows": 3000},
}


def parts(scale: str) -> tuple[Part, ...]:
    """The mixture under each optimizer."""
    train, test = (frontier.tasks(sizes, vocab=256) for sizes in (frontier.TRAIN, frontier.TEST))
    settings = {"train": train, "select": train, "test": test, **SIZES[scale]}
    return tuple(
        Part({name: None}, rates[:1] if scale == "smoke" else rates, False, settings | {"optimizer": name})
        for name, rates in RATES.items()
    )


def recipes(scale: str) -> Iterator[Recipe]:
    """The first seed at every rate."""
    for part in parts(scale):
        for pattern in MIXERS.values():
            yield from first_runs(part, pattern)


def next_recipes(table: pd.DataFrame, scale: str) -> list[Recipe]:
    """The other seeds, at the rate that was best for the first."""
    return next_runs(table, parts(scale), MIXERS)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with its interval of every mixer under every optimizer, and the mixer's place among them."""
    scales = {sizes["dim"]: scale for scale, sizes in SIZES.items()}
    scores = pd.concat([score_parts(table, parts(scales[dim]), MIXERS) for dim in table["dim"].unique()])
    scores = scores.rename(columns={"column": "optimizer", "value": "accuracy"})
    return scores.assign(place=scores.groupby("optimizer")["accuracy"].rank(ascending=False, method="min").astype(int))


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Accuracy of every mixer under every optimizer."""
    found = summary(table).rename(columns={"optimizer": "column", "accuracy": "value"})
    yield "", score_matrix(found, MIXERS, RATES)
