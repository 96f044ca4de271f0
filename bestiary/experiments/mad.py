"""The MAD score: six small tasks that are to predict how an architecture scales (Poli et al., 2024, section 3).

Two blocks of a mixer and an MLP. `small` takes each task at its base setting only; `paper` is the published protocol:
66 settings, six pairs of rate and weight decay for each, 200 epochs over 12,800 rows (fewer where a setting says so),
and again with the mixers of equal state (`iso`: about 4,096 numbers in each layer after 128 tokens, measured).
The score of a task is the mean over its settings, that of a mixer the mean over tasks; it is missing until all
settings that the table has of any mixer are measured.
Departs from the source: the pair is chosen on a selection stream and not on the test rows; three seeds instead of one;
a cosine to zero instead of 1e-6.
"""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._lines import name_mixers
from bestiary.report.plot import matrix
from bestiary.runs.table import diverged_as_zero
from bestiary.training.recipe import Recipe, clean

MIXERS = {
    "Attention": "attention(heads=4)",
    "Hyena": "hyena(taps=1024)",
    "Mamba": "mamba",
    "Mamba-2": "mamba2",
    "GLA": "gla",
    "Gated DeltaNet": "gated_delta",
}
ISO = {  # a width of 128 is meant
    "Attention, window 16": "attention(heads=4, window=17)",
    "Mamba, iso": "mamba(conv=1)",
    "Mamba-2, iso": "mamba2(state=16, conv=1)",
    "GLA, iso": "gla(heads=4, key=32)",
    "Gated DeltaNet, iso": "gated_delta(heads=4, key=32, value=32, conv=1)",
}
BASE, EPOCHS = 12_800, 200
SWEEPS = {  # the settings beside the base one: an option and its values
    "in_context_recall": (("vocab", (32, 64, 128)), ("length", (256, 512, 1024))),
    "noisy_recall": (("vocab", (48, 80, 144)), ("length", (256, 512, 1024)), ("noise", (0.4, 0.6, 0.8))),
    "fuzzy_recall": (("vocab", (32, 64, 128)), ("length", (256, 512, 1024))),
    "selective_copying": (("vocab", (32, 64, 128)), ("length", (512, 1024)), ("copied", (32, 64, 96))),
    "compression": (("vocab", (32, 64, 128)), ("length", (64, 128, 256))),
    "memorisation": (("vocab", (512, 1024, 2048, 4096, 8192)),),
}
TRAINED = {
    "in_context_recall": "scored='all'",
    "noisy_recall": "scored='all'",
    "fuzzy_recall": "keys='mixed', scored='all'",
}


def recipes(scale: str) -> Iterator[Recipe]:
    """The six tasks at one setting, or the published protocol."""
    match scale:
        case "smoke":
            for task in SWEEPS:
                settings = {"steps": 4, "every": 2, "batch": 8, "dim": 16, "selection_rows": 16, "test_rows": 64}
                yield from (mad_recipe(task, "", pattern, **settings) for pattern in list(MIXERS.values())[:3:2])
        case "small":
            for task in SWEEPS:
                settings = {"steps": 1000, "every": 100, "batch": 32, "dim": 64, "rate": 3e-3, "test_rows": 1280}
                yield from (mad_recipe(task, "", pattern, **settings) for pattern in MIXERS.values())
        case "paper":
            iso = [pattern for name, pattern in ISO.items() if name.partition(",")[0] in MIXERS]
            for task in SWEEPS:
                for options, rows in task_settings(task):
                    for pattern in [*MIXERS.values(), *iso]:
                        yield from published_runs(task, options, pattern, rows)


def task_settings(task: str) -> Iterator[tuple[str, int]]:
    """The options of each setting of a task, and its training rows."""
    base = 256 if task == "memorisation" else BASE
    yield "", base
    for option, values in SWEEPS[task]:
        yield from ((f"{option}={value}", base) for value in values)
    if task != "memorisation":
        yield from (("", rows) for rows in (6400, 3200, 1600, 800))


def published_runs(task: str, options: str, pattern: str, rows: int) -> Iterator[Recipe]:
    """Every pair of rate and weight decay, and every seed, of one setting and mixer."""
    batches = math.ceil(rows / 128)
    finite = {"distinct": (batches,), "shuffle": "rows", "steps": EPOCHS * batches, "every": 10 * batches}
    for rate in (1e-4, 5e-4, 1e-3):
        for decay in (0.0, 0.1):
            for seed in range(3):
                settings = {"rate": rate, "weight_decay": decay, "seed": seed, "dim": 128, "test_rows": 1280, **finite}
                yield mad_recipe(task, options, pattern, **settings)


def mad_recipe(task: str, options: str, pattern: str, **changes: Any) -> Recipe:
    """Two blocks of a mixer and an MLP, trained on a task and tested at its standard options."""
    trained = ", ".join(part for part in (options, TRAINED.get(task, "")) if part)
    tested = f"{task}({options})"
    settings = {"train": f"{task}({trained})", "test": tested, "warmup": 0, "stop": None, "channel": "mlp"}
    return clean(pattern, **(settings | changes))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The score of each mixer on each task, and their mean; the pair of rate and decay is chosen for each setting.

    The accuracy of a run that diverged counts as 0. `seeds` are the fewest of any setting.
    """
    trained = [sum(distinct) for distinct in table["distinct"]]
    table = diverged_as_zero(table).assign(accuracy=table["accuracy"].fillna(0.0))
    table = name_mixers(table, MIXERS | ISO).assign(trained=trained)
    table = table.assign(probe=table["task"].str.partition("(")[0])
    setting, pair = ["probe", "mixer", "task", "trained"], ["rate", "weight_decay"]
    means = table.groupby(setting + pair)["selection"].mean()
    kept = table.set_index(setting + pair).loc[means.groupby(setting).idxmax()].reset_index()
    each = kept.groupby(["mixer", "probe", "task", "trained"])
    whole = each["accuracy"].mean().unstack(["probe", "task", "trained"])  # NaN of settings that are to come
    scores = whole.T.groupby(level="probe").agg(lambda settings: settings.mean(skipna=False)).T
    scores["MAD score"] = scores.mean(axis=1, skipna=False)
    scores["seeds"] = each["seed"].nunique().groupby("mixer").min()
    return scores.sort_values("MAD score", ascending=False).reset_index()


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """A matrix of scores: mixers by tasks."""
    found = summary(table)
    shown = found.set_index("mixer").drop(columns="seeds")
    shown.columns = [str(column).replace("_", " ") for column in shown.columns]
    yield "", matrix(shown, note=f"Mean accuracy over settings and seeds (at least {found['seeds'].min()}).")
