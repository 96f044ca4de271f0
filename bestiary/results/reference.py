"""The reference results that ship with the package: the runs of every built-in mixer, and what was measured of it."""

from collections.abc import Collection
from functools import cache
from importlib.resources import as_file, files
from types import ModuleType

import pandas as pd

from bestiary.experiments import protocol_v1
from bestiary.experiments._protocol import keys_of_runs, place
from bestiary.results.contributed import contributed_facts, contributed_runs, contributions
from bestiary.runs.exports import exact_floats, read_table
from bestiary.runs.store import Store
from bestiary.runs.table import results
from bestiary.spec import parse, reading_data, spec

PROTOCOLS: dict[str, ModuleType] = {"v1": protocol_v1}


@cache
def reference_runs(protocol: str = "v1") -> pd.DataFrame:
    """One row for each run and test segment, as `bestiary export` writes them."""
    with as_file(files("bestiary.results") / f"{protocol}.csv") as place:
        return read_table(place)


@cache
def reference_facts(protocol: str = "v1") -> pd.DataFrame:
    """One row for each mixer, those that were sent in too: family, parameters, states and ratios of time."""
    with as_file(files("bestiary.results") / f"{protocol}-facts.csv") as place:
        built_in = pd.read_csv(place, index_col="mixer", **exact_floats())
    return pd.concat([built_in, *(contributed_facts(name) for name in contributions())])


@cache
def reference_scores(protocol: str = "v1") -> pd.DataFrame:
    """One row for each mixer that was run, those that were sent in too, and column.

    It has the value with its interval, the chance level, the number of seeds and the rate.
    """
    scores = PROTOCOLS[protocol].scores
    sent = contributions()
    others = [scores(contributed_runs(name), mixers={name: pattern}) for name, pattern in sent.items()]
    return pd.concat([scores(reference_runs(protocol)), *others])


def stored_scores(store: Store, known: Collection[str], protocol: str = "v1") -> tuple[pd.DataFrame, list[str]]:
    """The scores of the mixers in a store that were run under the protocol and are not known already.

    Runs of other recipes are left out, and parts of which not all rates have been tried: `frontier` has some of their
    runs. Beside the scores: why patterns could not be read, as those of files that the user has not named.
    """
    rules = PROTOCOLS[protocol]
    table, _ = results(store, store.run_keys())
    if table.empty:
        return rules.scores(reference_runs(protocol)[:0]), []
    mixers: dict[str, None] = {}
    faults: dict[str, None] = {}
    for pattern in map(str, table["pattern"].unique()):
        try:
            mixers[mixer_of(pattern)] = None
        except (LookupError, TypeError, ValueError) as fault:
            faults[str(fault.args[0])] = None
    new = [text for text in mixers if text not in known]
    keys = keys_of_runs({*table["key"]}, rules.parts("small"), new)
    return rules.scores(table[table["key"].isin(keys)], mixers={text: text for text in new}), list(faults)


@reading_data()
def mixer_of(pattern: str) -> str:
    """The mixer that the protocol has put into both layers, or behind a short convolution; else the whole pattern."""
    last = parse("mixers", pattern)[-1]
    given = {name: value for name, value in last.options if name in last.changed and name not in ("layer", "layers")}
    plain = str(spec("mixers", last.name, **given))
    texts = [str(part) for part in parse("mixers", pattern)]
    for behind in (True, False):
        if texts == [str(part) for part in parse("mixers", place(plain, behind=behind))]:
            return plain
    return pattern
