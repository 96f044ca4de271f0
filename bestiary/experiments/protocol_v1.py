"""The protocol v1: where does a mixer stand beside the whole field? Recall, tracking, copying, noise, learning rates.

Eleven parts, the same recipe for every mixer. In the parts on recall the mixer is the second layer, behind a short
convolution, so that what is compared is the memory and not the skill to shift tokens; in the others it is both layers.
One rule for all: the first seed tries every learning rate of a part, and the two others run at the rate with the best
selection accuracy. `summary` has a row for each mixer and column.
These recipes never change: a change is v2. docs/protocol.md argues for each.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments import frontier
from bestiary.experiments._protocol import (
    RATES_THAT_WORK,
    WINDOW,
    Part,
    first_runs,
    next_runs,
    score_parts,
)
from bestiary.report.plot import matrix
from bestiary.spec import names
from bestiary.training.recipe import Recipe

RECALL_RATES = (2e-3, 5e-3, 1.25e-2)


def recall(dim: int) -> Part:
    """The miniature of Based's mixture of lengths and loads, as `frontier` asks it."""
    train, test = (frontier.tasks(sizes, vocab=256) for sizes in (frontier.TRAIN, frontier.TEST))
    settings = {"train": train, "test": test, "select": train, "dim": dim, "steps": 1500, "batch": 64, "every": 100}
    settings |= {"selection_rows": 128, "test_rows": 512}
    return Part({f"recall {dim}": None}, RECALL_RATES, True, settings)


def behind_convolution(columns: tuple[str, ...], tests: tuple[str, ...], train: str = "", **changes: Any) -> Part:
    """Trained on the first of some tests, or another form of it, and scored on all: behind a short convolution."""
    settings: dict[str, Any] = {"train": train or tests[0], "select": tests[0], "test": ", ".join(tests), "dim": 32}
    settings |= {"steps": 800, "batch": 64, "every": 50, "stop": 0.999} | changes
    settings |= {"selection_rows": 256, "test_rows": 512}
    return Part(dict(zip(columns, range(len(columns)), strict=True)), RECALL_RATES[1:], True, settings)


def in_both_layers(columns: tuple[str, ...], tests: tuple[str, ...]) -> Part:
    """The same with two layers of the mixer, each before a channel mixer."""
    part = behind_convolution(columns, tests, channel="mlp", steps=600)
    return part._replace(behind=False, rates=(2e-3, 8e-3))


def group(name: str) -> tuple[str, str]:
    """Products in a group, and four times as long ones."""
    short, long = (f"group_words(group={name!r}, length={length})" for length in (32, 128))
    return short, long


NOISY, LONGER_NOISY = "noisy_recall(length=64)", "noisy_recall(length=256)"
FUZZY = "fuzzy_recall(length=48, key_size=2, value_size=1)"
WITH_PLAIN_KEYS = "fuzzy_recall(length=48, key_size=2, value_size=1, keys='mixed')"
OVERWRITTEN = "overwriting_mqar(vocab=256, length=64, pairs=4, updates=4)"
WITH_EASIER = f"{OVERWRITTEN}, overwriting_mqar(vocab=256, length=32, pairs=2, updates=2)"
EASY = "mqar(vocab=256, length=32, pairs=2)"
SPARSE = "flip_flop(pairs=128, ignore=0.98)"
SHORT_RUNS = {"batch": 64, "steps": 600, "every": 50, "selection_rows": 256, "test_rows": 512}
PARTS = (
    *(recall(dim) for dim in (64, 32, 16)),
    Part(WINDOW, (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), True, {"train": EASY, "test": EASY, "dim": 32} | SHORT_RUNS),
    behind_convolution(("overwriting",), (OVERWRITTEN,), WITH_EASIER),
    behind_convolution(("noisy recall", "noisy recall, longer"), (NOISY, LONGER_NOISY), steps=600),
    behind_convolution(("fuzzy recall",), (FUZZY,), WITH_PLAIN_KEYS),
    in_both_layers(("parity", "parity, longer"), group("Z2")),
    in_both_layers(("S3", "S3, longer"), group("S3")),
    in_both_layers(("flip-flop", "flip-flop, sparse"), ("flip_flop(pairs=32)", SPARSE)),
    in_both_layers(("copying", "copying, longer"), ("repeat_after_me(most=12)", "repeat_after_me(least=24, most=24)")),
)
COLUMNS = [column for part in PARTS for column in part.columns]
LEFT_OUT = {"gated_sum", "parallel", "serial", "selected"}  # made of other mixers, or of tokens that are chosen by text
OTHER_STARTS = ("gated_delta(init='short')", "mamba(skip=0.0)", "mamba2(skip=0.0)")


def built_in() -> dict[str, str]:
    """Every mixer that comes with the package, by its name, and some with a start for short training."""
    plain = [name for name in names("mixers") if name not in LEFT_OUT]
    return {text: text for text in sorted([*plain, *OTHER_STARTS])}


MIXERS = built_in()


def recipes(scale: str) -> Iterator[Recipe]:
    """The first seed of every mixer at every rate."""
    for pattern in MIXERS.values():
        for part in parts(scale):
            yield from first_runs(part, pattern)


def parts(scale: str) -> tuple[Part, ...]:
    """The parts of the protocol, those of `smoke` trained for a few steps. There is no other scale."""
    if scale != "smoke":
        return PARTS
    tiny = {"steps": 4, "every": 2, "warmup": 0, "batch": 8, "selection_rows": 8, "test_rows": 8, "dim": 16}
    return tuple(part._replace(rates=part.rates[:2], settings=part.settings | tiny) for part in PARTS[2:5])


def next_recipes(table: pd.DataFrame, scale: str) -> list[Recipe]:
    """The other seeds, where every rate was tried: at the best, or at all where the window of rates is asked."""
    return next_runs(table, parts(scale), MIXERS)


def scores(table: pd.DataFrame, scale: str = "small", mixers: Mapping[str, str] | None = None) -> pd.DataFrame:
    """One row for each mixer and column: its value with interval, chance level, number of seeds and the rate."""
    return score_parts(table, parts(scale), MIXERS if mixers is None else mixers)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each mixer, a column for each score, the mixers with the best mean recall first."""
    found = scores(table, scale_of(table))
    wide = found.pivot(index="mixer", columns="column", values="value")
    wide = wide[[column for column in COLUMNS if column in wide]]
    recall = [column for column in wide if str(column).startswith("recall")]
    order = wide[recall].mean(axis=1).sort_values(ascending=False, kind="stable").index
    return wide.loc[order].reset_index().rename_axis(columns=None)


def scale_of(table: pd.DataFrame) -> str:
    """The scale whose runs are in the table."""
    return "smoke" if table["dim"].eq(16).all() and table["steps"].max() <= 4 else "small"


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Every score of every mixer."""
    found = summary(table).set_index("mixer")
    shares = found.drop(columns=RATES_THAT_WORK, errors="ignore")
    if len(shares.columns):
        yield "", matrix(shares, note="Accuracy, mean over seeds at the best rate of three or two.")
