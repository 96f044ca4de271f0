"""The data of the page: tasks, cells and runs.

A cell is a recipe at any seed and learning rate. Its rate is chosen on the selection stream; its numbers are from the
test stream: the mean over test segments, then over seeds.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from bestiary.report.command import command_around_seed
from bestiary.report.doctor import findings
from bestiary.report.levels import task_levels
from bestiary.report.runs import UNBUILDABLE, RunData, family, mixer_names, model_size, segment_label
from bestiary.runs.intervals import interval
from bestiary.runs.table import WORKS, best, curve, diverged_as_zero
from bestiary.spec import read_specs, reading_data
from bestiary.training.recipe import Recipe

MOST = 5000  # runs in the table; of more, only those at the best rate of their cell
DIAGNOSED = 500  # runs whose findings are shown
POINTS = 80  # of a learning curve
CURVES = 1000  # of single seeds; of more, those of each cell are drawn that stand for all


def report_data(data: RunData, pattern_name: Callable[[str], str] = lambda pattern: pattern) -> dict[str, Any]:
    """`tasks`, `cells`, `runs` and `origins` as JSON values; `pattern_name` gives the name to show for a pattern."""
    runs = run_table(data.rows)
    at_best = best(runs, group=["cell"])
    mixers = mixer_names(data.recipes, pattern_name)
    tasks = list(dict.fromkeys(runs["task"]))
    most = CURVES if len(at_best) <= CURVES else max(10, CURVES // at_best["cell"].nunique())  # of a cell
    by_cell = at_best.groupby("cell", sort=False)
    cells = [cell_data(data, str(name), rows, runs, mixers, most) for name, rows in by_cell]
    cells.sort(key=lambda c: (tasks.index(c["task"]), c["mixer"], c["dim"]))
    shown = runs if len(runs) <= MOST else runs[runs["key"].isin(set(at_best["key"]))]
    index = {c["id"]: i for i, c in enumerate(cells)}
    origins: dict[str, int] = {}
    commands: dict[tuple[str, float], tuple[str, str] | None] = {}
    table = [run_data(row, data, index, origins, commands) for row in shown.to_dict("records")]
    task_list = [task_data(name, [c for c in cells if c["task"] == name]) for name in tasks]
    for c in cells:
        c["task"] = tasks.index(c["task"])
    made = [json.loads(text) for text in origins]
    causes = diagnoses(data, at_best.to_dict("records"))
    return to_json(
        {"tasks": task_list, "cells": cells, "runs": table, "origins": made, "causes": causes, "total": len(runs)}
    )


def run_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each run: accuracy is the mean over its test segments, `asked` their sum."""
    first = rows.drop_duplicates("key").set_index("key")
    by = rows.assign(accuracy=rows["accuracy"].fillna(0.0)).groupby("key", sort=False)
    columns = ["cell", "task", "dim", "rate", "seed", "selection", "solved", "steps", "seconds", "outcome"]
    return first[columns].assign(accuracy=by["accuracy"].mean(), asked=by["asked"].sum()).reset_index()


def cell_data(
    data: RunData, name: str, at_best: pd.DataFrame, runs: pd.DataFrame, names: Mapping[str, str], most: int
) -> dict[str, Any]:
    """One cell: its accuracy at the best rate, and what the figures show of it, of at most `most` seeds one by one."""
    recipe, all_rates = data.recipes[name], runs[runs["cell"] == name]
    state, parameters = model_size({**recipe, "seed": 0, "rate": 1.0})
    first = at_best.iloc[0]
    keys = at_best["key"].tolist()
    points = curve(at_best, group=["cell"]).iloc[0]
    rates = diverged_as_zero(all_rates).groupby("rate")["selection"]
    tried = [[rate, *values] for rate, values in rates.agg(["mean", "min", "max", "count"]).iterrows()]
    working = [rate for rate, mean, *_ in tried if mean >= WORKS]
    return {
        "id": name,
        "task": first["task"],
        "mixer": names[name],
        "family": family(recipe),
        "dim": recipe["dim"],
        "state": state,
        "parameters": parameters,
        **{column: points[column] for column in ("accuracy", "low", "high", "seeds", "answers", "solved", "seconds")},
        "selection": diverged_as_zero(at_best)["selection"].mean(),
        "rate": first["rate"],
        "rates": tried,
        "works": [min(working), max(working)] if working else [],
        "window": first["window"],
        "segments": segment_accuracies(data.rows[data.rows["key"].isin(keys)]),
        "distances": distance_accuracies([data.distances[key] for key in keys]),
        "curves": [thin(data.curves[key]) for key in representatives(at_best, most)],
        "mean": thin(mean_curve([data.curves[key] for key in keys])),
        "recipe": recipe,
    }


def segment_accuracies(rows: pd.DataFrame) -> list[list[float]]:
    """Accuracy of each test segment over seeds, with its 95 % interval."""
    found = curve(rows, group=["segment"]).sort_values("segment")
    return found[["accuracy", "low", "high"]].to_numpy().tolist()


def distance_accuracies(seeds: Sequence[Mapping[int, tuple[int, int]]]) -> list[tuple[int, float, float, float, int]]:
    """Bins of distance with their accuracy over seeds, its 95 % interval, and the number of answers."""
    lines = []
    for place in sorted({place for counts in seeds for place in counts}):
        counts = [counts.get(place, (0, 0)) for counts in seeds]  # a run that diverged has none, and scored nothing
        shares, asked = [right / asked if asked else 0.0 for right, asked in counts], sum(asked for _, asked in counts)
        lines.append((place, sum(shares) / len(shares), *interval(shares, asked), asked))
    return lines


def mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """The mean over seeds at each step; a run that stopped early keeps its last accuracy, one without any has 0."""
    steps = sorted({step for found in curves for step, _ in found})
    columns = [carry_forward(found, steps) if found else [0.0] * len(steps) for found in curves]
    return [(step, sum(shares) / len(shares)) for step, *shares in zip(steps, *columns, strict=True)]


def carry_forward(curve: Sequence[tuple[int, float]], steps: Iterable[int]) -> list[float]:
    """The value of a curve at each step, that of the last step before where it has none."""
    known, last, filled = dict(curve), curve[0][1], []
    for step in steps:
        last = known.get(step, last)
        filled.append(last)
    return filled


def thin(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most POINTS points of a curve, its last among them."""
    stride = math.ceil(len(curve) / POINTS) or 1
    return [(step, round(share, 5)) for step, share in curve[::-1][::stride][::-1]]


def representatives(rows: pd.DataFrame, most: int) -> list[str]:
    """The keys of all runs; of more than `most`, evenly from the lowest to the highest selection accuracy."""
    if len(rows) <= most:
        return rows["key"].tolist()
    ordered = diverged_as_zero(rows).sort_values("selection", kind="stable")["key"].tolist()
    return [ordered[round(i * (len(ordered) - 1) / (most - 1))] for i in range(most)]


def run_data(
    row: Mapping[str, Any],
    data: RunData,
    index: Mapping[str, int],
    origins: dict[str, int],
    commands: dict[tuple[str, float], tuple[str, str] | None],
) -> dict[str, Any]:
    """One run of the table; equal origins are stored once, without the time."""
    origin = dict(data.origins[row["key"]])
    started = origin.pop("begun", None)
    place = origins.setdefault(json.dumps(origin), len(origins))
    kind = row["cell"], row["rate"]
    if kind not in commands:
        commands[kind] = redo_command(data, row)
    around = commands[kind]
    names = ("key", "rate", "seed", "outcome", "accuracy", "selection", "solved", "steps", "seconds")
    details = {"cell": index[row["cell"]], "origin": place, "begun": started}
    command = None if around is None else str(row["seed"]).join(around)
    return {**{name: row[name] for name in names}, **details, "command": command}


def diagnoses(data: RunData, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[list[str]]]:
    """By key, what may be wrong with runs at the best rate of their cell: name, sentence, evidence and command."""
    found: dict[str, list[list[str]]] = {}
    for row in rows:
        if len(found) == DIAGNOSED:
            break
        try:
            recipe = Recipe.read({**data.recipes[row["cell"]], "rate": float(row["rate"]), "seed": int(row["seed"])})
            causes = findings(recipe, data.health[row["key"]])
        except UNBUILDABLE:
            continue
        if causes:
            found[row["key"]] = [list(finding) for finding in causes]
    return found


def redo_command(data: RunData, row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The command that repeats a run, before and after its seed; None if there is none."""
    try:
        recipe = {**data.recipes[row["cell"]], "rate": float(row["rate"]), "seed": int(row["seed"])}
        return command_around_seed(recipe)
    except UNBUILDABLE:
        return None


def task_data(name: str, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A task: its test segments, its mixers in the order of their colours, theoretical bounds and guessing levels."""
    tests, built = cells[0]["recipe"]["test"], build_tasks(cells[0]["recipe"])
    segments = [{"label": segment_label(part, tests), **pairs_and_length(part["options"])} for part in tests]
    for segment, task in zip(segments, built or len(segments) * [None], strict=True):
        segment["levels"] = {} if task is None else task_levels([task])
    return {
        "label": name,
        "segments": segments,
        "mixers": list(dict.fromkeys(c["mixer"] for c in cells)),
        "dims": sorted({c["dim"] for c in cells}),
        "bounds": state_bounds(tests),
        "levels": task_levels(built),
    }


@reading_data()
def build_tasks(recipe: Mapping[str, Any]) -> list[Any]:
    """The test tasks, none if one of them cannot be built now."""
    try:
        return [part.build() for part in read_specs("tasks", recipe["test"])]
    except UNBUILDABLE:
        return []


def pairs_and_length(options: Mapping[str, Any]) -> dict[str, Any]:
    """The load and the length of a task, None for what it has not."""
    return {name: options.get(name) for name in ("pairs", "length")}


def state_bounds(parts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The states that theory relates to the hardest segment; MQAR only, as other tasks count values differently."""
    from bestiary.report.references import references

    loads = [(part["options"]["pairs"], part["options"]["vocab"]) for part in parts if part["name"] == "mqar"]
    if not loads:
        return []
    pairs, vocab = max(loads)
    kinds = ("theorem", "law", "simulated")
    return [
        {"label": label, "state": state, "pairs": pairs, "vocab": vocab, "sure": how}
        for (label, state), how in zip(references(pairs, vocab).items(), kinds, strict=True)
    ]


def to_json(value: Any) -> Any:
    """The value with plain Python numbers, and None for NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(name): to_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return None if not math.isfinite(value) else float(f"{value:.7g}")
    return value
