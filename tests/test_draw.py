"""The verb `draw`: a file has exactly the rows that training and scoring see."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from bestiary.cli import app
from bestiary.spec import parse
from bestiary.tasks._dataset import draw_rows

TASK = "mqar(vocab=64, length=32, pairs=4)"


def draw(*arguments: str) -> str:
    found = CliRunner().invoke(app, ["draw", *arguments])
    assert found.exit_code == 0, found.output
    return found.output


def test_training_rows_are_those_that_a_recipe_sees_first(tmp_path: Path) -> None:
    draw(TASK, "--rows", "20", "--batch", "8", "--seed", "3", "--to", str(tmp_path / "rows.npz"))
    with np.load(tmp_path / "rows.npz") as found:
        task = parse("tasks", TASK)[0].build()
        wanted = torch.cat([task.draw(8, "train", 3, i).tokens for i in range(3)])[:20]
        assert (found["tokens"] == wanted.numpy()).all()
        assert found["targets"].shape == found["facet_distance"].shape == (20, 32)


def test_test_rows_are_those_that_every_run_is_scored_on(tmp_path: Path) -> None:
    draw(TASK, "--rows", "300", "--split", "test", "--to", str(tmp_path / "rows.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    (part,) = parse("tasks", TASK)
    task = part.build()
    wanted = torch.cat([task.draw(256, "test", part.key, i).targets for i in range(2)])[:300]
    assert [row["targets"] for row in rows] == wanted.tolist()


def test_parquet_has_lists(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    draw(TASK, "--rows", "5", "--to", str(tmp_path / "rows.parquet"))
    (row,) = duckdb.sql(f"select tokens from '{tmp_path / 'rows.parquet'}' limit 1").fetchall()
    assert list(row[0]) == draw_rows(TASK, 1, split="train", batch=128).tokens[0].tolist()


def test_arrays_hold_what_the_scorer_knows() -> None:
    arrays = draw_rows("regbench(states=4, letters=4, strings=3, least=3)", 3).arrays()
    assert {name.partition("_")[0] for name in arrays} >= {"tokens", "targets", "truth"}
    assert all(isinstance(array, np.ndarray) for array in arrays.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((TASK, "--to", "rows.txt"), "must end in"),
        ((TASK, "--to", "rows.npz", "--split", "dev"), "no stream 'dev'"),
        (("mqr", "--to", "rows.npz"), "mqar"),
        (("mqar, parity", "--to", "rows.npz"), "names 2"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["draw", *arguments[:2], str(tmp_path / arguments[2]), *arguments[3:]])
    assert found.exit_code == 2
    assert said in found.output
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_only_if_that_is_asked_for(tmp_path: Path) -> None:
    place = tmp_path / "rows.npz"
    place.write_text("mine")
    assert CliRunner().invoke(app, ["draw", TASK, "--to", str(place)]).exit_code == 2
    assert place.read_text() == "mine"
    draw(TASK, "--to", str(place), "--rows", "2", "--overwrite")
    assert place.read_bytes()[:2] == b"PK"
