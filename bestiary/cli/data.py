"""Verbs that give out data: export writes a file, sql answers a query over the store."""

import glob
import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bestiary.cli._app import (
    Scale,
    ScaleOption,
    StoreFolder,
    app,
    load_with_recipes,
    open_store,
    recipes_of,
    refuse,
    user_input,
    warn_damaged,
)

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

    from bestiary.runs.store import Store

OutputFile = Annotated[
    Path, typer.Option("--to", help="The file to write, .csv or .parquet; a former one is replaced.")
]
SUFFIXES = (".csv", ".parquet")
MEASURED = {
    "step": "BIGINT",
    "split": "VARCHAR",
    "segment": "BIGINT",
    "facet": "VARCHAR",
    "value": "BIGINT",
    "loss": "DOUBLE",
    "right": "BIGINT",
    "asked": "BIGINT",
}
LOG = """
create view log as select {key} as key, * exclude (filename, further, extra), coalesce(extra, further) as extra
from read_json({files}, filename = true,
format = 'newline_delimited', ignore_errors = true, columns = {{{columns}}})
where split is not null and not contains(key, '.')"""  # a line cut off is read as a row of NULLs
NO_LOG = """
create view log as select null::VARCHAR as key, {columns} where false"""
RUNS = """
create view runs as select key, {fields}, origin->>'$.commit' as commit, origin->>'$.versions.torch' as torch,
origin->>'$.host.name' as host, origin->>'$.device' as device,
coalesce(try_cast(origin->>'$.together' as BIGINT), 1) as together,
try_cast(origin->>'$.begun' as TIMESTAMP) as begun,
ended->>'$.outcome' as outcome, try_cast(ended->>'$.seconds' as DOUBLE) as seconds, recipe
from (select key, {files} from (select {key} as key, parse_path(filename)[-1] as file, content from read_text({read}))
where not contains(key, '.') group by key)"""
KEY = "parse_path(filename)[-2]"


@app.command()
def export(
    to: OutputFile,
    experiment: Annotated[str, typer.Argument(help="An experiment; every run in the store if left out.")] = "",
    scale: ScaleOption = Scale.small,
    log: Annotated[bool, typer.Option("--log", help="Every measurement in a row, not the results.")] = False,
    store: StoreFolder = Path("runs"),
) -> None:
    """Write the table of results to a file, one row for each finished run and test segment.

    With --log: one row for each measurement, of runs under way too.
    Columns: key, step, split (train, selection or test), segment,
    facet and value ("" and 0 for all answers), loss (nats), right, asked.
    """
    from bestiary.runs.table import results

    with user_input():
        check_writable(to)
        runs = open_store(store)
        keys = runs.run_keys()
        if experiment:
            keys = [recipe.key for recipe in recipes_of(load_with_recipes(experiment), scale, runs)]
    table, damaged = measurement_table(runs, keys) if log else results(runs, keys)
    warn_damaged(damaged)
    if table.empty:
        what = "is begun" if log else "is done"
        refuse(f"no run {f'of {experiment} {scale} ' if experiment else ''}{what} in {store}")
    with user_input():
        write_table(table, to)
    typer.echo(f"{to}: {len(table)} rows of {table['key'].nunique()} runs")
    if damaged:
        raise typer.Exit(1)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help='As in: "select pattern, avg(accuracy) from results group by all".')],
    store: StoreFolder = Path("runs"),
    to: Annotated[Path | None, typer.Option("--to", help="Write a .csv or .parquet file instead of printing.")] = None,
) -> None:
    """Ask the store in SQL, by DuckDB. There are three tables.

    results: a row for each finished run and test segment.
    key, the recipe's fields, pattern, task, the task's options, segment,
    right, asked, accuracy, loss, whole, selection, solved, steps, seconds,
    outcome.

    log: a row for each measurement.
    key, step, split, segment, facet, value, loss, log.right, asked,
    extra (JSON).

    runs: a row for each run begun.
    key, the recipe's fields (tasks and mixers as text; "select" and
    "distinct" in quotes), commit, torch, host, device, begun (UTC),
    outcome and seconds (NULL until it ends), recipe (JSON).
    """
    from bestiary.cli.console import print_table

    with user_input():
        if to is not None:
            check_writable(to)
        connection = connect_duckdb()
    runs = open_store(store)
    if not runs.run_keys():
        refuse(f"no runs in {store}")
    answer = run_query(connection, query, runs)
    if to is None:
        print_table(to_plain_columns(answer))
        return
    with user_input():
        write_table(answer, to)
    typer.echo(f"{to}: {len(answer)} rows")


def run_query(connection: "duckdb.DuckDBPyConnection", query: str, store: "Store") -> "pd.DataFrame":
    """The answer to a query over a store."""
    import duckdb

    create_views(connection, store.folder)
    if "results" in query.casefold():  # the one table that is made here, from every log
        from bestiary.runs.table import results

        table, damaged = results(store, store.run_keys())
        warn_damaged(damaged)
        if table.empty:
            refuse(f"no run is done in {store.folder}, so there are no results; `log` and `runs` have what was begun")
        connection.register("results", to_plain_columns(table))
    try:
        return connection.execute(query).df()
    except duckdb.Error as fault:
        refuse(" ".join(str(fault).partition("\n\nLINE ")[0].split()))


def create_views(connection: "duckdb.DuckDBPyConnection", folder: Path) -> None:
    """Define the views `log` and `runs` over a store that has at least one run."""
    from bestiary.training.recipe import SPECS, Recipe

    columns = MEASURED | {"extra": "JSON", "further": "JSON"}  # "further" in logs before 0.2
    if any(folder.glob("*/log.jsonl")):
        column_types = ", ".join(f"\"{name}\": '{kind}'" for name, kind in columns.items())
        connection.execute(LOG.format(key=KEY, files=glob_literal(folder, "log.jsonl"), columns=column_types))
    else:
        columns.pop("further")
        connection.execute(
            NO_LOG.format(columns=", ".join(f'null::{kind} as "{name}"' for name, kind in columns.items()))
        )
    kinds = {int: "BIGINT", float: "DOUBLE"}
    fields = [
        f"array_to_string(recipe->>'$.{name}[*].text', ', ') as \"{name}\""
        if name in SPECS
        else f"try_cast(recipe->>'$.{name}' as {kinds.get(type(field.default), 'VARCHAR')}) as \"{name}\""
        for name, field in Recipe.model_fields.items()
    ]
    files = {"recipe": "recipe.json", "origin": "origin.json", "ended": "done"}
    contents = [f"try_cast(max(content) filter (file = '{file}') as JSON) as {name}" for name, file in files.items()]
    patterns = f"[{', '.join(glob_literal(folder, file) for file in files.values())}]"
    connection.execute(RUNS.format(key=KEY, fields=", ".join(fields), files=", ".join(contents), read=patterns))


def glob_literal(folder: Path, file: str) -> str:
    """The glob of a file of every run, as a string literal of DuckDB."""
    return "'" + f"{glob.escape(str(folder))}/*/{file}".replace("'", "''") + "'"


def measurement_table(store: "Store", keys: Iterable[str]) -> "tuple[pd.DataFrame, list[str]]":
    """One row for each measurement, and a line about each run that cannot be read."""
    import pandas as pd

    from bestiary.runs.store import DamagedRun

    rows, damaged, begun = [], [], set(store.run_keys())
    for key in keys:
        try:
            rows += [(key, *(line[name] for name in MEASURED)) for line in store.read(key).log] if key in begun else []
        except DamagedRun as fault:
            damaged.append(str(fault))
    return pd.DataFrame(rows, columns=["key", *MEASURED]), damaged


def to_plain_columns(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table with text in every column that holds neither numbers nor booleans; lists become JSON."""
    mixed = [name for name, column in table.items() if column.dtype == object]
    flags = [name for name in mixed if table[name].dropna().map(lambda value: isinstance(value, bool)).all()]
    return table.assign(**{name: table[name].map(cell_text) for name in mixed if name not in flags})


def cell_text(value: Any) -> Any:
    """A value as text, a list or dict as JSON, None for what is missing."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, default=str)
    return None if value is None or value != value else str(value)


def check_writable(file: Path) -> None:
    """Raise ValueError for a file of an unknown kind, ImportError if writing it needs what is not installed."""
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{str(file)!r} is no file that can be written here; its name must end in .csv or .parquet")
    if file.suffix == ".parquet":
        connect_duckdb()


def write_table(table: "pd.DataFrame", file: Path) -> None:
    """Write a table as CSV or Parquet, by the name of the file; the file appears whole or not at all."""
    beside = file.with_name(f".{uuid.uuid4().hex}-{file.name}")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        if file.suffix == ".csv":
            to_plain_columns(table).to_csv(beside, index=False)
        else:
            connect_duckdb().from_df(to_plain_columns(table)).write_parquet(str(beside))
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def connect_duckdb() -> "duckdb.DuckDBPyConnection":
    """A connection to an empty DuckDB in memory. Raises ImportError if it is not installed."""
    try:
        import duckdb
    except ImportError:
        raise ImportError("SQL and parquet need duckdb: pip install 'bestiary[analysis]'") from None
    return duckdb.connect()
