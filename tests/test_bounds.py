"""Bounds: their equations hold, no simulation and no construction crosses them."""

import math

import numpy as np
import pytest

from bestiary.constructions import bounds
from bestiary.constructions._construction import measure_size, score
from bestiary.constructions.catalogue import CATALOGUE


def test_bits_are_those_of_all_ways_to_give_values_to_the_keys() -> None:
    assert 2 ** bounds.bits_needed(3, 16) == pytest.approx(8 * 7 * 6)  # no value is drawn twice
    assert 2 ** bounds.bits_needed(8, 16) == pytest.approx(math.factorial(8))
    many = bounds.SIMULATED_PAIRS
    assert bounds.log2_orders(2 * many, many + 1) - bounds.log2_orders(2 * many, many) == pytest.approx(
        math.log2(many), abs=1e-6
    )
    assert bounds.bits_held(10, precision=16) == 160
    assert bounds.least_state(64, 8192) == 24  # 64 pairs of nearly 12 bits
    assert bounds.least_state(63, 256) == 13  # of 414 bits, where independent values would have 441
    assert bounds.bits_held(24) >= bounds.bits_needed(64, 8192) > bounds.bits_held(23)


@pytest.mark.parametrize(("pairs", "vocab"), [(16, 64), (64, 8192), (3, 6)])
def test_the_ceiling_is_never_below_chance_rises_and_ends_at_one(pairs: int, vocab: int) -> None:
    states = range(bounds.least_state(pairs, vocab) + 1)
    heights = [bounds.ceiling(pairs, vocab, state) for state in states]
    assert heights[0] >= 1 / bounds.values(vocab)
    assert bounds.ceiling(1, vocab, 0) == pytest.approx(1 / bounds.values(vocab), abs=1e-6)
    assert heights == sorted(heights)
    assert heights[-1] == 1.0 > heights[-2]


def test_the_ceiling_solves_fanos_equation() -> None:
    held, many, needed = 20 * 32 / 64, 4096, bounds.bits_needed(64, 8192) / 64
    right = bounds.ceiling(64, 8192, 20)
    entropy = -right * math.log2(right) - (1 - right) * math.log2(1 - right)
    assert needed - entropy - (1 - right) * math.log2(many - 1) == pytest.approx(held, abs=1e-9)


def test_the_ceiling_is_that_of_storing_some_values_and_guessing_others_or_higher() -> None:
    for state in range(1, 24):
        stored = bounds.bits_held(state) / math.log2(4096)
        assert bounds.ceiling(64, 8192, state) >= (stored + (64 - stored) / 4096) / 64


@pytest.mark.parametrize("state", [100, 4096, 10**6])
def test_the_optimal_linear_memory_solves_its_equation(state: int) -> None:
    pairs = bounds.optimal_linear_pairs(state)
    assert pairs * math.log(pairs) / state == pytest.approx(0.5, abs=1e-9)


def test_depths_are_the_logarithms_that_they_name() -> None:
    for vocab in (4, 5, 64, 100, 8192):
        assert bounds.least_depth(vocab) == math.ceil(math.log2(2 * math.floor(math.log2(vocab))))
    for hot in (1, 2, 3, 4, 8):
        assert bounds.least_depth_hot(hot) == math.floor(math.log2(2 * hot))


def test_a_square_memory_holds_as_many_orthogonal_keys_as_it_is_wide() -> None:
    assert [bounds.orthogonal_pairs(n) for n in (1, 99, 100)] == [1, 9, 10]
    assert bounds.argmax_state(64) == pytest.approx(64 * math.log(64))


@pytest.mark.parametrize("seed", range(3))
def test_least_squares_is_exact_up_to_the_width_and_never_worse_than_the_others(seed: int) -> None:
    shares = {rule: [bounds.simulated_accuracy(rule, n, 32, 512, seed=seed) for n in (32, 96)] for rule in bounds.RULES}
    assert shares["least squares"][0] == 1.0
    assert shares["hebbian"][1] < 1.0
    for other in shares.values():
        assert all(best >= share for best, share in zip(shares["least squares"], other, strict=True))


def test_the_delta_rule_corrects_what_its_key_reads() -> None:
    rng = np.random.default_rng(0)
    key, value = bounds.unit_rows(rng.normal(size=(5, 8))), rng.normal(size=(5, 3))
    memory = bounds.delta_memory(key, value)
    assert np.allclose(key[-1] @ memory, value[-1], atol=1e-12)
    once = bounds.delta_memory(key[:1], value[:1])
    assert np.allclose(once, np.outer(key[0], value[0]), atol=1e-12)


@pytest.mark.parametrize("name", ["linear attention", "delta rule", "least squares", "attention, two layers"])
def test_no_construction_recalls_with_less_state_than_the_bits_need(name: str) -> None:
    entry = CATALOGUE[name]
    vocab, length = entry.tiny[-1]
    batch, made = entry.draw(vocab, length), entry.build(vocab, length)
    right, asked = score(made, batch)
    assert right == asked
    assert measure_size(made, batch.tokens).state >= bounds.least_state(asked // len(batch.tokens), vocab)


def test_the_table_says_more_about_a_state_and_how_sure_it_is() -> None:
    short, long = bounds.table(8, 64), bounds.table(8, 64, 256)
    assert set(long["sure"]) == {"theorem", "law", "simulated", "construction"}
    assert list(short["what"]) == list(long["what"])[: len(short)]
    assert long.set_index("what")["number"]["accuracy that so many bits allow"] == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds.bits_needed(0, 64), "there must be a pair and two values"),
        (lambda: bounds.bits_needed(4, 3), "there must be a pair and two values"),
        (lambda: bounds.bits_needed(65, 128), "it has only 64 values"),
        (lambda: bounds.bits_held(-1), "a state has no -1 numbers of 32 bits"),
    ],
)
def test_sizes_that_mean_nothing_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # pyright: ignore[reportCallIssue]


def test_what_is_too_large_to_simulate_is_not_and_says_so() -> None:
    found = bounds.table(2**40, 2**48, 2**48)
    assert list(found["sure"])[-3:] == ["too large to simulate"] * 3
    assert found["number"][:-3].notna().all()
    assert found["number"][-3:].isna().all()
    assert bounds.table(64, 8192, 4096)["number"].notna().all()
