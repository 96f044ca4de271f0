"""A protocol's parts: their recipes for any mixer, which runs in a table are theirs, and what is scored of them."""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import pandas as pd

from bestiary.runs.intervals import interval
from bestiary.runs.table import WORKS, diverged_as_zero
from bestiary.spec import Spec, parse, reading_data, spec
from bestiary.training.recipe import Recipe, clean

SEEDS = range(3)
RATES_THAT_WORK = "rates that work"
WINDOW: dict[str, int | None] = {RATES_THAT_WORK: None}


class Part(NamedTuple):
    """One recipe of the protocol, at several learning rates."""

    columns: dict[str, int | None]  # what is scored: a test segment, or None for the mean over all
    rates: tuple[float, ...]
    behind: bool  # a short convolution; otherwise the mixer is in both layers
    settings: dict[str, Any]

    def recipe(self, pattern: str, rate: float, seed: int) -> Recipe:
        """The run of a mixer or pattern."""
        return clean(place(pattern, behind=self.behind), rate=rate, seed=seed, **self.settings)


@cache
def place(pattern: str, *, behind: bool) -> str:
    """The two layers of a mixer; a pattern of several mixers is taken as it stands."""
    mixer, *others = parse("mixers", pattern)
    if others:
        return pattern
    first, second = at_layer(mixer, 0), at_layer(mixer, 1)
    return f"base_conv, {second}" if behind else str(first) if first == second else f"{first}, {second}"


def at_layer(mixer: Spec, layer: int) -> Spec:
    """The mixer as it starts in this layer of two, if its start depends on the layer and is not chosen already."""
    options = dict(mixer.options)
    if "layer" not in options or {"layer", "layers"} & {*mixer.changed}:
        return mixer
    given = {name: options[name] for name in mixer.changed}
    return spec("mixers", mixer.name, **given, layer=layer, **({"layers": 2} if "layers" in options else {}))


def first_runs(part: Part, pattern: str) -> list[Recipe]:
    """The runs from which the rate of a mixer is chosen."""
    return [part.recipe(pattern, rate, SEEDS[0]) for rate in part.rates]


def rows_of(table: pd.DataFrame, part: Part, pattern: str) -> pd.DataFrame:
    """The rows of the table that are runs of this part and mixer."""
    with reading_data():
        text = ", ".join(map(str, parse("mixers", place(pattern, behind=part.behind))))
    return table[(table["pattern"] == text) & in_part(table, part)]


def in_part(table: pd.DataFrame, part: Part) -> "pd.Series[bool]":
    """Which rows are of this part: its tests, at its width."""
    tests = [str(one) for one in parse("tasks", part.settings["test"])]
    return table["task"].isin(tests) & (table["dim"] == part.settings["dim"])


def best_rate(rows: pd.DataFrame) -> float:
    """The rate at which the first seed has the highest accuracy on the selection stream."""
    tried = diverged_as_zero(rows[rows["seed"] == SEEDS[0]])
    return float(tried.loc[tried["selection"].idxmax(), "rate"])


def score_part(rows: pd.DataFrame, part: Part) -> Iterator[dict[str, Any]]:
    """What is scored of one mixer's runs of a part."""
    if part.columns == WINDOW:
        yield working_rates(rows)
        return
    rate = best_rate(rows)
    chosen = rows[rows["rate"] == rate]
    for column, segment in part.columns.items():
        kept = chosen if segment is None else chosen[chosen["segment"] == segment]
        kept = kept.assign(accuracy=kept["accuracy"].fillna(0.0), asked=kept["asked"].fillna(0))  # what diverged
        shares = kept.groupby("seed")["accuracy"].mean()
        low, high = interval(shares.tolist(), int(kept["asked"].sum()))
        chance = sum(chance_of(text) for text in kept["task"].unique()) / kept["task"].nunique()
        about = {"chance": chance, "seeds": len(shares), "rate": rate}
        yield {"column": column, "value": shares.mean(), "low": low, "high": high, **about}


def working_rates(rows: pd.DataFrame) -> dict[str, Any]:
    """Decades from the lowest rate that works to the highest, mean over seeds; none if no rate does."""
    found = diverged_as_zero(rows).groupby("rate")["selection"].mean()
    works = found.index[found >= WORKS]
    decades = math.log10(works.max() / works.min()) if len(works) else math.nan
    seeds = int(rows.groupby("rate")["seed"].nunique().min())
    return {"column": RATES_THAT_WORK, "value": decades, "seeds": seeds, "rate": float(found.idxmax())}


@cache
@reading_data()
def chance_of(task: str) -> float:
    """The accuracy of guessing on a task."""
    return float(parse("tasks", task)[0].build().chance)
