"""`bestiary status`: many runs told in a few lines."""

import json
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from small_text import small_recipe
from typer.testing import CliRunner

from bestiary.cli import app
from bestiary.runs.index import cached_parts
from bestiary.runs.store import Store
from bestiary.runs.table import parts_with_report
from bestiary.training.recipe import Recipe, clean
from tests.fake_runs import add_finished_run, fill_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return fill_store(Store(tmp_path_factory.mktemp("made") / "runs"), 4)


def status_lines(store: Store, *options: str, status: int = 0) -> list[str]:
    done = CliRunner().invoke(app, ["status", "--store", str(store.folder), *options])
    assert done.exit_code == status, done.output
    return done.output.splitlines()


def test_only_runs_that_are_not_done_have_a_line(store: Store) -> None:
    lines = status_lines(store)
    assert set(lines[-1].split(", ")) == {"3 finished", "1 diverged", "1 failed", "1 interrupted"}
    assert [line.split()[:3] for line in lines if "dim=5" in line] == [["interrupted", "attention", "dim=5"]]
    assert not [line for line in lines if "dim=8" in line]


def test_with_all_every_run_has_a_line(store: Store) -> None:
    lines = status_lines(store, "--all")
    assert sum("dim=8" in line for line in lines) == 4
    assert {clean("attention", dim=8).key, clean("attention", dim=5).key} <= {line.split()[-1] for line in lines}
    (diverged,) = [" ".join(line.split()) for line in lines if line.startswith("diverged")]
    assert diverged.startswith("diverged attention dim=8 rate=0.003 seed=3 step 2 selection 1.000 ")


def test_runs_that_failed_alike_are_shown_once_with_their_traceback_and_count(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add_finished_run(store, clean("attention", dim=8))
    for seed, fault in enumerate([ValueError("once only"), *[ZeroDivisionError("seven times")] * 7]):
        run = store.claim(clean("attention", dim=3, seed=seed))
        assert run is not None
        with pytest.raises(type(fault)), run:
            raise fault
    lines = status_lines(store)
    assert lines[0] == "failed 7 times: ZeroDivisionError: seven times"
    assert "failed once: ValueError: once only" in lines
    assert sum("Traceback" in line for line in lines) == 2
    assert sum("dim=3" in line for line in lines) == 6
    assert "  and 2 more; --all lists every run" in lines
    assert set(lines[-1].split(", ")) == {"1 finished", "8 failed"}
    assert sum("dim=3" in line for line in status_lines(store, "--all")) == 8


def test_a_run_that_cannot_be_read_is_named_and_the_rest_is_counted(tmp_path: Path) -> None:
    store = fill_store(Store(tmp_path / "runs"), 2)
    assert status_lines(store)[-1].count(",") == 3
    key = clean("attention", dim=8).key
    (store.folder / key / "recipe.json").write_text(json.dumps({}))
    done = status_lines(store, status=1)
    assert done[-1].endswith(f"set it aside with: mv {store.folder / key} {store.folder / key}.damaged")
    assert done[-2].count(",") == 2


def test_runs_on_text_are_told_and_not_called_damaged(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    for seed in (0, 1):
        run = store.claim(cast(Recipe, small_recipe(seed=seed)))
        assert run is not None
        with run:
            for split in ("train", "selection", "test"):
                run.append({"step": 20, "split": split, "loss": 2.5, "targets": 60, "tokens": 1280})
            if seed == 0:
                run.end("finished")
    done, open_one = (small_recipe(seed=seed).key for seed in (0, 1))
    lines = status_lines(store)
    said = "interrupted  attention(heads=2)  dim=16  rate=0.01  seed=1  step 20"
    assert lines[0].split() == [*said.split(), open_one]
    assert [sorted(line.split(", ")) for line in lines[1:]] == [["1 finished", "1 interrupted"]]
    shown = CliRunner().invoke(app, ["show", done, "--store", str(store.folder)])
    assert shown.exit_code == 0
    assert "  test: 2.5000 nats a token, 60 tokens" in shown.output
    table = tmp_path / "log.csv"
    assert not CliRunner().invoke(app, ["export", "--log", "--store", str(store.folder), "--to", str(table)]).exit_code
    assert len(table.read_text().splitlines()) == 7
    for part in ("segments", "report"):
        assert not any(cached_parts(store, [done], parts_with_report, part=part).values())


def test_a_folder_without_runs_says_so_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    assert status_lines(Store(tmp_path)) == [f"no runs in {tmp_path}"]
    (line,) = status_lines(Store(tmp_path / "typo"), status=2)
    assert line.startswith(f"bestiary: the store {tmp_path / 'typo'} does not exist; name the folder of the runs")


def test_to_say_how_runs_stand_imports_nothing_heavy(store: Store) -> None:
    heavy = "{'torch', 'pandas', 'numpy', 'matplotlib'}"
    code = f"import sys; from bestiary.cli import app\ntry: app(['status', '--store', {str(store.folder)!r}])\n"
    code += f"except SystemExit as end: assert not end.code\nassert not {heavy} & set(sys.modules)"
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
