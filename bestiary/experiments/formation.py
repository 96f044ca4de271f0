"""What forms first while a model learns to recall? The scores of `bestiary.explain.watching` over training, and seeds.

Attention, DeltaNet and gated DeltaNet with their own short convolutions, and Based behind one, each in two layers, are
watched on MQAR, after the curves of induction over training of Olsson et al. (2022, "In-context learning and induction
heads"). Half-way steps are when a score has risen half of its way from the first to its highest value.
"""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._opened import open_named, size_of
from bestiary.explain.watching import PANELS, SCORES, first_steps, watch
from bestiary.report.plot import Line, panels
from bestiary.training.recipe import Recipe, clean
from bestiary.training.train import Diverged

MIXERS = {
    "attention": "attention(heads=2)",
    "DeltaNet": "delta_net(heads=2)",
    "gated DeltaNet, short start": "gated_delta(heads=2, init='short')",
    "conv, Based": "serial('short_conv, based(heads=2, features=8)')",
}
TASK = "mqar(vocab=64, length=32, pairs=4)"
SIZES = {
    "smoke": {"steps": 30, "dim": 16, "every": 10, "seeds": 2},
    "small": {"steps": 1200, "dim": 64, "every": 25, "seeds": 3},
}
RATE, RATES = 4e-3, {"attention": 2e-3}  # at which all seeds recall; attention stays on the plateau at 4e-3


def recipes(scale: str) -> Iterator[Recipe]:
    """Two layers of each mixer, at each seed."""
    size = size_of(SIZES, scale)
    for name, pattern in MIXERS.items():
        for seed in range(size["seeds"]):
            settings = {"steps": size["steps"], "dim": size["dim"], "rate": RATES.get(name, RATE), "seed": seed}
            yield clean(pattern, train=TASK, depth=2, every=size["steps"] // 2, batch=64, **settings)


def measure(scale: str) -> Iterator[dict[str, Any]]:
    """A row for each step at which each model was looked at."""
    look = watch_smoke if scale == "smoke" else watch_model
    yield from open_named(MIXERS, list(recipes(scale)), look, kind="formation", scale=scale)


def watch_model(recipe: Recipe, size: str = "small") -> list[dict[str, Any]]:
    """The scores of a model while it is trained; at the end of one that diverged nothing is right."""
    rows: list[dict[str, Any]] = []
    model = recipe.build()
    try:
        for row in watch(recipe, every=SIZES[size]["every"], model=model):
            rows.append(row)
    except (Diverged, RuntimeError) as fault:  # RuntimeError where a memory that is not finite is looked at before
        if isinstance(fault, RuntimeError) and all(bool(weight.isfinite().all()) for weight in model.parameters()):
            raise
        rows = [row for row in rows if row["step"] < recipe.steps]
        rows.append({"step": recipe.steps, **dict.fromkeys(SCORES, math.nan), "right": 0.0})
    return rows


def watch_smoke(recipe: Recipe) -> list[dict[str, Any]]:
    """`watch_model`, looking at few steps."""
    return watch_model(recipe, "smoke")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """For each mixer and seed the half-way step of each score, and which came first."""
    rows = []
    for (name, seed), part in table.groupby(["name", "seed"], sort=False):
        steps = first_steps(part.sort_values("step"))
        reached = sorted({step for step in steps.values() if step == step})
        together = [[score for score, step in steps.items() if step == first] for first in reached]
        order = " < ".join(" = ".join(scores) for scores in together)
        last = part.sort_values("step").iloc[-1]
        rows.append({"mixer": name, "seed": seed, "right at the end": last["right"], **steps, "order": order})
    return pd.DataFrame(rows)


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """The scores over steps: for each mixer a panel, mean and range over seeds."""
    for title, names in PANELS.items():
        contents = {}
        for name, part in table.groupby("name", sort=False):
            lines = []
            for score in names:
                steps = part.assign(step=part["step"].clip(lower=1))
                values = steps.pivot(index="step", columns="seed", values=score).ffill()  # some stop when they know it
                mean, low, high = values.mean(axis=1), values.min(axis=1), values.max(axis=1)
                if mean.notna().any():
                    lines.append(Line(score, mean.index.tolist(), mean.tolist(), low.tolist(), high.tolist()))
            if lines:
                contents[str(name)] = lines
        if contents:
            suffix = "" if title == "Answers" else f"-{title.lower()}"
            note = "Mean and range over seeds."
            yield suffix, panels(contents, x="Step", y="Share", note=note, size=(1.9, 2.3), shares=True)
