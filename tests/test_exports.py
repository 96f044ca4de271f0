"""Results as files: what was exported reads back as it was, and an experiment's table and figures come of it alone."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from bestiary.cli import app
from bestiary.cli.data import write_table
from bestiary.experiments import distance, figure2, steps_to_solve
from bestiary.runs.exports import (
    ORIGIN,
    add_origins,
    add_this_machine,
    describe_origin,
    read_known,
    read_table,
    to_plain_columns,
)
from bestiary.runs.facets import by_facet
from bestiary.runs.store import Store
from bestiary.runs.table import results
from bestiary.spec import names, schema
from bestiary.training.recipe import Recipe, clean
from tests.fake_runs import LINE, add_finished_run
from tests.test_experiments import LARGE_ARE_SLOW, experiment, recipes, rows, with_facet


def run_cli(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == status, (done.output, done.exception)
    return done.output


@pytest.mark.parametrize("name", LARGE_ARE_SLOW)
def test_every_experiment_says_the_same_of_the_file_as_of_the_runs(name: str, tmp_path: Path) -> None:
    module, made, file = experiment(name), recipes(name, "small"), tmp_path / "x.csv"
    found = with_facet(name, pd.DataFrame([row for i, one in enumerate(made) for row in rows(one, 400 + i % 600)]))
    write_table(found, file, compact=False)
    plain = read_table(file)
    write_table(found, file, compact=True)
    read = read_table(file)
    assert set(read) == set(found) == set(plain)
    pd.testing.assert_frame_equal(read[list(plain)], plain, check_dtype=False)
    pd.testing.assert_frame_equal(module.summary(read), module.summary(found))
    drawn = [
        [(line.get_label(), *map(list, line.get_data())) for axis in figure.axes for line in axis.lines]
        + [(text.get_text(), text.get_position()) for axis in figure.axes for text in axis.texts]
        for table in (read, found)
        for _, figure in module.figures(table)
    ]
    half = len(drawn) // 2
    assert repr(drawn[:half]) == repr(drawn[half:])
    assert any(drawn)


def test_values_keep_their_types(tmp_path: Path) -> None:
    columns = {
        "key": ["12345e678901", "000000000012"],
        "betas": [[0.9, 0.999], [0.9, 0.95]],
        "distinct": [[], []],
        "stop": [0.1 + 0.2, None],
        "clip": [None, None],
        "curriculum": [True, False],
        "shuffle": ["none", "rows"],
        "seed": [1, 2],
        "mixed": [3, "many"],
        "solved": [float("nan"), 150.0],
    }
    table = pd.DataFrame(columns)
    for compact in (True, False):
        write_table(table, tmp_path / "x.csv", compact=compact)
        read = read_table(tmp_path / "x.csv")
        for name, values in columns.items():
            found = [value if value == value else None for value in read[name].tolist()]
            assert found == [value if value == value else None for value in values], name
        write_table(table.head(1), tmp_path / "x.csv", compact=compact)
        assert read_table(tmp_path / "x.csv")["key"].tolist() == columns["key"][:1]
        assert read["curriculum"].dtype == bool
        assert read["seed"].dtype == table["seed"].dtype


def test_a_compact_file_says_once_what_is_equal_and_skips_it_as_a_comment(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    for seed in range(2):
        add_finished_run(store, clean("attention", dim=8, seed=seed))
    for option in ("--compact", "--overwrite"):
        run_cli("export", "--store", str(store.folder), "--to", str(tmp_path / f"{option}.csv"), option)
    first, head, *lines = (tmp_path / "--compact.csv").read_text().splitlines()
    assert json.loads(first.partition(": ")[2])["depth"] == 2
    assert "dim" not in head.split(",")
    assert len(lines) == 2
    assert pd.read_csv(tmp_path / "--compact.csv", comment="#")["seed"].tolist() == [0, 1]
    compact, plain = (read_table(tmp_path / f"{option}.csv") for option in ("--compact", "--overwrite"))
    pd.testing.assert_frame_equal(compact[list(plain)], plain, check_dtype=False)
    again = run_cli("export", "--store", str(store.folder), "--to", str(tmp_path / "--compact.csv"))
    assert "2 rows of 2 runs" in again  # a table of ours, so it is replaced
    refused = run_cli(
        "export", "--compact", "--store", str(store.folder), "--to", str(tmp_path / "x.parquet"), status=2
    )
    assert "--compact is for .csv files" in refused


def test_an_export_says_what_made_each_run_and_not_on_which_host(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    for seed in range(2):
        add_finished_run(store, clean("attention", dim=8, seed=seed))
    origins = [json.loads((store.folder / key / "origin.json").read_text()) for key in store.run_keys()]
    file = tmp_path / "x.csv"
    run_cli("export", "--store", str(store.folder), "--to", str(file))
    read = read_table(file)
    for name in ("begun", "commit"):
        assert read[name].dropna().tolist() == [made[name] for made in origins if made[name]]
    assert read["version"].tolist() == [made["versions"]["bestiary"] for made in origins]
    assert read["processor"].tolist() == [made["host"]["processor"] for made in origins]
    assert not read.isin([origins[0]["host"]["name"]]).any().any()
    assert describe_origin(read).startswith(f"2 runs, begun {origins[0]['begun'][:10]}")
    assert origins[0]["host"]["processor"] in describe_origin(read)
    mixed = read.assign(commit=["abc", None])
    assert "(`abc`; 1 run of no known commit)" in describe_origin(mixed)


def test_no_field_or_option_is_called_like_a_column_of_the_origin() -> None:
    options = {name for task in names("tasks") for name in schema("tasks", task)}
    assert not (options | set(Recipe.model_fields)) & set(ORIGIN)


def figure2_store(folder: Path) -> Store:
    store = Store(folder)
    for i, recipe in enumerate(figure2.recipes("smoke")):
        add_finished_run(store, recipe, right=i % 3 % 2, outcome="diverged" if i == 4 else "finished")
    return store


def test_a_file_is_plotted_without_a_store_as_its_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = figure2_store(tmp_path / "runs")
    assert "12 rows of 12 runs" in run_cli(
        "export", "figure2", "--scale", "smoke", "--to", "figure2-smoke.csv", "--compact"
    )
    run_cli("plot", "figure2", "--scale", "smoke", "--figures", "stored")
    store.folder.rename("elsewhere")
    shown = run_cli("plot", "figure2", "--from", "figure2-smoke.csv")
    assert "12 runs, begun 20" in shown
    for choice in ("--only", "--with", "--known"):
        assert "do not go with it" in run_cli("plot", "figure2", "--from", "figure2-smoke.csv", choice, "x", status=2)
    for suffix in ("csv", "svg", "png"):
        name = f"figure2-smoke.{suffix}"
        assert (tmp_path / "figures" / name).read_bytes() == (tmp_path / "stored" / name).read_bytes()
    before = Path("figure2-smoke.csv").read_bytes()
    refused = run_cli("plot", "figure2", "--from", "figure2-smoke.csv", "--figures", ".", status=2)
    assert "'figure2-smoke.csv' holds the results of runs" in refused
    assert Path("figure2-smoke.csv").read_bytes() == before
    Path("figure2-smoke.csv").rename("figure2.v2-smoke.csv")
    run_cli("plot", "figure2", "--from", "figure2.v2-smoke.csv")
    assert {path.name for path in Path("figures").glob("figure2.*")} == {
        f"figure2.v2-smoke.{kind}" for kind in ("csv", "svg", "png")
    }


def test_what_is_no_file_of_results_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.csv").write_text("a,b\n1,2\n")
    Path("empty.csv").write_text("")
    Path("broken.csv").write_text("# equal in all rows: {\nkey\n1\n")
    Path("list.csv").write_text("# equal in all rows: [1]\nkey\n1\n")
    for name, said in {
        "absent.csv": "there is no file or folder 'absent.csv'",
        "other.csv": "no column of the results",
        "empty.csv": "No columns",
        "broken.csv": "Expecting property name",
        "list.csv": "its first line is no JSON object",
        "x.parquet": "is no .csv file",
    }.items():
        output = run_cli("plot", "figure2", "--from", name, status=2)
        assert said in output
        assert output.count("\n") == 1


def test_an_experiment_with_a_facet_is_exported_by_its_values(tmp_path: Path) -> None:
    store, file = Store(tmp_path / "runs"), tmp_path / "distance.csv"
    made = next(distance.recipes("smoke"))
    run = store.claim(made)
    assert run is not None
    with run:
        run.append(LINE | {"split": "selection"})
        run.append(LINE | {"asked": 30, "right": 20, "extra": {"rows": 7, "whole": 2}})
        for value in (2, 3, 9):
            run.append(LINE | {"facet": "distance", "value": value, "asked": 10, "right": 10 - value})
        run.end("finished")
    run_cli("export", "distance", "--scale", "smoke", "--store", str(store.folder), "--to", str(file))
    read = read_table(file)
    assert read["distance"].tolist() == [2, 3, 9]
    assert read["right"].tolist() == [8, 7, 1]
    stored, _ = by_facet(store, [made.key], "distance")
    pd.testing.assert_frame_equal(distance.summary(read), distance.summary(stored))


def test_an_experiment_that_measures_by_itself_is_measured_for_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second takes the place of the first
        assert "x-smoke.csv: 5 rows" in run_cli(
            "export", "degree", "--scale", "smoke", "--to", "x-smoke.csv", "--compact"
        )
    assert read_table(Path("x-smoke.csv"))["degree"].tolist() == [2, 4, 8, 3, 9]
    assert "base_conv" in run_cli("plot", "degree", "--from", "x-smoke.csv")
    assert Path("figures/x-smoke.png").exists()


def test_a_column_of_missing_values_is_a_column_of_numbers(tmp_path: Path) -> None:
    made = recipes("steps_to_solve", "small")[:3]
    table = pd.DataFrame([row for recipe in made for row in rows(recipe, 400)])
    write_table(table, tmp_path / "x.csv", compact=True)
    found = steps_to_solve.summary(read_table(tmp_path / "x.csv"))
    assert found["fewest"].dtype == float


def test_results_of_a_store_read_back_whole(tmp_path: Path) -> None:
    store = figure2_store(tmp_path / "runs")
    table = add_origins(results(store, store.run_keys())[0], store)
    for compact in (True, False):
        write_table(table, tmp_path / "x.csv", compact=compact)
        read = read_table(tmp_path / "x.csv")
        assert to_plain_columns(read[list(table)]).to_csv() == to_plain_columns(table).to_csv()


def test_rows_that_stand_twice_are_read_once(tmp_path: Path) -> None:
    store = figure2_store(tmp_path / "runs")
    table, file = results(store, store.run_keys())[0], tmp_path / "x.csv"
    split = pd.concat([table.assign(distance=value) for value in (1, 2)])  # rows of one run and segment by a facet
    for once in (table, split):
        write_table(pd.concat([once, once]), file, compact=True)
        assert len(read_table(file)) == len(read_known(file)) == len(once)
    measured = pd.DataFrame({"model": ["a", "a"], "loss": [0.5, 0.5]})  # no results of runs
    write_table(measured, file, compact=False)
    assert len(read_table(file)) == 2
    for compact in (True, False):
        write_table(table, file, compact=compact)
        file.write_text(file.read_text() + file.read_text())
        with pytest.raises(ValueError, match="two tables, one below the other|Expected"):
            read_table(file)


def test_numbers_are_read_to_the_last_bit_by_every_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, given, read_csv = [0.1 + 0.2, 1 / 3, 7.123456789012345e-9], [], pd.read_csv
    write_table(pd.DataFrame({"accuracy": values}), tmp_path / "x.csv", compact=False)
    assert read_table(tmp_path / "x.csv")["accuracy"].tolist() == values

    def read(*places: object, float_precision: str | None = None, **how: object) -> pd.DataFrame:
        given.append(float_precision)
        return read_csv(*places, **how)  # pyright: ignore[reportArgumentType, reportCallIssue]

    monkeypatch.setattr(pd, "read_csv", read)
    for version in ("2.2.0", "3.0.3", "3.1.0", "10.0.0.dev0"):
        monkeypatch.setattr(pd, "__version__", version)
        read_table(tmp_path / "x.csv")
    assert given == ["round_trip", "round_trip", None, None]


def test_rows_measured_before_keep_what_made_them() -> None:
    table = pd.DataFrame([{"key": "a", "begun": "long ago", "commit": "abc", "cores": 9}, {"key": "b"}])
    old, new = add_this_machine(table).to_dict("records")
    assert (old["begun"], old["commit"], old["cores"]) == ("long ago", "abc", 9)
    assert pd.isna(old["processor"])
    fresh = add_this_machine(pd.DataFrame([{"key": "b"}])).iloc[0]
    assert {name: value for name, value in new.items() if name != "begun"} == {
        name: value for name, value in fresh.items() if name != "begun"
    }


@pytest.mark.slow
def test_known_results_are_not_made_again_and_stand_beside_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = recipes("persistence", "smoke")
    part_known = len(first) + 4
    made = [recipe.model_copy(update={"seed": seed}) for seed in range(3) for recipe in first]
    for folder, part in {"all": made, "old": made[:part_known], "new": made[len(first) :]}.items():
        for recipe in part:
            add_finished_run(Store(folder), recipe, right=(recipe.seed + len(recipe.pattern[1].name)) % 3)
    how = "persistence", "--scale", "smoke"
    for folder, more in {"all": (), "old": (), "new": ("--known", "old.csv")}.items():
        run_cli("export", *how, "--store", folder, "--to", f"{folder}.csv", "--compact", *more)
    assert read_table(Path("old.csv"))["key"].nunique() == part_known
    whole, joined = (read_table(Path(f"{name}.csv")).sort_values(["key", "segment"]) for name in ("all", "new"))
    columns = ["key", "pattern", "segment", "accuracy", "rate", "seed", "processor", "commit"]
    pd.testing.assert_frame_equal(*(table[columns].reset_index(drop=True) for table in (whole, joined)))
    shown = [
        run_cli("plot", *how, "--store", "all", "--figures", "a"),
        run_cli("plot", *how, "--store", "new", "--known", "old.csv", "--figures", "a"),
        run_cli("run", *how, "--store", "empty", "--known", "all.csv", "--figures", "a"),
    ]
    assert shown[0] == shown[1]
    assert shown[0] in shown[2]
    assert "done already" not in shown[2]
    assert not Path("empty").exists()
    assert f"{len(first)} of {len(first)} runs known" in run_cli(
        "run", *how, "--store", "empty", "--known", "old.csv", "--dry-run"
    )


def test_what_is_not_known_of_an_experiment_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    figure2_store(tmp_path / "runs")
    Path("other.csv").write_text("a,b\n1,2\n")
    run_cli("export", "figure2", "--scale", "smoke", "--to", "figure2.csv")
    for said, *given in (
        ("holds no results of runs", "run", "figure2", "--known", "other.csv"),
        ("there is no file", "plot", "figure2", "--known", "absent.csv"),
        ("--known is for the results of an", "export", "--to", "x.csv", "--known", "figure2.csv"),
        ("--known is for the results of an", "export", "figure2", "--log", "--to", "x.csv", "--known", "figure2.csv"),
        ("cannot go on from results", "export", "degree", "--to", "x.csv", "--known", "figure2.csv"),
        ("degree measures by itself and cannot go on from results", "run", "degree", "--known", "figure2.csv"),
        ("is no table of this kind", "export", "degree", "--to", "other.csv"),  # before anything is measured
        (
            "no run of load small is done in runs or figure2.csv",
            "export",
            "load",
            "--known",
            "figure2.csv",
            "--to",
            "y.csv",
        ),
    ):
        output = run_cli(*given, status=2)
        assert said in output
        assert output.count("\n") == 1
