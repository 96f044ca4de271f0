"""Recipes: what equals what, what is refused, and the published regimes."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bestiary.spec import parse, trust
from bestiary.spec.loading import TRUSTED
from bestiary.training.recipe import LATER, NAMED, Recipe, based, clean, iclr24, zoology23
from bestiary.training.train import learning_rate, score


def recipe(**changes: Any) -> Recipe:
    return clean("attention", **changes)


@pytest.mark.parametrize("name", NAMED)
def test_a_stored_recipe_is_the_recipe_again(name: str) -> None:
    made = NAMED[name]("base_conv, attention(heads=2)", seed=3)
    read = Recipe(**json.loads(json.dumps(made.json())))
    assert read == made
    assert read.key == made.key


def test_fields_that_came_later_leave_the_keys_of_earlier_runs() -> None:
    for name, default in LATER.items():
        assert recipe(**{name: default}).key == recipe().key
        assert name not in recipe().json()
    assert recipe(precision="bfloat16").json()["precision"] == "bfloat16"
    assert recipe(precision="bfloat16").key != recipe().key
    with pytest.raises(ValueError, match="precision"):
        recipe(precision="float16")


def test_the_floor_and_the_betas_are_checked() -> None:
    with pytest.raises(ValueError, match="cannot end at floor=0.1 above rate=0.01"):
        recipe(rate=0.01, floor=0.1)
    with pytest.raises(ValueError, match="must be below 1"):
        recipe(betas=(0.9, 1.0))
    stored = recipe(betas=(0.9, 0.95), schedule="linear").json()
    assert Recipe(**json.loads(json.dumps(stored))).betas == (0.9, 0.95)


def test_recipes_of_muon_are_trained_alone() -> None:
    one, other = (recipe(optimizer="muon", seed=seed) for seed in (0, 1))
    assert one.stack_key != other.stack_key


def test_the_regime_of_the_figure_doubles_its_convolutions() -> None:
    conv = zoology23("base_conv, base_conv(filter='implicit', taps=64)")
    assert [part.name for part in conv.pattern] == ["base_conv"] * 4
    assert [dict(part.options)["filter"] for part in conv.pattern] == ["short", "short", "implicit", "implicit"]
    assert (conv.depth, conv.channel, conv.batch, conv.steps, conv.weight_decay) == (8, "none", 1024, 6272, 0.01)
    assert (conv.stop, conv.positions, conv.decay) == (None, 0, "all")
    other = zoology23("attention", dim=128)
    assert (other.depth, other.channel, other.batch, other.positions) == (2, "zoology23", 256, 64)
    assert zoology23("hyena", length=512, pairs=64).batch == 128
    assert zoology23("attention", length=512, pairs=64).batch == 128
    assert [zoology23("h3", length=length).batch for length in (128, 256, 512)] == [1024, 256, 128]


def test_keys_are_equal_exactly_for_equal_runs() -> None:
    assert recipe(dim=64).key == recipe().key == clean("attention(heads=1)").key
    assert recipe(rate=1).key == recipe(rate=1.0).key
    keys = {
        recipe(seed=1).key,
        recipe(rate=1e-3).key,
        recipe(train="mqar(pairs=5)").key,
        clean("based").key,
        recipe().key,
    }
    assert len(keys) == 5
    assert recipe(seed=1).shape_key == recipe(rate=1e-3).shape_key == recipe().shape_key != recipe(dim=32).shape_key


def test_weights_come_from_the_seed_alone() -> None:
    small = {"train": "mqar(vocab=70)", "dim": 8}
    torch.manual_seed(1)
    one, state = recipe(**small).build(), torch.get_rng_state()
    torch.manual_seed(2)
    two, other = recipe(**small).build(), recipe(**small, seed=1).build()
    assert torch.equal(one.embed.weight, two.embed.weight)
    assert not torch.equal(one.embed.weight, other.embed.weight)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rat": 1}, "no 'rat' .did you mean 'rate'"),
        ({"rate": "fast"}, "rate='fast': Input should be a valid number"),
        ({"rate": math.nan}, "finite number"),
        ({"dim": 0}, "dim=0: Input should be greater than 0"),
        ({"channel": "mpl"}, "'mlp', 'swiglu', 'tanh_mlp', 'zoology23', 'none' or 'copy'"),
        ({"stop": 1.5}, "less than or equal to 1"),
        ({"distinct": (3, 4)}, "each of 1 segments"),
        ({"distinct": 3}, r"distinct=3: give a list, as in distinct=\[3\]"),
        ({"distinct": "34"}, "distinct='34': give a list"),
        ({"distinct": None}, "distinct=None: give a list"),
        ({"shuffle": "rows"}, "say how many batches are `distinct`"),
        ({"train": "mqar, mqra"}, "did you mean 'mqar'"),
        ({"train": ()}, "at least one task"),
        ({"train": parse("mixers", "attention")}, "attention is one of the mixers, and tasks are wanted here"),
        ({"pattern": "attention, kda, lru"}, "3 mixers do not fit into 2 layers"),
        ({"schedule": "constant", "floor": 1e-4}, "a constant rate does not end at floor=0.0001"),
        ({"train": "mqar(length=63)"}, "must be even"),
        ({"pattern": "attention(heads=3)"}, "3 heads do not divide a width of 64"),
        ({"pattern": "attention(heads=64)"}, "rotary positions need an even head width"),
    ],
)
def test_a_mistake_is_answered_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError, LookupError), match=message) as caught:
        Recipe(**({"train": "mqar", "pattern": "attention"} | changes)).check()
    assert "\n" not in str(caught.value)


def test_a_recipe_notices_that_a_file_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(Path("examples/my_mixer.py").read_text())
    stored = clean(str(file)).json()
    assert Recipe.read(stored).json() == stored
    file.write_text(file.read_text() + "\n# changed\n")
    TRUSTED.clear()
    trust(file)
    assert Recipe.read(stored).json() == stored
    with pytest.raises(ValueError, match="mine.py has changed since this was made with it"):
        Recipe.read(stored).check()


def test_checking_a_recipe_costs_no_memory() -> None:
    clean("attention", dim=2**15, train=f"mqar(vocab={2**20})").check()


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    made = recipe(steps=100, warmup=10, rate=2.0)
    assert learning_rate(made, 1) == pytest.approx(0.2)
    assert learning_rate(made, 51) == pytest.approx(1.0)
    assert learning_rate(made, 100) == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi * 0.99)))


def test_iclr24_is_the_published_regime() -> None:
    made = iclr24("base_conv, base_conv(filter='implicit', taps=64)", dim=128, rate=4.64e-4)
    assert (made.batch, made.distinct, made.steps) == (512, (196,), 64 * 196)
    assert (made.depth, made.positions, made.channel) == (4, 0, "copy")
    assert (iclr24("attention").depth, iclr24("attention", length=128, pairs=8).positions) == (2, 128)
    task = dict(made.train[0].options)
    assert (task["mode"], task["filler"], task["vocab"], task["power"]) == ("paper", "zero", 8192, 0.01)
    rates = [learning_rate(made, step) for step in (1, 196, 197, 392, 63 * 196 + 1, 64 * 196)]
    wanted = [4.64e-4 * 0.5 * (1 + math.cos(math.pi * epoch / 64)) for epoch in (0, 0, 1, 1, 63, 63)]
    assert rates == pytest.approx(wanted)


def test_published_rows_are_as_many_in_batches_of_another_size() -> None:
    assert iclr24("attention", batch=256).distinct == (391,)
    assert zoology23("attention", batch=512).distinct == (196,)
    assert based("attention", batch=128).distinct == (782, 157, 157, 157, 157)


def test_based_is_the_published_mixture() -> None:
    made = based("base_conv, based", dim=128)
    assert sum(made.distinct) == 707
    assert [(dict(s.options)["length"], dict(s.options)["pairs"]) for s in made.test][-1] == (1024, 256)
    assert made.steps == 32 * 707


FEW = [
    *("duplicate(length=3, symbols=2)", "n_back(length=3, symbols=2)", "n_back(length=4, symbols=2)"),
    *("n_back(length=5, symbols=2)", "p_hop(hops=3, length=2)", "in_context_recall(vocab=6, length=4)"),
    *("missing_duplicate(length=3, symbols=3)", "solve_equation(length=6, modulus=4)", "flip_flop(pairs=2)"),
    *("duplicate", "n_back(length=12, symbols=2)", "parity(length=8)", "solve_equation", "mqar"),
]


@pytest.mark.parametrize("task", FEW)
def test_what_could_not_be_scored_after_training_is_refused_before(task: str) -> None:
    tried = recipe(train=task, dim=8, depth=1, selection_rows=600, test_rows=600)
    faults = []
    for name in (tried.steer, "test"):
        try:
            list(score(tried.build(), tried.test, name, 600))
        except ValueError as fault:
            faults.append(str(fault))
    if faults:
        with pytest.raises(ValueError, match=f"cannot be trained and scored: {re.escape(faults[0])[:30]}"):
            tried.check()
    else:
        tried.check()
    assert bool(faults) == (task in FEW[:9])


def test_positions_must_reach_to_the_end_of_the_longest_test() -> None:
    tasks = {"train": "mqar(length=32, pairs=4)", "test": "mqar(length=64, pairs=4)"}
    recipe(**tasks, positions=64).check()
    with pytest.raises(ValueError, match="positions=63 are too few: the longest task has 64 tokens"):
        recipe(**tasks, positions=63).check()


@pytest.mark.parametrize("field", ["rate", "weight_decay", "clip", "dropout", "stop"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_fields_are_finite(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}="):
        recipe(**{field: value})
