"""What must a recurrence have to track a state? Depth, gate, eigenvalues and Householder steps in one grid.

A memory is multiplied by a matrix at every token. The grid varies what this matrix is, all else being equal: how it
forgets (not at all, at one rate for each head, at one for each channel), how often it reflects for a token (one or two
Householder steps, three in one place; one is the delta rule) and the range of its eigenvalues ([0, 1] or [-1, 1]).
Diagonal matrices stand beside it: Mamba in both ranges, and Mamba-3 without rotations, with fixed and with
input-dependent ones; and two mixers that have no such matrix, attention and sLSTM. Each is one or two layers of a model
that reads parity, products in S3 and A5, or modular arithmetic, and is tested at the trained length and at four times
it. No mixer has a short convolution. A second step and a gate bring weights of their own, which are not made equal.

The theory: parity needs a negative eigenvalue (Grazzi et al., 2024) or a rotation that depends on the input (Lahoti et
al., 2026, Mamba-3); a step reflects, so that one layer needs two for the rotations in S3 and A5 (Siems et al., 2025).
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._protocol import Part, first_runs, next_runs, score_matrix, score_parts, wide
from bestiary.training.recipe import Recipe

GATES = {"no gate": "", "gate per head": ", forget=True", "gate per channel": ", forget=True, decay='channel'"}
RANGES = {"[0, 1]": ", negative=False", "[-1, 1]": ""}
MIXERS = {
    **{
        f"{steps} step{'s' if steps > 1 else ''}, {gate}, {ends}": (
            f"delta_product(heads=8, key=16, value=16, conv=1, init='fla', steps={steps}{forget}{negative})"
        )
        for steps in (1, 2)
        for gate, forget in GATES.items()
        for ends, negative in RANGES.items()
    },
    "3 steps, no gate, [-1, 1]": "delta_product(heads=8, key=16, value=16, conv=1, init='fla', steps=3)",
    "diagonal, [0, 1]": "mamba(conv=1)",
    "diagonal, [-1, 1]": "mamba(conv=1, negative=True)",
    "diagonal, no rotation": "mamba3(rotation='none', state=32)",
    "diagonal, fixed rotations": "mamba3(rotation='fixed', state=32)",
    "diagonal, selective rotations": "mamba3(state=32)",
    "attention": "attention(heads=8)",
    "sLSTM": "slstm(conv=1)",
}
ARITHMETIC = "modular_arithmetic(least=3, length=40)", "modular_arithmetic(least=41, length=160)"
TASKS = {
    name: tuple(f"group_words(group={group!r}, length={length})" for length in (32, 128))
    for name, group in (("parity", "Z2"), ("S3", "S3"), ("A5", "A5"))
} | {"arithmetic": ARITHMETIC}
SETTINGS: dict[str, Any] = {"dim": 64, "channel": "mlp", "batch": 64, "steps": 600, "every": 50, "stop": 0.999}
SETTINGS |= {"selection_rows": 256, "test_rows": 512}
RATES = (2e-3, 5e-3)
WIDTHS = {16: "smoke", 64: "small", 128: "paper"}  # the scale, by the width of its models
LONGER = " longer"


def recipes(scale: str) -> Iterator[Recipe]:
    """The first seed at every rate."""
    for part in parts(scale):
        for pattern in MIXERS.values():
            yield from first_runs(part, pattern)


def parts(scale: str) -> tuple[Part, ...]:
    """Every task and depth; `paper` trains wider models for longer, at more rates."""
    match scale:
        case "smoke":
            tiny = {"dim": 16, "steps": 4, "every": 2, "warmup": 0, "batch": 8, "selection_rows": 8, "test_rows": 8}
            return tuple(part(task, depth, (2e-3,), tiny) for task in ("parity",) for depth in (1, 2))
        case "small":
            return tuple(part(task, depth, RATES, {}) for task in TASKS for depth in (1, 2))
        case _:
            large = {"dim": 128, "steps": 10_000, "every": 200, "batch": 256, "test_rows": 3000}
            return tuple(part(task, depth, (5e-4, *RATES), large) for task in TASKS for depth in (1, 2, 4))


def part(task: str, depth: int, rates: tuple[float, ...], changes: dict[str, Any]) -> Part:
    """One task for models of so many layers."""
    column = f"{task} {depth} layer{'s' if depth > 1 else ''}"
    tests = {"train": TASKS[task][0], "select": TASKS[task][0], "test": ", ".join(TASKS[task]), "depth": depth}
    return Part({column: 0, column + LONGER: 1}, rates, False, SETTINGS | tests | changes)


def next_recipes(table: pd.DataFrame, scale: str) -> list[Recipe]:
    """The other seeds, at the rate that was best for the first."""
    return next_runs(table, parts(scale), MIXERS)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with its interval in every column: a row for each mixer."""
    return wide(scores(table))


def scores(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with its interval of every mixer in every column."""
    return pd.concat([score_parts(table, parts(WIDTHS[dim]), MIXERS) for dim in table["dim"].unique()])


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Accuracy of every mixer at the trained length, and at four times it, from guessing (0) to perfect (1)."""
    found = scores(table)
    for name in ("value", "low", "high"):
        found[name] = (found[name] - found["chance"]) / (1 - found["chance"])
    longer = found["column"].str.endswith(LONGER)
    for rows, suffix, length in ((found[~longer], "", "the"), (found[longer], "-longer", "four times the")):
        what = f"Accuracy at {length} trained length (0 is guessing)"
        if len(rows):
            yield suffix, score_matrix(rows, MIXERS, rows["column"].unique().tolist(), what=what)
