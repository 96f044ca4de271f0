"""Export and SQL: the numbers in a file or a query are those in the store, and a mistake is one line."""

import math
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from bestiary.cli import app
from bestiary.runs.exports import ORIGIN
from bestiary.runs.store import Store
from bestiary.runs.table import results
from bestiary.training.recipe import Recipe, clean

NEEDS_DUCKDB = pytest.mark.skipif(find_spec("duckdb") is None, reason="duckdb is not installed")
SUFFIXES = ["csv", pytest.param("parquet", marks=NEEDS_DUCKDB)]
TASK = "mqar(vocab=20, length=12, pairs=2), mqar(vocab=20, length=16, pairs=3)"


def line(step: int, split: str, *, segment: int = 0, right: int = 0, loss: float = 10.0) -> dict[str, Any]:
    sums = {"loss": loss, "right": right, "asked": 100, "extra": {"rows": 50, "whole": 5} if segment >= 0 else {}}
    return {"step": step, "split": split, "segment": segment, "facet": "", "value": 0, **sums}


def add_run(store: Store, seed: int, *, ends: bool = True, loss: float = 10.0, dim: int = 8) -> Recipe:
    """A run in the store, as training would have left it."""
    recipe = clean("base_conv, attention", train=TASK, dim=dim, seed=seed)
    run = store.claim(recipe)
    assert run is not None
    with run:
        run.append(line(25, "train", segment=-1, loss=loss))
        for segment in range(2):
            run.append(line(25, "selection", segment=segment, right=60 + seed))
        if ends:
            for segment in range(2):
                run.append(line(25, "test", segment=segment, right=50 + 10 * segment + seed))
            run.end("finished")
    return recipe


def run_cli(*arguments: str, status: int = 0) -> str:
    """What a verb prints; its one line on the error stream if it fails."""
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == status, (done.output, done.exception)
    if status:
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("bestiary: ")
    return done.stderr if status else done.stdout


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "the store's [runs]")  # a name that SQL and globs could stumble over
    for seed in range(3):
        add_run(store, seed)
    add_run(store, 3, ends=False)
    return store


def query(store: Store, query: str) -> pd.DataFrame:
    file = store.folder.parent / "answer.csv"
    run_cli("sql", query, "--store", str(store.folder), "--to", str(file), "--overwrite")
    return pd.read_csv(file)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_export_is_the_table_of_results(store: Store, suffix: str) -> None:
    file = store.folder.parent / "new" / f"results.{suffix}"
    run_cli("export", "--store", str(store.folder), "--to", str(file))
    read = pd.read_csv(file) if suffix == "csv" else parquet(file)
    table, _ = results(store, store.run_keys())
    assert len(read) == len(table) == 6
    assert list(read.columns) == [*table.columns, *ORIGIN]
    for name in ("accuracy", "loss", "whole", "selection", "right", "seed", "pairs", "seconds"):
        assert read[name].tolist() == pytest.approx(table[name].tolist(), abs=1e-12)
    assert read["key"].tolist() == table["key"].tolist()
    assert [place.name for place in file.parent.iterdir()] == [file.name]


def parquet(file: Path) -> pd.DataFrame:
    duckdb = pytest.importorskip("duckdb")
    return duckdb.connect().execute("select * from read_parquet(?)", [str(file)]).df()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_exported_log_has_every_measurement(store: Store, suffix: str) -> None:
    file = store.folder.parent / f"log.{suffix}"
    run_cli("export", "--log", "--store", str(store.folder), "--to", str(file))
    read = pd.read_csv(file, keep_default_na=False) if suffix == "csv" else parquet(file)
    lines = [{"key": key, **line} for key in store.run_keys() for line in store.read(key).log]
    assert list(read.columns) == ["key", "step", "split", "segment", "facet", "value", "loss", "right", "asked"]
    assert read.to_dict("records") == [{name: line[name] for name in read.columns} for line in lines]


def test_an_experiment_is_exported_alone(store: Store, tmp_path: Path) -> None:
    question = tmp_path / "question.py"
    question.write_text(
        '"""Does it?"""\n'
        "from bestiary.experiments.figure2 import figures, summary\n"
        "from bestiary.training.recipe import clean\n"
        "def recipes(scale):\n"
        f'    yield clean("base_conv, attention", train="{TASK}", dim=8, seed=1)\n'
    )
    file = tmp_path / "one.csv"
    run_cli("export", str(question), "--store", str(store.folder), "--to", str(file))
    assert pd.read_csv(file)["seed"].tolist() == [1, 1]


def test_a_failed_write_leaves_the_former_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    file = store.folder.parent / "results.csv"
    run_cli("export", "--store", str(store.folder), "--to", str(file))
    before = file.read_text()

    def broken(_: pd.DataFrame, place: Path, *, index: bool) -> None:  # noqa: ARG001
        place.write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(pd.DataFrame, "to_csv", broken)
    assert "no space left" in run_cli("export", "--store", str(store.folder), "--to", str(file), status=2)
    assert file.read_text() == before
    assert sorted(place.name for place in file.parent.iterdir()) == [file.name, store.folder.name]


def test_sql_finds_the_results(store: Store) -> None:
    pytest.importorskip("duckdb")
    found = query(
        store, "select segment, pairs, avg(accuracy) as a, count(*) as n from results group by all order by 1"
    )
    assert found["a"].tolist() == pytest.approx([0.51, 0.61], abs=1e-12)
    assert found["n"].tolist() == [3, 3]
    assert found["pairs"].tolist() == [2, 3]


def test_sql_reads_the_log_without_a_line_that_was_cut_off(store: Store) -> None:
    pytest.importorskip("duckdb")
    count = 'select count(*) as n, sum("right") as r, sum(extra.rows::int) as rows from log'
    before = query(store, count)
    at_work = next(key for key in store.run_keys() if store.read(key).ended is None)
    log = store.folder / at_work / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 50, "split": "tra')
    pd.testing.assert_frame_equal(query(store, count), before)
    assert before["n"].tolist() == [3 * 5 + 3]
    assert before["r"].tolist() == [sum(2 * (60 + s) for s in range(4)) + sum(110 + 2 * s for s in range(3))]
    assert before["rows"].tolist() == [50 * (3 * 4 + 2)]


def test_sql_reads_a_loss_that_is_no_number(store: Store) -> None:
    pytest.importorskip("duckdb")
    recipe = add_run(store, 9, ends=False, loss=math.nan)
    found = query(store, f"select isnan(loss) as nan from log where key = '{recipe.key}' and split = 'train'")
    assert found["nan"].tolist() == [True]


def test_sql_knows_of_every_run_begun_how_it_was_made_and_how_it_ended(store: Store) -> None:
    pytest.importorskip("duckdb")
    found = query(store, "select * from runs order by seed")
    recipe = clean("base_conv, attention", train=TASK, dim=8, seed=0)
    first, last = found.iloc[0], found.iloc[3]
    assert found["seed"].tolist() == [0, 1, 2, 3]
    assert first["key"] == recipe.key
    assert (first["pattern"], first["dim"], first["rate"]) == ("base_conv, attention", 8, recipe.rate)
    assert first["train"] == ", ".join(part["text"] for part in recipe.json()["train"])
    assert first["outcome"] == "finished"
    assert first["seconds"] >= 0
    assert first["torch"].startswith("2.")
    assert pd.Timestamp(first["begun"]).year >= 2025
    assert pd.isna(last["outcome"])
    assert not found[["host", "begun", "test"]].isna().any().any()


def test_every_field_of_a_recipe_is_a_column_of_runs(store: Store) -> None:
    pytest.importorskip("duckdb")
    assert set(Recipe.model_fields) < set(query(store, "select * from runs").columns)


def test_runs_set_aside_or_damaged_do_not_stop_a_query(store: Store) -> None:
    pytest.importorskip("duckdb")
    one, other, *_ = store.run_keys()
    (store.folder / one).rename(store.folder / f"{one}.damaged")
    (store.folder / other / "recipe.json").write_text('{"train": [')
    found = query(store, "select key, dim from runs")
    assert set(found["key"]) == set(store.run_keys()) - {other}
    assert found["dim"].notna().all()
    done = CliRunner().invoke(app, ["sql", "select seed from results", "--store", str(store.folder)])
    assert (done.exit_code, done.stderr.count("\n")) == (0, 1)
    assert f"{other} cannot be read" in done.stderr
    assert query(store, f"select count(*) as n from log where key like '{one}%'")["n"].tolist() == [0]


def test_a_store_whose_first_run_was_only_begun_can_be_asked(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    store = Store(tmp_path / "runs")
    recipe = add_run(store, 0, ends=False)
    (store.folder / recipe.key / "log.jsonl").unlink()
    assert query(store, "select seed, outcome from runs")["seed"].tolist() == [0]
    assert query(store, "select * from log").empty
    message = run_cli("sql", "select * from results", "--store", str(store.folder), status=2)
    assert "no run is done" in message


def test_an_answer_is_printed_whatever_is_in_it(store: Store) -> None:
    pytest.importorskip("duckdb")
    query = "select [1, 2] as a, {'x': 1} as b, null as c, true as d, begun, \"distinct\", recipe, 1 as a from runs"
    printed = run_cli("sql", query, "--store", str(store.folder))
    assert "[1, 2]" in printed
    assert '{"x": 1}' in printed


FILES = ("select * from read_text('secret.txt')", "copy (select 1) to 'made.csv'", "attach 'made.db'")


def test_a_query_reaches_no_file_unless_files_are_allowed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("duckdb")
    monkeypatch.chdir(tmp_path)
    Path("secret.txt").write_text("the secret")
    for statement in FILES:
        message = run_cli("sql", statement, "--store", str(store.folder), status=2)
        assert "file system operations are disabled" in message
        assert "--allow-files permits it" in message
    for statement in ("set enable_external_access = true", "select * from table_of_python", "install httpfs"):
        run_cli("sql", statement, "--store", str(store.folder), status=2)
    assert not list(tmp_path.glob("made*"))
    assert "the secret" in run_cli("sql", FILES[0], "--allow-files", "--store", str(store.folder))
    run_cli("sql", FILES[1], "--allow-files", "--store", str(store.folder))
    assert Path("made.csv").read_text() == "1\n1\n"
    assert query(store, "select count(*) as n from log join runs using (key) join results using (key)")["n"][0] > 0


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_a_table_replaces_a_table_of_its_kind_and_nothing_else(store: Store, name: str, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    file, given = tmp_path / name, ["--store", str(store.folder)]
    pd.DataFrame({"mine": [1.5]}).to_csv(file, index=False)
    before = file.read_bytes()
    for arguments in (["export"], ["export", "--log"], ["sql", "select 1 as a"]):
        assert f"{str(file)!r} exists and is no table of this kind" in run_cli(
            *arguments, "--to", str(file), *given, status=2
        )
        assert file.read_bytes() == before
    run_cli("export", "--to", str(file), "--overwrite", *given)
    add_run(store, 7, dim=16)
    for arguments in (["export"], ["export", "--log"], ["export"]):
        run_cli(*arguments, "--to", str(file), *given)
    file.unlink()
    for _ in range(2):
        assert run_cli("sql", "select 1 as a", "--to", str(file), *given) == f"{file}: 1 row\n"
    assert run_cli("sql", "select 1 as b", "--to", str(file), *given, status=2)


def test_a_damaged_run_is_named_by_export_sql_and_show_and_the_others_go_on(store: Store, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    key = clean("base_conv, attention", train=TASK, dim=8, seed=0).key
    log = store.folder / key / "log.jsonl"
    log.write_text(log.read_text().replace('"right"', '"left"'))
    place, given = str(store.folder / key), ["--store", str(store.folder)]
    named = f"mv {shlex.quote(place)} {shlex.quote(f'{place}.damaged')}"
    for arguments, others in ((["export"], 2), (["export", "--log"], 3)):
        assert named in run_cli(*arguments, "--to", str(tmp_path / "a.csv"), *given, status=1)
        assert pd.read_csv(tmp_path / "a.csv")["key"].nunique() == others
    for table in ("results", "log", "runs"):
        done = CliRunner().invoke(app, ["sql", f"select count(*) as n from {table}", *given])
        assert (done.exit_code, done.stderr.count("\n")) == (0, 1)
        assert named in done.stderr
    (store.folder / key / "origin.json").write_text("{")
    assert named in run_cli("show", key, *given, status=2)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("selec 1", "syntax error at or near"),
        ("select dimm from runs", 'Referenced column "dimm" not found'),
        ("select * from result", "Table with name result does not exist"),
        ("select log.right / 'x' from log", "Could not convert string 'x'"),
        ("", "the query is empty; write one"),
        ("/* nothing */", "the query is empty; write one"),
    ],
)
def test_a_wrong_query_is_one_line(store: Store, query: str, message: str) -> None:
    pytest.importorskip("duckdb")
    assert message in run_cli("sql", query, "--store", str(store.folder), status=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "--to", "results.xlsx"], "must end in .csv or .parquet"),
        (["sql", "select 1", "--to", "answer"], "must end in .csv or .parquet"),
        (["export", "--to", "x.csv", "--store", "none"], "the store none does not exist"),
        (["sql", "", "--store", "tests"], "no runs in tests"),
        (["export", "figure3", "--to", "x.csv"], "did you mean 'figure2'"),
        (["sql", "select 1", "--store", "none"], "the store none does not exist"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], message: str) -> None:
    pytest.importorskip("duckdb")
    assert message in run_cli(*arguments, status=2)


@pytest.mark.parametrize("arguments", [["sql", "select 1"], ["export", "--to", "results.parquet"]])
def test_without_duckdb_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert "pip install 'bestiary[analysis]'" in run_cli(*arguments, status=2)
