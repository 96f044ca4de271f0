"""Sweeps: every run once, whatever happens to the workers or to the sweep itself."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bestiary.cli import runs
from bestiary.runs.store import Store, list_claims
from bestiary.runs.table import results
from bestiary.sweep import cores, default_threads, sweep
from bestiary.training.recipe import Recipe, clean

SMALL: dict[str, Any] = {
    "train": "mqar(vocab=20, length=12, pairs=2)",
    "dim": 8,
    "batch": 16,
    "steps": 40,
    "every": 10,
    "selection_rows": 40,
    "test_rows": 60,
}


def recipes(count: int = 4, **changes: Any) -> list[Recipe]:
    return [clean("attention", **(SMALL | changes), seed=seed) for seed in range(count)]


def kinds(asked: list[Recipe], store: Store, **options: Any) -> Counter[str]:
    return Counter(event.kind for event in sweep(asked, store, **options))


def test_a_sweep_does_every_run_once_and_nothing_the_second_time(tmp_path: Path) -> None:
    store, asked = Store(tmp_path), recipes()
    seen = kinds([*asked, asked[0]], store, workers=2)
    assert (seen["started"], seen["ended"], seen["failed"]) == (4, 4, 0)
    assert seen["measured"] == 4 * (4 + 4 + 1)
    assert all(recipe in store for recipe in asked)
    assert not kinds(asked, store)


def test_the_number_of_workers_changes_no_number(tmp_path: Path) -> None:
    asked = recipes(3)
    kinds(asked, Store(tmp_path / "one"), workers=1, together="never")
    kinds(asked, Store(tmp_path / "three"), workers=3, together="never")
    for recipe in asked:
        assert Store(tmp_path / "one").read(recipe.key).log == Store(tmp_path / "three").read(recipe.key).log


def test_failures_and_divergence_are_recorded_and_the_sweep_goes_on(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        Path("examples/my_mixer.py").read_text().replace("h, last = ", "assert len(x) < 3, 'no room'; h, last = ")
    )
    asked = [clean(str(bad), **SMALL), clean("attention", **SMALL, rate=1e30, clip=None), *recipes(1)]
    store = Store(tmp_path / "runs")
    ends = {event.recipe.key: event for event in sweep(asked, store) if event.kind in ("ended", "failed")}
    assert ends[asked[0].key].detail == "AssertionError: no room"
    assert "no room" in (store.failure(asked[0].key) or "")
    assert ends[asked[1].key].detail.outcome == "diverged"
    assert ends[asked[2].key].detail.outcome in ("finished", "solved")
    assert [recipe in store for recipe in asked] == [False, True, True]
    table, _ = results(store, [recipe.key for recipe in asked])
    assert set(table["outcome"]) == {"diverged", ends[asked[2].key].detail.outcome}


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("2,4", 2), ("", None), ("0", None), ("all", None)])
def test_a_run_alone_has_the_threads_that_the_environment_allows(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert default_threads() == (expected or cores())


def test_a_worker_that_dies_costs_its_own_run_only(tmp_path: Path) -> None:
    killer = tmp_path / "killer.py"
    text = Path("examples/my_mixer.py").read_text()
    killer.write_text(text.replace("h, last = ", "import os; os._exit(7) if len(x) > 2 else None; h, last = "))
    asked = [clean(str(killer), **SMALL), *recipes(1)]
    store = Store(tmp_path / "runs")
    told = [event for event in sweep(asked, store, workers=1) if event.kind in ("retried", "ended", "failed")]
    assert [event.kind for event in told if event.recipe == asked[0]] == ["retried", "retried", "failed"]
    assert [event.kind for event in told if event.recipe == asked[1]] == ["ended"]
    assert told[0].detail == "the worker died (exit code 7)"
    assert store.failure(asked[0].key) == "the worker died (exit code 7)\n"
    assert [(claim / "died").exists() for claim in list_claims(store.folder / asked[0].key)] == [True] * 3


def test_closing_a_sweep_stops_its_workers_and_releases_their_runs(tmp_path: Path) -> None:
    store, asked = Store(tmp_path), recipes(2, steps=100_000)
    events = sweep(asked, store, workers=2)
    while {recipe.key for recipe in asked if store.owner(recipe.key)} != {recipe.key for recipe in asked}:
        next(events)
    events.close()
    assert all(store.owner(recipe.key) is None for recipe in asked)
    assert all(store.failure(recipe.key) is None for recipe in asked)


def test_a_run_that_another_worker_has_is_waited_for(tmp_path: Path) -> None:
    store, (recipe,) = Store(tmp_path), recipes(1)
    other = store.claim(recipe)
    assert other is not None
    with other:
        events = sweep([recipe], store)
        assert next(events).kind == "waiting"
        other.end("diverged")
    assert [event.kind for event in events if event.kind != "waiting"] == ["ended"]


def test_torch_is_loaded_for_the_workers_while_recipes_are_checked_unless_all_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, (recipe,) = [], recipes(1)
    monkeypatch.setattr("bestiary.sweep.start_server", lambda: calls.append("server"))
    monkeypatch.setattr(runs, "check_recipes", lambda *_, **__: calls.append("checks"))
    monkeypatch.setattr(runs, "start_sweep", lambda *_, **__: (event for event in ()))
    how: dict[str, Any] = {"workers": 1, "threads": 1, "device": "cpu", "backend": "auto", "keep": False}
    runs.run_recipes("one", [recipe], tmp_path, **how)
    with Store(tmp_path).claim(recipe) as run:  # pyright: ignore[reportOptionalContextManager]
        run.end("diverged")
    runs.run_recipes("one", [recipe], tmp_path, **how)
    assert calls == ["server", "checks", "checks"]


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_sweep import recipes
from bestiary.runs.store import Store
from bestiary.sweep import sweep
if __name__ == "__main__":
    for event in sweep(recipes(6, steps=600), Store({folder!r}), workers=2, together="never"):
        if event.kind != "measured":
            print(event.kind, event.recipe.key, flush=True)
"""


def program(tmp_path: Path, folder: Path) -> list[str]:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM.format(tests=str(Path(__file__).parent), folder=str(folder)))
    return [sys.executable, str(file)]


@pytest.mark.slow
def test_a_sweep_killed_at_a_random_moment_goes_on_where_it_was(tmp_path: Path) -> None:
    asked, folder = recipes(6, steps=600), tmp_path / "runs"
    with subprocess.Popen(program(tmp_path, folder), stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        told = [first.stdout.readline() for _ in range(5)]  # some have started and some have ended
        time.sleep(random.random() / 2)
        os.kill(first.pid, signal.SIGKILL)
        told += first.stdout.readlines()
    done = {line.split()[1] for line in told if line.startswith("ended")}
    assert len(done) < 6
    logs = {key: (folder / key / "log.jsonl").stat().st_mtime_ns for key in done}
    second = subprocess.run(program(tmp_path, folder), capture_output=True, text=True, check=True, timeout=240)
    again = {line.split()[1] for line in second.stdout.splitlines() if line.startswith("started")}
    assert not again & done
    assert logs == {key: (folder / key / "log.jsonl").stat().st_mtime_ns for key in done}
    whole = Store(tmp_path / "whole")
    for _ in sweep(asked, whole, workers=2, together="never"):
        pass
    keys = [recipe.key for recipe in asked]
    resumed, uninterrupted = (results(store, keys)[0].drop(columns="seconds") for store in (Store(folder), whole))
    assert len(resumed) == 6
    assert resumed.equals(uninterrupted)
