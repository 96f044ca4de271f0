"""What is concluded from many runs."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from bestiary.runs.intervals import interval, mean_interval, t_quantile, wilson
from bestiary.runs.store import Outcome, Record, Store
from bestiary.runs.table import (
    best,
    curve,
    depth_for,
    facets,
    parts_with_report,
    results,
    run_states,
    scaled_accuracy,
    segment_rows,
    selection_curve,
)
from bestiary.training.recipe import FORMAT, Recipe, clean
from tests.fake_runs import LINE, add_finished_run


def test_wilsons_interval_is_the_textbooks() -> None:
    low, high = wilson(0.5, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(1.0, 10)[0] == pytest.approx(0.7225, abs=1e-3)


def test_the_interval_over_seeds_is_students() -> None:
    low, high = interval([0.4, 0.5, 0.6], 10**9)
    assert high - 0.5 == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert low == pytest.approx(0.5 - 4.303 * 0.1 / math.sqrt(3), rel=1e-3)


def test_students_t_is_that_of_the_tables() -> None:
    known = {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 7: 2.365, 10: 2.228, 19: 2.093, 49: 2.010, 1000: 1.962}
    for degrees, value in known.items():
        assert t_quantile(degrees) == pytest.approx(value, abs=0.004)
    low, high = mean_interval([0.0, 1.0] * 6)  # twelve values, 11 degrees of freedom
    assert (high - low) / 2 == pytest.approx(2.201 * math.sqrt(3 / 11 / 12), abs=1e-3)


def test_the_interval_is_never_narrower_than_its_answers_allow() -> None:
    assert interval([0.5, 0.5, 0.5], 100) == pytest.approx(wilson(0.5, 100))
    assert interval([0.9, 1.0], 50)[1] == 1.0


def table() -> pd.DataFrame:
    rows = [
        {
            "pattern": p,
            "rate": r,
            "seed": s,
            "selection": sel,
            "accuracy": acc,
            "asked": 100,
            "solved": 5.0,
            "seconds": 1.0,
            "outcome": "diverged" if math.isnan(sel) else "finished",
        }
        for p, r, s, sel, acc in (
            ("a", 1e-3, 0, 0.95, 0.10),
            ("a", 1e-3, 1, 0.93, 0.20),
            ("a", 1e-2, 0, 0.91, 0.99),
            ("a", 1e-2, 1, 0.92, 0.99),
            ("a", 1e-1, 0, 0.20, 0.20),
            ("a", 1e-1, 1, math.nan, math.nan),
            ("b", 1e-3, 0, 0.50, 0.50),
        )
    ]
    return pd.DataFrame(rows)


def test_a_rate_at_which_a_seed_diverged_does_not_pass_for_one_that_works() -> None:
    given = table()
    given.loc[given["rate"] == 1e-3, "outcome"] = ["finished", "diverged", "finished"]
    found = best(given, group=["pattern"]).groupby("pattern").get_group("a")
    assert set(found["rate"]) == {1e-2}
    assert found["window"].iloc[0] == 0


def test_the_best_rate_is_chosen_on_the_selection_stream_alone() -> None:
    found = best(table(), group=["pattern"]).groupby("pattern")
    a, b = found.get_group("a"), found.get_group("b")
    assert set(a["rate"]) == {1e-3}
    assert a["tried"].iloc[0] == 3
    assert a["window"].iloc[0] == pytest.approx(1.0)
    assert math.isnan(b["window"].iloc[0])


def test_a_curve_averages_over_seeds() -> None:
    (row,) = curve(best(table(), group=["pattern"]), group=["pattern"]).query("pattern == 'a'").itertuples()
    assert row.accuracy == pytest.approx(0.15)
    assert (row.seeds, row.answers, row.solved) == (2, 200, 5.0)
    assert row.low < 0.15 < row.high


@contextmanager
def run_with_facet(store: Store, made: Recipe) -> Iterator[str]:
    run = store.claim(made)
    assert run is not None
    with run:
        run.append(LINE | {"facet": "distance", "value": 3})
        yield made.key


def test_a_run_that_is_asked_for_twice_is_one_run(tmp_path: Path) -> None:
    store, made = Store(tmp_path), [clean("attention", dim=8, seed=seed) for seed in range(2)]
    add_finished_run(store, made[0])
    twice = [*made, *made]
    assert len(results(store, [recipe.key for recipe in twice])[0]) == 1
    assert [row["state"] for row in run_states(store, twice)[0]] == ["finished", "to come"]
    with run_with_facet(store, made[1]) as key:
        assert len(facets(store, [key, key], "distance")) == 1


def test_runs_of_another_format_are_no_seeds_of_these() -> None:
    mixed = pd.concat([table().assign(format=2), table().assign(format=1), table().assign(format=1, seed=7)])
    rows = curve(mixed[mixed["pattern"] == "a"], group=("pattern", "rate"))
    alone = curve(table()[table()["pattern"] == "a"], group=("pattern", "rate"))
    today, before = (rows[rows["format"] == number].reset_index(drop=True) for number in (2, 1))
    pd.testing.assert_frame_equal(today.drop(columns="format"), alone)
    assert before["seeds"].tolist() == (2 * alone["seeds"]).tolist()
    chosen = best(mixed, group=["pattern"])
    assert chosen.groupby(["pattern", "format"])["rate"].nunique().tolist() == [1] * 4
    assert len(chosen[chosen["format"] == 2]) == len(best(table(), group=["pattern"]))
    assert "format" not in curve(table().assign(format=2), group=["pattern"])
    deep = mixed.assign(depth=mixed["seed"] + 1)
    assert set(depth_for(deep, 0.0, group=["pattern"])["format"]) == {1, 2}


def log() -> list[dict[str, object]]:
    def line(step: int, split: str, segment: int, right: int) -> dict[str, object]:
        return {
            "step": step,
            "split": split,
            "segment": segment,
            "facet": "",
            "value": 0,
            "loss": 2.0,
            "right": right,
            "asked": 10,
        }

    looks = [
        line(5, "selection", 0, 5),
        line(5, "selection", 1, 9),
        line(9, "selection", 0, 10),
        line(9, "selection", 1, 10),
    ]
    return [*looks, line(9, "test", 0, 8), line(9, "test", 1, 4)]


def test_a_run_becomes_one_row_for_each_test_segment() -> None:
    task = {"text": "mqar", "options": {"length": 64}}
    recipe = {"dim": 8, "train": [], "steps": 50, "test": [task, task], "pattern": [{"text": "attention"}]}
    first, second = segment_rows(Record("key", recipe, Outcome("solved", 1.5), log()))
    assert (first["accuracy"], second["accuracy"]) == (0.8, 0.4)
    assert (first["selection"], first["solved"], first["steps"], first["loss"]) == (1.0, 9, 9, 0.2)
    assert (first["length"], first["dim"], first["pattern"]) == (64, 8, "attention")
    assert first["format"] == FORMAT


def test_a_run_that_ended_without_a_measurement_has_rows_without_numbers() -> None:
    task = {"text": "mqar", "options": {}}
    given = {"dim": 8, "rate": 0.1, "seed": 2, "train": [], "steps": 50}
    recipe = {**given, "test": [task], "pattern": [{"text": "attention"}]}
    (row,) = segment_rows(Record("key", recipe, Outcome("diverged", 1.5), []))
    assert (row["steps"], row["outcome"]) == (0, "diverged")
    assert all(math.isnan(row[name]) for name in ("accuracy", "loss", "selection", "solved", "whole"))


def test_what_is_kept_of_a_run_is_json_to_the_bit() -> None:
    task = {"text": "mqar", "options": {"length": 64}}
    given = {"dim": 8, "rate": 0.1, "seed": 2, "train": [], "steps": 50}
    recipe = {**given, "test": [task] * 2, "pattern": [{"text": "attention"}]}
    kept = parts_with_report(Record("key", recipe, Outcome("solved", 0.1 + 0.2), log()))
    assert repr(json.loads(json.dumps(kept))) == repr(kept)
    assert kept["so far"] == {
        **{"outcome": "solved", "pattern": "attention", "dim": 8, "rate": 0.1, "seed": 2},
        **{"step": 9, "selection": 1.0, "checked": False},
    }
    assert json.loads(kept["report"].pop("recipe")) == {
        name: recipe[name] for name in recipe if name not in ("rate", "seed")
    }
    older = parts_with_report(Record("key", recipe, Outcome("solved", 0.1 + 0.2), log(), 1))["report"]["recipe"]
    assert json.loads(older)["format"] == 1
    assert kept["report"]["curve"] == [[5, 0.7], [9, 1.0]]
    assert kept["report"]["distances"] == []
    unfinished = parts_with_report(Record("key", recipe, None, log()[:2]))
    assert unfinished["report"] is None
    assert (unfinished["segments"], unfinished["so far"]["outcome"], unfinished["so far"]["step"]) == ([], None, 5)


def test_the_selection_curve_is_the_mean_over_segments() -> None:
    assert selection_curve(log()) == [(5, 0.7), (9, 1.0)]


def test_accuracy_is_scaled_between_guessing_and_perfection() -> None:
    assert scaled_accuracy(0.2, 0.2) == 0
    assert scaled_accuracy(1.0, 0.2) == 1
    assert scaled_accuracy(0.6, 0.2) == pytest.approx(0.5)


def test_the_least_depth_that_reaches_a_level() -> None:
    rows = [("a", 1, 0.5), ("a", 2, 0.88), ("a", 2, 0.94), ("a", 4, 1.0), ("b", 1, 0.1)]
    table = pd.DataFrame(rows, columns=["pattern", "depth", "accuracy"])
    found = depth_for(table, 0.9, group=["pattern"]).set_index("pattern")["depth"]
    assert found["a"] == 2
    assert math.isnan(found["b"])
