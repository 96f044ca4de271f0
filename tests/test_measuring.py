"""Losses that are measured in chunks: kept, gone on with after a stop, and refused where they cannot be written."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestiary.cli._progress import Progress
from bestiary.cli._slicing import MARK, claim_folder
from bestiary.slices import measuring
from bestiary.slices.measuring import measure

CONTEXTS = np.random.default_rng(0).integers(0, 50, (20, 9))


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "CHUNK_TOKENS", 3 * 8)


class Model:
    """Losses that depend on the contexts alone; counts the contexts that it was asked about, and stops on the way."""

    def __init__(self, stop: int | None = None) -> None:
        self.asked, self.stop = 0, stop

    def __call__(self, contexts: Any) -> Any:
        if self.stop is not None and self.asked >= self.stop:
            raise KeyboardInterrupt
        self.asked += len(contexts)
        return (contexts[:, 1:] * 0.1 + contexts[:, :1]).astype(np.float32)


def run(model: Model, folder: Path, *, contexts: Any = CONTEXTS, identity: tuple[str, ...] = ("a",), **how: Any) -> Any:
    return measure(model, contexts, folder, identity=identity, **how)


def test_what_was_measured_is_kept_and_the_rest_is_measured_after_a_stop(tmp_path: Path) -> None:
    whole = run(Model(), tmp_path / "whole")
    assert (whole == Model()(CONTEXTS)).all()
    with pytest.raises(KeyboardInterrupt):
        run(Model(stop=9), tmp_path / "cut")
    rest, heard = Model(), list[tuple[int, int]]()
    assert (run(rest, tmp_path / "cut", progress=lambda *counts: heard.append(counts)) == whole).all()
    assert rest.asked == 11
    assert heard == [(9, 20), (12, 20), (15, 20), (18, 20), (20, 20)]
    again = Model()
    assert (run(again, tmp_path / "cut") == whole).all()
    assert again.asked == 0


@pytest.mark.parametrize("at", [0, 13, 200, 399, -1])
def test_a_flipped_bit_is_measured_again(at: int, tmp_path: Path) -> None:
    whole = run(Model(), tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    again = Model()
    assert (run(again, tmp_path) == whole).all()
    assert again.asked == 20 - at % len(content) // (len(content) // 20)
    assert path.read_bytes() != content


@pytest.mark.parametrize("size", [0, 1, 100, 399])
def test_a_file_that_was_cut_is_gone_on_with(size: int, tmp_path: Path) -> None:
    whole = run(Model(), tmp_path)
    (path,) = tmp_path.iterdir()
    os.truncate(path, size)
    assert (run(Model(), tmp_path) == whole).all()
    assert (run(Model(stop=0), tmp_path) == whole).all()


def test_another_model_or_text_is_measured_for_itself(tmp_path: Path) -> None:
    run(Model(), tmp_path)
    for how in ({"identity": ("b",)}, {"contexts": CONTEXTS[::-1]}, {"contexts": CONTEXTS[:, :-1]}):
        other = Model()
        found = run(other, tmp_path, **how)
        assert (found == Model()(how.get("contexts", CONTEXTS))).all()
        assert other.asked == 20


def test_records_of_two_that_write_at_once_are_not_taken_for_others(tmp_path: Path) -> None:
    whole = run(Model(), tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    size = len(content) // 20
    path.write_bytes(content[: 5 * size] + content[4 * size :])
    again = Model()
    assert (run(again, tmp_path) == whole).all()
    assert again.asked == 15


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from bestiary.slices import measuring
measuring.CHUNK_TOKENS = 24
asked = 0
def losses(contexts):
    global asked
    if asked >= 12:
        os.kill(os.getpid(), signal.SIGKILL)
    asked += len(contexts)
    return (contexts[:, 1:] * 0.1 + contexts[:, :1]).astype(np.float32)
contexts = np.random.default_rng(0).integers(0, 50, (20, 9))
measuring.measure(losses, contexts, Path(sys.argv[1]), identity=("a",))
"""


def test_a_kill_loses_no_chunk_that_was_written(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    rest = Model()
    assert (run(rest, tmp_path) == Model()(CONTEXTS)).all()
    assert rest.asked == 8


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and not from `bestiary slice`: give another folder with --out"):
        claim_folder(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]
    for taken in (tmp_path / "thesis.txt", tmp_path / "thesis.txt" / "below"):
        with pytest.raises(ValueError, match=r"thesis.txt.* cannot be written \((File exists|Not a directory)\)"):
            claim_folder(taken)


def test_a_folder_of_ones_own_is_taken_again_also_one_of_an_earlier_version(tmp_path: Path) -> None:
    for _ in range(2):
        claim_folder(tmp_path / "new" / "deep")
    assert os.listdir(tmp_path / "new" / "deep") == [MARK]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "tokens.npz").touch()
    claim_folder(tmp_path / "old")


def test_progress_tells_the_time_left_by_what_was_done_now(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("bestiary.cli._progress.time.monotonic", lambda: now)
    progress = Progress("contexts of a")
    for now, done in ((0.0, 1000), (10.0, 1010), (45.0, 1050), (50.0, 1055), (60.0, 1100)):  # noqa: B007 (the clock reads it)
        progress(done, 1100)
    assert capsys.readouterr().err.splitlines() == [
        "1,000 of 1,100 contexts of a",
        "1,050 of 1,100 contexts of a, about 45 s left",  # 50 in 45 seconds
        "1,100 of 1,100 contexts of a",
    ]
