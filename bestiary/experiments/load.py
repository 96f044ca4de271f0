"""How many pairs does a state of a given size recall? Accuracy against load, every mixer with the same state, counted.

Widths are chosen so that the state after the longest sequence has nearly the same count of numbers for all, and the
ratio reached is in the table. Beside the mixers stand what the bits of such a state allow (Fano's inequality, a
theorem), and what least squares recall of random keys and values in as many numbers (simulated). The length is
the same at every load.
"""

import math
from collections.abc import Iterator
from functools import cache

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._lines import at_best_rate, lines_by, seeds_note
from bestiary.report.plot import Line, panels
from bestiary.spec import reading_data
from bestiary.training.recipe import Recipe, clean
from bestiary.training.size import Match, match_widths, state_size

NAMES = {
    "linear_attention": "Linear attention",
    "based": "Based",
    "delta_net": "DeltaNet",
    "gated_delta": "Gated DeltaNet",
    "mamba2": "Mamba-2",
}
LIKE = "base_conv, delta_net(heads=4, conv=1)"  # what the others are matched to, at the widths of BUDGETS
GROUP = ("budget", "mixer", "dim", "state", "pairs")
TASKS = {  # vocabulary, length, and the loads
    "smoke": (40, 32, (2, 8)),
    "small": (192, 96, (3, 6, 12, 24)),
    "paper": (8192, 512, (4, 8, 16, 32, 64, 128)),
}
BUDGETS = {"smoke": (32,), "small": (32,), "paper": (64, 128, 256)}


def recipes(scale: str) -> Iterator[Recipe]:
    """Every load, seed and rate at each budget of state."""
    vocab, length, loads = TASKS[scale]
    regime = {
        "smoke": {"steps": 20, "every": 10, "batch": 16, "selection_rows": 64, "test_rows": 64},
        "small": {"steps": 800, "every": 50, "batch": 64, "selection_rows": 256, "test_rows": 1000},
        "paper": {"steps": 20_000, "every": 200},
    }[scale]
    seeds, rates = {"smoke": (2, (3e-3,)), "small": (3, (1e-2,))}.get(scale, (3, (1e-3, 3e-3, 1e-2)))
    for pairs in reversed(loads):
        filler = "random" if scale == "paper" else "zero"
        task = f"mqar(vocab={vocab}, length={length}, pairs={pairs}, filler='{filler}')"
        tasks = clean("attention", train=task).train
        for recipe in (match.recipe for budget in BUDGETS[scale] for match in matched_widths(budget, length).values()):
            for rate in rates:
                for seed in range(seeds):
                    changes = {"train": tasks, "test": tasks, "rate": rate, "seed": seed, **regime}
                    yield recipe.model_copy(update=changes)


@cache
def matched_widths(budget: int, length: int) -> dict[str, Match]:
    """Each mixer at the width whose state is nearest to that of DeltaNet of width `budget`, which is near it."""
    state, features = budget // 8, math.isqrt(budget // 2) - 1
    patterns = (
        "base_conv, linear_attention(heads=4)",
        f"base_conv, based(features={features})",
        LIKE,
        "base_conv, gated_delta(heads=4, conv=1)",
        f"base_conv, mamba2(state={state}, conv=1)",
    )
    dims = range(budget // 2, 2 * budget + 1, max(2, budget // 16))
    return match_widths(patterns, recipe_of_length(LIKE, budget, length), match="state", dims=dims)


@reading_data()
def recipe_of_length(pattern: str, dim: int, length: int) -> Recipe:
    """A recipe with the state of that pattern and width after so many tokens."""
    return clean(pattern, dim=dim, train=f"mqar(vocab={2 * length}, length={length}, pairs=2)")


def add_states(table: pd.DataFrame) -> pd.DataFrame:
    """The table with each `mixer`, its `state` in numbers, and the `budget`, the state that it was matched to."""
    length = int(table["length"].max())
    budgets = [state_size(recipe_of_length(LIKE, width, length))[0] for widths in BUDGETS.values() for width in widths]
    models = zip(table["pattern"], table["dim"], strict=True)
    states = [state_size(recipe_of_length(pattern, int(dim), length))[0] for pattern, dim in models]
    nearest = [min(budgets, key=lambda budget: abs(state / budget - 1)) for state in states]
    mixers = [NAMES[pattern.split(", ")[1].partition("(")[0]] for pattern in table["pattern"]]
    return table.assign(mixer=mixers, state=states, budget=nearest)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy at each load, the state in numbers and its share of the budget, and what bits and least squares give."""
    return add_limits(at_best_rate(add_states(table), GROUP), vocab=int(table["vocab"].iloc[0]))


def add_limits(found: pd.DataFrame, *, vocab: int) -> pd.DataFrame:
    """The table with what the bits of the state, and least squares in its size, allow."""
    from bestiary.constructions.bounds import ceiling

    bits = [ceiling(row.pairs, vocab, row.budget) for row in found.itertuples()]
    best = [least_squares_accuracy(row.pairs, row.budget, vocab) for row in found.itertuples()]
    ratio = found["state"] / found["budget"]
    return found.assign(**{"ratio": ratio, "bits allow": bits, "least squares": best})


@cache
def least_squares_accuracy(pairs: int, state: int, vocab: int) -> float:
    """The accuracy of the largest square memory within the state by least squares, the mean over three seeds."""
    from bestiary.constructions.bounds import orthogonal_pairs, simulated_accuracy

    width = orthogonal_pairs(state)
    return sum(simulated_accuracy("least squares", pairs, width, vocab, seed=seed) for seed in range(3)) / 3


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Accuracy against the number of pairs, one panel for each state."""
    found = summary(table)
    contents = {}
    for budget, rows in found.groupby("budget"):
        marks = rows.drop_duplicates("pairs").sort_values("pairs")
        limits = [Line(name, marks["pairs"].tolist(), marks[name].tolist()) for name in ("bits allow", "least squares")]
        contents[f"{budget:,} numbers of state"] = [*lines_by(rows, x="pairs", by="mixer"), *limits]
    yield "", panels(contents, x="Pairs in the context", note=seeds_note(found))
