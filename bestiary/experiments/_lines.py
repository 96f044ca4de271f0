"""From a summary to the lines of a panel."""

from collections.abc import Mapping

import pandas as pd

from bestiary.report.plot import Line
from bestiary.report.words import count_noun
from bestiary.runs.table import best, curve
from bestiary.spec import parse


def at_best_rate(table: pd.DataFrame, group: tuple[str, ...], *, value: str = "accuracy") -> pd.DataFrame:
    """Mean over seeds of each group, at its best learning rate on the selection stream, with its interval."""
    found = curve(best(table, group=group), group=(*group, "rate", "tried", "window"), value=value)
    return found.sort_values(list(group)).drop(columns="solved")


def lines_by(found: pd.DataFrame, *, x: str, by: str, value: str = "accuracy") -> list[Line]:
    """One line for each value of the column `by`, along `x`, with its band."""
    ordered = found.sort_values(x)
    return [
        Line(str(name), *(part[column].tolist() for column in (x, value, "low", "high")))
        for name, part in ordered.groupby(by, sort=False)
    ]


def name_mixers(table: pd.DataFrame, patterns: Mapping[str, str]) -> pd.DataFrame:
    """The table with a column `mixer`, the experiment's name for each pattern; other patterns keep their text."""
    short = {", ".join(map(str, parse("mixers", text))): name for name, text in patterns.items()}
    return table.assign(mixer=[short.get(pattern, pattern) for pattern in table["pattern"]])


def seeds_note(found: pd.DataFrame) -> str:
    """The note below a figure: how many seeds and answers its points have."""
    seeds, answers = found["seeds"].min(), found["answers"].min()
    return f"Mean over seeds (at least {seeds}) and 95 % interval; at least {count_noun(answers, 'answer')} a point."
