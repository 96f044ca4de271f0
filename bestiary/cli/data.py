"""Verbs that give out data: export writes a file, sql answers a query over the store."""

import glob
import re
import uuid
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.cli._app import (
    Known,
    Only,
    OptionalExperiment,
    Overwrite,
    Scale,
    ScaleOption,
    StoreFolder,
    With,
    app,
    choose_mixers,
    existing_store,
    known_results,
    load_experiment,
    load_with_recipes,
    recipes_of,
    refuse,
    split_by_facet,
    user_input,
    warn_damaged,
)
from bestiary.cli._measuring import measure_rows

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

    from bestiary.runs.store import Store

OutputFile = Annotated[
    Path, typer.Option("--to", help="The file to write, .csv or .parquet; a former table is replaced.")
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
create {kind} log as select {key} as key, * exclude (filename, further, extra), coalesce(extra, further) as extra
from read_json({files}, filename = true,
format = 'newline_delimited', ignore_errors = true, columns = {{{columns}}})
where split is not null and not contains(key, '.')"""  # a line cut off is read as a row of NULLs
NO_LOG = """
create {kind} log as select null::VARCHAR as key, {columns} where false"""
RUNS = """
create {kind} runs as select key, {fields}, origin->>'$.commit' as commit, origin->>'$.versions.torch' as torch,
origin->>'$.host.name' as host, origin->>'$.device' as device,
coalesce(try_cast(origin->>'$.together' as BIGINT), 1) as together,
try_cast(origin->>'$.begun' as TIMESTAMP) as begun,
ended->>'$.outcome' as outcome, try_cast(ended->>'$.seconds' as DOUBLE) as seconds, recipe
from (select key, {files} from (select {key} as key, parse_path(filename)[-1] as file, content from read_text({read}))
where not contains(key, '.') group by key)"""
KEY = "parse_path(filename)[-2]"
LOCK = """
set python_enable_replacements = false; set enable_external_access = false; set lock_configuration = true"""
OURS = (  # columns by which a table is known to be one of `export`
    {"key", "task", "segment", "right", "asked", "accuracy", "outcome"},
    {"key", "step", "split", "segment", "facet", "value"},
    {"begun", "commit", "version", "torch", "python", "processor"},  # of an experiment that measures by itself
)


@app.command()
def export(
    to: OutputFile,
    experiment: OptionalExperiment = "",
    scale: ScaleOption = Scale.small,
    log: Annotated[bool, typer.Option("--log", help="Every measurement in a row, not the results.")] = False,
    compact: Annotated[
        bool, typer.Option("--compact", help="Write what is equal in all rows once, in a comment before the table.")
    ] = False,
    added: With = None,
    only: Only = "",
    known: Known = None,
    store: StoreFolder = Path("runs"),
    overwrite: Overwrite = False,
) -> None:
    """Write the table of results to a file, one row for each finished run and test segment.

    The last columns say what made each run: time, commit, versions,
    processor, backend. With an experiment that reads its results by a facet,
    such as the distance, there is a row for each value of it. `plot --from`
    reads the file of an experiment.

    A table that was exported before is replaced, any other file only with --overwrite.
    With --known it goes on from such a table: its runs are written too.
    An experiment that measures by itself is measured for the file.

    With --log: one row for each measurement, of runs under way too.
    Columns: key, step, split (train, selection or test), segment, facet
    and value ("" and 0 for all answers), loss (nats), right, asked.
    """
    from bestiary.runs.exports import add_known, add_origins
    from bestiary.runs.table import results

    with user_input():
        check_writable(to, compact=compact)
        if (added or only) and not experiment:
            raise ValueError("--with and --only choose mixers of an experiment, and none is named")
        found = (load_with_recipes if log else load_experiment)(experiment) if experiment else None
        module = None if found is None else choose_mixers(found, added, only)
        before = known_results(known, None if log else module)
    if module is not None and hasattr(module, "measure"):
        export_measured(module, scale, to, before, compact=compact, overwrite=overwrite)
        return
    with user_input():
        runs = existing_store(store)
        keys = runs.run_keys() if module is None else [made.key for made in recipes_of(module, scale, runs, before)]
    table, damaged = measurement_table(runs, keys) if log else results(runs, keys)
    warn_damaged(damaged)
    with user_input():
        if not log:
            table = table if module is None else split_by_facet(module, table, store)
            table = add_known(table if table.empty else add_origins(table, runs), before, keys)
        if table.empty:
            asked = f"of {experiment} {scale} " if experiment else ""
            there = f"{store} or {known}" if known else store
            refuse(f"no run {asked}is {'begun' if log else 'done'} in {there}")
        check_replaceable(to, list(table), overwrite=overwrite)
        write_table(table, to, compact=compact)
    say_written(table, to)
    if damaged:
        raise typer.Exit(1)


def say_written(table: "pd.DataFrame", file: Path) -> None:
    """Print how many rows, and of how many runs, were written to a file."""
    from bestiary.report.words import count_noun

    runs = f" of {count_noun(table['key'].nunique(), 'run')}" if "key" in table else ""
    typer.echo(f"{file}: {count_noun(len(table), 'row')}{runs}")


def export_measured(
    experiment: ModuleType, scale: str, to: Path, known: "pd.DataFrame | None", *, compact: bool, overwrite: bool
) -> None:
    """Write the rows of an experiment that measures by itself, on one thread."""
    from bestiary.runs.exports import add_this_machine

    with user_input():
        check_replaceable(to, [], overwrite=overwrite)  # before it takes hours
    table = add_this_machine(measure_rows(experiment, scale, 1, known))
    with user_input():
        write_table(table, to, compact=compact)
    say_written(table, to)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help='As in: "select pattern, avg(accuracy) from results group by all".')],
    store: StoreFolder = Path("runs"),
    to: Annotated[Path | None, typer.Option("--to", help="Write a .csv or .parquet file instead of printing.")] = None,
    overwrite: Overwrite = False,
    allow_files: Annotated[
        bool, typer.Option("--allow-files", help="Let the query read and write files, as DuckDB can.")
    ] = False,
) -> None:
    """Ask the store in SQL, by DuckDB. There are three tables.

    A query cannot read or write any file, unless --allow-files is given.

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
    from bestiary.report.words import count_noun
    from bestiary.runs.exports import to_plain_columns

    with user_input():
        if to is not None:
            check_writable(to)
        connection = connect_duckdb()
        runs = existing_store(store)
    if not runs.run_keys():
        refuse(f"no runs in {store}")
    answer = run_query(connection, query, runs, allow_files=allow_files)
    if to is None:
        print_table(to_plain_columns(answer))
        return
    with user_input():
        check_replaceable(to, list(answer), overwrite=overwrite)
        write_table(answer, to)
    typer.echo(f"{to}: {count_noun(len(answer), 'row')}")


def run_query(
    connection: "duckdb.DuckDBPyConnection", query: str, store: "Store", *, allow_files: bool = False
) -> "pd.DataFrame":
    """The answer to a query over a store. What the query names is loaded first; then files are out of its reach."""
    import duckdb

    from bestiary.runs.exports import to_plain_columns
    from bestiary.runs.table import damaged_runs, results

    named, keys = set(re.findall(r"\w+", query.casefold())), store.run_keys()
    damaged = damaged_runs(store, keys)
    warn_damaged(list(damaged.values()))
    whole = [key for key in keys if key not in damaged] if damaged else ["*"]
    create_tables(connection, store.folder, whole, loaded=set() if allow_files else named)
    if "results" in named:  # the one table that is made here, from every log
        table, _ = results(store, keys)
        if table.empty:
            refuse(f"no run is done in {store.folder}, so there are no results; `log` and `runs` have what was begun")
        connection.register("results", to_plain_columns(table))
    try:
        if not allow_files:
            connection.execute(LOCK)
        answer = connection.execute(query)
        if answer is None:
            refuse("the query is empty; write one, as in: bestiary sql 'select count(*) from runs'")
        return answer.df()
    except duckdb.Error as fault:
        hint = "; --allow-files permits it" if isinstance(fault, duckdb.PermissionException) else ""
        refuse(" ".join(str(fault).partition("\n\nLINE ")[0].split()) + hint)


def create_tables(
    connection: "duckdb.DuckDBPyConnection", folder: Path, keys: Sequence[str], *, loaded: Container[str]
) -> None:
    """Define `log` and `runs` over runs of a store (["*"] is all): as tables if loaded, else as views of files."""
    from bestiary.training.recipe import SPECS, Recipe

    relation = {name: "table" if name in loaded else "view" for name in ("log", "runs")}
    columns = MEASURED | {"extra": "JSON", "further": "JSON"}  # "further" in logs before 0.2
    if files := file_literals(folder, keys, "log.jsonl"):
        column_types = ", ".join(f"\"{name}\": '{kind}'" for name, kind in columns.items())
        connection.execute(LOG.format(kind=relation["log"], key=KEY, files=files, columns=column_types))
    else:
        columns.pop("further")
        empty = ", ".join(f'null::{kind} as "{name}"' for name, kind in columns.items())
        connection.execute(NO_LOG.format(kind=relation["log"], columns=empty))
    kinds = {int: "BIGINT", float: "DOUBLE"}
    fields = [
        f"array_to_string(recipe->>'$.{name}[*].text', ', ') as \"{name}\""
        if name in SPECS
        else f"try_cast(recipe->>'$.{name}' as {kinds.get(type(field.default), 'VARCHAR')}) as \"{name}\""
        for name, field in Recipe.model_fields.items()
    ]
    files = {"recipe": "recipe.json", "origin": "origin.json", "ended": "done"}
    contents = [f"try_cast(max(content) filter (file = '{file}') as JSON) as {name}" for name, file in files.items()]
    read = file_literals(folder, keys, *files.values())
    if not read:
        refuse(f"no run in {folder} can be read")
    connection.execute(
        RUNS.format(kind=relation["runs"], key=KEY, fields=", ".join(fields), files=", ".join(contents), read=read)
    )


def file_literals(folder: Path, keys: Sequence[str], *files: str) -> str:
    """The files of these runs that exist, as a list of globs that DuckDB reads; "" if there are none."""
    escaped, places = glob.escape(str(folder)), [(key, file) for key in keys for file in files]
    found = [f"{escaped}/{key}/{file}" for key, file in places if next(folder.glob(f"{key}/{file}"), None)]
    literals = ", ".join("'" + path.replace("'", "''") + "'" for path in found)
    return literals and f"[{literals}]"


def measurement_table(store: "Store", keys: Iterable[str]) -> "tuple[pd.DataFrame, list[str]]":
    """One row for each measurement, and a line about each run that cannot be read; runs on text have no answers."""
    import pandas as pd

    from bestiary.runs.store import DamagedRun, damaged_run
    from bestiary.runs.table import is_on_text

    rows, damaged, begun = [], [], set(store.run_keys())
    for key in [key for key in keys if key in begun]:
        try:
            record = store.read(key)
            missing = dict.fromkeys(MEASURED) if is_on_text(record) else {}
            rows += [(key, *((missing | line)[name] for name in MEASURED)) for line in record.log]
        except DamagedRun as fault:
            damaged.append(str(fault))
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as fault:
            damaged.append(str(damaged_run(store.folder / key, fault)))
    return pd.DataFrame(rows, columns=["key", *MEASURED]), damaged


def check_writable(file: Path, *, compact: bool = False) -> None:
    """Raise ValueError for a file of an unknown kind, ImportError if writing it needs what is not installed."""
    if compact and file.suffix != ".csv":
        raise ValueError("--compact is for .csv files; Parquet is compact by itself")
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{str(file)!r} is no file that can be written here; its name must end in .csv or .parquet")
    if file.suffix == ".parquet":
        connect_duckdb()


def check_replaceable(file: Path, columns: Sequence[str], *, overwrite: bool) -> None:
    """Raise ValueError if a file exists that is no table of ours: one with other columns than those to be written."""
    if overwrite or not file.exists() or (file.is_file() and file.stat().st_size == 0):
        return
    if file.is_dir():
        raise ValueError(f"{str(file)!r} is a folder, where a file is to be written")
    found = table_columns(file)
    if set(found) != set(map(str, columns)) and not any(ours <= set(found) for ours in OURS):
        raise ValueError(f"{str(file)!r} exists and is no table of this kind; give another name, or --overwrite")


def write_summary(shown: "pd.DataFrame", file: Path) -> None:
    """Write the table that an experiment shows. Raises ValueError where it would replace the runs it is made from."""
    columns = set(table_columns(file)) if file.exists() else set()
    if any(ours <= columns for ours in OURS):
        raise ValueError(f"{str(file)!r} holds the results of runs; give the table another folder: --figures FOLDER")
    file.parent.mkdir(parents=True, exist_ok=True)
    shown.to_csv(file, index=False)


def table_columns(file: Path) -> list[str]:
    """The names of the columns of a CSV or Parquet file, none if it is neither."""
    import csv
    from itertools import islice

    from bestiary.runs.exports import equal_values

    try:
        if file.suffix == ".parquet":
            empty = connect_duckdb().execute("select * from read_parquet(?) limit 0", [str(file)])
            return [str(column[0]) for column in empty.description or ()]
        equal = equal_values(file)
        with file.open(newline="") as text:
            lines = list(islice(csv.reader(text), 2))
        return lines[0] if equal is None else [*lines[1], *equal]
    except Exception:  # whatever it is, it is not ours
        return []


def write_table(table: "pd.DataFrame", file: Path, *, compact: bool = False) -> None:
    """Write a table as CSV or Parquet, by the name of the file; the file appears whole or not at all.

    A compact CSV has a first line with the values that are equal in all rows.
    """
    from bestiary.runs.exports import compact_csv, to_plain_columns

    beside = file.with_name(f".{uuid.uuid4().hex}-{file.name}")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        if compact:
            beside.write_text(compact_csv(table), encoding="utf-8")
        elif file.suffix == ".csv":
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
