"""What version 0.1 wrote is read by every verb that reads: a store, a corpus, trained models and a converted one.

The folder `earlier` was written by the last commit of version 0.1, by these commands, and is never written again:

    bestiary corpus source/letters.jsonl --vocab 300 --out corpus
    bestiary train dim=16 steps=6 every=3 batch=8 test_rows=40 selection_rows=20 --keep --store store
        --task "mqar(vocab=64, length=16, pairs=2)" --layers attention    (and "base_conv, based")
    bestiary pretrain attention dim=16 depth=2 context=16 batch=4 steps=20 every=10 warmup=4 rate=1e-2
        selection_rows=4 test_rows=8 --corpus corpus --store models
    bestiary pretrain base_conv ... --store interrupted    (killed after 1,000 steps)
    bestiary convert models/a56c5cb9fbad converted
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from in_process import bestiary

from bestiary import Recipe, Store, read_results
from bestiary.report.runs import gather_runs, mixer_names
from bestiary.runs.table import curve
from bestiary.training.recipe import FORMAT, is_key_of

WRITTEN = Path(__file__).parent / "earlier"
ATTENTION, HYBRID, MODEL, INTERRUPTED = "8c91af231b85", "c6d8923f7edd", "a56c5cb9fbad", "1316497ffe4d"
TASK = ["--task", "mqar(vocab=64, length=16, pairs=2)"]
SETTINGS = ["dim=16", "steps=6", "every=3", "batch=8", "test_rows=40", "selection_rows=20"]


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy whose claims are as old as they are, whenever the files were checked out."""
    shutil.copytree(WRITTEN, tmp_path / "earlier")
    for file in (tmp_path / "earlier").rglob("*"):
        os.utime(file, (1.7e9, 1.7e9))
    monkeypatch.chdir(tmp_path / "earlier")
    return tmp_path / "earlier"


def test_a_store_is_listed_shown_and_exported() -> None:
    assert "2 finished" in bestiary("status", "--store", "store")
    assert "attention" in bestiary("show", ATTENTION, "--store", "store")
    bestiary("export", "--store", "store", "--to", "table.csv")
    table = pd.read_csv("table.csv").set_index("key")
    assert set(table.index) == {ATTENTION, HYBRID}
    assert (table["asked"] == 80).all()
    assert (table["accuracy"] == 0).all()
    assert table["loss"].to_dict() == pytest.approx({ATTENTION: 4.181393, HYBRID: 4.179926}, abs=1e-6)


def test_a_store_is_reported() -> None:
    bestiary("report", "store", "--out", "report.html")
    assert "base_conv" in Path("report.html").read_text()


def test_recipes_and_measurements_are_those_that_were_stored() -> None:
    for key in (ATTENTION, HYBRID):
        record = Store("store").read(key)
        assert is_key_of(key, record.recipe)
        assert Recipe(**record.recipe).key != key  # trained in another way: see FORMAT
        assert [row["step"] for row in record.log if not row["facet"]] == [3, 3, 6, 6, 6]
        assert record.log[-1]["asked"] > 0


def test_what_was_trained_in_another_way_is_not_taken_for_a_run_of_today() -> None:
    told = bestiary("train", *SETTINGS, *TASK, "--layers", "attention", "--store", "store")
    assert "1 of 1 run done already" not in told
    bestiary("export", "--store", "store", "--to", "table.csv")
    assert len(pd.read_csv("table.csv")) == 3
    table = read_results("store")
    assert table.set_index("key")["format"][[ATTENTION, HYBRID]].tolist() == [1, 1]
    rows = curve(table[table["pattern"] == "attention"], group=["pattern"])
    assert sorted(rows[["format", "seeds"]].to_numpy().tolist()) == [[1, 1], [FORMAT, 1]]
    found = gather_runs(Store("store"), Store("store").run_keys())
    attention = found.rows[found.rows["key"] != HYBRID]
    assert len(attention) == attention["cell"].nunique() == 2
    assert "attention; format=1" in mixer_names(found.recipes).values()


@pytest.mark.slow
def test_a_corpus_is_opened_and_a_model_on_it_is_not_trained_again() -> None:
    shape = ["dim=16", "depth=2", "context=16", "batch=4", "steps=20", "every=10", "warmup=4", "rate=1e-2"]
    given = ["attention", *shape, "selection_rows=4", "test_rows=8", "--corpus", "corpus", "--store", "models"]
    assert "done already" in bestiary("pretrain", *given)


@pytest.mark.slow
def test_an_interrupted_model_goes_on_from_its_checkpoint(earlier: Path) -> None:
    before = logged(earlier / "interrupted" / INTERRUPTED)
    shape = ["dim=8", "depth=1", "channel=none", "context=16", "batch=2", "steps=4000", "every=200", "warmup=4"]
    given = [*shape, "rate=1e-2", "selection_rows=4", "test_rows=8", "--corpus", "corpus", "--store", "interrupted"]
    bestiary("pretrain", "base_conv", *given)
    after = logged(earlier / "interrupted" / INTERRUPTED)
    assert after[: len(before)] == before
    assert after[-1]["step"] == 4000


@pytest.mark.slow
def test_a_model_is_sliced_probed_converted_and_goes_on_writing() -> None:
    pytest.importorskip("transformers")
    model = f"models/{MODEL}"
    given = ["--length", "16", "--threshold", "5000", "--out"]
    for name in (model, "converted"):
        assert "are hits" in bestiary("slice", name, "corpus", *given, f"sliced-{Path(name).name}")
        assert bestiary("generate", name, "Ada saw", "--count", 4) if name == model else True
    losses = [pd.read_csv(f"sliced-{name}/slices.csv")["overall"][0] for name in (MODEL, "converted")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    sizes = ["--shots", "0,1", "--words", "20", "--rows", 4, "--out", "probed.csv"]
    bestiary("probe", model, "--tasks", "needle,updates", "--needles", 3, "--depths", "0,1", *sizes)
    probed = pd.read_csv("probed.csv")
    assert {*probed["task"]} == {"needle", "updates"}
    assert {*probed["entries"]} == {3}
    assert {*probed["depth"]} == {0.0, 1.0}
    assert {*probed["shots"]} == {0, 1}
    assert {*probed["asked"]} == {4}
    bestiary("convert", model, "again")
    assert Path("again/model.safetensors").read_bytes() == Path("converted/model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_converted_model_opens_with_the_code_in_its_folder() -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained("converted", trust_remote_code=True)
    assert model.config.dim == 16
