"""What the page shows, as plain data: tasks, cells (a recipe at its best rate) and runs.

A cell is a recipe at any seed and rate. Its rate is chosen on the selection stream; what is shown of it is from the
test stream, the mean over test segments, then over seeds.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from bestiary.report.command import command
from bestiary.report.runs import CHANGED, Gathered, family, label, mixers, sized
from bestiary.runs.intervals import interval
from bestiary.runs.table import WORKS, best, curve, diverged_as_zero
from bestiary.spec import read_specs

MOST = 5000  # runs in the table; of more, only those at the best rate of their cell
POINTS = 80  # of a learning curve


def contents(found: Gathered, called: Callable[[str], str] = lambda pattern: pattern) -> dict[str, Any]:
    """`tasks`, `cells`, `runs` and `origins`, as JSON has them; `called` is what patterns are called."""
    runs = per_run(found.rows)
    kept = best(runs, group=["cell"])
    names = mixers(found.recipes, called)
    tasks = list(dict.fromkeys(runs["task"]))
    cells = [cell(found, str(name), rows, runs, names) for name, rows in kept.groupby("cell", sort=False)]
    cells.sort(key=lambda c: (tasks.index(c["task"]), c["mixer"], c["dim"]))
    shown = runs if len(runs) <= MOST else runs[runs["key"].isin(set(kept["key"]))]
    place = {c["id"]: i for i, c in enumerate(cells)}
    origins: list[dict[str, Any]] = []
    lines = [run(row, found, place, origins) for row in shown.to_dict("records")]
    described = [task(name, [c for c in cells if c["task"] == name]) for name in tasks]
    for c in cells:
        c["task"] = tasks.index(c["task"])
    return plain({"tasks": described, "cells": cells, "runs": lines, "origins": origins, "total": len(runs)})


def per_run(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each run: accuracy is the mean over its test segments, `asked` their sum."""
    first = rows.drop_duplicates("key").set_index("key")
    by = rows.assign(accuracy=rows["accuracy"].fillna(0.0)).groupby("key", sort=False)
    columns = ["cell", "task", "dim", "rate", "seed", "selection", "solved", "steps", "seconds", "outcome"]
    return first[columns].assign(accuracy=by["accuracy"].mean(), asked=by["asked"].sum()).reset_index()


def cell(
    found: Gathered, name: str, kept: pd.DataFrame, runs: pd.DataFrame, names: Mapping[str, str]
) -> dict[str, Any]:
    """One cell: its accuracy at the best rate, and what the figures show of it."""
    recipe, every = found.recipes[name], runs[runs["cell"] == name]
    state, parameters = sized({**recipe, "seed": 0, "rate": 1.0})
    chosen = kept.iloc[0]
    keys = kept["key"].tolist()
    points = curve(kept, group=["cell"]).iloc[0]
    rates = diverged_as_zero(every).groupby("rate")["selection"]
    tried = [[rate, *values] for rate, values in rates.agg(["mean", "min", "max", "count"]).iterrows()]
    working = [rate for rate, mean, *_ in tried if mean >= WORKS]
    return {
        "id": name,
        "task": chosen["task"],
        "mixer": names[name],
        "family": family(recipe),
        "dim": recipe["dim"],
        "state": state,
        "parameters": parameters,
        **{column: points[column] for column in ("accuracy", "low", "high", "seeds", "answers", "solved", "seconds")},
        "selection": diverged_as_zero(kept)["selection"].mean(),
        "rate": chosen["rate"],
        "rates": tried,
        "works": [min(working), max(working)] if working else [],
        "window": chosen["window"],
        "segments": per_segment(found.rows[found.rows["key"].isin(keys)]),
        "distances": per_distance([found.distances[key] for key in keys]),
        "curves": [thin(found.curves[key]) for key in keys],
        "mean": thin(mean_curve([found.curves[key] for key in keys])),
        "recipe": recipe,
    }


def per_segment(rows: pd.DataFrame) -> list[list[float]]:
    """Accuracy of each test segment over seeds, with its interval."""
    found = curve(rows, group=["segment"]).sort_values("segment")
    return found[["accuracy", "low", "high"]].to_numpy().tolist()


def per_distance(seeds: Sequence[Mapping[int, tuple[int, int]]]) -> list[tuple[int, float, float, float, int]]:
    """Accuracy by distance over seeds, with its interval, and the answers."""
    lines = []
    for place in sorted({place for counts in seeds for place in counts}):
        counts = [counts.get(place, (0, 0)) for counts in seeds]  # a run that diverged has none, and scored nothing
        shares, asked = [right / asked if asked else 0.0 for right, asked in counts], sum(asked for _, asked in counts)
        lines.append((place, sum(shares) / len(shares), *interval(shares, asked), asked))
    return lines


def mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """The mean over seeds at each step; a run that has stopped keeps its last accuracy."""
    steps = sorted({step for found in curves for step, _ in found})
    columns = [carried(found, steps) for found in curves if found]
    return [(step, sum(shares) / len(shares)) for step, *shares in zip(steps, *columns, strict=True)]


def carried(found: Sequence[tuple[int, float]], steps: Iterable[int]) -> list[float]:
    known, last, filled = dict(found), found[0][1], []
    for step in steps:
        last = known.get(step, last)
        filled.append(last)
    return filled


def thin(found: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most so many points of a curve, its last among them."""
    every = math.ceil(len(found) / POINTS) or 1
    return [(step, round(share, 5)) for step, share in found[::-1][::every][::-1]]


def run(
    row: Mapping[str, Any], found: Gathered, place: Mapping[str, int], origins: list[dict[str, Any]]
) -> dict[str, Any]:
    """One run of the table; equal origins are kept once, without the time."""
    origin = dict(found.origins[row["key"]])
    begun = origin.pop("begun", None)
    if origin not in origins:
        origins.append(origin)
    names = ("key", "rate", "seed", "outcome", "accuracy", "selection", "solved", "steps", "seconds")
    how = {"cell": place[row["cell"]], "origin": origins.index(origin), "begun": begun}
    return {**{name: row[name] for name in names}, **how, "command": redo(found, row)}


def redo(found: Gathered, row: Mapping[str, Any]) -> str | None:
    """The command that does a run again, if there is one."""
    try:
        return command({**found.recipes[row["cell"]], "rate": float(row["rate"]), "seed": int(row["seed"])})
    except CHANGED:
        return None


def task(name: str, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A task: its test segments, the names of its mixers in the order of their colours, and what theory asks for."""
    parts = cells[0]["recipe"]["test"]
    chosen = [{"label": label(part, parts), **load(part["options"])} for part in parts]
    return {
        "label": name,
        "segments": chosen,
        "mixers": list(dict.fromkeys(c["mixer"] for c in cells)),
        "dims": sorted({c["dim"] for c in cells}),
        "bounds": bounds(parts),
        "levels": levels(cells[0]["recipe"]),
    }


def levels(recipe: Mapping[str, Any]) -> dict[str, float]:
    """Mean over test segments of the accuracies of two guessers: see `chance` and `plateau` of a task."""
    try:
        tasks = [part.build() for part in read_specs("tasks", recipe["test"])]
    except CHANGED:
        return {}
    means = {name: sum(getattr(task, name) for task in tasks) / len(tasks) for name in ("chance", "plateau")}
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def load(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options.get(name) for name in ("pairs", "length")}


def bounds(parts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What recall of the hardest slice asks of a state. For MQAR only: elsewhere the values are counted otherwise."""
    from bestiary.report.references import references

    loads = [(part["options"]["pairs"], part["options"]["vocab"]) for part in parts if part["name"] == "mqar"]
    if not loads:
        return []
    pairs, vocab = max(loads)
    sure = ("theorem", "law", "simulated")
    return [
        {"label": label, "state": state, "pairs": pairs, "vocab": vocab, "sure": how}
        for (label, state), how in zip(references(pairs, vocab).items(), sure, strict=True)
    ]


def plain(value: Any) -> Any:
    """As JSON has it: no numpy, and None for what is not a number."""
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return None if not math.isfinite(value) else float(f"{value:.7g}")
    return value
