"""Which layers or heads of a hybrid must attend, and how many? Recall and tracking of gated DeltaNet with attention.

Four layers of gated DeltaNet with eight heads. Some layers, or some heads of every layer, are softmax attention
instead: one head in eight, one in four, half, or all. A single attention layer stands in each of the four places, and
some of them see a window of 16 tokens alone. Heads are as wide in both. Their recall is that of a quarter as many pairs
as tokens, at two lengths and at twice the longer one, which is beyond what was trained; their tracking is that of
products in S3, at the trained length and at four times it. Language models were found to recall better the more layers
attend, most of all from one attention layer in four on ("A systematic analysis of hybrid linear attention", Wang et
al., 2025).
Departs from there: small models on synthetic tasks, and hybrids by heads and with windows beside those by layers.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments import tracking_grid
from bestiary.experiments._protocol import Part, first_runs, next_runs, score_matrix, score_parts, wide
from bestiary.report.plot import Line, panels
from bestiary.training.recipe import Recipe

HEADS, WINDOW = 8, 16
LENGTHS = 32, 64, 128  # of the recall tests; the last is not trained
LINEAR = "gated_delta(heads={heads}, key=16, value=16, init='short')"
ATTENTION = "attention(heads={heads}, key=16{window})"


class Hybrid(NamedTuple):
    """A pattern of four layers, or one that is repeated."""

    pattern: str
    share: float  # of all heads in all layers that attend
    kind: str = ""  # the line of the figure that it is a point of


def by_layer(places: str, kind: str = "", *, window: int | None = None) -> Hybrid:
    """A letter for each layer: a attends, d is gated DeltaNet."""
    seen = f", window={window}" if window else ""
    layers = {"a": ATTENTION.format(heads=HEADS, window=seen), "d": LINEAR.format(heads=HEADS)}
    return Hybrid(", ".join(layers[place] for place in places), places.count("a") / len(places), kind)


def by_head(attending: int, kind: str, *, window: int | None = None) -> Hybrid:
    """In every layer so many heads attend and the others are gated DeltaNet."""
    seen = f", window={window}" if window else ""
    parts = ATTENTION.format(heads=attending, window=seen), LINEAR.format(heads=HEADS - attending)
    return Hybrid(f'parallel(mixers="{parts[0]}, {parts[1]}")', attending / HEADS, kind)


BY_LAYER, BY_HEAD = "by layer", "by head"
SEEN = f", window of {WINDOW}"
HYBRIDS = {
    "gated DeltaNet": by_layer("d"),
    "1 layer of 4, the first": by_layer("addd"),
    "1 layer of 4, the second": by_layer("dadd"),
    "1 layer of 4, the third": by_layer("ddad", BY_LAYER),
    "1 layer of 4, the last": by_layer("ddda"),
    "2 layers of 4": by_layer("da", BY_LAYER),
    "1 head of 8": by_head(1, BY_HEAD),
    "2 heads of 8": by_head(2, BY_HEAD),
    "4 heads of 8": by_head(4, BY_HEAD),
    "attention": by_layer("a", BY_LAYER),
    f"1 layer of 4, the third{SEEN}": by_layer("ddad", BY_LAYER + SEEN, window=WINDOW),
    f"2 layers of 4{SEEN}": by_layer("da", BY_LAYER + SEEN, window=WINDOW),
    f"2 heads of 8{SEEN}": by_head(2, BY_HEAD + SEEN, window=WINDOW),
    f"4 heads of 8{SEEN}": by_head(4, BY_HEAD + SEEN, window=WINDOW),
    f"attention{SEEN}": by_layer("a", BY_LAYER + SEEN, window=WINDOW),
}
MIXERS = {name: hybrid.pattern for name, hybrid in HYBRIDS.items()}
COLUMNS = RECALL, HARDEST, TRACKING, LONGER = "recall", "32 pairs in 128", "S3 at 32", "S3 at 128"
TINY = {"dim": 16, "steps": 4, "every": 2, "warmup": 0, "batch": 8, "selection_rows": 8, "test_rows": 8}


def parts(scale: str) -> tuple[Part, ...]:
    """Recall and tracking; `paper` is wider and trains for longer, at one rate more."""
    changes: dict[str, Any] = {
        "smoke": TINY,
        "small": {},
        "paper": {"dim": 128, "steps": 10_000, "every": 200, "test_rows": 3000},
    }[scale]
    rates = {"smoke": (5e-3,), "small": (2e-3, 5e-3), "paper": (1e-3, 2e-3, 5e-3)}[scale]
    tests = [f"mqar(vocab=256, length={length}, pairs={length // 4})" for length in LENGTHS]
    train = ", ".join(tests[:-1])
    recall: dict[str, Any] = {"train": train, "select": train, "test": ", ".join(tests), "depth": 4, "steps": 1500}
    recall |= {"dim": 64, "batch": 64, "every": 100, "selection_rows": 128, "test_rows": 512}
    short, long = tracking_grid.TASKS["S3"]
    tracking = tracking_grid.SETTINGS | {"train": short, "select": short, "test": f"{short}, {long}", "depth": 4}
    return (
        Part({RECALL: None, HARDEST: len(LENGTHS) - 1}, rates, False, recall | changes),
        Part({TRACKING: 0, LONGER: 1}, rates, False, tracking | changes),
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
    """What share of its heads attends, and the accuracy with its interval in every column: a row for each hybrid."""
    return wide(scores(table), "attending")


def scores(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with its interval of every hybrid in every column, and what share of its heads attends."""
    scales = (tracking_grid.WIDTHS[dim] for dim in table["dim"].unique())
    found = pd.concat([score_parts(table, parts(scale), MIXERS) for scale in scales])
    return found.assign(attending=found["mixer"].map({name: hybrid.share for name, hybrid in HYBRIDS.items()}))


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Accuracy against the share of heads that attend; and every hybrid's in a table."""
    found = scores(table)
    kinds = {hybrid.kind: None for hybrid in HYBRIDS.values() if hybrid.kind}
    contents, levels = {}, {}
    for column in COLUMNS:
        rows = found[found["column"].eq(column)].set_index("mixer")
        lines = []
        for kind in kinds:
            names = [name for name, hybrid in HYBRIDS.items() if hybrid.kind == kind and name in rows.index]
            points = rows.loc[sorted(names, key=lambda name: HYBRIDS[name].share)]
            lines.append(Line(kind, *(points[name].tolist() for name in ("attending", "value", "low", "high"))))
        contents[column] = [line for line in lines if line.x]
        if "gated DeltaNet" in rows.index:
            levels[column] = {"gated DeltaNet": float(rows.loc["gated DeltaNet", "value"])}
    note = "Mean over seeds at the best rate, and 95 % interval."
    yield "", panels(contents, x="Share of heads that attend", y="Accuracy", levels=levels, note=note, whiskers=True)
    yield "-all", score_matrix(found, MIXERS, COLUMNS)
