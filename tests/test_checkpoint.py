"""What a run resumes from: it runs no code, damage to it is named, and what version 0.1 wrote is still read."""

import json
import logging
import os
import pickle
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_text import loss_rows, read_log, read_until, small_recipe, write_corpus
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.checkpoint.state_dict_saver import save

from bestiary.corpus.corpus import Corpus
from bestiary.lm.loop import pretrain
from bestiary.lm.pretraining import open_run
from bestiary.runs.files import read_record, write_record
from bestiary.runs.store import write_file


@pytest.fixture
def text(tmp_path: Path) -> Corpus:
    return write_corpus(tmp_path / "corpus")


class Hostile:
    """Leaves a file where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def stopped_run(text: Corpus, folder: Path) -> Path:
    """The folder of a run that was stopped after its checkpoint at step 14."""
    read_until(pretrain(small_recipe(), text, folder, save_every=7), 15)
    return folder / small_recipe().key


def write_as_before(monkeypatch: pytest.MonkeyPatch, *, sharded: bool) -> None:
    """Write checkpoints as version 0.1 did."""

    def save_state(_: Any, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> dict[str, str]:
        options = None if sharded else StateDictOptions(full_state_dict=True)
        weights, moments = get_state_dict(model, optimizer, options=options)
        state = {"model": weights, "optimizer": moments}
        if sharded:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                save(state, checkpoint_id=folder, no_dist=True)
        else:
            torch.save(state, folder / "state.pt")
        return {}

    def write_record(path: Path, record: Mapping[str, Any]) -> None:
        write_file(path, {name: record[name] for name in ("step", "log", "sum")})

    monkeypatch.setattr("bestiary.lm.loop.save_state", save_state)
    monkeypatch.setattr("bestiary.runs.resuming.write_record", write_record)


@pytest.mark.parametrize("file", [".metadata", "state.pt"])
@pytest.mark.parametrize("old_record", [True, False])
def test_a_hostile_checkpoint_runs_nothing(text: Corpus, tmp_path: Path, file: str, *, old_record: bool) -> None:
    run, canary = stopped_run(text, tmp_path / "models"), tmp_path / "canary"
    step, record = run / "checkpoint" / "step-14", run / "checkpoint" / "last.json"
    shutil.rmtree(step)
    step.mkdir()
    (step / file).write_bytes(pickle.dumps({"model": Hostile(canary), "optimizer": {}}, 2))
    if old_record:
        record.write_text(json.dumps({name: json.loads(record.read_text())[name] for name in ("step", "log", "sum")}))
    message = {".metadata": "is a pickle.*--trust-checkpoint", "state.pt": "holds more than tensors"}[file]
    with pytest.raises(ValueError, match=message if old_record else r"shard-0\.safetensors"):
        next(pretrain(small_recipe(), text, tmp_path / "models"))
    assert not canary.exists()


@pytest.mark.parametrize("sharded", [False, True])
def test_a_checkpoint_of_version_0_1_is_resumed_to_the_bit(
    text: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, sharded: bool
) -> None:
    whole = loss_rows(list(pretrain(small_recipe(), text, tmp_path / "whole")))
    with monkeypatch.context() as patch:
        write_as_before(patch, sharded=sharded)
        run = stopped_run(text, tmp_path / "cut")
    if sharded:
        with pytest.raises(ValueError, match="--trust-checkpoint"):
            next(pretrain(small_recipe(), text, tmp_path / "cut"))
    rows = list(pretrain(small_recipe(), text, tmp_path / "cut", trust_checkpoint=sharded))
    assert rows[0]["step"] == 15
    assert loss_rows(read_log(run)) == whole


def test_a_run_goes_on_of_which_weights_had_no_gradient_yet(text: Corpus, tmp_path: Path) -> None:
    given = small_recipe(pattern="nsa", context=8, depth=1, steps=9, every=3)  # too short for a block to be selected
    whole = loss_rows(list(pretrain(given, text, tmp_path / "whole")))
    read_until(pretrain(given, text, tmp_path / "cut", save_every=4), 6)
    assert list(pretrain(given, text, tmp_path / "cut", save_every=4))[0]["step"] == 6
    assert loss_rows(read_log(tmp_path / "cut" / given.key)) == whole


def test_seconds_count_the_time_up_to_the_checkpoint(text: Corpus, tmp_path: Path) -> None:
    run = stopped_run(text, tmp_path / "models")
    record = read_record(run / "checkpoint" / "last.json")
    assert 0 < record["seconds"] < 100
    write_record(run / "checkpoint" / "last.json", record | {"seconds": 1000.0})
    list(pretrain(small_recipe(), text, tmp_path / "models"))
    assert 1000 < json.loads((run / "done").read_text())["seconds"] < 1100
    assert not (run / "checkpoint").exists()


def test_a_run_names_what_made_each_of_its_parts(text: Corpus, tmp_path: Path) -> None:
    given = small_recipe(pattern="short_conv", dim=8, depth=1)
    read_until(pretrain(given, text, tmp_path, save_every=7), 10)
    read_until(pretrain(given, text, tmp_path, save_every=7), 15)
    list(pretrain(given, text, tmp_path, save_every=7, accumulate=2))
    origin = json.loads((tmp_path / given.key / "origin.json").read_text())
    assert [(part["until"], part["accumulate"]) for part in origin["earlier"]] == [(7, 1), (14, 1)]
    assert origin["accumulate"] == 2
    assert all(part.keys() == origin.keys() - {"earlier"} | {"until"} for part in origin["earlier"])
    assert (tmp_path / given.key / "done").exists()


def forget_digests(run: Path) -> None:
    """Make a run one of version 0.1, which recorded no digests."""
    done = json.loads((run / "done").read_text())
    put_back = {name: value for name, value in done.items() if name != "digests"}
    write_file(run / "done", put_back)


def flip(path: Path, position: float) -> None:
    """Change one bit of a file at a relative position."""
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("position", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("file", ["checkpoint/step-14/shard-0.safetensors", "checkpoint/last.json", "log.jsonl"])
def test_a_flipped_bit_of_what_a_run_resumes_from_is_named(
    text: Corpus, tmp_path: Path, file: str, position: float
) -> None:
    run = stopped_run(text, tmp_path / "models")
    if file == "log.jsonl":  # what the checkpoint does not know of the log is cut off
        size = json.loads((run / "checkpoint" / "last.json").read_text())["log"]
        (run / file).write_bytes((run / file).read_bytes()[:size])
    flip(run / file, position)
    with pytest.raises(ValueError, match=f"{run / file} is damaged"):
        next(pretrain(small_recipe(), text, tmp_path / "models"))


@pytest.mark.parametrize("file", ["weights.safetensors", "recipe.json", "tokenizer/tokenizer.json", "done"])
def test_a_flipped_bit_of_a_trained_model_is_named(text: Corpus, tmp_path: Path, file: str) -> None:
    list(pretrain(small_recipe(), text, tmp_path))
    run = tmp_path / small_recipe().key
    flip(run / file, 0.6)
    message = f"{run} cannot be read .done: " if file == "done" else f"{run / file} is damaged"
    with pytest.raises(ValueError, match=message):
        open_run(run)


def test_a_model_without_digests_is_read_and_said_to_be_unchecked(
    text: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    list(pretrain(small_recipe(), text, tmp_path))
    run = tmp_path / small_recipe().key
    with caplog.at_level(logging.WARNING):
        open_run(run)
        assert not caplog.messages
        forget_digests(run)
        open_run(run)
    assert caplog.messages == [f"{run} records no digests of its weights, so they are used unchecked"]


@pytest.mark.parametrize("size", [0, 5, 400, -1])
def test_truncated_weights_and_those_of_another_model_are_one_line(text: Corpus, tmp_path: Path, size: int) -> None:
    from bestiary.runs.tensors import write_tensors

    list(pretrain(small_recipe(), text, tmp_path))
    run = tmp_path / small_recipe().key
    forget_digests(run)
    weights = run / "weights.safetensors"
    if size < 0:
        write_tensors(weights, small_recipe(dim=8).build().state_dict())
    else:
        weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(ValueError, match="another model" if size < 0 else "damaged") as told:
        open_run(run)
    assert str(weights) in str(told.value)
    assert "\n" not in str(told.value)


def test_weights_have_the_mode_of_the_umask(text: Corpus, tmp_path: Path) -> None:
    run = stopped_run(text, tmp_path)
    list(pretrain(small_recipe(), text, tmp_path / "done"))
    files = [
        run / "checkpoint" / "step-14" / "shard-0.safetensors",
        tmp_path / "done" / run.name / "weights.safetensors",
    ]
    assert [file.stat().st_mode & 0o777 for file in files] == [(run / "recipe.json").stat().st_mode & 0o777] * 2
