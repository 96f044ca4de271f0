"""`corpus` and `slice` on the command line: what they tell, refuse before any work, and go on with after a stop."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_process import bestiary

from bestiary.cli import _slicing
from bestiary.corpus.corpus import Corpus
from bestiary.lm.pretraining import Pretraining
from bestiary.slices import losses as losses_of
from bestiary.slices import measuring

EARLIER = Path(__file__).parent / "earlier" / "corpus"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A corpus, and a run of a model that has learnt nothing."""
    from safetensors.torch import save_file

    corpus = shutil.copytree(EARLIER, tmp_path / "corpus")
    recipe = Pretraining(corpus="c5ccc290fdf5", vocab=300, pattern="attention(heads=2)", dim=8, depth=1, context=16)
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(corpus / "tokenizer", run / "tokenizer")
    (run / "recipe.json").write_text(json.dumps(recipe.json()))
    (run / "done").write_text(json.dumps({"outcome": "finished", "seconds": 1.0, "note": ""}))
    save_file(dict(recipe.build().state_dict()), run / "weights.safetensors")
    return tmp_path


def test_a_corpus_tells_what_it_skipped_and_takes_shares_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, count = list[int](), Corpus.counts
    monkeypatch.setattr(Corpus, "counts", lambda own, *, memory: heard.append(memory) or count(own, memory=memory))
    (tmp_path / "texts").mkdir()
    for i in range(40):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"a text of number {i}, and more")
    (tmp_path / "texts" / "image.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "texts" / "none.txt").touch()
    given = ["corpus", tmp_path / "texts", "--out", tmp_path / "c", "--tokenizer", "bytes"]
    told = bestiary(*given, "--selection", "0.3", "--test", "0", "--memory", 3)
    assert heard == [3 * 2**20]
    assert told.splitlines()[-1] == "skipped: 1 binary, 1 empty"
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["request"]["shares"] == [0.3, 0.0]
    assert manifest["splits"]["selection"]["documents"] > 3
    assert manifest["splits"]["test"]["documents"] == 0
    assert "leave nothing to train on" in bestiary(*given, "--selection", "0.5", "--test", "0.5", status=2)


def test_novels_are_cut_and_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text("\n".join(f"line {i} of a novel" for i in range(9000)))
    told = bestiary("corpus", tmp_path / "novel.txt", "--out", tmp_path / "c", "--tokenizer", "bytes")
    assert "long documents were cut into pieces, and each piece was put into a split by itself" in told


@pytest.mark.parametrize("kind", ["file", "folder", "below"])
def test_where_nothing_can_be_written_no_model_is_opened(
    kind: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bestiary.cli._slicing.open_source", None)
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").write_text("mine")
    out = {
        "file": place / "mine" / "thesis.txt",
        "folder": place / "mine",
        "below": place / "mine" / "thesis.txt" / "a",
    }
    told = bestiary("slice", place / "run", place / "corpus", "--length", 16, "--out", out[kind], status=2)
    assert "give another folder with --out" in told
    assert len(told.splitlines()) == 1
    assert [path.name for path in (place / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_a_slice_that_was_stopped_goes_on_and_gives_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "CHUNK_TOKENS", 5 * 16)
    asked, whole = list[int](), losses_of.model_losses

    def counted(model: Any, contexts: Any, **how: Any) -> Any:
        if stop and sum(asked) >= 20:
            raise KeyboardInterrupt
        asked.append(len(contexts))
        return whole(model, contexts, **how)

    monkeypatch.setattr(losses_of, "model_losses", counted)
    given = ["slice", place / "run", place / "corpus", "--length", 16, "--threshold", 500, "--out"]
    stop = False
    told = bestiary(*given, place / "whole")
    contexts, asked[:] = sum(asked), []
    stop = True
    bestiary(*given, place / "cut", status=130)
    stop, asked[:] = False, []
    again = bestiary(*given, place / "cut")
    assert sum(asked) == contexts - 20
    assert again.replace("/cut", "/whole").splitlines()[-5:] == told.splitlines()[-5:]
    with np.load(place / "whole" / "tokens.npz") as one, np.load(place / "cut" / "tokens.npz") as two:
        assert (one["losses_0"] == two["losses_0"]).all()
    asked.clear()
    bestiary(*given, place / "cut", "--order", 3)
    assert asked == []  # the same losses, looked at in another way
    (place / "run" / "weights.safetensors").touch()
    bestiary(*given, place / "cut")
    assert sum(asked) == contexts


def test_the_page_of_one_model_speaks_of_its_loss_and_names_passages_by_their_words(place: Path) -> None:
    told = bestiary("slice", place / "run", place / "corpus", "--length", 16, "--threshold", 500, "--out", place / "o")
    assert "Intervals of 95 % are over 9 documents.\nWith fewer than 20 documents they are a rough guide." in told
    page = (place / "o" / "page.html").read_text()
    assert "Shown are the contexts with the highest loss on hits, one of each document in turn" in page
    assert "gap on hits" not in page.split("<script")[0]
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    for passage in data["passages"]:
        text = " ".join("".join(passage["pieces"]).replace("<|endoftext|>", "").split())
        assert passage["title"].rstrip("…").split()[0] in text
        assert "context" not in passage["title"]
    assert page.count("<figure") == 4


def test_a_model_that_is_named_twice_is_refused(place: Path) -> None:
    of = ["--against", place / "run"]
    told = bestiary("slice", place / "run", place / "corpus", *of, *of, "--length", 16, status=2)
    assert "run is named twice: give each model once" in told.replace("\n", " ")


def test_a_limit_takes_contexts_of_many_documents(place: Path) -> None:
    given = ["slice", place / "run", place / "corpus", "--length", 16, "--threshold", 500, "--limit", 9]
    told = bestiary(*given, "--out", place / "o")
    documents = np.load(place / "o" / "tokens.npz")["documents"]
    assert len(np.unique(documents)) == 9 == len(documents)
    assert "tokens of 9 documents" in told


def test_results_of_another_text_or_model_are_in_another_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise LookupError("the folder is claimed")

    monkeypatch.chdir(place)
    monkeypatch.setattr(_slicing, "measure_models", stop)
    (place / "own.txt").write_text("Ada has 3, and Bob has 3, and Ada has 3 of Bob. " * 9)
    (place / "theirs.npy").touch()
    asked = [["corpus"], ["corpus", "--split", "train"], ["own.txt", "--corpus", "corpus"]]
    for model, *text in [*(["run", *each] for each in asked), ["a/b-1.5B", "corpus"], ["theirs.npy", "corpus"]]:
        given = ["slice", model, *text, "--length", 16, "--threshold", 500]
        assert "the folder is claimed" in bestiary(*given, status=2)
    assert sorted(folder.name for folder in (place / "figures").iterdir()) == [
        "slice-b-1.5B-on-test-of-corpus",
        "slice-run-on-own.txt",
        "slice-run-on-test-of-corpus",
        "slice-run-on-train-of-corpus",
        "slice-theirs-on-test-of-corpus",
    ]
    assert str(_slicing.default_folder("hf:a/fine:web", ["run"])) == "figures/slice-run-on-fine-web"
