"""The gap on real text, as an experiment: every model can be built, and what is shown follows from the losses."""

import json
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bestiary.corpus.corpus import open_corpus
from bestiary.experiments import _pretrained as pretrained
from bestiary.experiments import gap, gap_seeds, hybrids
from bestiary.runs.store import Store


def test_models_of_gap_and_hybrids_can_be_built_and_differ() -> None:
    corpus: Any = SimpleNamespace(hash="0" * 12, vocab=4096)
    both = [gap.models("small", corpus), gap.models("small", corpus, hybrids.layers())]
    for recipes in both:
        assert len({recipe.key for recipe in recipes.values()}) == len(recipes)
        for recipe in recipes.values():
            recipe.check()
    shared = {recipe.key for recipe in both[0].values()} & {recipe.key for recipe in both[1].values()}
    assert {
        both[0][name].key for name in ("attention", "base_conv", "+ full attention", "+ learned selection")
    } == shared


def test_the_published_scale_says_how_to_run_it_elsewhere() -> None:
    with pytest.raises(ValueError, match="for a cluster: bestiary corpus pile --tokenizer gpt2"):
        next(iter(gap.measure("paper")))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`smoke` on a text of a few names, with models of a few weights."""
    rng = np.random.default_rng(0)
    (tmp_path / "texts").mkdir()
    for i in range(80):
        lines = [f"Ada {rng.integers(1000)} has {i % 7}, and so has Bob." for _ in range(12)]
        (tmp_path / "texts" / f"{i}.txt").write_text("\n".join(lines))
    changes = {"context": 16, "batch": 4, "steps": 6, "every": 3, "dim": 8, "depth": 2, "test_rows": 4}
    changes |= {"selection_rows": 4}
    only = ("attention", "base_conv", "+ full attention")
    setting = gap.Setting(str(tmp_path / "texts"), "corpora/small", 500, None, changes, only)
    monkeypatch.setitem(gap.SETTINGS, "smoke", setting)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_gap_is_trained_sliced_and_shown_and_done_once(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.DataFrame([row for row in gap.measure("smoke") if "rows" in row])
    shown = gap.summary(table)
    assert list(shown["model"]) == ["attention", "base_conv", "+ full attention"]
    found = table[table["rows"] == "slices"]
    assert all(found["overall_low"] <= found["overall"])
    assert {"course", "slices", "distance", "count", "count-new", "kinds", "threshold"} == set(table["rows"])
    assert [name for name, _ in gap.figures(table)] == ["", "-threshold"]
    *tables, page = gap.pages(table, small / "figures" / "gap-smoke")
    assert {"gap-smoke-slices.csv", "gap-smoke-kinds.csv", "gap-smoke-course.csv"} < {place.name for place in tables}
    assert page.read_text().count("Ada") > 10
    monkeypatch.setattr(pretrained, "train_in_process", None)  # nothing is left to train
    again = pd.DataFrame([row for row in gap.measure("smoke") if "rows" in row])
    pd.testing.assert_frame_equal(gap.summary(again).reset_index(drop=True), shown.reset_index(drop=True))


@pytest.mark.slow
def test_seeds_run_at_the_rate_that_selection_prefers(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a second pass trains nothing."""
    monkeypatch.setitem(gap.SETTINGS, "smoke", gap.SETTINGS["smoke"]._replace(only=("attention", "base_conv")))
    monkeypatch.setattr(gap_seeds, "RATES", (1e-3, 4e-3))
    monkeypatch.setattr(gap_seeds, "SEEDS", range(2))
    table = pd.DataFrame([row for row in gap_seeds.measure("smoke") if row.get("rows") == "slices"])
    assert sorted(zip(table["model"], table["seed"], strict=True)) == [
        (name, seed) for name in ("attention", "base_conv") for seed in range(2)
    ]
    corpus = pretrained.open_or_prepare(gap.SETTINGS["smoke"].source, Path("corpora/small"))
    for name, rows in table.groupby("model"):
        losses = {}
        for rate in gap_seeds.RATES:
            run = small / "models" / gap.models("smoke", corpus, rate=rate)[str(name)].key
            log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
            losses[rate] = [line["loss"] for line in log if line["split"] == "selection"][-1]
        assert set(rows["rate"]) == {min(losses, key=lambda rate: losses[rate])}
    assert table["key"].is_unique
    monkeypatch.setattr(pretrained, "train_in_process", None)
    assert len([row for row in gap_seeds.measure("smoke") if row.get("rows") == "slices"]) == 4


def test_a_gap_over_seeds_has_the_mean_of_shares_and_their_interval() -> None:
    common = {"rows": "slices", "rate": 4e-3, "overall_nats": 1.0, "hits_nats": 2.0, "other_nats": 0.0, "formed": True}
    rows = [common | {"model": "attention", "seed": seed} for seed in range(3)]
    for seed, share in enumerate((0.2, 0.4, 0.6)):
        rows.append(common | {"model": "mine", "seed": seed, "closed_overall": share, "closed_hits": np.nan})
    rows[-1]["overall_nats"] = 4.0
    reference, mine = gap_seeds.summary(pd.DataFrame(rows)).to_dict("records")
    assert reference["overall"] == pytest.approx(np.e)
    assert reference["overall_low"] == pytest.approx(np.e)
    assert reference["closed_overall_seeds"] == 0
    assert mine["overall"] == pytest.approx(np.exp(2.0))  # of the mean of nats
    assert (mine["seeds"], mine["formed"], mine["closed_overall_seeds"], mine["closed_hits_seeds"]) == (3, 3, 3, 0)
    half = 4.303 * 0.2 / 3**0.5  # Student's t of two degrees
    assert [mine[f"closed_overall{end}"] for end in ("", "_low", "_high")] == pytest.approx(
        [0.4, 0.4 - half, 0.4 + half]
    )
    assert [suffix for suffix, _ in gap_seeds.figures(pd.DataFrame(rows))] == [""]


@pytest.mark.slow
def test_a_model_that_fails_is_named_and_the_others_are_trained(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    corpus = pretrained.open_or_prepare(gap.SETTINGS["smoke"].source, Path("corpora/small"))
    recipes = gap.models("smoke", corpus)
    broken = recipes["attention"].model_copy(update={"corpus": "another"})
    with pytest.raises(ChildProcessError, match="attention: ValueError: the recipe is for corpus another"):
        list(pretrained.train_models({"attention": broken, "base_conv": recipes["base_conv"]}, corpus))
    assert json.loads((small / "models" / recipes["base_conv"].key / "done").read_text())["outcome"] == "finished"
    assert open_corpus("corpora/small").hash == corpus.hash
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (ZeroDivisionError("nothing\nto divide"), "ZeroDivisionError: nothing (the traceback is in {file})"),
        (ValueError("the recipe is for corpus another"), "ValueError: the recipe is for corpus another"),
    ],
)
def test_a_worker_that_fails_says_so_in_one_line_with_the_place_of_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fault: Exception, line: str
) -> None:
    def fail(*_: Any) -> Any:
        raise fault

    from bestiary.corpus import corpus
    from bestiary.lm import loop

    monkeypatch.setattr(loop, "pretrain", fail)
    monkeypatch.setattr(corpus, "open_corpus", lambda _: None)
    recipe = gap.models("smoke", SimpleNamespace(hash="0" * 12, vocab=4096))["attention"]  # pyright: ignore
    said: Queue[Any] = Queue()
    with pytest.raises(SystemExit, match="1"):
        pretrained.train_in_process("attention", recipe, tmp_path, tmp_path / "models", said)
    file = tmp_path / "models" / recipe.key / "failure.txt"
    assert said.get_nowait() == ("attention", line.format(file=file))
    assert capfd.readouterr().err == ""
    assert file.exists() == ("traceback" in line)
    if file.exists():
        assert "Traceback" in file.read_text()
        assert Store(tmp_path / "models").run_keys() == [recipe.key]
