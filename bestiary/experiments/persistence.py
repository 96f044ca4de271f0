"""What does a memory lose by time, and what by load? Length extrapolation in two directions, at equal state.

Models learn MQAR of 4 pairs in 64 tokens. They are then tested at up to eight times the length with the same pairs,
where all that grows is how long a pair must persist; at up to four times the pairs in the same length, where all that
grows is what the state must hold; and at both. Longer sequences usually grow in both at once, so that a drop does not
say which it is (the question is that of PoST, arXiv 2604.07658). The state of every linear mixer is a square matrix of
half the model's width for each of two heads; attention stands beside them.

How memories forget is an axis of its own: not at all (DeltaNet, linear attention), at fixed rates spread over the
heads (RetNet), or as the input says, from a start where half of the heads forget within some 16 tokens (gated DeltaNet
as published) or keep for longer (its short start), or by PoST's spectrum, spread from one token to the trained length
and slower the later it is.
"""

import re
from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._protocol import Part, first_runs, next_runs, score_parts
from bestiary.report.plot import Line, panels
from bestiary.training.recipe import Recipe

LENGTH, PAIRS = TRAINED = 64, 4
HELD, MAMBA = "heads=2, key=32, value=32", "expand=1, head=32, state=32, conv=1, skip=0.0"
WIDTH = 64  # for which the patterns are written
MIXERS = {
    "Attention": "base_conv, attention(heads=2, rotary=False)",
    "Linear attention": "base_conv, linear_attention(heads=2, normalise=False)",
    "RetNet": "base_conv, retnet(heads=2, expand=1)",
    "GLA": "base_conv, gla(heads=2, key=32)",
    "Mamba-2, D = 0": f"base_conv, mamba2({MAMBA})",
    "Mamba-2, D = 0, PoST": f"base_conv, mamba2({MAMBA}, taper={LENGTH})",
    "DeltaNet": "base_conv, delta_net(heads=2, conv=1)",
    "Gated DeltaNet": f"base_conv, gated_delta({HELD}, conv=1)",
    "Gated DeltaNet, short start": f"base_conv, gated_delta({HELD}, conv=1, init='short')",
    "Gated DeltaNet, PoST": f"base_conv, gated_delta({HELD}, conv=1, init='short', taper={LENGTH})",
    "KDA": f"base_conv, kda({HELD}, conv=1)",
    "RWKV-7": "base_conv, rwkv7(heads=2, layer=1, layers=2)",
}
BOTH = "length", "Tokens, a pair in 16"
AXES = {  # the tests of each axis: lengths and pairs
    "longer": tuple((LENGTH * factor, PAIRS) for factor in (1, 2, 4, 8)),
    "fuller": tuple((LENGTH, PAIRS * factor) for factor in (1, 2, 4)),
    "both": tuple((LENGTH * factor, PAIRS * factor) for factor in (1, 2, 4, 8)),
}
SIZES: dict[str, dict[str, Any]] = {
    "smoke": {"dim": 96, "steps": 4, "every": 2, "warmup": 0, "batch": 8, "selection_rows": 8, "test_rows": 8},
    "small": {"dim": 64, "steps": 1500, "every": 50, "batch": 64, "selection_rows": 256, "test_rows": 1000},
    "paper": {"dim": 128, "steps": 10_000, "every": 200, "batch": 256, "selection_rows": 512, "test_rows": 3000},
}
RATES = {"smoke": (5e-3,), "small": (2e-3, 5e-3), "paper": (5e-4, 2e-3, 5e-3)}


def test_of(length: int, pairs: int) -> str:
    """MQAR of this length and load."""
    return f"mqar(vocab=1024, length={length}, pairs={pairs})"


def column(length: int, pairs: int) -> str:
    """The name of a test in the table."""
    return f"{pairs} pairs in {length}"


def parts(scale: str) -> tuple[Part, ...]:
    """One part: trained on the first test of every axis, and tested on all."""
    tests = list(dict.fromkeys(test for tests in AXES.values() for test in tests))
    trained = test_of(*tests[0])
    settings = {"train": trained, "select": trained, "test": ", ".join(test_of(*test) for test in tests)}
    columns: dict[str, int | None] = {column(*test): place for place, test in enumerate(tests)}
    return (Part(columns, RATES[scale], False, settings | SIZES[scale]),)


def mixers(scale: str) -> dict[str, str]:
    """The patterns at the width of a scale: their options `key`, `value`, `head` and `state` grow with it."""
    sizes, dim = re.compile(r"\b(key|value|head|state)=(\d+)"), SIZES[scale]["dim"]
    return {name: sizes.sub(lambda size: f"{size[1]}={int(size[2]) * dim // WIDTH}", MIXERS[name]) for name in MIXERS}


def recipes(scale: str) -> Iterator[Recipe]:
    """The first seed at every rate."""
    for part in parts(scale):
        for pattern in mixers(scale).values():
            yield from first_runs(part, pattern)


def next_recipes(table: pd.DataFrame, scale: str) -> list[Recipe]:
    """The other seeds, at the rate that was best for the first."""
    return next_runs(table, parts(scale), mixers(scale))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each mixer: accuracy as trained and at the end of each axis, with its interval."""
    ends = {"trained": TRAINED} | {axis: tests[-1] for axis, tests in AXES.items()}
    found, rows = points(table), []
    for name, part in found.groupby("mixer", sort=False):
        at = part.drop_duplicates(["length", "pairs"]).set_index(["length", "pairs"])
        row: dict[str, Any] = {"mixer": name, "rate": part["rate"].iloc[0], "seeds": part["seeds"].iloc[0]}
        for end, test in ends.items():
            if test in at.index:
                value, low, high = at.loc[test, ["value", "low", "high"]]
                row |= {end: value, f"{end} low": low, f"{end} high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def points(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with its interval at every length and load, on each axis that the test is a point of."""
    scales = {sizes["dim"]: scale for scale, sizes in SIZES.items()}
    measured = [scales[dim] for dim in table["dim"].unique()]
    scores = pd.concat([score_parts(table, parts(scale), mixers(scale)) for scale in measured])
    places = [
        {"axis": axis, "length": length, "pairs": pairs, "column": column(length, pairs)}
        for axis, tests in AXES.items()
        for length, pairs in tests
    ]
    return pd.DataFrame(places).merge(scores, on="column").drop(columns="column")


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Accuracy along each axis: with the length alone, with the load alone, and with both."""
    found = points(table)
    along = {"longer": ("length", "Tokens, 4 pairs"), "fuller": ("pairs", "Pairs in 64 tokens"), "both": BOTH}
    contents, labels = {}, {}
    for axis, (x, label) in along.items():
        rows = found[found["axis"].eq(axis)]
        labels[axis] = label
        contents[axis] = [
            Line(name, *(part[field].tolist() for field in (x, "value", "low", "high")))
            for name, part in rows.groupby("mixer", sort=False)
        ]
    note = "Mean over seeds at the best rate, and 95 % interval. Trained on the leftmost point of each panel."
    yield "", panels(contents, x=labels, y="Accuracy", note=note, whiskers=True)
