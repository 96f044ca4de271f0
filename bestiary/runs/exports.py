"""The table of results as a CSV file, with what made each run, and such a file as a table again.

    # equal in all rows: {"steps": 1200, "betas": [0.9, 0.999], ...}
    key,dim,rate,seed,right,asked,accuracy,...

The first line is there only in a compact file. Readers that know no comments can skip it.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.runs.files import read_json
from bestiary.runs.store import Store, origin

if TYPE_CHECKING:
    import pandas as pd

EQUAL = "# equal in all rows: "
ORIGIN: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "begun": lambda made: made.get("begun"),
    "commit": lambda made: made.get("commit"),
    "version": lambda made: made.get("versions", {}).get("bestiary"),
    "torch": lambda made: made.get("versions", {}).get("torch"),
    "python": lambda made: made.get("versions", {}).get("python"),
    "processor": lambda made: made.get("host", {}).get("processor"),
    "cores": lambda made: made.get("host", {}).get("cores"),
    "device": lambda made: made.get("device"),
    "backend": lambda made: made.get("backend"),
    "threads": lambda made: made.get("threads"),
    "together": lambda made: made.get("together", 1),
}  # columns that say what made a run; the name of the machine is not among them
TEXT = ("key", "pattern", "train", "task", "outcome", "begun", "commit", "version", "torch", "python", "processor")
"""Columns whose cells are text even where they look like a number, as the key 12345e678901 does."""


def add_origins(table: "pd.DataFrame", store: Store) -> "pd.DataFrame":
    """The table of results with a column for each entry of ORIGIN, from `origin.json` of each run."""
    origins = {key: read_origin(store, key) for key in table["key"].unique()}
    return table.assign(**{name: [find(origins[key]) for key in table["key"]] for name, find in ORIGIN.items()})


def read_origin(store: Store, key: str) -> dict[str, Any]:
    """What made a run, empty if that is not stored. The store has checked the file when it read the run."""
    place = store.folder / key / "origin.json"
    return read_json(place) if place.is_file() else {}


def add_this_machine(table: "pd.DataFrame") -> "pd.DataFrame":
    """A table that was measured just now, with a column for each entry of ORIGIN that is known.

    Rows that have these columns already were measured before, and keep what they say.
    """
    known = {name: find(origin()) for name, find in ORIGIN.items() if name != "together"}
    columns = {name: [value] * len(table) for name, value in known.items() if value is not None}
    here = table.assign(**columns)
    return here.where(table["begun"].isna(), table.reindex(columns=here.columns)) if "begun" in table else here


def to_plain_columns(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table with text in every column that holds neither numbers nor booleans; lists become JSON."""
    mixed = [name for name, column in table.items() if column.dtype == object]
    flags = [name for name in mixed if table[name].dropna().map(lambda value: isinstance(value, bool)).all()]
    return table.assign(**{name: table[name].map(cell_text) for name in mixed if name not in flags})


def cell_text(value: Any) -> Any:
    """A value as text, a list or dict as JSON, None for what is missing."""
    value = to_python(value)
    if isinstance(value, list | dict):
        return json.dumps(value, default=str)
    return None if value is None or value != value else str(value)


def to_python(value: Any) -> Any:
    """A value of NumPy as one of Python, a tuple as a list."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, tuple) else value


def compact_csv(table: "pd.DataFrame") -> str:
    """The table as CSV, after a line with the values of all columns but `key` that are equal in all rows."""
    equal = {}
    for name, column in table.items():
        values = [to_python(value) for value in column]
        if name != "key" and len({json.dumps(value, default=str) for value in values}) == 1:
            missing = isinstance(values[0], float) and math.isnan(values[0])
            equal[str(name)] = None if missing else values[0]
    rest = to_plain_columns(table.drop(columns=list(equal)))
    return f"{EQUAL}{json.dumps(equal, default=str)}\n{rest.to_csv(index=False)}"


def equal_values(file: Path) -> dict[str, Any] | None:
    """The first line of a compact file: the values of the columns that are equal in all rows. None in other files."""
    with file.open(encoding="utf-8") as text:
        first = text.readline()
    if not first.startswith(EQUAL):
        return None
    found = json.loads(first.removeprefix(EQUAL))
    if not isinstance(found, dict):
        raise ValueError(f"{str(file)!r}: its first line is no JSON object")
    return found


def read_table(file: Path) -> "pd.DataFrame":
    """The table that `bestiary export` wrote to a CSV file, with the values that it had. Raises ValueError, OSError.

    Of the results of runs, a row that repeats an earlier one is left out: it is the same measurement.
    """
    import pandas as pd

    if file.suffix != ".csv":
        raise ValueError(f"{str(file)!r} is no .csv file; `bestiary export EXPERIMENT --to FILE.csv` writes one")
    equal = equal_values(file)
    how: dict[str, Any] = {"keep_default_na": False, "na_values": [""], **exact_floats()}
    table = pd.read_csv(file, skiprows=0 if equal is None else 1, dtype=dict.fromkeys(TEXT, "str"), **how)
    if "key" in table:
        if any(str(key) == "key" or str(key).startswith(EQUAL) for key in table["key"]):
            raise ValueError(f"{str(file)!r} holds two tables, one below the other; give one")
        table = table.drop_duplicates(ignore_index=True)
    texts = [name for name, column in table.items() if name not in TEXT and column.dtype in ("str", "object")]
    table = table.assign(**{str(name): parse_column(table[name]) for name in texts})
    constants = {name: [math.nan if value is None else value] * len(table) for name, value in (equal or {}).items()}
    return pd.concat([table, pd.DataFrame(constants, index=table.index)], axis=1)


def exact_floats() -> dict[str, Any]:
    """What `pandas.read_csv` needs to read numbers to the last bit: from 3.1 on nothing, and an option before."""
    import pandas as pd

    major, minor = (int(part) for part in pd.__version__.split(".")[:2])
    return {} if (major, minor) >= (3, 1) else {"float_precision": "round_trip"}


def read_known(file: Path) -> "pd.DataFrame":
    """Results of runs that need not be made again, as `read_table` reads them. Raises ValueError for another table."""
    table = read_table(file)
    if missing := sorted({"key", "pattern", "segment", "accuracy", "selection", "outcome"} - set(table)):
        raise ValueError(f"{str(file)!r} holds no results of runs: it has no column {', '.join(missing)}")
    return table


def add_known(table: "pd.DataFrame", known: "pd.DataFrame | None", keys: Iterable[str]) -> "pd.DataFrame":
    """The table, after the known results of those of these runs that are not in it."""
    import pandas as pd

    if known is None:
        return table
    there = {*table["key"]} if "key" in table else set()
    rows = known[known["key"].isin([key for key in keys if key not in there])]
    return pd.concat([part for part in (rows, table) if len(part)], ignore_index=True) if len(rows) else table


def parse_column(column: "pd.Series[Any]") -> "pd.Series[Any] | list[Any]":
    """A column of text, or the values of one that held lists, or numbers beside text."""
    values = [parse_cell(value) for value in column]
    return column if all(isinstance(value, str) for value in values if value == value) else values


def parse_cell(text: Any) -> Any:
    """The value that `cell_text` wrote; text that is no other value stays text."""
    if not isinstance(text, str) or text in ("True", "False"):
        return text == "True" if isinstance(text, str) else text
    try:
        return json.loads(text)
    except ValueError:
        return text


def describe_origin(table: "pd.DataFrame") -> str:
    """In words: how many runs, when they were begun, by which version and commit, and on what processor."""
    runs, days = table["key"].nunique() if "key" in table else 0, unique(table, "begun", lambda day: day[:10])
    count = f"{runs:,} run{'' if runs == 1 else 's'}, " if runs else ""
    when = f"begun {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "") if days else "of an unknown date"
    versions = " and ".join(unique(table, "version")) or "?"
    commits = ", ".join(f"`{commit}`" for commit in unique(table, "commit"))
    without = table.loc[table["commit"].isna(), "key"].nunique() if runs and commits else 0
    commits += f"; {without} run{'' if without == 1 else 's'} of no known commit" if without else ""
    machines = " and ".join(unique(table, "processor")) or "an unknown processor"
    backends = " and ".join(unique(table, "backend"))
    return (
        f"{count}{when}, version {versions}{f' ({commits})' if commits else ''}, PyTorch"
        f" {' and '.join(unique(table, 'torch')) or '?'}{f', backend {backends}' if backends else ''}, on {machines}"
    )


def unique(table: "pd.DataFrame", name: str, show: Callable[[str], str] = str) -> list[str]:
    """The values of a column as sorted text, none if there is no such column."""
    values: Iterable[Any] = table[name].dropna().unique() if name in table else ()
    return sorted({show(str(value)) for value in values})
