"""Real text on the command line: from a folder of files to a model, its slices and its answers; a line a mistake."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from in_process import bestiary

pytestmark = pytest.mark.slow

NAMES = ["Ada", "Bob", "Cyd", "Dan", "Eve", "Fay", "Gus", "Hal"]
SMALL = ["context=16", "batch=4", "steps=6", "every=3", "dim=8", "depth=2", "selection_rows=4", "test_rows=4"]


def write_documents(folder: Path, count: int = 120) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        who = rng.choice(NAMES, 2, replace=False)
        lines = [f"{who[int(rng.integers(2))]} has {rng.integers(1000)} of {i % 7}." for _ in range(12)]
        (folder / f"{i}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and two trained models."""
    here = tmp_path_factory.mktemp("text")
    bestiary("corpus", write_documents(here / "texts"), "--out", here / "corpus", "--vocab", 300)
    for pattern in ("attention", "base_conv"):
        bestiary("pretrain", pattern, *SMALL, "--corpus", here / "corpus", "--store", here / "models")
    return here


def runs(place: Path) -> dict[str, Path]:
    found = [folder for folder in (place / "models").iterdir() if (folder / "done").exists()]
    return {json.loads((run / "recipe.json").read_text())["pattern"][0]["name"]: run for run in found}


def test_what_is_trained_is_not_trained_again(place: Path) -> None:
    given = ["attention", *SMALL, "--corpus", place / "corpus", "--store", place / "models"]
    assert bestiary("pretrain", *given) == f"attention: {runs(place)['attention']}, done already\n"


def test_a_model_is_compiled_if_that_is_asked_for(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr("torch.compile", lambda function: compiled.append(function) or function)
    given = ["attention", *SMALL, "--corpus", place / "corpus", "--store"]
    bestiary("pretrain", *given, tmp_path / "plain")
    assert compiled == []
    bestiary("pretrain", *given, tmp_path / "compiled", "--compile")
    assert [function.__name__ for function in compiled] == ["hidden"]


def test_two_models_are_sliced_against_each_other(place: Path) -> None:
    of, out = runs(place), place / "out"
    given = ["--length", 16, "--threshold", 200, "--out", out]
    told = bestiary("slice", of["base_conv"], place / "corpus", "--against", of["attention"], *given)
    assert "are hits: the bigram that they end occurred earlier in the context and at most 200 times in" in told
    assert "hare of the gap" in told
    tables = {name: pd.read_csv(out / f"{name}.csv") for name in ("slices", "distance", "kinds", "threshold")}
    kept = np.load(out / "tokens.npz")
    for i, row in enumerate(tables["slices"].itertuples()):
        losses = kept[f"losses_{i}"]
        for part, where in {"overall": losses > -1, "hits": kept["hits"], "other": ~kept["hits"]}.items():
            assert getattr(row, part) == pytest.approx(np.exp(losses[where].mean()), rel=1e-4)
            assert getattr(row, f"{part}_low") < getattr(row, part) < getattr(row, f"{part}_high")
    assert {"base_conv", "attention"} == set(tables["distance"]["model"])
    assert (out / "curves.svg").exists()
    assert " has" in (out / "page.html").read_text()


def test_several_models_are_sliced_against_the_first_reference_with_and_without_a_window(place: Path) -> None:
    of, out = runs(place), place / "several"
    given = ["--length", 16, "--threshold", "15000/M", "--window", 3, "--out", out]
    models = ["--against", of["attention"], "--against", place / "same.npy"]
    bestiary("slice", of["base_conv"], place / "corpus", "--length", 16, "--threshold", 200, "--out", place / "first")
    np.save(place / "same.npy", -np.load(place / "first" / "tokens.npz")["losses_0"])
    told = bestiary("slice", of["base_conv"], place / "corpus", *models, *given)
    tables = {name: pd.read_csv(out / f"{name}.csv") for name in ("slices", "position", "distance", "threshold")}
    assert list(tables["slices"]["model"]) == ["base_conv", "same", "attention"]
    base, same, reference = tables["slices"].to_dict("records")
    assert base["overall"] == pytest.approx(same["overall"], rel=1e-5)
    assert np.isnan(reference["share"])
    assert told.count("of the gap of base_conv") == told.count("of the gap of same") == 1
    assert "base_conv, where more than 6 tokens came before: its loss is" in told
    models = set(tables["position"]["model"])
    assert models == {"base_conv", "same", "attention", "base_conv, last 3", "attention, last 3"}
    mean = tables["position"].groupby("model")["loss"].first()
    assert mean["attention"] == pytest.approx(mean["attention, last 3"]), "at first, a window sees as much"
    assert {page.name for page in out.glob("page*.html")} == {"page.html", "page-2.html"}
    assert "hits: same" in told.replace("\n", " ")


def test_log_probabilities_of_anyone_are_sliced_and_a_copier_is_perfect_on_hits(place: Path) -> None:
    of, out = runs(place), place / "file"
    bestiary("slice", of["attention"], place / "corpus", "--length", 16, "--threshold", 200, "--out", out)
    kept = dict(np.load(out / "tokens.npz"))
    np.save(place / "copier.npy", np.where(kept["hits"], 0.0, -kept["losses_0"]))
    given = [place / "corpus", "--length", 16, "--threshold", 200, "--out", out]
    told = bestiary("slice", of["attention"], *given, "--against", place / "copier.npy")
    assert "copier: perplexity" in told
    assert "on hits 1.00 [1.00, 1.00]" in told
    assert "Share of the gap due to hits: 100.0 % [100.0, 100.0] in log-perplexity, share = (D_hits x hits)" in told
    assert "In perplexity: 100.0 % [100.0, 100.0], share = (ppl(model) - ppl(model with" in told
    np.save(place / "copier.npy", np.zeros(7))
    told = bestiary("slice", place / "copier.npy", *given, status=2)
    assert "copier.npy holds 7 log-probabilities, the text has" in told
    np.save(place / "copier.npy", kept["losses_0"])
    assert "numbers that are no log-probabilities" in bestiary("slice", place / "copier.npy", *given, status=2)


def test_any_text_is_sliced_by_the_counts_of_a_corpus(place: Path) -> None:
    (place / "mine.txt").write_text("Zed has 12345 of it.\n" * 6)
    of, out = runs(place), place / "mine"
    given = ["--corpus", place / "corpus", "--length", 16, "--threshold", 0, "--out", out]
    told = bestiary("slice", of["attention"], place / "mine.txt", *given)
    assert "of 1 document in contexts" in told
    assert "A single document has no intervals." in told
    assert "[" not in told.split("mine.txt: ")[1].splitlines()[0]
    assert np.load(out / "tokens.npz")["hits"].any()


def test_models_of_other_tokens_are_compared_by_the_byte_and_refused_alone(place: Path) -> None:
    bestiary("corpus", place / "texts", "--out", place / "bytes", "--tokenizer", "bytes")
    bestiary("pretrain", "mamba", *SMALL, "--corpus", place / "bytes", "--store", place / "models")
    of, given = runs(place), ["--length", 16, "--threshold", 200, "--out", place / "other"]
    told = bestiary("slice", of["attention"], place / "corpus", "--against", of["mamba"], *given)
    assert told.count("bits per byte") == 2
    assert "losses of tokens are not compared" in told
    told = bestiary("slice", of["mamba"], place / "corpus", *given, status=2)
    hashes = [
        json.loads((place / name / "manifest.json").read_text())["tokenizer"]["hash"] for name in ("bytes", "corpus")
    ]
    assert all(known in told for known in hashes)


def test_a_model_writes_on_as_its_seed_says(place: Path) -> None:
    of = runs(place)
    told = [bestiary("generate", of["attention"], "Ada has", "--count", 9, "--seed", seed) for seed in (1, 1, 2)]
    assert told[0] == told[1] != told[2]
    assert told[0].startswith("Ada has")


@pytest.mark.hf
def test_models_of_hugging_face_are_sliced_by_their_own_tokens(place: Path) -> None:
    pytest.importorskip("transformers")
    of, theirs = runs(place), place / "theirs"
    bestiary("convert", of["attention"], theirs)
    given = [place / "corpus", "--length", 16, "--threshold", 200, "--out", place / "hf"]
    told = bestiary("slice", theirs, *given, "--against", of["attention"])
    kept = np.load(place / "hf" / "tokens.npz")
    np.testing.assert_allclose(kept["losses_0"], kept["losses_1"], atol=1e-5)
    assert "theirs is not behind attention" in told or "recall has not formed" in told
    rows = bestiary(
        "probe", theirs, "--shots", "0", "--rows", 4, "--entries", "3", "--words", "0", "--out", place / "p.csv"
    )
    assert "phone_book" in rows
    assert set(pd.read_csv(place / "p.csv")["task"]) == {"mqar", "phone_book", "needle"}
    (theirs / "model.safetensors").unlink()
    assert "holds no weights: model.safetensors is missing" in bestiary("slice", theirs, *given, status=2)


@pytest.mark.hf
def test_a_probe_goes_on_after_a_kill_and_keeps_to_its_own_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(place)
    run, out = runs(place)["attention"], place / "answers.csv"
    given = ["probe", run, "--shots", "0", "--rows", 8, "--entries", "3", "--words", "0", "--out", out]
    told = bestiary(*given)
    assert "0 of 24 questions answered" in told
    assert "24 of 24 questions answered" in told
    (journal,) = (place / "figures").glob(f"probe-{run.name}-*.jsonl")
    table, lines = out.read_bytes(), journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:4]) + lines[4][:7])  # as a kill leaves it
    told = bestiary(*given)
    assert f"going on with {journal.relative_to(place)}" in told
    assert "8 of 24 questions answered" in told
    assert "0 of 24" not in told
    assert out.read_bytes() == table
    assert journal.read_bytes() == b"".join(lines)
    out.write_text("mine")
    assert "is there and no table of `probe`" in bestiary(*given, status=2)
    assert out.read_text() == "mine"
    assert "is a file, where a folder is needed" in bestiary(*given[:-1], place / "answers.csv" / "x.csv", status=2)


@pytest.mark.parametrize("verb", ["probe", "evaluate", "slice"])
@pytest.mark.parametrize("name", ["models/0123456789ab", "./nowhere", "nowhere/", "a/b/c", "texts/nowhere", "x.npy"])
def test_a_missing_folder_is_told_without_asking_the_hub(
    verb: str, name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr("socket.socket.connect", None)
    assert f"there is no file or folder {name}" in bestiary(verb, name, status=2).replace("\n", " ")


def test_a_padded_vocabulary_is_never_written(place: Path) -> None:
    given = ["attention", *SMALL, "vocab=2000", "--corpus", place / "corpus", "--store", place / "padded"]
    run = Path(bestiary("pretrain", *given).splitlines()[0].removeprefix("attention: "))
    bestiary("generate", run, "Ada", "--count", 200, "--temperature", 100, "--top-k", 2000)
    for temperature in ("inf", "nan"):
        told = bestiary("generate", run, "Ada", "--temperature", temperature, status=2)
        assert "it must be a finite number" in told
    bestiary("generate", run, "Ada", "--count", 5, "--temperature", "1e-40")


FULL = """
import errno, os, sys
from safetensors import SafetensorError
import safetensors.torch
def full(*given, **named):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
safetensors.torch.save_file = full
import bestiary.cli
bestiary.cli.main()
"""


def test_a_full_disk_of_a_worker_is_the_same_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    from typer import Exit

    from bestiary.cli._errors import user_input

    with pytest.raises(Exit) as told, user_input():
        raise ChildProcessError("attention: OSError: [Errno 28] No space left on device: 'models/x'")
    assert told.value.exit_code == 1
    assert "the disk is full (attention: OSError" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["pretrain", "convert"])
def test_a_full_disk_is_one_sentence(verb: str, place: Path, tmp_path: Path) -> None:
    given = {
        "pretrain": ["pretrain", "attention", *SMALL, "--corpus", place / "corpus", "--store", tmp_path / "m"],
        "convert": ["convert", runs(place)["attention"], tmp_path / "out"],
    }[verb]
    done = subprocess.run([sys.executable, "-c", FULL, *map(str, given)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "bestiary: the disk is full" in done.stderr
    assert "free some space and give the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["slice", "base_conv", "corpus", "--split", "tset"], "a corpus has no split 'tset'"),
        (["slice", "models", "texts"], "texts is no corpus; name one whose tokens and counts are to be used"),
        (
            ["slice", "texts", "corpus", "--threshold", "200"],
            "texts holds no config.json, so it is no Hugging Face model",
        ),
        (["slice", "base_conv", "corpus", "--threshold", "0", "--limit", "1"], "is a hit at threshold 0"),
        (["slice", "base_conv", "empty.txt", "--corpus", "corpus"], "empty.txt"),
        (["slice", "base_conv", "binary.bin", "--corpus", "corpus"], "is binary: byte 1 is NUL"),
        (["slice", "base_conv", "corpus", "--threshold", "many"], "'many' is no threshold: give occurrences"),
        (
            ["slice", "base_conv", "corpus", "--window", "999", "--threshold", "200"],
            "it must be at least 1 and less than half",
        ),
        (["generate", "corpus"], "corpus holds no config.json, so it is no Hugging Face model"),
        (["pretrain", "zoology", "--only", "atention", "--corpus", "corpus"], "did you mean 'attention'"),
        (["pretrain", "zoology", "--size", "2M", "--corpus", "corpus"], "there is no size '2M'"),
        (["pretrain", "attention", "--size", "1M", "--corpus", "corpus"], "--size and --only are for a suite"),
        (["pretrain", "attention", "pattern=mamba", "--corpus", "corpus"], "mixers are given by --layers, or to"),
        (["pretrain", "attention", "stepz=3", "--corpus", "corpus"], "did you mean 'steps'"),
        (["pretrain", "attention", "--corpus", "texts"], "texts is no corpus"),
        (
            ["pretrain", "attention", "context=100000", "--corpus", "corpus", "--store", "m"],
            "are fewer than two contexts of 100000",
        ),
        (["corpus", "texst"], "no source 'texst'"),
        (["pretrain", "attention", "context=2000", "--corpus", "corpus", "--store", "m"], "one context of 2,000 needs"),
        (["pretrain", "attention", "--corpus", "corpus", "--store", "corpus"], "corpus is a corpus, not a folder of"),
        (["convert", "base_conv", "texts"], "texts is not empty and no conversion of"),
        (["convert", "base_conv", "base_conv"], "is not empty and no conversion of"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (place / "empty.txt").write_text("")
    (place / "binary.bin").write_bytes(b"a\0b")
    given = [str(runs(place)["base_conv"]) if part == "base_conv" else part for part in arguments]
    told = bestiary(*given, status=2)
    assert message in told.replace("\n", " ")
    assert "Traceback" not in told
