"""The experiments on grids of mixers vary what they say, and nothing else."""

from itertools import groupby
from pathlib import Path

import pandas as pd
import pytest

from bestiary.experiments import hybrids_recall, optimizers, persistence, tracking_grid
from bestiary.experiments._protocol import Part, Row, next_runs, rows_of_parts, score_parts, working_rates
from bestiary.runs.exports import read_table
from bestiary.spec import parse
from bestiary.training.size import parameters, state_size

ROOT = Path(__file__).parents[1]
TINY = {"steps": 4, "every": 2, "warmup": 0, "batch": 4, "selection_rows": 4, "test_rows": 4}


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
def test_linear_mixers_that_persist_or_not_hold_equally_much(scale: str) -> None:
    made = [next(runs) for _, runs in groupby(persistence.recipes(scale), key=lambda recipe: recipe.pattern)]
    attention, *others = (state_size(recipe)[0] for recipe in made)
    assert len(others) == len(persistence.MIXERS) - 1
    assert attention > 10 * max(others)
    assert max(others) <= 1.05 * min(others)


def test_persistence_is_still_of_the_runs_that_were_measured() -> None:
    table = read_table(ROOT / "results" / "persistence-small.csv")
    assert {recipe.key for recipe in persistence.recipes("small")} <= {*table["key"]}
    assert persistence.next_recipes(table, "small")


def test_persistence_tells_mixers_apart_at_every_width() -> None:
    made = list(persistence.recipes("paper"))
    rows = [
        {"key": one.key, "pattern": ", ".join(map(str, one.pattern)), "task": str(task), "segment": segment}
        | {name: getattr(one, name) for name in ("dim", "depth", "rate", "seed")}
        | {"accuracy": 0.5, "asked": 8, "selection": 0.5, "outcome": "finished"}
        for one in made
        for segment, task in enumerate(one.test)
    ]
    assert persistence.summary(pd.DataFrame(rows))["mixer"].tolist() == list(persistence.MIXERS)


def test_the_axes_of_persistence_begin_where_it_was_trained() -> None:
    (part,) = persistence.parts("small")
    trained = parse("tasks", part.settings["train"])
    assert {persistence.test_of(*tests[0]) for tests in persistence.AXES.values()} == {part.settings["train"]}
    assert parse("tasks", part.settings["test"])[0] == trained[0]
    assert all(pairs == persistence.PAIRS for _, pairs in persistence.AXES["longer"])
    assert all(length == persistence.LENGTH for length, _ in persistence.AXES["fuller"])


def test_persistence_is_summed_up_at_the_end_of_each_axis() -> None:
    table = read_table(ROOT / "results" / "persistence-small.csv")
    found = persistence.summary(table).set_index("mixer").loc["RetNet"]
    rows = table[table["pattern"].str.contains("retnet") & table["rate"].eq(found["rate"])]
    for end, (length, pairs) in {"trained": (64, 4), "longer": (512, 4), "fuller": (64, 16), "both": (512, 32)}.items():
        test = rows[rows["length"].eq(length) & rows["pairs"].eq(pairs)]
        assert len(test) == found["seeds"] == 3
        assert found[end] == pytest.approx(test["accuracy"].mean())
        assert found[f"{end} low"] < found[end] < found[f"{end} high"]


def heads(pattern: str) -> tuple[int, int]:
    """Attending heads and all heads of four layers, counted from the text of a pattern."""
    layers = parse("mixers", pattern)
    attending = total = 0
    for layer in (layers[i % len(layers)] for i in range(4)):
        options = dict(layer.options)
        for mixer in options["mixers"] if layer.name == "parallel" else (layer,):
            count = dict(mixer.options)["heads"]
            total += count
            attending += count * (mixer.name == "attention")
    return attending, total


def test_hybrids_have_the_share_of_attending_heads_that_they_say() -> None:
    for name, hybrid in hybrids_recall.HYBRIDS.items():
        attending, total = heads(hybrid.pattern)
        assert (attending / total, total) == (hybrid.share, 32), name
        assert ("window=16" in hybrid.pattern) == ("window" in name), name


def test_the_grid_of_recurrences_varies_one_option_at_a_time() -> None:
    grid = {name: parse("mixers", text)[0] for name, text in tracking_grid.MIXERS.items() if " step" in name}
    assert len({spec.options for spec in grid.values()}) == len(grid) == 13
    varied = {"steps", "forget", "decay", "negative"}
    assert len({tuple(pair for pair in spec.options if pair[0] not in varied) for spec in grid.values()}) == 1
    for name, spec in grid.items():
        options = dict(spec.options)
        assert name.startswith(f"{options['steps']} step")
        assert options["negative"] == name.endswith("[-1, 1]")
        assert options["forget"] == ("no gate" not in name)
        assert (options["decay"] == "channel") == ("per channel" in name)


def test_optimizers_try_as_many_rates_of_the_same_models() -> None:
    parts = optimizers.parts("small")
    assert {len(part.rates) for part in parts} == {3}
    assert len({str({**part.settings, "optimizer": ""}) for part in parts}) == 1
    sizes = {parameters(part.recipe(optimizers.MIXERS["GLA"], 1e-3, 0)) for part in parts}
    assert len(sizes) == 1


def test_of_equal_rates_that_work_the_lowest_is_named() -> None:
    assert working_rates([Row("task", rate, 0, 0, 1.0, 8, 1.0) for rate in (8.0, 1.0)])["rate"] == 1.0


@pytest.mark.parametrize("field", ["depth", "optimizer", "dim"])
def test_parts_of_equal_tests_are_told_apart_by_their_model(field: str) -> None:
    """Their rows, the rates of their other seeds and their scores."""
    task = "mqar(vocab=20, length=12, pairs=2)"
    settings = {"train": task, "select": task, "test": task, "dim": 16, **TINY}
    values = {"depth": (1, 2), "optimizer": ("adamw", "muon"), "dim": (16, 32)}[field]
    parts = [
        Part({f"{field} {value}": 0}, (1e-3, 2e-3), behind=False, settings=settings | {field: value})
        for value in values
    ]
    rows = []
    for accuracy, part in zip((0.25, 0.75), parts, strict=True):
        for rate in part.rates:
            recipe = part.recipe("attention", rate, 0)
            plain = {"key": recipe.key, "pattern": "attention", "task": str(recipe.test[0]), "segment": 0}
            plain |= {name: getattr(recipe, name) for name in ("dim", "depth", "optimizer", "rate", "seed")}
            rows.append(plain | {"accuracy": accuracy, "asked": 8, "selection": accuracy, "outcome": "finished"})
    table, mixers = pd.DataFrame(rows), {"mine": "attention"}
    assert [len(rows_of_parts(table, parts)(part, "attention")) for part in parts] == [2, 2]
    assert score_parts(table, parts, mixers)["value"].tolist() == [0.25, 0.75]
    more = next_runs(table, parts, mixers)
    assert [(getattr(recipe, field), recipe.seed) for recipe in more] == [(v, s) for v in values for s in (1, 2)]
