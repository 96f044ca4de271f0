"""Why a mixer scores little in parts of the protocol: what the doctor finds in their runs, like causes together."""

from typing import NamedTuple

import pandas as pd

from bestiary.experiments._protocol import SEEDS, WINDOW, best_rate, rows_of_parts
from bestiary.experiments.protocol_v1 import parts
from bestiary.report.doctor import Finding, diagnose
from bestiary.results.verdict import Entry
from bestiary.runs.store import Store

LITTLE = 0.5  # scaled so that guessing is 0: below this it is asked why


class Cause(NamedTuple):
    """A finding, and the columns in whose runs it is the likeliest one."""

    columns: list[str]
    finding: Finding  # of the first of them

    @property
    def evidence(self) -> str:
        """The numbers behind the finding, and of which column they are."""
        return self.finding.evidence + (f"; {self.columns[0]}" if len(self.columns) > 1 else "")


def causes(entry: Entry, table: pd.DataFrame, store: Store, scale: str = "small") -> list[Cause]:
    """The likeliest cause of each low score, by the run of the first seed at the best rate; the commonest cause first.

    `table` has the runs of the mixer, which are in the store.
    """
    found: dict[str, Cause] = {}
    rows_of = rows_of_parts(table, parts(scale))
    for part in parts(scale):
        score = entry.scores.get(part.name)
        rows = rows_of(part, entry.pattern)
        if not rows or part.columns == WINDOW or score is None or score.scaled >= LITTLE:
            continue
        recipe = part.recipe(entry.pattern, best_rate(rows), SEEDS[0])
        for finding in diagnose(recipe, store.read(recipe.key).log)[:1]:
            found.setdefault(finding.name, Cause([], finding)).columns.append(part.name)
    return sorted(found.values(), key=lambda cause: -len(cause.columns))
