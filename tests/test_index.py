"""The index: answers are the same with it and without it, whatever happens to its file."""

import os
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bestiary.runs import index
from bestiary.runs.store import Store
from bestiary.runs.table import progress, results, run_states, segment_rows
from bestiary.training.recipe import Recipe, clean
from tests.fake_runs import FULL, LINE, add_finished_run, fill_store, run_on_other_disk

MANY = 12
Table = tuple[pd.DataFrame, list[str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_store(Store(tmp_path_factory.mktemp("made") / "runs"), MANY).folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    shutil.copytree(made, tmp_path / "runs")
    for file in (*tmp_path.rglob("*.*"), *tmp_path.rglob("done")):
        os.utime(file, (1, 1))  # so that time does not tell one run from another
    return Store(tmp_path / "runs")


def ended(store: Store) -> list[str]:
    return [key for key in store.run_keys() if (store.folder / key / "done").exists()]


def plainly(store: Store) -> pd.DataFrame:
    """The results without an index."""
    records = [store.read(key) for key in store.run_keys()]
    return pd.DataFrame([row for record in records if record.ended for row in segment_rows(record)])


def same(found: pd.DataFrame, expected: pd.DataFrame) -> bool:
    pd.testing.assert_frame_equal(found, expected, check_exact=True, check_column_type=True)
    return True


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any) -> None:
        raise AssertionError("a run was read")

    monkeypatch.setattr(Store, "read", read)


def test_a_warm_index_gives_the_same_table_and_reads_no_run_that_is_done(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plainly(store)
    assert same(results(store, store.run_keys())[0], expected)
    done, ways = ended(store), progress(store)[0]
    forbid(monkeypatch)
    assert same(results(store, done)[0], expected)
    monkeypatch.undo()
    assert same(progress(store)[0], ways)
    assert expected["asked"].isna().any()
    assert expected["solved"].isna().any()
    assert expected["solved"].notna().any()
    turned = [done[1], done[0], done[1]]
    assert list(dict.fromkeys(results(store, turned[:2])[0]["key"])) == turned[:2]
    assert same(results(store, turned)[0], results(store, turned[:2])[0])


def flipped(file: Path) -> None:
    content, draw = bytearray(file.read_bytes()), random.Random(0)
    for _ in range(len(content) // 50):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def digits_changed(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"accuracy": 0.5', b'"accuracy": 0.6'))


def of_another_layout(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as base, base:
        base.execute("CREATE TABLE derived (name)")


def moved_to_other_runs(file: Path) -> None:
    with closing(sqlite3.connect(file)) as base, base:
        keys = [key for (key,) in base.execute("SELECT DISTINCT key FROM derived")]
        for key, after in zip(keys, keys[1:] + keys[:1], strict=True):
            base.execute("UPDATE derived SET key = ? WHERE key = ?", (f"of {after}", key))
        base.execute("UPDATE derived SET key = substr(key, 4)")


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


HURT: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "emptied": lambda file: file.write_bytes(b""),
    "garbage": lambda file: file.write_bytes(b"no base" * 999),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "end cut": lambda file: file.write_bytes(file.read_bytes()[:-5000]),
    "flipped": flipped,
    "digits changed": digits_changed,
    "another layout": of_another_layout,
    "keys exchanged": moved_to_other_runs,
    "a folder": a_folder,
}


@pytest.mark.parametrize("hurt", HURT.values(), ids=HURT)
def test_a_damaged_index_changes_nothing_and_is_mended(
    store: Store, hurt: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = plainly(store), results(store, store.run_keys())
    hurt(store.folder / index.NAME)
    for _ in range(2):
        assert same(results(store, store.run_keys())[0], expected)
    if hurt is not a_folder:
        forbid(monkeypatch)
        assert same(results(store, ended(store))[0], expected)


def test_a_locked_index_is_done_without(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plainly(store)
    results(store, store.run_keys()[: MANY // 2])
    monkeypatch.setattr(index, "LOCK_TIMEOUT", 0.05)
    with closing(sqlite3.connect(store.folder / index.NAME)) as base:
        base.execute("BEGIN EXCLUSIVE")
        assert same(results(store, store.run_keys())[0], expected)
    assert same(results(store, store.run_keys())[0], expected)


def test_any_number_may_fill_the_index_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plainly(store)
    monkeypatch.setattr(index, "BATCH", 2)
    with ThreadPoolExecutor(8) as pool:
        assert all(
            same(found, expected) for found, _ in pool.map(lambda _: results(store, store.run_keys()), range(16))
        )
    with closing(sqlite3.connect(store.folder / index.NAME)) as base:
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert base.execute("SELECT count(*) FROM derived").fetchone() == (2 * MANY,)


def test_runs_deleted_set_aside_redone_or_damaged_later_are_noticed(store: Store) -> None:
    results(store, store.run_keys())
    gone, aside, again, torn, *_ = ended(store)
    shutil.rmtree(store.folder / gone)
    (store.folder / aside).rename(store.folder / f"{aside}.damaged")
    recipe = Recipe(**store.read(again).recipe)
    shutil.rmtree(store.folder / again)
    add_finished_run(store, recipe, right=2)
    with (store.folder / torn / "log.jsonl").open("a") as log:
        log.write("{\n")
    asked = [gone, aside, again, torn]
    table, damaged = results(store, asked)
    assert list(table["key"].unique()) == [again]
    assert set(table["right"]) == {2}
    assert [torn in line for line in damaged] == [True]
    rows, damaged = run_states(store)
    assert not {gone, aside, torn} & {row["key"] for row in rows}
    assert [torn in line for line in damaged] == [True]


def test_what_other_code_derived_is_not_believed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    results(store, store.run_keys())
    monkeypatch.setattr(index, "code_digest", lambda: "another")
    forbid(monkeypatch)
    with pytest.raises(AssertionError, match="a run was read"):
        results(store, ended(store))


def test_a_run_that_is_not_done_is_never_kept(store: Store) -> None:
    recipe = clean("attention", dim=8, seed=99)
    run = store.claim(recipe)
    assert run is not None
    with run:
        for step in (1, 2):
            run.append(LINE | {"step": step})
            (row,) = [row for row in run_states(store)[0] if row["key"] == recipe.key]
            assert (row["step"], row["outcome"]) == (step, None)
            assert row["state"].startswith("at work: ")
        run.end("finished")
    (row,) = [row for row in run_states(store)[0] if row["key"] == recipe.key]
    assert row["state"] == "finished"


def test_a_run_of_which_nothing_can_be_derived_is_named_with_what_to_do(store: Store) -> None:
    key = store.run_keys()[0]
    (store.folder / key / "log.jsonl").write_text("{}\n")
    _, damaged = results(store, store.run_keys())
    place = store.folder / key
    what = "log.jsonl: it has changed since the run ended; its digest is another"
    assert damaged == [f"{place} cannot be read ({what}); set it aside with: mv {place} {place}.damaged"]


def test_an_empty_or_missing_folder_gets_no_index(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        assert results(Store(folder), ["0"])[0].empty
        assert run_states(Store(folder)) == ([], [])
    assert not list(tmp_path.iterdir())


STATUS = (sys.executable, "-m", "bestiary.cli", "status", "--store")


@pytest.mark.parametrize("warm", [False, True])
def test_a_store_on_a_read_only_disk_is_read(store: Store, warm: bool) -> None:
    if warm:
        results(store, store.run_keys())
    before = sorted(store.folder.rglob("*"))
    done = run_on_other_disk(store.folder, *STATUS, str(store.folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{MANY - 1} finished, " in done.stdout
    assert "failed once: ZeroDivisionError" in done.stdout
    assert sorted(store.folder.rglob("*")) == before


def test_a_store_on_a_full_disk_is_read(store: Store) -> None:
    done = run_on_other_disk(store.folder, *STATUS, str(store.folder), disk=FULL)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{MANY - 1} finished" in done.stdout
    assert ".zeros" in done.stdout
    assert f"{index.NAME}-journal" not in done.stdout
