"""Results that others send in, as `bestiary card --send` writes them, and what is checked before they are shown.

contributions/NAME.py            the mixer
contributions/NAME.csv           its runs under the protocol
contributions/NAME-facts.csv     what was measured of it
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from bestiary.experiments._protocol import SEEDS, WINDOW, best_rate, rows_of_parts
from bestiary.experiments.protocol_v1 import MIXERS, PARTS
from bestiary.results.facts import broken_laws
from bestiary.runs.exports import exact_floats, read_table
from bestiary.spec import parse

FOLDER = Path(__file__).parent / "contributions"


def contributions(folder: Path = FOLDER) -> dict[str, str]:
    """The mixers that were sent in, by name: the paths of their files, which may be run from here on."""
    found = {path.stem: str(path) for path in sorted(folder.glob("*.py"))}
    for path in found.values():
        parse("mixers", path)  # whoever names a file lets it be run
    return found


def contributed_runs(name: str, folder: Path = FOLDER) -> pd.DataFrame:
    """One row for each run and test segment, with patterns that name the file where it is now."""
    table = read_table(folder / f"{name}.csv")
    here = str(parse("mixers", str(folder / f"{name}.py"))[0])
    return table.assign(pattern=table["pattern"].str.replace(f"{name}.py", here, regex=False))


def contributed_facts(name: str, folder: Path = FOLDER) -> pd.DataFrame:
    """One row, whose index is the name."""
    return pd.read_csv(folder / f"{name}-facts.csv", index_col="mixer", **exact_floats())


def faults(name: str, folder: Path = FOLDER) -> Iterator[str]:
    """A sentence about each thing that is wrong with what was sent in; none if it may be shown.

    The file must be one mixer that obeys the laws, under a name that no built-in mixer has. There must be exactly the
    runs of the protocol with that very file, by the keys of their recipes; their counts must agree with their
    accuracies; and there must be facts.
    """
    pattern = str(folder / f"{name}.py")
    if name in MIXERS:
        yield f"{name} is the name of a built-in mixer; give the file another"
    yield from broken_laws(parse("mixers", pattern)[0])
    table = contributed_runs(name, folder)
    agree = (table["right"] / table["asked"] - table["accuracy"]).abs() <= 1e-9  # not where a count is missing
    wrong = table[~agree & (table["outcome"] != "diverged")]
    wrong = pd.concat([wrong, table[(table["right"] < 0) | (table["right"] > table["asked"])]])
    if len(wrong):
        yield f"{len(wrong)} rows say other accuracies than their counts"
    wanted: dict[str, int] = {}
    rows_of = rows_of_parts(table, PARTS)
    for part in PARTS:
        rows = [row for row in rows_of(part, pattern) if row.seed == SEEDS[0]]
        rates = part.rates if part.columns == WINDOW or not rows else (best_rate(rows),)
        recipes = [part.recipe(pattern, rate, SEEDS[0]) for rate in part.rates]
        recipes += [part.recipe(pattern, rate, seed) for rate in rates for seed in SEEDS[1:]]
        wanted |= {recipe.key: len(recipe.test) for recipe in recipes}
    rows = table.groupby("key").size().to_dict()
    if missing := [key for key, tests in wanted.items() if rows.get(key) != tests]:
        yield f"{len(missing)} runs of the protocol with this file are not there, or not whole"
    if others := {*rows} - {*wanted}:
        yield f"{len(others)} runs are none of the protocol's with this file"
    facts = contributed_facts(name, folder)
    if list(facts.index) != [name] or not {"family", "state 64", "train beside attention"} <= {*facts}:
        yield f"the facts must be one row, of {name}"
