"""A protocol's parts: their recipes for any mixer, which runs in a table are theirs, and what is scored of them."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import cache
from itertools import product
from statistics import fmean as mean
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from bestiary.report.plot import matrix
from bestiary.runs.intervals import interval
from bestiary.runs.table import WORKS, diverged_as_zero
from bestiary.spec import Spec, parse, reading_data, spec
from bestiary.training.recipe import Recipe, clean

SEEDS = range(3)
RATES_THAT_WORK = "rates that work"
MODEL = ("dim", "depth", "optimizer")  # by which parts of equal tests differ
Model = tuple[int, int, str]
WINDOW: dict[str, int | None] = {RATES_THAT_WORK: None}


class Part(NamedTuple):
    """One recipe of the protocol, at several learning rates."""

    columns: dict[str, int | None]  # what is scored: a test segment, or None for the mean over all
    rates: tuple[float, ...]
    behind: bool  # a short convolution; otherwise the mixer is in both layers
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """Its first column."""
        return next(iter(self.columns))

    @property
    def model(self) -> Model:
        """Its width, depth and optimizer."""
        return self.settings["dim"], self.settings.get("depth", 2), self.settings.get("optimizer", "adamw")

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


def tasks_of(part: Part) -> tuple[str, ...]:
    """The tests of a part, as tables of results write them."""
    return tuple(map(str, parse("tasks", part.settings["test"])))


def first_runs(part: Part, pattern: str) -> list[Recipe]:
    """The runs from which the rate of a mixer is chosen."""
    return [part.recipe(pattern, rate, SEEDS[0]) for rate in part.rates]


@reading_data()
def keys_of_runs(done: Set[str], parts: Iterable[Part], mixers: Iterable[str]) -> set[str]:
    """Those of these keys that are runs of a part and a mixer, where the part's rates have all been tried."""
    keys: set[str] = set()
    for part, mixer in product(parts, mixers):
        first = {recipe.key for recipe in first_runs(part, mixer)}
        if first <= done:
            keys |= first | {part.recipe(mixer, *one).key for one in product(part.rates, SEEDS[1:])}
    return keys & done


def next_runs(table: pd.DataFrame, parts: Sequence[Part], mixers: Mapping[str, str]) -> list[Recipe]:
    """The other seeds, where every rate was tried: at the best, or at all where the window of rates is asked."""
    more, rows_of = [], rows_of_parts(table, parts)
    for pattern in mixers.values():
        for part in parts:
            rows = rows_of(part, pattern)
            if {*part.rates} <= {row.rate for row in rows}:
                rates = part.rates if part.columns == WINDOW else (best_rate(rows),)
                more += [part.recipe(pattern, rate, seed) for rate in rates for seed in SEEDS[1:]]
    return more


class Row(NamedTuple):
    """A run and test segment."""

    task: str
    rate: float
    seed: int
    segment: int
    accuracy: float  # 0 of a run that diverged
    asked: int
    selection: float  # 0 of a run that diverged, however good it was before


def rows_of_parts(table: pd.DataFrame, parts: Iterable[Part]) -> Callable[[Part, str], list[Row]]:
    """A function that gives the rows of the table that are runs of a part and a mixer: of its tests and its model."""
    tests_of = {part.name: (tasks_of(part), part.model) for part in parts}
    filled = diverged_as_zero(table).assign(accuracy=table["accuracy"].fillna(0.0), asked=table["asked"].fillna(0))
    filled["optimizer"] = filled["optimizer"].fillna("adamw") if "optimizer" in filled else "adamw"
    filled = filled.sort_values(["key", "segment"], kind="stable")
    models, rows = (zip(*(filled[name].tolist() for name in names), strict=True) for names in (MODEL, Row._fields))
    runs: dict[tuple[str, str, Model], list[Row]] = {}
    for key, pattern, model, values in zip(filled["key"], filled["pattern"], models, rows, strict=True):
        task, rate, seed, segment, accuracy, asked, selection = values
        row = Row(task, float(rate), int(seed), int(segment), float(accuracy), int(asked), float(selection))
        runs.setdefault((key, pattern, model), []).append(row)
    groups: dict[tuple[str, str], list[Row]] = {}
    for (_, pattern, model), rows in runs.items():
        if name := find_part(tuple(row.task for row in rows), model, tests_of):
            groups.setdefault((pattern, name), []).extend(rows)

    @reading_data()
    def rows_of(part: Part, pattern: str) -> list[Row]:
        """The rows of a part and a mixer."""
        text = ", ".join(map(str, parse("mixers", place(pattern, behind=part.behind))))
        return groups.get((text, part.name), [])

    return rows_of


def find_part(tests: tuple[str, ...], model: Model, tests_of: Mapping[str, tuple[tuple[str, ...], Model]]) -> str:
    """The part whose tests a run of such a model has, or the first of them; empty if there is none.

    Two parts may share a test, but no part has all tests of another.
    """
    alike = {name: known for name, (known, its) in tests_of.items() if its == model and known[: len(tests)] == tests}
    return min(alike, key=lambda name: len(alike[name]), default="")


def best_rate(rows: Sequence[Row]) -> float:
    """The rate at which the first seed has the highest accuracy on the selection stream, the lowest of equal ones."""
    return min((row for row in rows if row.seed == SEEDS[0]), key=lambda row: (-row.selection, row.rate)).rate


def score_parts(table: pd.DataFrame, parts: Sequence[Part], mixers: Mapping[str, str]) -> pd.DataFrame:
    """One row for each mixer and column: its value with interval, chance level, number of seeds and the rate."""
    found, rows_of = [], rows_of_parts(table, parts)
    for name, pattern in mixers.items():
        for part in parts:
            rows = rows_of(part, pattern)
            if rows:
                found += [{"mixer": name, **score} for score in score_part(rows, part)]
    return pd.DataFrame(found, columns=["mixer", "column", "value", "low", "high", "chance", "seeds", "rate"])


def score_matrix(
    scores: pd.DataFrame, mixers: Iterable[str], columns: Iterable[str], *, what: str = "Accuracy"
) -> Figure:
    """The values with their intervals, a row for each mixer and a column for each column, in these orders."""
    ends = [f"{low:.2f} to {high:.2f}" for low, high in zip(scores["low"], scores["high"], strict=True)]
    both = scores.assign(interval=ends)
    values, intervals = (both.pivot(index="mixer", columns="column", values=name) for name in ("value", "interval"))
    order = [name for name in mixers if name in values.index], [name for name in columns if name in values]
    note = f"{what}, mean over seeds at the best rate, and its 95 % interval."
    return matrix(values.loc[order], intervals=intervals.loc[order], note=note)


def wide(scores: pd.DataFrame, *about: str) -> pd.DataFrame:
    """A row for each mixer: what is said `about` it, and its value with both ends of the interval in every column."""
    rows: dict[str, dict[str, Any]] = {}
    for score in scores.to_dict("records"):
        row = rows.setdefault(score["mixer"], {name: score[name] for name in ("mixer", *about)})
        row[score["column"]] = score["value"]
        row |= {f"{score['column']} {end}": score[end] for end in ("low", "high")}
    return pd.DataFrame(list(rows.values()))


def score_part(rows: Sequence[Row], part: Part) -> Iterator[dict[str, Any]]:
    """What is scored of one mixer's runs of a part."""
    if part.columns == WINDOW:
        yield working_rates(rows)
        return
    rate = best_rate(rows)
    for column, segment in part.columns.items():
        kept = [row for row in rows if row.rate == rate and segment in (None, row.segment)]
        if not kept:
            continue  # of a test that was not scored
        shares = [mean(row.accuracy for row in kept if row.seed == seed) for seed in sorted({row.seed for row in kept})]
        low, high = interval(shares, sum(row.asked for row in kept))
        chance = mean(chance_of(task) for task in dict.fromkeys(row.task for row in kept))
        about = {"chance": chance, "seeds": len(shares), "rate": rate}
        yield {"column": column, "value": mean(shares), "low": low, "high": high, **about}


def working_rates(rows: Sequence[Row]) -> dict[str, Any]:
    """Decades from the lowest rate that works to the highest, by the mean over seeds; NaN if no rate does."""
    found = {rate: mean(row.selection for row in rows if row.rate == rate) for rate in {row.rate for row in rows}}
    works = [rate for rate, share in found.items() if share >= WORKS]
    decades = math.log10(max(works) / min(works)) if works else math.nan
    seeds = min(len({row.seed for row in rows if row.rate == rate}) for rate in found)
    best = min(found, key=lambda rate: (-found[rate], rate))
    return {"column": RATES_THAT_WORK, "value": decades, "seeds": seeds, "rate": best}


@cache
@reading_data()
def chance_of(task: str) -> float:
    """The accuracy of guessing on a task."""
    return float(parse("tasks", task)[0].build().chance)
