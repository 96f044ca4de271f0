"""A damaged run concerns itself alone: it is named with its file, it is in no table, and every verb goes on."""

import errno
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from bestiary.cli import app
from bestiary.runs.store import DamagedRun, Record, Store, verified
from bestiary.runs.table import damaged_runs, results, run_states
from bestiary.sweep import sweep
from bestiary.sweep.jobs import Job, JobEvent, WorkerConfig
from bestiary.sweep.schedule import follow_up
from bestiary.sweep.work import claim_runs
from bestiary.training.recipe import Recipe
from tests.stores import finished
from tests.stores import recipe as small_recipe

HAS_DUCKDB = find_spec("duckdb") is not None

EARLIER = Path(__file__).parent / "earlier" / "store"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three runs that are done, the first of which tests will damage."""
    store = Store(tmp_path / "runs")
    for seed in range(3):
        finished(store, small_recipe(seed=seed), 0.5)
    return store


@pytest.fixture
def run(store: Store) -> Path:
    return store.folder / small_recipe(seed=0).key


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestiary.report.page.pdf_figures", lambda _: [])


def without_digests(run: Path) -> None:
    """A run as version 0.1 has left it."""
    done = json.loads((run / "done").read_text())
    (run / "done").write_text(json.dumps({name: value for name, value in done.items() if name != "digests"}))


def unfinished(run: Path) -> None:
    """A run that its worker has not ended; another machine has it."""
    (run / "done").unlink()
    (run / "claim-0" / "released").unlink()
    (run / "claim-0" / "owner.json").write_text(json.dumps({"machine": "elsewhere", "process": 1, "born": "1"}))


def bestiary(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.exit_code, result.output


def rewrite(file: Path, change: Callable[[list[str]], list[str]]) -> None:
    file.write_text("".join(change(file.read_text().splitlines(keepends=True))))


LOSSES: dict[str, Callable[[Path], None]] = {
    "no test rows": lambda log: rewrite(log, lambda lines: [line for line in lines if '"test"' not in line]),
    "torn": lambda log: log.write_bytes(log.read_bytes()[:-5]),
    "emptied": lambda log: log.write_bytes(b""),
    "missing": lambda log: log.unlink(),
}


@pytest.mark.parametrize("digests", [True, False], ids=["digests", "no digests"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_finished_run_without_its_test_is_in_no_table(store: Store, run: Path, loss: str, digests: bool) -> None:
    if not digests:
        without_digests(run)
    LOSSES[loss](run / "log.jsonl")
    table, damaged = results(store, store.run_keys())
    assert run.name not in set(table["key"])
    assert (table["accuracy"] == 0.5).all()
    (line,) = damaged
    assert line.startswith(f"{run} cannot be read (log.jsonl")
    assert line.endswith(f"set it aside with: mv {run} {run}.damaged")
    assert damaged_runs(store, store.run_keys()) == {run.name: line}


@pytest.mark.slow
def test_of_every_flipped_bit_the_file_is_named_or_nothing_changes(store: Store, run: Path) -> None:
    whole, found = store.read(run.name), Counter[str]()
    for file in ("recipe.json", "origin.json", "log.jsonl", "done"):
        content = (run / file).read_bytes()
        for position in range(len(content)):
            flipped = content[position] ^ (1 << position % 7)
            (run / file).write_bytes(content[:position] + bytes([flipped]) + content[position + 1 :])
            said = what_is_said(store, run, whole)
            assert said in ("nothing changed", file), position
            found[said] += 1
        (run / file).write_bytes(content)
    assert store.read(run.name) == whole
    assert found["nothing changed"] <= 40, found  # spaces of `done`, which JSON allows to be others


def what_is_said(store: Store, run: Path, whole: Record) -> str:
    """The file that is named as damaged, or whether anything has changed."""
    try:
        return "nothing changed" if store.read(run.name) == whole else "something changed"
    except DamagedRun as fault:
        return str(fault).partition("cannot be read (")[2].partition(":")[0]


def test_a_recipe_that_is_not_that_of_the_folder_is_damage_without_digests_too(store: Store, run: Path) -> None:
    without_digests(run)
    store.read(run.name)
    recipe = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps(recipe | {"rate": 0.004}))
    with pytest.raises(DamagedRun, match=r"recipe.json: it is not the recipe of this folder's name"):
        store.read(run.name)


def test_weights_are_checked_when_they_are_used(store: Store) -> None:
    recipe = small_recipe(seed=7)
    claimed = store.claim(recipe)
    assert claimed is not None
    with claimed:
        for line in (store.folder / small_recipe(seed=0).key / "log.jsonl").read_text().splitlines():
            claimed.append(json.loads(line))
        claimed.finish(recipe.build())
    weights = store.folder / recipe.key / "weights.safetensors"
    assert verified(weights.parent, weights.name)
    content = bytearray(weights.read_bytes())
    content[-3] ^= 16
    weights.write_bytes(content)
    with pytest.raises(DamagedRun, match=f"{weights} is damaged"):
        verified(weights.parent, weights.name)


def test_weights_are_as_readable_as_the_log(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path), small_recipe()
    former = os.umask(0o027)
    try:
        run = store.claim(recipe)
        assert run is not None
        with run:
            run.save_weights(recipe.build())
    finally:
        os.umask(former)
    modes = [(tmp_path / recipe.key / file).stat().st_mode & 0o777 for file in ("log.jsonl", "weights.safetensors")]
    assert modes == [0o640, 0o640]


def test_runs_of_version_01_are_read_and_said_to_be_unchecked_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(EARLIER, tmp_path / "runs")
    status, output = bestiary("status", "--store", str(tmp_path / "runs"))
    assert status == 0
    assert output.count("unchecked") == 1
    assert "2 runs" in next(line for line in output.splitlines() if "unchecked" in line)
    key = next(path.name for path in EARLIER.iterdir())
    assert not verified(tmp_path / "runs" / key, "weights.safetensors")


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "origin is half": ("origin.json", lambda run: (run / "origin.json").write_text('{"begun": ')),
    "origin has another host": ("origin.json", lambda run: (run / "origin.json").write_text('{"host": 3}')),
    "a key of the log is renamed": (
        "log.jsonl",
        lambda run: rewrite(run / "log.jsonl", lambda lines: [line.replace('"asked"', '"askt"') for line in lines]),
    ),
    "an answer more than asked": (
        "log.jsonl",
        lambda run: rewrite(run / "log.jsonl", lambda lines: [re.sub('"right": .*?,', '"right": 1001,', lines[-1])]),
    ),
    "the recipe is null": ("recipe.json", lambda run: (run / "recipe.json").write_text("null")),
    "the recipe is a list": ("recipe.json", lambda run: (run / "recipe.json").write_text("[{}]")),
    "the recipe is a folder": ("recipe.json", lambda run: replace(run / "recipe.json", Path.mkdir)),
    "the recipe is a loop of links": (
        "recipe.json",
        lambda run: replace(run / "recipe.json", lambda file: file.symlink_to(file)),
    ),
    "the log is a pipe": ("log.jsonl", lambda run: replace(run / "log.jsonl", os.mkfifo)),
    "done is nested deeply": ("done", lambda run: (run / "done").write_text("[" * 100_000 + "]" * 100_000)),
    "done is a link to nowhere": ("done", lambda run: replace(run / "done", lambda file: file.symlink_to("nowhere"))),
    "done has another outcome": (
        "done",
        lambda run: (run / "done").write_text('{"outcome": "won", "seconds": 1, "note": ""}'),
    ),
}


def replace(file: Path, make: Callable[[Path], object]) -> None:
    file.unlink()
    make(file)


THOROUGH = tuple(DAMAGES)[:3]  # the others are slow, and without digests all are


@pytest.mark.parametrize(
    ("damage", "digests"),
    [
        pytest.param(damage, digests, marks=() if digests and damage in THOROUGH else pytest.mark.slow)
        for damage in DAMAGES
        for digests in (True, False)
    ],
)
def test_a_damaged_run_is_named_with_its_file_and_every_verb_goes_on(
    store: Store, run: Path, damage: str, digests: bool, tmp_path: Path
) -> None:
    if not digests:
        without_digests(run)
    file, act = DAMAGES[damage]
    act(run)
    goes_on(store, run, file, tmp_path)


def goes_on(store: Store, run: Path, file: str, tmp_path: Path) -> None:
    """Every verb counts the two other runs and names the damaged one."""
    named = f"{run} cannot be read ({file}: "
    where = ["--store", str(store.folder)]
    table, page = tmp_path / "table.csv", tmp_path / "report.html"
    for verb, expected in (
        (["status", *where], 1),
        (["export", "--to", str(table), *where], 1),
        (["export", "--log", "--to", str(tmp_path / "log.csv"), *where], 1),
        (["report", str(store.folder), "--out", str(page)], 1),
        *([(["sql", "select key from results", *where], 0)] if HAS_DUCKDB else []),
        (["show", run.name, *where], 2),
    ):
        status, output = bestiary(*verb)
        assert status == expected, f"{verb}: {output}"
        assert named in output
        assert f"set it aside with: mv {run} {run}.damaged" in output
        assert verb[0] != "status" or "2 finished" in output
    others = {small_recipe(seed=seed).key for seed in (1, 2)}
    assert set(pd.read_csv(table)["key"]) == set(pd.read_csv(tmp_path / "log.csv")["key"]) == others
    assert page.exists()
    for name in ("log", "runs") if HAS_DUCKDB else ():
        _, output = bestiary("sql", f"select string_agg(distinct key, '/' order by key) as keys from {name}", *where)
        assert output.split()[-1] == "/".join(sorted(others))


def test_a_folder_that_is_a_loop_of_links_is_named(store: Store, run: Path) -> None:
    shutil.rmtree(run)
    run.symlink_to(run)
    status, output = bestiary("status", "--store", str(store.folder))
    assert status == 1
    assert "2 finished" in output
    assert f"{run} cannot be read (" in output


CLAIMS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "owner is empty": ("claim-0/owner.json", lambda run: (run / "claim-0" / "owner.json").write_text("")),
    "owner is missing": ("claim-0/owner.json", lambda run: (run / "claim-0" / "owner.json").unlink()),
    "owner has no machine": ("claim-0/owner.json", lambda run: (run / "claim-0" / "owner.json").write_text("{}")),
    "the claim is a file": ("claim-0", lambda run: (shutil.rmtree(run / "claim-0"), (run / "claim-0").touch())),
    "the heartbeat is in the future": (
        "claim-0/owner.json",
        lambda run: os.utime(run / "claim-0" / "owner.json", (time.time() + 1e6,) * 2),
    ),
    "the failure is a folder": ("failure.txt", lambda run: released_with_folder(run)),
}


def released_with_folder(run: Path) -> None:
    (run / "claim-0" / "released").touch()
    (run / "failure.txt").mkdir()


@pytest.mark.parametrize("damage", CLAIMS)
def test_a_damaged_claim_is_named_and_the_sweep_goes_on(store: Store, run: Path, damage: str) -> None:
    unfinished(run)
    file, act = CLAIMS[damage]
    act(run)
    status, output = bestiary("status", "--store", str(store.folder))
    assert status == 1
    assert "2 finished" in output
    assert f"{run} cannot be read ({file}" in output
    assert f"set it aside with: mv {run} {run}.damaged" in output


@pytest.mark.slow
def test_a_sweep_fails_what_is_damaged_and_does_the_rest(store: Store, run: Path) -> None:
    unfinished(run)
    (run / "claim-0" / "owner.json").unlink()
    steps: dict[str, object] = {"steps": 4, "every": 2, "selection_rows": 8, "test_rows": 8}
    recipes = [small_recipe(seed=0), *(small_recipe(seed=seed, **steps) for seed in (11, 12))]
    kinds = Counter((event.kind, event.recipe.key) for event in sweep(recipes, store, workers=1) if event.recipe)
    assert kinds["failed", run.name] == 1
    assert not any(kind == "retried" for kind, _ in kinds)
    assert all(kinds["ended", recipe.key] == 1 for recipe in recipes[1:])


def test_a_worker_that_dies_before_its_first_claim_leaves_a_failure_to_read(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path / "runs"), small_recipe()
    store.record_death(recipe, "the worker died (exit code -9)", last=False)
    assert store.run_keys() == []
    store.record_death(recipe, "the worker died (exit code -9)", last=True)
    assert store.failure(recipe.key) == "the worker died (exit code -9)\n"
    ((row,), damaged) = run_states(store, [recipe])
    assert (row["state"], damaged) == ("failed", [])


def test_a_run_whose_folder_others_own_fails_and_the_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, (bad, good) = Store(tmp_path / "runs"), [small_recipe(seed=seed) for seed in (0, 1)]
    mkdir, told = Path.mkdir, list[JobEvent]()
    number = errno.EACCES

    def refuse(self: Path, *given: Any, **more: Any) -> None:
        if bad.key in self.parts:
            raise OSError(number, os.strerror(number), str(self))
        mkdir(self, *given, **more)

    monkeypatch.setattr(Path, "mkdir", refuse)
    runs = claim_runs(Job((bad, good)), WorkerConfig(str(store.folder)), "cpu", told.append)
    assert [run.recipe for run in runs] == [good]
    assert [(event.kind, event.recipe) for event in told] == [("failed", bad)]
    assert "Permission denied" in told[0].detail
    again, events = follow_up(JobEvent(Job((bad,)), "died", None, "the worker died"), Job((bad,), tries=2), store)
    assert (again, [event.kind for event in events]) == ([], ["failed"])
    number = errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):
        claim_runs(Job((bad, good)), WorkerConfig(str(store.folder)), "cpu", told.append)
    with pytest.raises(OSError, match="No space left"):
        follow_up(JobEvent(Job((bad,)), "died", None, "the worker died"), Job((bad,), tries=2), store)


def test_a_run_whose_folder_may_not_be_looked_into_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, recipe, stat = Store(tmp_path / "runs"), small_recipe(), os.stat

    def refuse(place: Any, *given: Any, **more: Any) -> os.stat_result:
        if str(place).endswith("done"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        return stat(place, *given, **more)

    monkeypatch.setattr(os, "stat", refuse)
    assert recipe not in store


def test_a_run_without_a_measurement_for_a_while_is_shown_as_such(store: Store, run: Path) -> None:
    unfinished(run)

    def state(recipe: Recipe) -> str:
        ((row,), _) = run_states(store, [recipe])
        return row["state"]

    assert state(small_recipe(seed=0)) == "at work: elsewhere, process 1"
    for quiet in (run / "log.jsonl", run / "claim-0"):
        os.utime(quiet, (time.time() - 1500,) * 2)
    assert state(small_recipe(seed=0)) == "at work: elsewhere, process 1, no measurement for 25 min"
