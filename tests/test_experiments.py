"""Every experiment: what it runs can be built, and what it shows follows from the runs' results."""

import math
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from bestiary.cli._app import choose_mixers, next_recipes
from bestiary.experiments import (
    based_figure3,
    calibration,
    distance,
    extrapolation,
    figure2,
    formation,
    frontier,
    mad,
    mechanism,
    rates,
    steps_to_solve,
)
from bestiary.experiments import load as loads
from bestiary.experiments._default import default_figures, default_summary
from bestiary.model import memory
from bestiary.report.references import least_width, recalls, references
from bestiary.runs.intervals import wilson
from bestiary.runs.store import Outcome, Record
from bestiary.runs.table import curve, segment_rows
from bestiary.spec import load, names, parse
from bestiary.training.recipe import Recipe, clean, iclr24, zoology23

SCALES = ("smoke", "small", "paper")
TRAINED = [name for name in names("experiments") if not hasattr(load("experiments", name), "measure")]


def experiment(name: str) -> ModuleType:
    found = load("experiments", name)
    assert isinstance(found, ModuleType)
    return found


@cache
def recipes(name: str, scale: str) -> list[Recipe]:
    return list(experiment(name).recipes(scale))


def rows(recipe: Recipe, right: int, *, solved: bool = False) -> list[dict[str, object]]:
    """The rows of a run that ended with `right` of 1,000 answers right."""
    line = {"facet": "", "value": 0, "loss": 1.0, "asked": 1000}
    log = [{**line, "step": recipe.every, "split": "selection", "segment": 0, "right": 1000 if solved else right}]
    log += [
        {**line, "step": recipe.every, "split": "test", "segment": i, "right": right} for i in range(len(recipe.test))
    ]
    return list(segment_rows(Record(recipe.key, recipe.json(), Outcome("finished", 2.0), log)))


def with_facet(name: str, found: pd.DataFrame) -> pd.DataFrame:
    """The rows as the experiment is given them: by a facet, if it asks for one."""
    facet = getattr(experiment(name), "facet", None)
    return found if facet is None else found.merge(pd.DataFrame({facet: [3, 17]}), how="cross")


LARGE = ("calibration", "capacity", "frontier", "hybrids_recall", "load", "protocol_v1", "tracking", "tracking_grid")
LARGE_ARE_SLOW = [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in TRAINED]
PAPER_IS_SLOW = [pytest.param(scale, marks=pytest.mark.slow) if scale == "paper" else scale for scale in SCALES]


@pytest.mark.parametrize("name", LARGE_ARE_SLOW)
@pytest.mark.parametrize("scale", PAPER_IS_SLOW)
def test_recipes_are_distinct_and_can_be_built(name: str, scale: str) -> None:
    made = recipes(name, scale)
    assert len({recipe.key for recipe in made}) == len(made)
    small = [recipe for recipe in made if recipe.dim <= 128]
    for recipe in {(recipe.pattern, recipe.dim, recipe.depth): recipe for recipe in small}.values():
        recipe.check()
    for task in {part for recipe in small for part in (*recipe.train, *recipe.test)}:
        task.build()


@pytest.mark.parametrize("name", LARGE_ARE_SLOW)
@pytest.mark.parametrize("scale", PAPER_IS_SLOW)
def test_a_table_and_figures_come_of_all_runs_and_of_a_few(name: str, scale: str) -> None:
    module = experiment(name)
    made = recipes(name, scale)[:: max(1, len(recipes(name, scale)) // 500)]
    found = pd.DataFrame([row for i, recipe in enumerate(made) for row in rows(recipe, i % 1000)])
    for part in (with_facet(name, found), with_facet(name, found.head(1))):
        assert len(module.summary(part)) >= 1
        assert all(figure.axes for _, figure in module.figures(part))


def test_the_published_grid_has_448_runs_of_the_published_regime() -> None:
    made = recipes("figure2", "paper")
    assert len(made) == 448
    attention = next(recipe for recipe in made if str(recipe.pattern[0]).startswith("attention"))
    expected = zoology23("attention(dropout=0.1, init='zoology23', rotary=False)", dim=64, rate=1e-4)
    assert attention == expected
    assert (attention.depth, attention.steps, attention.distinct) == (2, 64 * 391, (391,))


def test_figure2_reports_the_rate_that_selection_prefers_and_draws_published_points() -> None:
    pattern = figure2.published_mixers(64)["BaseConv"]
    made = [zoology23(pattern, dim=64, rate=rate) for rate in (1e-3, 1e-2)]
    table = pd.DataFrame(rows(made[0], 900) + rows(made[1], 400))
    (row,) = figure2.summary(table).itertuples()
    assert (row.mixer, row.accuracy, row.rate, row.tried) == ("BaseConv", 0.9, 1e-3, 2)
    ((_, figure),) = figure2.figures(table)
    assert list(figure.axes[0].lines[1].get_ydata()) == list(figure2.PUBLISHED[64]["BaseConv"])
    ((_, other),) = figure2.figures(pd.DataFrame(rows(iclr24(pattern, dim=64), 900)))
    assert len(other.axes[0].lines) == len(figure.axes[0].lines) - 1


def test_steps_to_solve_counts_seeds_and_marks_those_that_ran_out_of_steps() -> None:
    seeds = [steps_to_solve.recipe("mamba", "small", 1e-2, seed) for seed in range(3)]
    table = pd.DataFrame(rows(seeds[0], 999, solved=True) + rows(seeds[1], 500) + rows(seeds[2], 998, solved=True))
    (row,) = steps_to_solve.summary(table).itertuples()
    assert (row.seeds, row.solves, row.fewest, row.most) == (3, 2, 25, 25)
    ((_, figure),) = steps_to_solve.figures(table)
    reached, censored = figure.axes[0].lines
    assert (len(reached.get_xdata()), len(censored.get_xdata())) == (2, 1)


def test_steps_to_solve_runs_other_seeds_at_the_rate_that_solved_soonest_or_scored_best() -> None:
    def asked_after(*scores: tuple[int, bool]) -> set[tuple[float, int]]:
        tried = [one for one in recipes("steps_to_solve", "small") if str(one.pattern[0]) == "h3"]
        found = [
            row for one, (right, solved) in zip(tried, scores, strict=False) for row in rows(one, right, solved=solved)
        ]
        return {(one.rate, one.seed) for one in steps_to_solve.next_recipes(pd.DataFrame(found), "small")}

    assert asked_after((100, False), (300, False), (200, False), (0, False)) == {(3e-3, 1), (3e-3, 2)}
    assert asked_after((980, False), (300, False), (995, True), (0, False)) == {(1e-2, 1), (1e-2, 2)}
    assert asked_after((100, False), (300, False), (200, False)) == set()  # a rate has not been tried


def test_a_run_that_solved_the_task_and_then_diverged_did_not_solve_it() -> None:
    first, second = steps_to_solve.first_runs("kda", "small")[:2]
    table = pd.DataFrame([*rows(first, 990, solved=True), *rows(second, 990, solved=True)])
    table = table.assign(solved=[100.0, 300.0], outcome=["diverged", "solved"])
    assert steps_to_solve.best_rate(table) == second.rate
    (row,) = steps_to_solve.summary(table.assign(rate=second.rate, seed=[1, 0])).itertuples()
    assert (row.seeds, row.solves, row.fewest, row.median, row.most) == (2, 1, 300, 300, 300)


def test_mixers_stand_in_the_order_of_the_share_of_seeds_that_solve() -> None:
    def solving(pattern: str, seeds: int, solves: int) -> list[dict[str, object]]:
        runs = [steps_to_solve.recipe(pattern, "small", 1e-2, seed) for seed in range(seeds)]
        return [row for run in runs for row in rows(run, 999 if run.seed < solves else 500, solved=run.seed < solves)]

    table = pd.DataFrame([*solving("attention", 10, 9), *solving("kda", 3, 3), *solving("mamba", 3, 2)])
    assert steps_to_solve.summary(table)["mixer"].tolist() == ["KDA", "Attention", "Mamba"]


@pytest.mark.parametrize("solved", [True, False])
@pytest.mark.parametrize("choose", [steps_to_solve.best_rate, calibration.best_rate])
def test_of_equal_rates_the_lowest_is_the_best_in_any_order_of_rows(
    choose: Callable[[pd.DataFrame], float], solved: bool
) -> None:
    tried = steps_to_solve.first_runs("kda", "small")
    table = pd.DataFrame([row for i, run in enumerate(tried) for row in rows(run, 500 if i else 400, solved=solved)])
    expected = tried[0].rate if solved else tried[1].rate
    assert choose(table) == choose(table.iloc[::-1]) == expected


def anchor(name: str) -> calibration.Anchor:
    return next(one for one in calibration.anchors("small") if one.name == name)


def runs_of_anchor(one: calibration.Anchor, *right: int) -> pd.DataFrame:
    """The table after seeds of an anchor ended with so many of 1,000 answers right."""
    return pd.DataFrame([row for run, n in zip(one.runs(one.rates[0]), right, strict=False) for row in rows(run, n)])


@pytest.mark.parametrize(
    ("right", "verdict"),
    [
        ((960, 970, 980), "reproduced"),
        ((967, 967, 967), "reproduced"),  # 0.997 less 0.03
        ((900, 900, 900), "not reproduced"),
        ((966, 966, 966), "cannot be told"),  # its interval reaches into the tolerance
        ((999, 400, 999), "cannot be told"),
        ((997, 997), "cannot be told"),  # too few seeds
    ],
)
def test_the_verdict_on_an_anchor_follows_the_rule(right: tuple[int, ...], verdict: str) -> None:
    one = anchor("attention, width 64")._replace(spread=0.0)
    row = calibration.compare(one, runs_of_anchor(one, *right))
    assert row is not None
    assert row["verdict"] == verdict


def test_two_published_deviations_are_tolerated_where_they_are_more() -> None:
    one = anchor("attention, width 64")
    assert calibration.verdict(one._replace(spread=0.1), 0.8, 0.79, 0.81) == "reproduced"
    assert calibration.verdict(one._replace(spread=0.01), 0.8, 0.79, 0.81) == "not reproduced"


def test_a_model_that_guesses_is_said_to_be_within_the_tolerance_where_it_is() -> None:
    def guessing(name: str) -> object:
        row = calibration.compare(anchor(name), runs_of_anchor(anchor(name), 500))
        assert row is not None
        return row["guessing"]

    failures = ("parity, attention", "parity, attention, mean", "DeltaNet", "one layer, attention")
    assert {guessing(name) for name in failures} == {"within the tolerance"}
    others = ("parity, mLSTM", "cycle navigation, attention", "one layer, Mamba", "window of 8")
    assert {guessing(name) for name in others} == {""}


def test_an_anchor_is_scored_as_its_source_scores() -> None:
    solves = anchor("one layer, Mamba")
    row = calibration.compare(solves, runs_of_anchor(solves, 949, 950, 951))
    assert row is not None
    assert row["ours"] == pytest.approx(2 / 3)
    best = anchor("parity, DeltaNet")
    row = calibration.compare(best, runs_of_anchor(best, 500, 750, 400))
    assert row is not None
    assert (row["ours"], row["verdict"]) == (pytest.approx(0.5), "cannot be told")  # of one seed, the best
    edges = [2 * edge - 1 for edge in wilson(0.75, 1000)]  # of the best seed's answers, scaled: guessing is 0.5
    assert [row["low"], row["high"]] == pytest.approx(edges)


def test_calibration_runs_the_other_seeds_once_all_rates_were_tried() -> None:
    one = anchor("parity, DeltaNet")
    first, second = one.runs()
    both = pd.DataFrame(rows(first, 500) + rows(second, 700))
    more = calibration.next_recipes(both, "small")
    assert [(run.rate, run.seed) for run in more] == [(one.rates[1], 1), (one.rates[1], 2)]  # for two sources, once
    assert calibration.next_recipes(both.head(1), "small") == []


def test_published_points_of_the_frontier_stand_beside_their_own_models() -> None:
    points = {(one.recipe.dim, str(one.recipe.pattern[-1])): one.published for one in calibration.anchors("paper")}
    windows = {w: points[128, f"attention(rotary=False, window={w + 1})"] for w in (8, 16, 128, 1024)}
    assert windows == {8: 0.081, 16: 0.145, 128: 0.655, 1024: 1.0}
    taylor = {8: "based(features=8)", 16: "based", 24: "based(features=24)"}
    cells = ((48, 8), (64, 8), (48, 16), (64, 24), (128, 24))
    features = {(dim, f): points[dim, taylor[f]] for dim, f in cells}
    assert features == {(48, 8): 0.667, (64, 8): 0.719, (48, 16): 0.836, (64, 24): 0.970, (128, 24): 0.991}


def test_anchors_are_as_their_sources_or_say_in_what_they_are_not() -> None:
    paper = calibration.anchors("paper")
    assert "window=9" in str(anchor("window of 8").recipe.pattern[-1])  # theirs does not count the token itself
    assert all("full batches" in one.departs for one in paper)
    cells = {one.name: one.departs for one in paper}
    assert "weight decay 0.1" in cells["H3, width 64, length 64"]
    assert "rates there are from 5e-4" in cells["H3, width 64, length 128"]


def test_the_paper_scale_has_every_cell_of_figure_2() -> None:
    cells = [one for one in calibration.anchors("paper") if one.source == anchor("attention, width 64").source]
    assert len(cells) == 4 * 5 * 4
    (cell,) = [one for one in cells if one.name == "BaseConv, width 128, length 64"]
    expected = zoology23("base_conv, base_conv(filter='implicit', taps=64)", dim=128)
    assert (cell.published, cell.recipe) == (0.941, expected)


def test_a_diverged_run_is_as_far_from_the_distribution_as_can_be() -> None:
    made = recipes("regbench", "smoke")[0]
    table = pd.DataFrame(
        [row for seed in range(3) for row in rows(made.model_copy(update={"seed": seed}), 900)]
    ).assign(tvd=[0.1, 0.2, float("nan")])
    (row,) = experiment("regbench").summary(table).to_dict("records")
    assert row["tvd"] == pytest.approx((0.1 + 0.2 + 1) / 3)
    assert row["tvd_low"] < row["tvd"] < row["tvd_high"] <= 1
    ((_, figure),) = experiment("regbench").figures(table)
    assert len(figure.axes) == 2


def test_a_diverged_run_has_not_solved_its_task() -> None:
    made = clean("attention")
    table = pd.DataFrame(rows(made, 990, solved=True) + rows(made.model_copy(update={"seed": 1}), 990, solved=True))
    (row,) = curve(table.assign(outcome=["diverged", "solved"]), group=("dim",)).to_dict("records")
    assert row["solves"] == 1


@pytest.mark.parametrize(("module", "look"), [(mechanism, mechanism.open_smoke), (formation, formation.watch_smoke)])
@pytest.mark.parametrize("pattern", ["short_conv", "gated_delta"])
def test_an_opened_model_that_diverged_answers_nothing(
    module: ModuleType, look: Callable[[Recipe], list[dict[str, Any]]], pattern: str
) -> None:
    recipe = clean(pattern, train=module.TASK, dim=16, depth=2, steps=20, every=20, rate=1e30)
    found = look(recipe)
    assert found[-1].get("value", found[-1].get("right")) == 0
    assert len(module.summary(pd.DataFrame(found).assign(name=pattern, rate=recipe.rate, seed=0))) == 1


def test_models_of_one_name_but_other_patterns_or_formats_are_no_seeds_of_each_other() -> None:
    own = next(one for one in recipes("frontier", "small") if "gated_delta" in str(one.pattern))
    other = own.model_copy(update={"pattern": parse("mixers", "base_conv, gated_delta(heads=1, init='short')")})
    table = pd.DataFrame([*rows(own, 300), *rows(other, 900)])
    found = frontier.summary(table).set_index("mixer")
    assert dict(found["accuracy"]) == pytest.approx({"Gated DeltaNet": 0.3, ", ".join(map(str, other.pattern)): 0.9})
    older = pd.DataFrame(rows(own.model_copy(update={"seed": 1}), 900)).assign(format=1)
    assert frontier.summary(pd.concat([table, older]))["seeds"].tolist() == [1, 1, 1]


@pytest.mark.slow
def test_the_mad_protocol_has_66_settings_of_six_trainings_and_equal_states() -> None:
    counts = {task: len(list(mad.task_settings(task))) for task in mad.SWEEPS}
    assert sorted(counts.values()) == [6, 11, 11, 11, 13, 14]
    made = [made for made in recipes("mad", "paper") if str(made.pattern[0]) == "mamba"]
    assert len(made) == 66 * 6 * 3
    for text in mad.ISO.values():
        (found,) = parse("mixers", text)
        state = memory(lambda found=found: found.build(128), time=128, dim=128).numbers
        assert state == pytest.approx(4096, rel=0.1), text


@pytest.mark.slow
def test_the_mad_score_is_the_mean_over_tasks_of_the_mean_over_settings_at_the_best_selection() -> None:
    each = [made for made in recipes("mad", "paper") if str(made.pattern[0]) == "mamba" and made.seed == 0]
    kept = [row for i, made in enumerate(each) for row in rows(made, 800 if i % 6 == 2 else 300)]
    (row,) = mad.summary(pd.DataFrame(kept)).to_dict("records")
    assert [row[task] for task in (*mad.SWEEPS, "MAD score")] == pytest.approx([0.8] * 7)
    others = pd.DataFrame(kept).assign(seed=1)  # another seed, which diverges at what is best for the first
    there = others["accuracy"] == 0.8
    others = others.assign(accuracy=others["accuracy"].mask(there), outcome=others["outcome"].mask(there, "diverged"))
    (row,) = mad.summary(pd.concat([pd.DataFrame(kept), others])).to_dict("records")
    assert row["MAD score"] == pytest.approx(0.4), "a run that diverged counts as 0"


def test_the_mad_score_waits_for_every_setting_and_counts_the_fewest_seeds() -> None:
    def scores(pattern: str, *options: str) -> list[dict[str, object]]:
        made = [mad.mad_recipe(task, one, pattern, dim=16) for task in mad.SWEEPS for one in options]
        return [row for one in [*made, made[0].model_copy(update={"seed": 1})] for row in rows(one, 500)]

    table = pd.DataFrame([*scores("attention(heads=4)", "", "vocab=64"), *scores("mamba", "")])
    whole, part = mad.summary(table).to_dict("records")
    assert (whole["mixer"], whole["MAD score"], whole["seeds"]) == ("Attention", 0.5, 1)
    assert part["mixer"] == "Mamba"
    assert math.isnan(part["MAD score"])


def test_accuracy_at_each_length_is_told_apart() -> None:
    made = recipes("extrapolation", "small")[0]
    found = extrapolation.summary(pd.DataFrame(rows(made, 700)))
    assert found["length"].tolist() == [2**k for k in range(4, 12)]
    assert set(found["accuracy"]) == {0.7}


@pytest.mark.parametrize("name", [name for name in TRAINED if isinstance(getattr(experiment(name), "MIXERS", 0), dict)])
def test_mixers_are_called_what_the_experiment_calls_them(name: str) -> None:
    module = experiment(name)
    made = {made.pattern: made for made in recipes(name, "small")}.values()
    found = with_facet(name, pd.DataFrame([row for one in made for row in rows(one, 500)]))
    named = {mixer for mixer in module.MIXERS if mixer not in getattr(module, "LARGE", ())}
    assert set(module.summary(found)["mixer"]) - {frontier.WINDOW} == named


def test_windows_of_rates_are_refined_once_for_each_mixer_and_depth() -> None:
    made = recipes("rates", "small")
    assert len(made) == 12 * 3 * 2 * 4

    def works(recipe: Recipe) -> int:
        return 950 if 1e-3 <= recipe.rate <= 1e-2 else 300

    table = pd.DataFrame([row for recipe in made for row in rows(recipe, works(recipe))])
    new = rates.next_recipes(table, "small")
    assert len(new) == 2 * 3 * 2 * 4  # both edges, every seed
    assert not {recipe.key for recipe in new} & {recipe.key for recipe in made}
    again = pd.concat([table, pd.DataFrame([row for recipe in new for row in rows(recipe, works(recipe))])])
    assert rates.next_recipes(again, "small") == []
    found = rates.summary(again)
    assert ((found["from"] >= 1e-3) & (found["below"] < 1e-3) & (found["from"] / found["below"] < 1.4)).all()
    assert ((found["to"] <= 1e-2) & (found["above"] > 1e-2) & (found["above"] / found["to"] < 1.4)).all()
    ((_, figure),) = rates.figures(again)
    assert [axis.get_title() for axis in figure.axes] == ["depth 1", "depth 2"]


def test_rates_of_mixers_that_a_scale_has_not_are_refused() -> None:
    chosen = choose_mixers(rates, None, "Mamba-2")
    with pytest.raises(ValueError, match="small has none of these mixers: Mamba-2"):
        list(chosen.recipes("small"))
    assert list(chosen.recipes("paper"))


def test_a_hook_under_its_former_name_works_and_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    more = [clean("attention", seed=seed) for seed in range(2)]
    old = ModuleType("old_experiment")
    old.__dict__.update(__file__="./old.py", further=lambda _table, _scale: more)
    table = pd.DataFrame(rows(more[0], 500))
    for _ in range(2):
        assert next_recipes(old, table, "small", more[:1]) == more[1:]
    assert capsys.readouterr().err == "bestiary: ./old.py: `further` is now called `next_recipes`; please rename it\n"
    assert next_recipes(ModuleType("none"), table, "small", []) == []


def test_the_load_of_every_mixer_is_measured_at_nearly_the_same_state() -> None:
    table = pd.DataFrame([row for recipe in recipes("load", "small") for row in rows(recipe, 500)])
    found = loads.summary(table)
    assert set(found["mixer"]) == set(loads.NAMES.values())
    assert (found["ratio"] - 1).abs().max() < 0.2
    assert (found["state"] - 320).abs().max() < 0.2 * 320  # 2 of 32 in the convolution, four squares of 8
    assert set(found["bits allow"]) == {1.0}
    best = found.groupby("pairs")["least squares"].first()
    assert best[12] == 1.0 > best[24]


def test_distances_are_counted_in_bins_of_powers_of_two() -> None:
    (recipe,) = recipes("distance", "small")[:1]
    (row,) = rows(recipe, 0)
    parts = [(2, 10, 5), (3, 10, 10), (4, 20, 20), (7, 5, 0)]
    table = pd.DataFrame([{**row, "distance": at, "asked": asked, "right": right} for at, asked, right in parts])
    found = distance.summary(table).set_index("distance")
    assert found["accuracy"].to_dict() == {2: 0.75, 4: 0.8}
    assert found["answers"].to_dict() == {2: 20, 4: 25}


def test_feature_maps_are_compared_on_the_hardest_slice_by_their_state() -> None:
    assert len(recipes("based_figure3", "paper")) == 9 * 8 * 4
    recipe = next(r for r in recipes("based_figure3", "paper") if "performer" in str(r.pattern) and r.dim == 64)
    table = pd.DataFrame(rows(recipe, 400))
    (row,) = based_figure3.summary(table).itertuples()
    assert (row.map, row.answers, row.state) == ("Performer", 1000, 2 * 64 + 256 * 65)


def test_least_squares_need_the_least_square_that_recalls() -> None:
    width = least_width(8, 64)
    assert recalls(8, width, 64)
    assert not recalls(8, width - 1, 64)
    lines = references(8, 64)
    assert lines["least squares"] == width**2
    assert lines["bits suffice"] == 2  # 8 values of 5 bits are 40 bits


def trained(pattern: str, dim: int, rate: float, right: int, **changes: Any) -> list[dict[str, object]]:
    """The rows of a run on MQAR."""
    task = changes.pop("task", "mqar(vocab=64, length=32, pairs=4)")
    return rows(clean(pattern, train=task, dim=dim, rate=rate, **changes), right)


def test_recipes_alone_give_a_table_at_the_best_rate_and_a_line_for_each_mixer() -> None:
    runs = [
        ("attention", 16, 1e-3, 300),
        ("attention", 16, 1e-2, 700),
        ("attention", 32, 1e-2, 900),
        ("lstm", 16, 1e-2, 500),
    ]
    table = pd.DataFrame([row for run in runs for row in trained(*run)])
    found = default_summary(table, {"Attention": "attention"})
    assert found[["mixer", "dim", "accuracy", "rate"]].to_numpy().tolist() == [
        ["Attention", 16, 0.7, 1e-2],
        ["Attention", 32, 0.9, 1e-2],
        ["lstm", 16, 0.5, 1e-2],
    ]
    ((suffix, figure),) = default_figures(table)
    assert suffix == ""
    assert figure.axes[0].get_xlabel() == "dim"
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [[0.7, 0.9], [0.5]]


@pytest.mark.parametrize(
    ("changes", "axis"),
    [
        (({"task": "reverse(length=16)"}, {"task": "odds_first(length=16)"}), "task"),  # of the same options
        (({"steps": 500}, {"steps": 2000}), "budget"),
        (({"test": "mqar(pairs=8)"}, {"test": "mqar(pairs=8)", "task": "mqar(pairs=2)"}), "train"),
    ],
)
def test_runs_that_differ_in_more_than_their_seeds_are_not_averaged(
    changes: tuple[dict[str, Any], ...], axis: str
) -> None:
    table = pd.DataFrame([row for change in changes for row in trained("lstm", 16, 1e-2, 500, **change)])
    found = default_summary(table)
    assert found["seeds"].tolist() == [1, 1]
    assert found[axis].nunique() == 2


def test_a_task_is_no_axis_where_its_options_tell_it() -> None:
    tasks = [f"mqar(vocab=64, length={length}, pairs={pairs})" for length, pairs in ((32, 4), (64, 4), (64, 8))]
    table = pd.DataFrame([row for task in tasks for row in trained("lstm", 16, 1e-2, 500, task=task)])
    assert {"length", "pairs"} < {*default_summary(table)}
    assert not {"task", "train"} & {*default_summary(table)}


def test_what_says_the_same_again_is_no_axis_and_what_else_differs_is_a_panel() -> None:
    tasks = ("mqar(vocab=64, length=32, pairs=4)", "mqar(vocab=64, length=64, pairs=8)")
    table = pd.DataFrame(
        [row for task in tasks for dim in (16, 32) for row in trained("lstm", dim, 1e-2, 500, task=task)]
    )
    ((_, figure),) = default_figures(table)
    assert [(axis.get_title(), axis.get_xlabel()) for axis in figure.axes] == [
        ("dim 16", "length"),
        ("dim 32", "length"),
    ]


def test_many_panels_are_several_figures_and_no_number_is_a_table_of_shares() -> None:
    rates = [trained("lstm", dim, 1e-2, 500, batch=batch) for dim in (8, 16) for batch in (1, 2, 3, 4, 5)]
    assert [suffix for suffix, _ in default_figures(pd.DataFrame(sum(rates, [])))] == ["-1", "-2"]
    texts = [
        trained(mixer, 8, 1e-2, 500, channel=channel) for mixer in ("lstm", "attention") for channel in ("none", "mlp")
    ]
    ((_, figure),) = default_figures(pd.DataFrame(sum(texts, [])))
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.50"] * 4
