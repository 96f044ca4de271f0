"""What a search asks for next, and what it concludes, on scores that are known."""

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from bestiary.cli.search import print_rates
from bestiary.sweep import search
from bestiary.sweep.search import (
    Window,
    halving,
    next_rates,
    optuna_rates,
    rates,
    refine,
    shorten,
    survivors,
    window,
    windows,
)
from bestiary.training.recipe import Recipe, clean
from bestiary.training.size import match_width


def step(low: float, high: float) -> Callable[[float], float]:
    """A score of 1 from low to high and 0.2 outside."""
    return lambda rate: 1.0 if low <= rate <= high else 0.2


def made(rate: float, seed: int = 0, **changes: object) -> Recipe:
    return clean("attention", train="mqar(vocab=20, length=12, pairs=2)", rate=rate, seed=seed, **changes)


def results(recipes: list[Recipe], score: Callable[[Recipe], float]) -> pd.DataFrame:
    """Rows as `table.results` gives them."""
    kept = {"asked": 100, "solved": math.nan, "seconds": 1.0, "segment": 0, "outcome": "finished"}
    rows = [
        {"key": r.key, "rate": r.rate, "seed": r.seed, "dim": r.dim, "steps": r.steps, "selection": score(r), **kept}
        for r in recipes
    ]
    return pd.DataFrame([row | {"accuracy": row["selection"]} for row in rows])


def solved(recipe: Recipe) -> float:
    del recipe
    return 1.0


def test_a_grid_is_even_in_the_logarithm_and_has_three_figures() -> None:
    assert rates(1e-4, 1e-1, 4) == (1e-4, 1e-3, 1e-2, 1e-1)
    assert rates(1e-3, 1e-1, 5) == (1e-3, 3.16e-3, 1e-2, 3.16e-2, 1e-1)
    with pytest.raises(ValueError, match="0 < low < high"):
        rates(1e-2, 1e-3, 4)


def test_a_window_has_edges_and_says_where_it_is_open() -> None:
    scores = {rate: step(1e-3, 1e-2)(rate) for rate in (1e-4, 1e-3, 1e-2, 1e-1)}
    assert window(scores) == Window(1e-3, 1e-2, 1e-4, 1e-1, 0)
    assert window(scores).decades == pytest.approx(1)
    opened = window({rate: scores[rate] for rate in (1e-4, 1e-3, 1e-2)})
    assert math.isnan(opened.above)
    assert "upper edge lies at or beyond the grid's end" in opened.describe()
    assert "no rate reaches 0.9" in window({1e-3: 0.5}).describe()
    assert window({1e-3: 1.0, 1e-2: 0.5, 1e-1: 0.9}).holes == 1


def test_refining_closes_in_on_both_edges() -> None:
    low, high, score = 7e-4, 2.3e-2, step(7e-4, 2.3e-2)
    scores = {rate: score(rate) for rate in rates(1e-4, 1e-1, 4)}
    rounds = 0
    while new := next_rates(scores, within=1.1):
        scores |= {rate: score(rate) for rate in new}
        rounds += 1
    found = window(scores)
    assert found.below < low <= found.low <= 1.13 * found.below
    assert found.high <= high < found.above <= 1.13 * found.high
    assert rounds == 5  # a decade halved until it is a factor of 10^(1/32)


def test_where_none_works_the_neighbourhood_of_the_best_is_searched() -> None:
    scores = {1e-4: 0.1, 1e-3: 0.6, 1e-2: 0.3, 1e-1: 0.1}
    assert next_rates(scores, within=2.0) == [3.16e-4, 3.16e-3]
    assert next_rates({1e-4: 0.7, 1e-3: 0.6, 1e-2: 0.3}, within=2.0) == [3.16e-4]
    assert next_rates(scores, within=11.0) == []
    assert next_rates({}, within=2.0) == []


def test_each_shape_is_refined_at_its_own_edges_and_with_every_seed() -> None:
    grid = [made(rate, seed, dim=dim) for dim in (8, 16) for rate in rates(1e-4, 1e-1, 4) for seed in range(2)]
    table = results(grid, lambda r: step(1e-3, 1e-2)(r.rate) if r.dim == 8 else step(1e-4, 1e-1)(r.rate))
    new = refine(grid, table, within=2.0)
    assert {(r.dim, r.rate, r.seed) for r in new} == {(8, r, s) for r in (3.16e-4, 3.16e-2) for s in range(2)}
    wider = pd.concat([table, results(new, solved)])
    assert {r.rate for r in refine(grid, wider, within=1.5)} == {1.78e-4, 5.62e-2}
    assert refine(grid, wider, within=4.0) == []
    assert refine(grid, table.head(0), within=2.0) == []


def test_the_seeds_of_a_rate_are_judged_together_and_a_diverged_one_counts() -> None:
    grid = [made(rate, seed) for rate in (1e-3, 1e-2) for seed in range(2)]
    table = results(grid, lambda r: math.nan if (r.rate, r.seed) == (1e-2, 1) else 1.0)
    (row,) = windows(table, group=["dim"]).to_dict("records")
    assert (row["rate"], row["from"], row["to"], row["above"], row["window"]) == (1e-3, 1e-3, 1e-3, 1e-2, 0)
    assert {r.rate for r in refine(grid, table, within=2.0)} == {3.16e-3}
    late = results(grid, solved).assign(outcome=["finished", "finished", "finished", "diverged"])
    assert windows(late, group=["dim"])["to"].tolist() == [1e-3]
    formats = pd.concat([late.assign(format=2), table.assign(format=1)])
    assert len(windows(formats, group=["dim"])) == 2


def test_a_seed_whose_run_failed_is_no_reason_to_prefer_a_rate(capsys: pytest.CaptureFixture[str]) -> None:
    grid = [made(rate, seed) for rate in (1e-3, 1e-2) for seed in range(3)]
    table = results(grid, lambda r: 0.95 if r.rate == 1e-3 else 0.97).iloc[:4]  # two of the second rate have failed
    assert {r.rate for r in survivors(table, grid, eta=2)} == {1e-3}
    assert {r.rate for r in refine(grid, table, within=2.0)} == {3.16e-3}
    (row,) = windows(table, group=["dim"]).to_dict("records")
    assert (row["rate"], row["seeds"], row["tried"], row["to"]) == (1e-3, 3, 1, 1e-3)
    print_rates(table)
    assert "best rate 0.001; works from 0.001 to 0.001" in (said := capsys.readouterr().out)
    assert said.endswith("left out, as seeds are missing: 0.01\n")


def test_only_the_seeds_that_a_rate_was_given_can_be_missing() -> None:
    given = [made(1e-3, 0), *(made(1e-2, seed) for seed in range(3))]
    assert refine(given, results(given, solved), within=2.0) == []


def test_a_short_run_is_a_whole_one_of_fewer_steps() -> None:
    short = shorten(made(1e-3, steps=900, warmup=90, hold=300, every=200), 1 / 9)
    assert (short.steps, short.warmup, short.hold, short.every) == (100, 10, 33, 100)
    assert short.key != made(1e-3, steps=100, warmup=50, every=100).key


def test_the_best_third_survives_with_all_its_seeds() -> None:
    recipes = [made(rate, seed) for rate in (1e-4, 1e-3, 1e-2, 1e-1) for seed in range(2)]
    score = {1e-4: 0.1, 1e-3: 0.7, 1e-2: 0.9, 1e-1: math.nan}
    table = results(recipes, lambda r: score[r.rate]).assign(steps=[1, 1, 5, 5, 9, 9, 1, 1])
    kept = survivors(table, recipes, eta=2)
    assert [(r.rate, r.seed) for r in kept] == [(1e-2, 0), (1e-2, 1), (1e-3, 0), (1e-3, 1)]
    early = results(recipes, solved).assign(steps=[9, 9, 5, 5, 7, 7, 8, 8])
    assert {r.rate for r in survivors(early, recipes, eta=4)} == {1e-3}
    assert {r.rate for r in survivors(early.iloc[2:4], recipes, eta=4)} == {1e-3}


def test_halving_runs_all_for_a_ninth_and_one_for_the_whole() -> None:
    asked: list[list[Recipe]] = []

    def carry(recipes: list[Recipe]) -> pd.DataFrame:
        asked.append(recipes)
        return results(recipes, lambda r: -abs(math.log(r.rate / 1e-2)))

    table = halving([made(rate, steps=900) for rate in rates(1e-4, 1e-1, 9)], carry)
    assert [(len(rung), rung[0].steps) for rung in asked] == [(9, 100), (3, 300), (1, 900)]
    assert asked[-1][0].rate == 7.5e-3
    assert table["share"].round(3).value_counts().to_dict() == {0.111: 9, 0.333: 3, 1.0: 1}
    with pytest.raises(ValueError, match="eta=1"):
        halving([made(1e-3)], carry, eta=1)


def test_optuna_finds_the_best_rate_and_asks_for_the_same_runs_again() -> None:
    pytest.importorskip("optuna")
    asked: list[str] = []

    def carry(recipes: list[Recipe]) -> pd.DataFrame:
        asked.extend(recipe.key for recipe in recipes)
        return results(recipes, lambda r: 1 - abs(math.log10(r.rate / 1e-2)) / 3 - r.weight_decay)

    def trial(rate: float, decay: float | None) -> list[Recipe]:
        return [made(rate, seed, weight_decay=decay) for seed in range(2)]

    how = {"low": 1e-4, "high": 1e-1, "decay": (1e-3, 0.3), "trials": 30}
    table = optuna_rates(trial, carry, **how)
    found = table.loc[table["selection"].idxmax()]
    assert abs(math.log10(found["rate"] / 1e-2)) < 0.3
    assert len(table) == 60
    assert (optuna_rates(trial, carry, **how), asked[:60])[1] == asked[60:]


def test_the_verb_says_which_rates_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bestiary.cli import app
    from bestiary.cli import search as verbs

    def run_recipes(name: str, recipes: list[Recipe], folder: Path, **how: object) -> tuple[int, pd.DataFrame]:
        del name, folder, how
        return 0, results(recipes, lambda r: step(2e-3, 2e-2)(r.rate))

    monkeypatch.setattr(verbs, "run_recipes", run_recipes)
    arguments = ["search", "--coarse", "4", "--refine", "2", "--seeds", "2", "--store", str(tmp_path), "dim=8"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "best rate 0.00316; works from 0.00316 to 0.0178, 0.75 decades" in done.output
    assert "lower edge between 0.00178 and 0.00316, upper edge between 0.0178 and 0.0316" in done.output


def test_the_verb_tells_of_no_window_where_halving_has_measured_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bestiary.cli import app
    from bestiary.cli import search as verbs

    def run_recipes(name: str, recipes: list[Recipe], folder: Path, **how: object) -> tuple[int, pd.DataFrame]:
        del name, folder, how
        return 0, results(recipes, lambda r: 1 - abs(math.log10(r.rate / 3e-3)) / 3)

    monkeypatch.setattr(verbs, "run_recipes", run_recipes)
    done = CliRunner().invoke(app, ["search", "--by", "halving", "--seeds", "1", "--store", str(tmp_path), "dim=8"])
    assert done.exit_code == 0, done.output
    assert done.output.endswith("best rate 0.00316; halving finds no window of rates that work, --by grid does\n")
    assert "decades" not in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--low", "1", "--high", "0.1"], "give 0 < low < high"),
        (["search", "--layers", "atention"], "did you mean 'attention'"),
        (["match", "dim=8", "--like", "attention"], "give patterns to match"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    from bestiary.cli import app

    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert done.output.count("\n") == 1


@pytest.mark.parametrize("option", ["--seeds", "--coarse", "--refine", "--trials"])
def test_a_search_without_end_is_refused_before_it_is_laid_out(option: str) -> None:
    from bestiary.cli import app

    done = CliRunner().invoke(app, ["search", option, "99999999999999999999"])
    assert done.exit_code == 2
    assert option in done.output


def test_match_prints_the_widths_and_the_ratio_reached() -> None:
    from bestiary.cli import app

    arguments = ["match", "attention(rotary=False)", "--like", "short_conv", "dim=64", "--by", "parameters"]
    done = CliRunner().invoke(app, [*arguments, "--task", "mqar(vocab=64, length=32, pairs=2)"])
    assert done.exit_code == 0, done.output
    assert "attention(rotary=False)" in done.output
    assert "ratio" in done.output


@pytest.mark.slow
def test_match_keeps_the_table_when_one_pattern_has_no_match() -> None:
    from bestiary.cli import app

    arguments = ["match", "attention(rotary=False)", "lru", "--like", "short_conv", "dim=64", "--by", "state"]
    done = CliRunner().invoke(app, [*arguments, "--task", "mqar(vocab=64, length=32, pairs=2)", "--tolerance", "0.01"])
    assert done.exit_code == 1
    rows = [line for line in done.output.splitlines() if line.strip().startswith(("short_conv", "attention", "lru"))]
    assert [line.split()[0] for line in rows] == ["short_conv", "lru"]
    assert "bestiary: attention(rotary=False) has no width within 1%: the nearest has " in done.output


@pytest.mark.parametrize(
    "search_for",
    [
        lambda: search.rates(1e-4, math.inf, 3),
        lambda: search.rates(math.nan, 1.0, 3),
        lambda: search.next_rates({1e-3: 0.5}, within=math.nan),
        lambda: match_width("attention", made(1e-3), tolerance=math.nan),
    ],
)
def test_numbers_that_are_none_are_refused(search_for: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="nan|inf"):
        search_for()


def test_searching_without_optuna_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'bestiary\[search\]'"):
        search.make_study(0)
