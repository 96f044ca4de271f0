"""Runs of a sweep that are interrupted go on from their checkpoint, and end with the log that they would have had."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from bestiary.cli import app
from bestiary.runs.files import read_record, write_record
from bestiary.runs.store import ClaimLost, Store
from bestiary.runs.tensors import read_tensors, write_tensors
from bestiary.sweep import sweep
from bestiary.sweep.checkpoints import CheckpointedRun
from bestiary.sweep.jobs import Job, JobEvent, Resumption, Together, WorkerConfig
from bestiary.sweep.work import work
from bestiary.training.recipe import Recipe, clean

SMALL: dict[str, Any] = {
    "train": "mqar(vocab=20, length=12, pairs=2)",
    "dim": 8,
    "batch": 8,
    "steps": 12,
    "every": 4,
    "selection_rows": 16,
    "test_rows": 16,
    "stop": None,
}
RECIPE = clean("attention", **SMALL)


@pytest.fixture(autouse=True)
def _saving(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step."""
    monkeypatch.setattr("bestiary.sweep.checkpoints.SAVE_EVERY", 0.0)
    monkeypatch.setattr("bestiary.sweep.checkpoints.SHARE", 0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def carry_out(store: Store, *recipes: Recipe, until: int | None = None, keep: bool = False) -> list[JobEvent]:
    """What a worker reports of a job; it is interrupted by the measurement of a step."""
    events: list[JobEvent] = []

    def report(event: JobEvent) -> None:
        events.append(event)
        if event.kind == "measured" and event.detail.step == until:
            raise KeyboardInterrupt

    try:
        work(Job(recipes), WorkerConfig(str(store.folder), keep=keep), "cpu", report)
    except KeyboardInterrupt:
        assert until is not None
    return events


def starts(events: list[JobEvent]) -> list[Any]:
    return [event.detail for event in events if event.kind == "started"]


def log_of(store: Store, recipe: Recipe = RECIPE) -> list[dict[str, Any]]:
    return store.read(recipe.key).log


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The run without a break."""
    store = Store(tmp_path_factory.mktemp("whole"))
    carry_out(store, RECIPE, keep=True)
    return store


def test_an_interrupted_run_goes_on_and_ends_as_the_whole(store: Store, whole: Store) -> None:
    place = store.folder / RECIPE.key
    carry_out(store, RECIPE, until=8)
    assert [path.name for path in sorted((place / "checkpoint").iterdir())] == [
        "claim-0-step-7.safetensors",
        "last.json",
    ]
    assert log_of(store)[-1]["step"] == 8  # its training loss was written before the interruption
    events = carry_out(store, RECIPE, keep=True)
    assert starts(events) == [Resumption(7)]
    assert [event.kind for event in events][-2:] == ["ended", "over"]
    rows = [event.detail._asdict() for event in events if event.kind == "measured"]
    assert rows == [row for row in log_of(whole) if not row["facet"]]
    assert log_of(store) == log_of(whole)
    files = ("log.jsonl", "weights.safetensors")
    assert all((place / file).read_bytes() == (whole.folder / RECIPE.key / file).read_bytes() for file in files)
    assert not (place / "checkpoint").exists()


def test_origin_and_seconds_tell_of_all_parts(store: Store) -> None:
    for step, until in ((3, 4), (7, 8)):
        carry_out(store, RECIPE, until=until)
        file = store.folder / RECIPE.key / "checkpoint" / "last.json"
        record = read_record(file)
        assert (record["step"], record["origins"][-1]["until"]) == (step, step)
        write_record(file, record | {"seconds": record["seconds"] + 1000})
    carry_out(store, RECIPE)
    origin = json.loads((store.folder / RECIPE.key / "origin.json").read_text())
    assert [part["until"] for part in origin["earlier"]] == [3, 7]
    known = {"begun", "commit", "versions", "host", "device", "threads"}
    assert all(known <= part.keys() for part in origin["earlier"])
    ended = store.read(RECIPE.key).ended
    assert ended is not None
    assert 2000 < ended.seconds < 2100


TIED = """from bestiary.mixers.attention import Attention


class Tied(Attention):
    \"\"\"Attention that uses one weight twice.\"\"\"

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.again = self.q
"""


def test_a_run_whose_weights_share_memory_goes_on_too(store: Store, tmp_path: Path) -> None:
    (tmp_path / "tied.py").write_text(TIED)
    recipe, whole = clean(str(tmp_path / "tied.py"), **SMALL), Store(tmp_path / "whole")
    carry_out(whole, recipe, keep=True)
    carry_out(store, recipe, until=8)
    assert starts(carry_out(store, recipe)) == [Resumption(7)]
    assert log_of(store, recipe) == log_of(whole, recipe)
    assert {"layers.0.mixer.q.weight", "layers.0.mixer.again.weight"} <= set(
        read_tensors(whole.folder / recipe.key / "weights.safetensors")
    )


def test_a_run_that_diverges_leaves_no_checkpoint(store: Store) -> None:
    recipe = clean("attention", **SMALL | {"rate": 1e30, "clip": None, "warmup": 0})
    carry_out(store, recipe)
    ended = store.read(recipe.key).ended
    assert ended is not None
    assert ended.outcome == "diverged"
    assert not (store.folder / recipe.key / "checkpoint").exists()


def test_a_short_run_writes_no_checkpoint_and_starts_over(
    store: Store, whole: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bestiary.sweep.checkpoints.SAVE_EVERY", 120.0)
    carry_out(store, RECIPE, until=8)
    assert not (store.folder / RECIPE.key / "checkpoint").exists()
    assert starts(carry_out(store, RECIPE)) == [None]
    assert log_of(store) == log_of(whole)
    assert "earlier" not in json.loads((store.folder / RECIPE.key / "origin.json").read_text())


def test_a_run_that_failed_goes_on_from_its_checkpoint(store: Store, whole: Store, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("bestiary.training.train.accuracy", lambda _: 1 / 0)
        patch.setattr(RECIPE.__class__, "key", RECIPE.key)
        events = carry_out(store, RECIPE.model_copy(update={"stop": 1.0}))
        assert [event.detail for event in events if event.kind == "failed"] == ["ZeroDivisionError: division by zero"]
    assert starts(carry_out(store, RECIPE)) == [Resumption(3)]
    assert store.failure(RECIPE.key) is None
    assert log_of(store) == log_of(whole)


def edit(place: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A record that was changed, and has the digest that fits."""
    record = read_record(place / "last.json")
    change(record)
    write_record(place / "last.json", record)


def other_state(place: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A state of training that was changed, and has the digest that fits."""
    file = place / "claim-0-step-7.safetensors"
    tensors: dict[str, Any] = read_tensors(file)
    change(tensors)
    digest = write_tensors(file, {name: tensor.clone() for name, tensor in tensors.items()})
    edit(place, lambda record: record.update(files={file.name: digest}))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def replace(file: Path, make: Callable[[Path], object]) -> None:
    file.unlink()
    make(file)


def elsewhere(place: Path) -> None:
    shutil.move(place, place.parent.parent / "elsewhere")
    place.symlink_to(place.parent.parent / "elsewhere")


STATE = "claim-0-step-7.safetensors"
DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a bit of the state": (f"{STATE} is damaged", lambda place: flip(place / STATE)),
    "half of the state": (f"{STATE} is damaged", lambda place: os.truncate(place / STATE, 1000)),
    "no state": (f"{STATE} is missing", lambda place: (place / STATE).unlink()),
    "a folder as state": (f"{STATE} is missing", lambda place: replace(place / STATE, Path.mkdir)),
    "no tensors": (f"{STATE} is damaged or no safetensors", lambda place: no_tensors(place)),
    "a bit of the record": ("last.json is damaged", lambda place: flip(place / "last.json")),
    "an empty record": ("last.json is damaged", lambda place: (place / "last.json").write_text("")),
    "a pipe as record": ("it is not a file", lambda place: replace(place / "last.json", os.mkfifo)),
    "a folder as record": ("last.json", lambda place: replace(place / "last.json", Path.mkdir)),
    "a bit of the log": ("log.jsonl is damaged", lambda place: flip(place.parent / "log.jsonl")),
    "no log": ("log.jsonl is damaged", lambda place: (place.parent / "log.jsonl").unlink()),
    "another run": ("is the checkpoint of another run", lambda place: edit(place, lambda r: r.update(key="0" * 16))),
    "no step": ("names no step", lambda place: edit(place, lambda r: r.pop("step"))),
    "a step too far": ("a step that the run does not have", lambda place: edit(place, lambda r: r.update(step=13))),
    "another step": ("is that of step 7, not 6", lambda place: edit(place, lambda r: r.update(step=6))),
    "endless": ("how the run came so far", lambda place: edit(place, lambda r: r.update(seconds=float("inf")))),
    "no origins": ("how the run came so far", lambda place: edit(place, lambda r: r.update(origins=None))),
    "files elsewhere": ("files elsewhere", lambda place: edit(place, lambda r: r.update(files={"../log.jsonl": ""}))),
    "another model": ("is the state of another model", lambda p: other_state(p, lambda t: t.pop("model/embed.weight"))),
    "a link": ("is a link", elsewhere),
}  # fmt: skip


def no_tensors(place: Path) -> None:
    from bestiary.runs.digests import digest

    (place / STATE).write_bytes(b"nothing")
    edit(place, lambda record: record.update(files={STATE: digest(place / STATE)}))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run that was interrupted after its checkpoint at step 7."""
    store = Store(tmp_path_factory.mktemp("stopped") / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bestiary.sweep.checkpoints.SAVE_EVERY", 0.0)
        patch.setattr("bestiary.sweep.checkpoints.SHARE", 0)
        carry_out(store, RECIPE, until=8)
    return store


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_run_starts_over(
    store: Store, stopped: Store, whole: Store, damage: str
) -> None:
    shutil.copytree(stopped.folder, store.folder)
    named, act = DAMAGES[damage]
    act(store.folder / RECIPE.key / "checkpoint")
    events = carry_out(store, RECIPE)
    assert [event for event in events if event.kind == "failed"] == []
    fault = starts(events)[-1]
    assert fault.step == 0
    assert named in fault.fault
    assert "\n" not in str(fault)
    assert str(fault).startswith("starts over: ")
    assert log_of(store) == log_of(whole)
    assert "earlier" not in json.loads((store.folder / RECIPE.key / "origin.json").read_text())
    assert not os.path.lexists(store.folder / RECIPE.key / "checkpoint")


def test_a_link_loses_no_file_of_others(store: Store, stopped: Store) -> None:
    shutil.copytree(stopped.folder, store.folder)
    elsewhere(store.folder / RECIPE.key / "checkpoint")
    carry_out(store, RECIPE)
    assert len(list((store.folder / "elsewhere").iterdir())) == 2


def claimed(store: Store) -> CheckpointedRun:
    run = store.claim(RECIPE)
    assert run is not None
    return CheckpointedRun(run.place, run.claim, run.recipe)


def test_a_worker_that_was_overtaken_leaves_the_checkpoint_of_the_other(store: Store) -> None:
    state = {"step": torch.tensor(5), "model/w": torch.ones(3)}
    with pytest.raises(ClaimLost), claimed(store) as slow:
        slow.save(state | {"step": torch.tensor(4)})
        (slow.claim / "released").touch()  # as if its machine had gone silent
        with claimed(store) as quick:
            assert quick.first == 4
            quick.save(state)
            files = {path.name: path.read_bytes() for path in slow.checkpoint.iterdir()}
            with pytest.raises(ClaimLost):
                slow.save(state | {"step": torch.tensor(9)})
            assert files == {path.name: path.read_bytes() for path in slow.checkpoint.iterdir()}
            quick.end("finished")
        slow.save(state)
    assert not (store.folder / RECIPE.key / "checkpoint").exists()


@pytest.mark.parametrize("moment", ["checkpoints.write_tensors", "resuming.write_record"])
def test_a_worker_that_is_overtaken_while_it_writes_loses_nothing_of_the_other(
    store: Store, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Its successor ends the run, and removes the folder, between two of its steps."""
    room = "sweep" if moment.startswith("checkpoints") else "runs"
    module, _, name = moment.partition(".")
    original = getattr(sys.modules[f"bestiary.{room}.{module}"], name)

    def overtaken(*given: Any) -> Any:
        monkeypatch.setattr(f"bestiary.{room}.{moment}", original)
        (store.folder / RECIPE.key / "claim-0" / "released").touch()
        with claimed(store) as quick:
            quick.save({"step": torch.tensor(6)})
            quick.end("finished")
        return original(*given)

    monkeypatch.setattr(f"bestiary.{room}.{moment}", overtaken)
    with pytest.raises(ClaimLost), claimed(store) as slow:
        slow.save({"step": torch.tensor(5)})
    assert store.failure(RECIPE.key) is None
    assert RECIPE in store


def test_a_checkpoint_waits_longer_if_it_takes_long_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    from bestiary.sweep import checkpoints

    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoints, "SAVE_EVERY", 100.0)
    monkeypatch.setattr(checkpoints, "SHARE", 50)
    timer, due = checkpoints.Timer(), []
    for second, took in ((99, 0), (100, 1), (200, 0), (201, 10), (700, 0), (711, 0)):
        now[0] = second
        due.append(timer.is_due())
        if due[-1]:
            with timer:
                now[0] += took
    assert due == [False, True, False, True, False, True]


# Stacks

STACK = [clean("attention", **SMALL, seed=seed, rate=rate) for seed, rate in ((0, 3e-3), (1, 3e-3), (0, 1e-2))]


@pytest.mark.slow
def test_a_stack_goes_on_from_the_checkpoints_of_its_members(store: Store, tmp_path: Path) -> None:
    whole = Store(tmp_path / "whole")
    carry_out(whole, *STACK)
    carry_out(store, *STACK, until=8)
    events = carry_out(store, *STACK)
    assert starts(events) == [Resumption(7)] * 3
    assert [event.kind for event in events][-1] == "over"
    for recipe in STACK:
        assert log_of(store, recipe) == log_of(whole, recipe)
        assert not (store.folder / recipe.key / "checkpoint").exists()


@pytest.mark.slow
def test_a_member_of_a_stack_goes_on_alone_and_the_other_way_round(store: Store, tmp_path: Path) -> None:
    alone = Store(tmp_path / "alone")
    for recipe in STACK:
        carry_out(alone, recipe)
    carry_out(store, *STACK, until=8)
    assert starts(carry_out(store, STACK[0])) == [Resumption(7)]
    for recipe in STACK[1:]:
        assert starts(carry_out(store, recipe, until=12)) == [Resumption(7)]
    assert starts(carry_out(store, *STACK[1:])) == [Resumption(11)] * 2
    for recipe in STACK:
        for one, other in zip(log_of(store, recipe), log_of(alone, recipe), strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


@pytest.mark.slow
def test_members_at_different_steps_are_trained_apart(store: Store) -> None:
    carry_out(store, *STACK, until=8)
    shutil.rmtree(store.folder / STACK[1].key / "checkpoint")
    events = carry_out(store, *STACK)
    assert (events[-1].kind, events[-1].detail) == ("regrouped", [[STACK[1]], [STACK[0], STACK[2]]])
    assert all(store.owner(recipe.key) is None for recipe in STACK)
    seen = list(sweep(STACK, store, workers=1, together="always"))
    assert sorted(event.recipe.key for event in seen if event.kind == "ended") == sorted(r.key for r in STACK)
    found = {event.recipe.key: event.detail for event in seen if event.kind == "started"}
    assert found == {STACK[1].key: None, STACK[0].key: Resumption(7), STACK[2].key: Resumption(7)}


@pytest.mark.slow
def test_a_stack_with_a_state_that_does_not_fit_starts_over(store: Store, tmp_path: Path) -> None:
    whole = Store(tmp_path / "whole")
    carry_out(whole, *STACK)
    carry_out(store, *STACK, until=8)
    other_state(store.folder / STACK[1].key / "checkpoint", lambda tensors: tensors.pop("model/embed.weight"))
    events = carry_out(store, *STACK)
    assert {event.recipe.key for event in events if event.kind == "ended" and event.recipe} == {r.key for r in STACK}
    faults = [start.fault for start in starts(events) if start.fault]
    assert sorted("another model" in fault for fault in faults) == [False, False, True]
    assert all(log_of(store, recipe) == log_of(whole, recipe) for recipe in STACK)


def test_a_member_that_another_worker_has_taken_is_left_to_it(store: Store) -> None:
    events: list[JobEvent] = []

    def report(event: JobEvent) -> None:
        events.append(event)
        if event.kind == "started" and event.recipe == STACK[2]:
            (store.folder / STACK[0].key / "claim-1").mkdir()

    work(Job(tuple(STACK)), WorkerConfig(str(store.folder)), "cpu", report)
    ends = {event.recipe.key: event.kind for event in events if event.recipe and event.kind in ("waiting", "ended")}
    assert ends == {STACK[0].key: "waiting", STACK[1].key: "ended", STACK[2].key: "ended"}
    assert sum(event.kind == "waiting" for event in events) == 1


# Whole sweeps

PROGRAM = """
from bestiary.sweep import local, sweep
from bestiary.runs.store import Store
local.PRELOAD.append("often_saving")
from test_interrupted import long_recipes
if __name__ == "__main__":
    for event in sweep(long_recipes(), Store({folder!r}), workers=2, together={together!r}):
        step = event.detail.step if event.kind == "measured" else event.detail
        print(event.kind, event.recipe.key, step, flush=True)
"""


def long_recipes() -> list[Recipe]:
    return [clean("attention", **SMALL | {"steps": 100, "every": 10}, seed=seed) for seed in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("together", ["never", "always"])
def test_a_sweep_that_is_killed_goes_on_in_the_middle_of_its_runs(tmp_path: Path, together: Together) -> None:
    file, folder = tmp_path / "program.py", tmp_path / "runs"
    file.write_text(PROGRAM.format(folder=str(folder), together=together))
    command, tests = [sys.executable, str(file)], Path(__file__).parent
    paths = os.pathsep.join(map(str, (tests.parent, tests)))  # the server of the workers finds `often_saving` there
    there = {"env": os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **there) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if line.startswith("measured") and line.endswith(" 40\n"):
                os.kill(first.pid, signal.SIGKILL)
                break
        first.stdout.read()
    second = subprocess.run(command, capture_output=True, check=True, timeout=240, **there).stdout.splitlines()
    begun = [line.partition("after step ")[2] for line in second if line.startswith("started")]
    assert any(step and int(step) >= 20 for step in begun), second
    whole = Store(tmp_path / "whole")
    assert all(event.kind != "failed" for event in sweep(long_recipes(), whole, workers=2, together=together))
    for recipe in long_recipes():
        found, wanted = log_of(Store(folder), recipe), log_of(whole, recipe)
        if together == "never":
            assert found == wanted
        assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in wanted], rel=1e-2)
        assert [row["step"] for row in found] == [row["step"] for row in wanted]
    assert not list(folder.glob("*/checkpoint"))


def test_the_command_says_where_a_run_goes_on(store: Store, stopped: Store) -> None:
    shutil.copytree(stopped.folder, store.folder)
    settings = [f"{name}={value}" for name, value in SMALL.items()]
    state = CliRunner().invoke(app, ["status", "--store", str(store.folder), "--all"]).output
    assert "interrupted" in state
    assert " 8 " in state  # the step of its last measurement
    done = CliRunner().invoke(app, ["train", "--store", str(store.folder), "--layers", "attention", *settings])
    assert done.exit_code == 0, done.output
    assert "goes on after step 7" in done.output
