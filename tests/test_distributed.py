"""Two processes train what one does: copies and shares of a model, stopped and gone on with in any way."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_text import loss_rows, read_log, read_until, small_recipe, write_corpus

from bestiary.corpus.corpus import Corpus
from bestiary.lm.loop import pretrain
from bestiary.lm.pretraining import open_run

PATTERN = "attention(heads=2), rwkv4"  # a mixer whose parameters are in part exempt from weight decay

WORKER = """
import os, signal, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from bestiary.corpus.corpus import open_corpus
from bestiary.lm.loop import pretrain
from small_text import loss_rows, read_log, read_until, small_recipe, write_corpus
given = small_recipe(pattern={pattern!r})
for row in pretrain(given, open_corpus({corpus!r}), {folder!r}, parallel={parallel!r}, accumulate=2, save_every=7):
    if row["step"] == {end}:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def text(tmp_path: Path) -> Corpus:
    return write_corpus(tmp_path / "corpus")


def torchrun(text: Corpus, folder: Path, parallel: str, *, end: int = 0) -> int:
    """Train in two processes; with `end`, the first is killed at that step."""
    names = {"tests": str(Path(__file__).parent), "corpus": str(text.folder), "folder": str(folder)}
    program = text.folder / f"{parallel}-{end}.py"
    program.write_text(WORKER.format(**names, pattern=PATTERN, parallel=parallel, end=end))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    return subprocess.run(command, check=False, timeout=120).returncode


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_the_model_of_one(text: Corpus, tmp_path: Path, parallel: str) -> None:
    given = small_recipe(pattern=PATTERN)
    alone = loss_rows(list(pretrain(given, text, tmp_path / "alone")))
    assert torchrun(text, tmp_path / "both", parallel) == 0
    both = loss_rows(read_log(tmp_path / "both" / given.key))
    assert [row[:2] for row in both] == [row[:2] for row in alone]
    assert [loss for *_, loss in both] == pytest.approx([loss for *_, loss in alone], rel=1e-5)
    _, ours = open_run(tmp_path / "both" / given.key)
    for name, weight in open_run(tmp_path / "alone" / given.key)[1].state_dict().items():
        assert torch.allclose(ours.state_dict()[name], weight, atol=1e-3), name


@pytest.mark.slow
def test_one_process_goes_on_where_two_were_killed_and_two_where_one_was(text: Corpus, tmp_path: Path) -> None:
    given = small_recipe(pattern=PATTERN)
    whole = loss_rows(list(pretrain(given, text, tmp_path / "whole")))
    assert torchrun(text, tmp_path / "two", "fsdp", end=15) != 0
    checkpoint = tmp_path / "two" / given.key / "checkpoint"
    files = sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*.*"))
    assert files == ["last.json", "step-14/shard-0.safetensors", "step-14/shard-1.safetensors"]
    rows = list(pretrain(given, text, tmp_path / "two"))
    assert rows[0]["step"] == 15
    read_until(pretrain(given, text, tmp_path / "one", save_every=7), 15)
    assert torchrun(text, tmp_path / "one", "fsdp") == 0
    for folder in ("one", "two"):
        rows = loss_rows(read_log(tmp_path / folder / given.key))
        assert [row[:2] for row in rows] == [row[:2] for row in whole]
        assert [loss for *_, loss in rows] == pytest.approx([loss for *_, loss in whole], rel=1e-5)


def test_parallel_training_says_that_it_needs_torchrun(text: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs processes started by torchrun"):
        next(pretrain(small_recipe(), text, tmp_path, parallel="ddp"))
