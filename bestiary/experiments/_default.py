"""The table and the figure of an experiment that defines recipes alone: accuracy by whatever differs between runs."""

from collections.abc import Iterator, Mapping

import pandas as pd
from matplotlib.figure import Figure
from pandas.api.types import is_numeric_dtype

from bestiary.experiments._lines import at_best_rate, lines_by, name_mixers, seeds_note
from bestiary.report.plot import matrix, panels
from bestiary.training.recipe import Recipe

MEASURED = {"right", "asked", "accuracy", "loss", "whole", "selection", "solved", "steps", "seconds", "outcome"}
NO_AXIS = {"key", "segment", "rate", "seed", "pattern", "mixer", *MEASURED}
FIRST_AS_X = ("pairs", "length", "dim", "depth")
PANELS = 4  # in a figure


def default_summary(table: pd.DataFrame, mixers: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Mean accuracy over seeds at the best rate, for each mixer and each combination of what differs between runs.

    `mixers` are names for patterns.
    """
    named = name_mixers(table, mixers or {})
    axes = differing(named)
    named = named.assign(**{axis: named[axis].map(as_text) for axis in axes if not is_numeric_dtype(named[axis])})
    return at_best_rate(named, ("mixer", *axes))


def differing(table: pd.DataFrame) -> list[str]:
    """The fields of recipes, the options of tasks and the tasks that differ, without those that follow from others."""
    fields = [name for name in Recipe.model_fields if name in table]
    last = [name for name in ("task", "train") if name in table]  # as a whole, where their options do not tell them
    kept: dict[str, list[str]] = {}
    for column in [*(name for name in [*fields, *table] if name not in last), *last]:
        if column not in NO_AXIS and column not in kept:
            values = table[column].map(as_text).tolist()
            known = [*zip(*kept.values(), strict=True)] or [()] * len(values)
            if len({*zip(known, values, strict=True)}) > len({*known}):
                kept[column] = values
    return list(kept)


def as_text(value: object) -> str:
    """A value that may be a list, so that values can be compared."""
    return str(value)


def default_figures(table: pd.DataFrame, mixers: Mapping[str, str] | None = None) -> Iterator[tuple[str, Figure]]:
    """Accuracy against what differs, a line for each mixer and a panel for each combination of all else.

    Along x is the number of pairs, the length, the width or the depth, whichever of them differs, or another number.
    Where no number differs it is a table of shares.
    """
    found, axes = default_summary(table, mixers), differing(table)
    numbers = [axis for axis in axes if is_numeric_dtype(table[axis]) and (table[axis] > 0).all()]
    x = next((axis for axis in (*FIRST_AS_X, *numbers) if axis in numbers), None)
    others = [axis for axis in axes if axis != x]
    found["rest"] = [
        ", ".join(f"{axis} {row[axis]}" for axis in others) or "accuracy" for row in found.to_dict("records")
    ]
    if x is None:
        yield "", matrix(found.pivot(index="mixer", columns="rest", values="accuracy"), note=seeds_note(found))
        return
    titles = found["rest"].unique().tolist() if others else [""]
    contents = [lines_by(found[found["rest"] == title] if others else found, x=x, by="mixer") for title in titles]
    for place in range(0, len(titles), PANELS):
        shown = dict(zip(titles[place : place + PANELS], contents[place : place + PANELS], strict=True))
        suffix = f"-{1 + place // PANELS}" if len(titles) > PANELS else ""
        yield suffix, panels(shown, x=x, y="Accuracy", note=seeds_note(found))
