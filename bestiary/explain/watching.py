"""What a model does while it learns: a few scores of `explain` every so many steps, to see what forms first.

    right                    the share of questions that are answered rightly
    a value of the row       of wrong answers: another value of the row, so the row is read but not by its keys
    never shown              answers that did not stand before the question at all
    the token before         weight on the token before, of the head that has most: what could join a value to its key
    the pair                 weight of the question on the asked pair, of the head that has most: looking up
    named                    pairs that the best matrix gives back by their keys, the nearest value taken
    effective rank           of that matrix after the last pair, as a share of the most it could be

The last four are of mixers with weights between positions and with matrices; they are nan for others.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from bestiary.explain.cases import Cases, draw_cases, find_pairs
from bestiary.explain.errors import answers_by_kind
from bestiary.explain.memory import previous_token_table, readback_table, weight_table
from bestiary.model import Model
from bestiary.tasks._task import Batch, Task
from bestiary.training.recipe import Recipe
from bestiary.training.state import TrainingState
from bestiary.training.train import train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CASES, ROWS = 64, 128
VALUES = ("earlier value", "neighbour's value", "first value", "last value", "another value")
SCORES = ("right", "a value of the row", "never shown", "the token before", "the pair", "named", "effective rank")
PANELS = {
    "Answers": ("right", "a value of the row", "never shown"),
    "Weights": ("the token before", "the pair"),
    "Memory": ("named", "effective rank"),
}


def watch(
    recipe: Recipe,
    *,
    every: int,
    task: Task | None = None,
    model: Model | None = None,
    cases: int = CASES,
    rows: int = ROWS,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Iterator[dict[str, Any]]:
    """Train a recipe and yield SCORES with their `step` at the start, every `every` steps and at the end.

    The `task` is the first of the recipe's tests if none is given. Training is the same as without watching. A `model`
    that is given holds the trained weights at the end. Raises ValueError for a task that `explain` cannot take.
    """
    asked: Task = recipe.test[0].build() if task is None else task
    chosen, batch = draw_cases(asked, cases, seed=seed), asked.draw(rows, "test", "watch", seed)
    model = recipe.build() if model is None else model
    yield {"step": 0, **scores(model, chosen, batch)}
    waiting: list[dict[str, Any]] = []

    def look(state: TrainingState) -> None:
        progress(state.step, recipe.steps)
        if state.step % every == 0 or state.step == recipe.steps:
            waiting.append({"step": state.step, **scores(model, chosen, batch)})

    for _ in train(recipe, model, after_step=look):
        while waiting:
            yield waiting.pop(0)
    yield from waiting


@torch.no_grad()
def scores(model: Model, cases: Cases, batch: Batch) -> dict[str, float]:
    """SCORES of a model as it is; its mode of training is left as it was."""
    training = model.training
    model.eval()
    try:
        kinds = answers_by_kind(model, batch).kinds
        found = {kind: kinds.count(kind) / len(kinds) for kind in ("right", "never shown")}
        found["a value of the row"] = sum(kinds.count(kind) for kind in VALUES) / len(kinds)
        before, read = previous_token_table(model, cases), weight_table(model, cases)
        found["the token before"] = most(before, ["the token before"])
        found["the pair"] = most(read, ["key", "value"])
        memory = readback_table(model, find_pairs(batch))
        found["named"] = most(memory, ["named"])
        found["effective rank"] = most(memory, ["effective rank"]) / largest_rank(model)
        return {name: found[name] for name in SCORES}
    finally:
        model.train(training)


def most(table: pd.DataFrame, columns: Sequence[str]) -> float:
    """The largest sum of some columns over the rows of a table; nan of an empty one."""
    return math.nan if table.empty else float(table[list(columns)].sum(axis=1).max())


def largest_rank(model: Model) -> float:
    """The most that the rank of a matrix of the model can be; nan if it has none."""
    from bestiary.explain.blocks import take_apart
    from bestiary.mixers._mixer import FastWeight

    sizes = [min(mixer.shape[1:]) for mixer in take_apart(model).mixers if isinstance(mixer, FastWeight)]
    return float(max(sizes)) if sizes else math.nan


def first_steps(table: pd.DataFrame, level: float = 0.5) -> dict[str, float]:
    """The first step at which each score is past `level` of the way from its first to its largest value.

    nan for a score that rises by less than a tenth, and for those that are falling by nature.
    """
    found = {}
    for name in ("right", "a value of the row", "the token before", "the pair", "named"):
        values = table[name].to_numpy(dtype=float)
        low, high = values[0], values.max()
        risen = bool(high - low >= 0.1)
        found[name] = float(table["step"].to_numpy()[values >= low + level * (high - low)][0]) if risen else math.nan
    return found


def watch_figure(table: pd.DataFrame) -> "Figure":
    """The scores over steps in three panels; panels without numbers are left out."""
    from bestiary.report.plot import Line, panels

    x = table["step"].clip(lower=1).tolist()
    lines = {
        title: [Line(name, x, table[name].tolist()) for name in names if table[name].notna().any()]
        for title, names in PANELS.items()
    }
    return panels({title: found for title, found in lines.items() if found}, x="Step", y="Share")
