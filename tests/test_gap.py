"""The gap on real text, as an experiment: every model can be built, and what is shown follows from the losses."""

import json
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bestiary.corpus.corpus import open_corpus
from bestiary.experiments import _pretrained as pretrained
from bestiary.experiments import gap, gap_seeds, gap_shares, gap_sizes, hybrids
from bestiary.experiments._text_rows import gaps_closed, share_selected
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


class Here:
    """What `train_models` asks of a process, in this one: a new one takes longer to start than the models to train."""

    def __init__(self, *, target: Callable[..., None], args: tuple[Any, ...], daemon: bool) -> None:
        self.target, self.args, self.daemon = target, args, daemon

    def start(self) -> None:
        self.target(*self.args)

    def join(self) -> None: ...

    def terminate(self) -> None: ...


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are trained in this process, one after the other."""
    context = SimpleNamespace(Queue=Queue, Process=Here)
    monkeypatch.setattr(pretrained, "multiprocessing", SimpleNamespace(get_context=lambda _: context))


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


def test_models_at_their_best_rates_keep_their_order() -> None:
    rows = [("a", 1.0, 0, 3.0), ("b", 1.0, 0, 3.0), ("a", 2.0, 0, 2.0), ("b", 2.0, 0, 4.0), ("b", 1.0, 1, 3.0)]
    rows += [("c", 2.0, 0, 3.0), ("c", 1.0, 0, 3.0)]  # of equal ones the lowest
    table = pd.DataFrame(rows, columns=["model", "rate", "seed", "selection"])
    chosen = gap_seeds.at_best_rates(table)
    assert list(zip(chosen["model"], chosen["rate"], chosen["seed"], strict=True)) == [
        ("a", 2.0, 0),
        ("b", 1.0, 0),
        ("b", 1.0, 1),
        ("c", 1.0, 0),
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_seeds_run_at_the_rate_that_selection_prefers(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And neither a second pass trains anything, nor one in another place that is given the results."""
    monkeypatch.setitem(gap.SETTINGS, "smoke", gap.SETTINGS["smoke"]._replace(only=("attention", "base_conv")))
    monkeypatch.setattr(gap_seeds, "RATES", (1e-3, 4e-3))
    monkeypatch.setattr(gap_seeds, "SEEDS", range(2))
    table = measured(gap_seeds)
    assert sorted(zip(table["model"], table["seed"], strict=True)) == [
        (name, seed) for name in ("attention", "base_conv") for seed in (0, 0, 1)
    ]
    corpus = pretrained.open_or_prepare(gap.SETTINGS["smoke"].source, Path("corpora/small"))
    for name, rows in gap_seeds.at_best_rates(table).groupby("model"):
        losses = {}
        for rate in gap_seeds.RATES:
            run = small / "models" / gap.models("smoke", corpus, rate=rate)[str(name)].key
            log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
            losses[rate] = [line["loss"] for line in log if line["split"] == "selection"][-1]
        assert rows["rate"].tolist() == [min(losses, key=lambda rate: losses[rate])] * 2
    assert table["key"].is_unique
    monkeypatch.setattr(pretrained, "train_in_process", None)
    pd.testing.assert_frame_equal(measured(gap_seeds), table)
    (small / "models").rename(small / "elsewhere")
    pd.testing.assert_frame_equal(measured(gap_seeds, table), table)
    with pytest.raises(ValueError, match="no column formed, hits_nats"):
        measured(gap_seeds, table.drop(columns=["formed", "hits_nats"]))


def measured(experiment: ModuleType, known: pd.DataFrame | None = None) -> pd.DataFrame:
    """The rows of an experiment at smoke, without the news."""
    return pd.DataFrame([row for row in experiment.measure("smoke", known) if "news" not in row])


def text_rows(model: str, seed: int, **given: Any) -> dict[str, Any]:
    """A row of a language model, as measured."""
    row = {"model": model, "seed": seed, "rate": 4e-3, "selection": 1.0, "formed": True, "parameters": 100}
    row |= {"dim": 8, "steps": 10, "tokens": 1000, "outcome": "finished"}
    return row | {"overall_nats": 1.0, "hits_nats": 2.0, "other_nats": 0.0} | given


def test_a_gap_over_seeds_has_the_mean_of_shares_and_their_interval() -> None:
    rows = [text_rows("attention", seed) for seed in range(3)]
    rows += [text_rows("base_conv", seed, overall_nats=2.0) for seed in range(3)]
    rows += [text_rows("mine", seed, overall_nats=nats) for seed, nats in enumerate((1.8, 1.6, 1.4))]
    rows.append(text_rows("mine", 0, rate=8e-3, selection=1.1, overall_nats=9.0))  # a rate that was not chosen
    reference, base, mine = gap_seeds.summary(pd.DataFrame(rows)).to_dict("records")
    assert reference["overall"] == pytest.approx(np.e)
    assert reference["overall_low"] == pytest.approx(np.e)
    assert (reference["closed_overall_seeds"], base["closed_overall_seeds"]) == (0, 0)
    assert mine["overall"] == pytest.approx(np.exp(1.6))  # of the mean of nats
    assert (mine["seeds"], mine["formed"], mine["closed_overall_seeds"], mine["closed_hits_seeds"]) == (3, 3, 3, 0)
    half = 4.303 * 0.2 / 3**0.5  # Student's t of two degrees
    assert [mine[f"closed_overall{end}"] for end in ("", "_low", "_high")] == pytest.approx(
        [0.4, 0.4 - half, 0.4 + half]
    )
    assert [suffix for suffix, _ in gap_seeds.figures(pd.DataFrame(rows))] == [""]


def test_seeds_that_diverged_are_counted_apart() -> None:
    lost = {"outcome": "diverged", "formed": False} | dict.fromkeys(("overall_nats", "hits_nats", "other_nats"), np.nan)
    rows = [text_rows(name, seed) for name in ("attention", "base_conv") for seed in range(3)]
    rows[-1] |= lost
    for found in (gap_seeds.summary(pd.DataFrame(rows)), gap_sizes.summary(pd.DataFrame(rows))):
        reference, base = found[["seeds", "diverged", "formed"]].to_numpy().tolist()
        assert (reference, base) == ([3, 0, 3], [2, 1, 2])
    table = size_rows({100: 3.0, 1000: 2.0, 10_000: 1.0})
    table.loc[table["model"].eq("base_conv") & table["seed"].eq(1) & table["dim"].eq(0), [*lost]] = [*lost.values()]
    found = gap_sizes.meeting_ratio(table)
    assert (found["seeds"], found["diverged"]) == (2, 1)
    assert found["ratio"] == pytest.approx(1000.0)
    assert np.isnan(gap_sizes.meeting_ratio(table.assign(hits_nats=np.nan))["ratio"])


def test_no_share_is_closed_where_attention_recalls_nothing_or_a_model_diverged() -> None:
    rows = [text_rows("attention", seed, formed=seed > 0) for seed in range(3)]
    rows += [text_rows("base_conv", seed, hits_nats=3.0) for seed in range(3)]
    rows += [text_rows("mine", seed, hits_nats=np.nan if seed == 1 else 2.25) for seed in range(3)]
    closed = gaps_closed(pd.DataFrame(rows), "hits")
    assert list(closed) == ["mine"]
    assert np.array_equal(closed["mine"], [np.nan, np.nan, 0.75], equal_nan=True)


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_the_gap_over_sizes_is_measured_and_shown(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gap_sizes.CELLS, "smoke", ((8, 6), (16, 6), (8, 3)))
    monkeypatch.setattr(gap_sizes, "MODELS", ("attention", "base_conv"))
    monkeypatch.setattr(gap_sizes, "SEEDS", range(2))
    table = measured(gap_sizes)
    assert len(table) == 3 * 2 * 2
    assert dict(zip(table["dim"], table["rate"], strict=True)) == {8: 4e-3 * 128 / 8, 16: 4e-3 * 128 / 16}
    assert [suffix for suffix, _ in gap_sizes.figures(table)] == ["", "-tokens", "-gap"]
    assert len(gap_sizes.summary(table)) == 6
    places = list(gap_sizes.pages(table, small / "sizes"))
    assert [len(pd.read_csv(place)) for place in places] == [3 * len(gap_sizes.PUBLISHED), 1]


@pytest.mark.slow
@pytest.mark.usefixtures("small", "here")
def test_the_gap_over_shares_is_measured_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_shares, "SEEDS", range(2))
    layers = {name: gap.LAYERS[name] for name in ("attention", "base_conv")}
    layers["+ learned selection, open"] = gap_shares.hybrid("open=9")
    monkeypatch.setattr(gap_shares, "LAYERS", layers)
    table = measured(gap_shares)
    assert len(table) == 3 * 2
    assert list(gap_shares.summary(table)["selected"].fillna(-1)) == [-1, -1, 1]
    assert not list(gap_shares.figures(table)), "no recall has formed, so there are no shares to draw"


def test_shares_closed_are_drawn_against_shares_selected() -> None:
    rows = [text_rows("attention", seed) for seed in range(3)]
    rows += [text_rows("base_conv", seed, overall_nats=2.0, hits_nats=4.0) for seed in range(3)]
    rows += [text_rows("+ full attention", seed, hits_nats=2.5) for seed in range(3)]
    rows += [text_rows(f"+ learned, 1/{n}", seed, hits_nats=3.0, selected=1 / n) for seed in range(3) for n in (4, 2)]
    table = pd.DataFrame(rows)
    assert dict(gap_shares.summary(table)[["model", "selected"]].dropna().to_numpy()) == {
        "+ learned, 1/4": 0.25,
        "+ learned, 1/2": 0.5,
    }
    ((_, figure),) = gap_shares.figures(table)
    lines = {line.get_label(): line for line in figure.axes[1].get_lines()}
    assert np.asarray(lines["learned"].get_xdata()).tolist() == [0.25, 0.5]
    assert np.asarray(lines["learned"].get_ydata()).tolist() == pytest.approx([0.5, 0.5])
    assert np.asarray(lines["full attention"].get_xdata()).tolist() == [1.0]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_share_of_positions_that_attend_is_that_of_the_layer_with_most() -> None:
    corpus = pretrained.open_or_prepare(gap.SETTINGS["smoke"].source, Path("corpora/small"))
    pattern = ", ".join(f'selected(select="random", share={share}, rotary=False)' for share in (0.2, 0.7))
    recipe = gap.models("smoke", corpus, {"two": (pattern,)}, only=("two",), steps=1, every=1)["two"]
    list(pretrained.train_models({"two": recipe}, corpus))
    text, _ = gap.read_losses("smoke", corpus, {"two": recipe})
    mixer = recipe.pattern[1].build(8)
    wanted = mixer.attends(torch.zeros(1, 16, 8), torch.arange(16), mixer.update_cache(torch.zeros(1, 16, 8), None))
    assert share_selected(recipe, text) == pytest.approx(float(wanted.float().mean()))


def size_rows(base_hits: dict[int, float]) -> pd.DataFrame:
    """Attention at 2 nats on hits with 100, 1,000 and 10,000 weights, and BaseConv at so many more."""
    rows = []
    for dim, (weights, behind) in enumerate(base_hits.items()):
        for seed in range(3):
            shared = {"dim": dim, "parameters": weights}
            rows.append(text_rows("attention", seed, **shared))
            rows.append(text_rows("base_conv", seed, **shared, hits_nats=2.0 + behind, overall_nats=1.0 + seed))
    return pd.DataFrame(rows)


def test_the_law_of_a_gap_is_that_of_the_points_and_its_interval_grows_away_from_them() -> None:
    weights, nats = gap_sizes.gap_points(size_rows({100: 4.0, 1000: 2.0, 10_000: 1.0}), "base_conv", "hits")
    assert weights == [100.0] * 3 + [1000.0] * 3 + [10_000.0] * 3
    law = gap_sizes.fit_law(weights, nats)
    assert law is not None
    assert law.at(1e6) == pytest.approx((0.25, 0.25, 0.25))
    noisy = gap_sizes.fit_law(weights, [y * (1.1, 1.0, 1 / 1.1)[i % 3] for i, y in enumerate(nats)])
    assert noisy is not None
    middle, low, high = noisy.at(1e6)
    assert middle == pytest.approx(0.25)
    spread = (6 * np.log(1.1) ** 2 / 7) ** 0.5  # of nine points with two numbers fitted
    far = np.log(1e6 / 1000)
    half = 2.3646 * spread * (1 / 9 + far**2 / (6 * np.log(10) ** 2)) ** 0.5
    assert (low, high) == pytest.approx((0.25 * np.exp(-half), 0.25 * np.exp(half)), rel=1e-3)
    assert noisy.at(1000.0)[2] / noisy.at(1000.0)[0] < high / middle
    assert gap_sizes.fit_law(weights, [-0.1, *nats[1:]]) is None
    assert gap_sizes.fit_law(weights[:3], nats[:3]) is None


def test_a_published_gap_is_inside_the_interval_or_not() -> None:
    table = size_rows({100: 4.0, 1000: 4.0, 10_000: 4.0})  # the same gap at every size
    found = gap_sizes.compare_published(table).set_index(["tokens", "model", "millions"]).sort_index()
    hyena = found.loc[("hits", "Hyena", 1400)]
    assert (hyena["published"], hyena["law"]) == pytest.approx((np.log(3.43 / 1.91), 4.0))
    assert not hyena["inside"]
    assert found.loc["other", "law"].isna().all()  # no gap, and so no law
    small = found.loc[("hits", "H3", 168)]
    assert (small["attention"], small["published"]) == (125, pytest.approx(np.log(6.75 / 2.16)))
    same = size_rows(dict.fromkeys((100, 1000, 10_000), float(np.log(3.43 / 1.91))))
    same["hits_nats"] += np.tile([0.0, 1e-3, 0.0, -1e-3, 0.0, 0.0], 3)
    near = gap_sizes.compare_published(same).set_index(["tokens", "model", "millions"]).sort_index()
    assert near.loc[("hits", "Hyena", 1400), "inside"]


def test_sizes_meet_where_the_line_of_base_conv_reaches_the_smallest_attention() -> None:
    found = gap_sizes.meeting_ratio(size_rows({100: 3.0, 1000: 2.0, 10_000: 1.0}))
    assert [found[name] for name in ("ratio", "ratio_low", "ratio_high")] == pytest.approx([1000.0] * 3)
    assert gap_sizes.meeting_ratio(size_rows({100: 3.0, 1000: 3.0, 10_000: 3.1}))["ratio"] == np.inf
    assert gap_sizes.Law(0.0, 1.0, 0.0, 1.0, 1e9, 3).at(1e6)[1:] == (0.0, np.inf)


def test_hybrids_are_drawn_with_their_attention_at_the_same_place() -> None:
    places = ("1 layer, the last", "2 layers, spread", "2 layers, last", "3 layers, last")
    shares = [f"closed_{part}{end}" for part in ("overall", "hits") for end in ("", "_low", "_high")]
    rows = [{"rows": "slices", "model": name} | dict.fromkeys(shares, i / 10) for i, name in enumerate(places)]
    ((_, figure),) = hybrids.figures(pd.DataFrame(rows))
    assert np.asarray(figure.axes[0].lines[0].get_ydata()).tolist() == [0.0, 0.2, 0.3]
    assert any("The last layers are attention" in text.get_text() for text in figure.texts)


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
