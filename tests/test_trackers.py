"""Trackers: what each library wrote, read back; and that none of them can fail a run."""

import json
import logging
import math
import sqlite3
import struct
import sys
from collections.abc import Generator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pytest

from bestiary.runs.store import Outcome, Store
from bestiary.sweep import Event, sweep
from bestiary.sweep.trackers import Tracker, flat_config, follow_events, make_sinks, run_title, summarize
from bestiary.training.recipe import Recipe, clean
from bestiary.training.train import Measurement

TASK = "mqar(vocab=20, length=12, pairs=2)"
ONE = clean("attention", train=TASK, dim=8, seed=1)
TWO = clean("attention", train=TASK, test=f"{TASK}, mqar(vocab=20, length=16, pairs=3)", dim=8, seed=2)


def told(recipe: Recipe, *, outcome: str = "finished", loss: float = 30.0) -> list[Event]:
    """A run of two looks and a test, by hand."""
    looks = []
    for step, right in ((25, 40), (50, 50)):
        looks.append(Measurement(step, "train", -1, "", 0, loss, right, 60))
        for segment in range(len(recipe.test)):
            looks.append(Measurement(step, "selection", segment, "", 0, 20.0, right + 10 * segment, 100))
    for segment in range(len(recipe.test)):
        looks.append(Measurement(50, "test", segment, "", 0, 10.0, 70 + 10 * segment, 100))
    measured = [Event("measured", recipe, look) for look in looks]
    end = Event("failed", recipe, "it broke") if outcome == "failed" else Event("ended", recipe, Outcome(outcome, 1.5))
    return [Event("started", recipe), *measured, end]


def at_once(*runs: list[Event]) -> Generator[Event]:
    """Several runs at a time, their events in turn."""
    yield from (event for event in chain(*zip_longest(*runs)) if event is not None)


def follow(names: str, folder: Path, *runs: list[Event]) -> None:
    assert len(list(follow_events(at_once(*runs), make_sinks(names, group="question", folder=folder)))) == sum(
        map(len, runs)
    )


def expected(recipe: Recipe) -> dict[int, dict[str, float]]:
    """What a tracker should have by step, worked out by hand."""
    if recipe is ONE:
        first = {"train/loss": 0.5, "train/accuracy": 40 / 60, "selection/loss": 0.2, "selection/accuracy": 0.4}
        last = {"train/loss": 0.5, "train/accuracy": 50 / 60, "selection/loss": 0.2, "selection/accuracy": 0.5}
        return {25: first, 50: last | {"test/loss": 0.1, "test/accuracy": 0.7}}
    parts = {"selection/loss/0": 0.2, "selection/loss/1": 0.2, "selection/loss": 0.2, "train/loss": 0.5}
    first = {"selection/accuracy/0": 0.4, "selection/accuracy/1": 0.5, "selection/accuracy": 0.45}
    last = {"selection/accuracy/0": 0.5, "selection/accuracy/1": 0.6, "selection/accuracy": 0.55}
    test = {"test/accuracy/0": 0.7, "test/accuracy/1": 0.8, "test/accuracy": 0.75, "test/loss": 0.1}
    test |= {"test/loss/0": 0.1, "test/loss/1": 0.1}
    first, last = ({**look, **parts} for look in (first, last))
    return {25: first | {"train/accuracy": 40 / 60}, 50: last | test | {"train/accuracy": 50 / 60}}


def close(found: dict[int, dict[str, float]], recipe: Recipe) -> bool:
    wanted = expected(recipe)
    return found.keys() == wanted.keys() and all(found[step] == pytest.approx(wanted[step]) for step in wanted)


class Heard:
    """A sink that remembers, and fails at the event of a number."""

    def __init__(self, *, fails: int | None = None, name: str = "heard") -> None:
        self.name, self.fails, self.events, self.closed = name, fails, [], 0

    def follow(self, event: Event) -> None:
        self.events.append(event)
        if len(self.events) == self.fails:
            raise RuntimeError("the server\nis gone")

    def close(self) -> None:
        self.closed += 1


def test_a_failing_sink_never_fails_a_run_and_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    bad, good, events = Heard(fails=3, name="bad"), Heard(), told(ONE)
    with caplog.at_level(logging.WARNING, logger="bestiary"):
        assert list(follow_events(at_once(events), [bad, good])) == events
    assert good.events == events
    assert (len(bad.events), bad.closed, good.closed) == (3, 0, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "bad failed and is told no more (RuntimeError: the server)"
    ]


def test_a_sink_that_cannot_close_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(Heard):
        def close(self) -> None:
            raise OSError("the disk is full")

    assert len(list(follow_events(at_once(told(ONE)), [Stuck()]))) == len(told(ONE))
    assert "the disk is full" in caplog.text


def test_stopping_closes_the_sweep_and_the_sinks() -> None:
    stopped = []

    def events() -> Generator[Event]:
        try:
            yield from told(ONE)
        finally:
            stopped.append(True)

    sink, sweeping = Heard(), events()
    following = follow_events(sweeping, [sink])
    assert next(following).kind == "started"
    following.close()
    assert stopped == [True]
    assert (len(sink.events), sink.closed) == (1, 1)


def test_a_fault_of_the_sweep_is_passed_on_after_the_sinks_were_closed() -> None:
    def events() -> Generator[Event]:
        yield Event("started", ONE)
        raise OSError("the disk is full")

    sink = Heard()
    with pytest.raises(OSError, match="the disk is full"):
        list(follow_events(events(), [sink]))
    assert sink.closed == 1


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"pip install 'bestiary\[{name}\]'"):
        make_sinks(name, group="question", folder=tmp_path)


def test_an_unknown_tracker_has_a_neighbour(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="no tracker 'wandbb' among .*did you mean 'wandb'"):
        make_sinks("wandbb", group="question", folder=tmp_path)
    assert make_sinks("", group="question", folder=tmp_path) == []


def test_a_sink_is_made_once_however_often_it_is_named(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert len(make_sinks("tensorboard, tensorboard,", group="question", folder=tmp_path)) == 1


def test_a_configuration_is_flat_and_complete() -> None:
    config = flat_config(ONE)
    assert all(value is None or isinstance(value, str | int | float) for value in config.values())
    assert set(ONE.json()) < set(config)
    assert (config["pattern"], config["dim"], config["distinct"]) == (str(ONE.pattern[0]), 8, "[]")
    assert (config["test.length"], config["test.pairs"]) == (12, 2)
    assert not any("." in name for name in flat_config(TWO))


def test_a_title_is_short_and_begins_with_the_key() -> None:
    long = clean(", ".join(f"attention(window={i})" for i in range(1, 20)), train=TASK)
    assert run_title(long).startswith(long.key)
    assert len(run_title(long)) <= 128
    assert run_title(ONE) == f"{ONE.key} dim=8 rate=0.003 seed=1 attention"


def test_tensorboard_keeps_runs_apart_that_are_followed_at_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    follow("tensorboard", tmp_path, told(ONE), told(TWO))
    for recipe in (ONE, TWO):
        found, texts = boards(tmp_path / "question", recipe)
        assert close(found, recipe)
        assert Recipe(**json.loads(texts["recipe/text_summary"].strip("`json\n"))) == recipe
        assert texts["outcome/text_summary"] == "outcome finished, seconds 1.5"


def test_tensorboard_forgets_an_attempt_that_was_interrupted(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    later = Event("measured", ONE, Measurement(75, "train", -1, "", 0, 60.0, 0, 60))
    follow("tensorboard", tmp_path, [*told(ONE)[:-2], later])
    follow("tensorboard", tmp_path, told(ONE))
    assert close(boards(tmp_path / "question", ONE)[0], ONE)


def test_tensorboard_has_the_recipe_as_hyperparameters(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    for outcome, ends in (("finished", True), ("failed", False)):
        follow("tensorboard", tmp_path / outcome, told(ONE, outcome=outcome))
        (place,) = (tmp_path / outcome / "question").iterdir()
        content = EventAccumulator(str(place)).Reload().PluginTagToContent("hparams")
        begun = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info
        assert begun.hparams["dim"].number_value == 8
        assert begun.hparams["test.filler"].string_value == flat_config(ONE)["test.filler"]
        assert ("_hparams_/session_end_info" in content) is ends


def boards(folder: Path, recipe: Recipe) -> tuple[dict[int, dict[str, float]], dict[str, str]]:
    """Numbers by step and texts that TensorBoard sees of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (place,) = (place for place in folder.iterdir() if place.name.startswith(recipe.key))
    board, found = EventAccumulator(str(place)).Reload(), {}
    for name in board.Tags()["scalars"]:
        for scalar in board.Scalars(name):
            found.setdefault(scalar.step, {})[name] = scalar.value
    texts = {name: board.Tensors(name)[-1].tensor_proto.string_val[0].decode() for name in board.Tags()["tensors"]}
    return found, texts


def test_wandb_keeps_runs_apart_that_are_followed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    follow("wandb", tmp_path, told(ONE), told(TWO, outcome="failed"))
    wandb.teardown()  # what it does when the process ends: wait until all is written
    runs = {
        record.run.display_name: records for records in offline(tmp_path) for record in records if record.run.run_id
    }
    assert set(runs) == {run_title(ONE), run_title(TWO)}
    for recipe, outcome, code in ((ONE, "finished", 0), (TWO, "failed", 1)):
        records = runs[run_title(recipe)]
        (begun,) = (record.run for record in records if record.HasField("run"))
        config = {item.key: json.loads(item.value_json) for item in begun.config.update}
        assert begun.run_group == "question"
        assert {name: config[name] for name in flat_config(recipe)} == flat_config(recipe)
        assert close(histories(records), recipe)
        kept = {item.key: item.value_json for record in records for item in record.summary.update}
        assert json.loads(kept["outcome"]) == outcome
        assert [record.exit.exit_code for record in records if record.HasField("exit")] == [code]


def offline(folder: Path) -> list[list[Any]]:
    """The records of each offline run that wandb wrote: a LevelDB log of protobufs behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for file in folder.glob("wandb/offline-run-*/*.wandb"):
        data, at, whole, records = file.read_bytes(), 7, b"", []
        while at + 7 <= len(data):
            if (left := 2**15 - at % 2**15) < 7:  # the rest of a block is padding
                at += left
                continue
            length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
            if kind in (1, 4):  # in one piece, or the last piece
                records.append(wandb_internal_pb2.Record.FromString(whole))  # pyright: ignore[reportAttributeAccessIssue]
                whole = b""
        found.append(records)
    return found


def histories(records: list[Any]) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for record in records:
        if record.HasField("history"):
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            row = {name: json.loads(value) for name, value in items.items()}
            found[row["_step"]] = {name: value for name, value in row.items() if not name.startswith("_")}
    return found


def test_trackio_keeps_runs_apart_that_are_followed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trackio = pytest.importorskip("trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path)  # read from TRACKIO_DIR when it is imported
    follow("trackio", tmp_path, told(ONE), told(TWO))
    assert capsys.readouterr().out == ""
    configs = {run.name: run.config for run in trackio.Api().runs("bestiary")}
    assert set(configs) == {run_title(ONE), run_title(TWO)}
    for recipe in (ONE, TWO):
        config = configs[run_title(recipe)]
        assert {name: config[name] for name in flat_config(recipe)} == flat_config(recipe)
        assert config["_Group"] == "question"
        rows = sqlite3.connect(tmp_path / "bestiary.db").execute(
            "select step, metrics from metrics where run_name = ? order by id", [run_title(recipe)]
        )
        found: dict[int, dict[str, Any]] = {}
        for step, metrics in rows.fetchall():
            found.setdefault(step, {}).update(json.loads(metrics))
        assert found[50].pop("outcome") == "finished"
        assert found[50].pop("seconds") == 1.5
        found[50].pop("note")
        assert close(found, recipe)


def test_trackio_leaves_a_run_of_ones_own_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trackio = pytest.importorskip("trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path)
    trackio.init("own", name="mine", embed=False, auto_log_gpu=False, auto_log_cpu=False)
    follow("trackio", tmp_path, told(ONE))
    trackio.log({"mine": 1.0})
    trackio.finish()
    written = sqlite3.connect(tmp_path / "own.db").execute("select run_name, metrics from metrics").fetchall()
    assert [(name, json.loads(metrics)) for name, metrics in written] == [("mine", {"mine": 1.0})]


def test_a_run_that_starts_over_is_a_second_run(caplog: pytest.LogCaptureFixture) -> None:
    begun, ends = [], []

    class Kept:
        def __init__(self, recipe: Recipe) -> None:
            begun.append(recipe.key)

        def log(self, numbers: dict[str, float], step: int) -> None: ...

        def end(self, end: dict[str, Any]) -> None:
            ends.append(end["outcome"])

    sink = Tracker("kept", Kept)
    list(follow_events(at_once([*told(ONE)[:3], *told(ONE)]), [sink]))
    list(follow_events(at_once(told(ONE)[-1:]), [sink]))  # another worker's
    list(follow_events(at_once(told(ONE)[:2]), [sink]))
    assert begun == [ONE.key] * 3
    assert ends == ["started over", "finished", "stopped"]
    assert caplog.text == ""


def test_the_loss_that_is_no_number_is_told_too() -> None:
    look = [Measurement(25, "train", -1, "", 0, math.nan, 0, 60)]
    assert math.isnan(summarize(look)["train/loss"])


def test_a_real_sweep_is_followed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    small = {"train": TASK, "dim": 8, "batch": 16, "steps": 4, "every": 2, "selection_rows": 40, "test_rows": 60}
    recipes, store = [clean("attention", seed=seed, **small) for seed in range(2)], Store(tmp_path / "runs")
    following = make_sinks("tensorboard", group="question", folder=tmp_path / "tensorboard")
    kinds = [event.kind for event in follow_events(sweep(recipes, store, workers=2), following)]
    assert kinds.count("ended") == 2
    for recipe in recipes:
        found, _ = boards(tmp_path / "tensorboard" / "question", recipe)
        log = [line for line in store.read(recipe.key).log if not line["facet"]]
        assert set(found) == {2, 4}
        for line in log:
            assert found[line["step"]][f"{line['split']}/loss"] == pytest.approx(line["loss"] / line["asked"])
