"""Sizes are counted from the model itself, and matched where widths allow it."""

import math

import pytest

from bestiary.model import memory
from bestiary.spec import parse
from bestiary.training.recipe import Recipe, clean
from bestiary.training.size import Size, flops, match_widths, parameters, size, state_size

TASK = "mqar(vocab=64, length=32, pairs=4)"
ASKED, TIME, DIM, VOCAB = 4, 32, 16, 64


def made(pattern: str, **changes: object) -> Recipe:
    return clean(pattern, **({"train": TASK, "dim": DIM, "depth": 1, "batch": 8} | changes))


def test_a_size_is_that_of_the_model_itself() -> None:
    recipe = made("base_conv, attention", depth=2)
    weights = sum(weight.numel() for weight in recipe.build().parameters())
    state = memory(recipe.build, time=TIME)
    assert size(recipe) == Size(weights, state.numbers, state.bytes, flops(recipe))


def test_the_state_is_that_after_the_longest_test_task() -> None:
    longer = made("attention", test=f"{TASK}, mqar(vocab=256, length=128, pairs=4)")
    assert state_size(longer)[0] == 4 * state_size(made("attention"))[0] == 2 * 128 * DIM


def test_seeds_and_rates_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = made("attention", dim=20)
    before = size(recipe)
    monkeypatch.setattr(Recipe, "build", None)
    assert size(recipe.model_copy(update={"seed": 3, "rate": 1.0})) == before


HEAD = 2 * ASKED * DIM * VOCAB  # logits where something is asked


@pytest.mark.parametrize(
    ("pattern", "of_a_row"),
    [
        # keys and values everywhere, queries and outputs where asked, scores and mixture over the whole sequence
        ("attention(rotary=False)", 2 * (2 * TIME + 2 * ASKED) * DIM**2 + 4 * ASKED * TIME * DIM),
        # the input's spectrum and the product's way back over 64 points for each channel, then two maps where asked
        ("long_conv", 2 * 2.5 * DIM * 64 * math.log2(64) + 2 * ASKED * DIM * 2 * DIM),
        # one complex recurrence a channel: 8 a step
        ("lru", 8 * TIME * DIM + 2 * TIME * DIM * 2 * DIM + 2 * ASKED * (2 * DIM * DIM + 2 * DIM * DIM)),
    ],
)
def test_the_work_is_what_the_formula_of_the_mixer_asks_for(pattern: str, of_a_row: float) -> None:
    shared = 2.5 * DIM * 64 * math.log2(64) / 8 if pattern == "long_conv" else 0.0  # the filter's spectrum
    assert flops(made(pattern)) == pytest.approx((of_a_row + HEAD + shared) / TIME)


def test_the_work_of_segments_is_their_mean() -> None:
    one, other = TASK, "mqar(vocab=64, length=48, pairs=4)"
    mean = (TIME * flops(made("mamba", train=one)) + 48 * flops(made("mamba", train=other))) / (TIME + 48)
    assert flops(made("mamba", train=f"{one}, {other}")) == pytest.approx(mean)


@pytest.mark.parametrize("match", ["state", "parameters", "flops"])
def test_a_match_is_the_nearest_of_all_widths(match: str) -> None:
    count = {"state": lambda r: state_size(r)[0], "parameters": parameters, "flops": flops}[match]
    like, dims = made("base_conv, based(features=4)", depth=2), range(4, 33, 4)
    (found,) = match_widths(["gated_delta"], like, match=match, dims=dims, tolerance=1.0).values()  # pyright: ignore[reportArgumentType]
    every = {dim: like.model_copy(update={"pattern": parse("mixers", "gated_delta"), "dim": dim}) for dim in dims}
    ratios = {dim: count(recipe) / count(like) for dim, recipe in every.items()}
    assert found.recipe.dim == min(ratios, key=lambda dim: abs(ratios[dim] - 1))
    assert found.ratio == pytest.approx(ratios[found.recipe.dim])


def test_widths_that_cannot_be_built_are_skipped() -> None:
    like = made("attention(rotary=False)", dim=21)
    found = match_widths({"Heads": "attention(heads=4, rotary=False)"}, like, match="state", dims=range(16, 32))
    assert found["Heads"].recipe.dim == 20
    refusing = "examples/any_module.py:MultiHead(heads=8)"  # by an AssertionError of PyTorch's
    assert match_widths({"Heads": refusing}, made("attention", dim=16), dims=(4, 8, 16), tolerance=9.0).popitem()
    with pytest.raises(ValueError, match="none of 2 widths"):
        match_widths(["attention(heads=4, rotary=False)"], like, dims=(21, 23))


def test_no_match_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"lru has no width within 5%: the nearest has 64 state at width 32"):
        match_widths(["lru"], made("attention"), dims=(16, 32), tolerance=0.05)
    with pytest.raises(ValueError, match=r"lru has nothing to match: .* has a state of 0"):
        match_widths(["lru"], made("short_conv(taps=1)"), dims=(16, 32))


def test_the_work_of_attention_is_counted_at_any_length() -> None:
    """Beyond 128 keys a CPU has a way of its own, of which torch's counter does not know."""
    long = made("attention(rotary=False)", train="mqar(vocab=512, length=256, pairs=4)")
    assert 256 * flops(long) == pytest.approx(2 * (2 * 256 + 2 * 4) * DIM**2 + 4 * 4 * 256 * DIM + 2 * 4 * DIM * 512)
