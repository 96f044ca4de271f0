"""Chances, plateaux and sizes of the tasks of formal languages, against all strings written out."""

import math
from collections import Counter
from itertools import product

import pytest

from tests.test_formal_languages import grammar, made, rows, stacked, winners


def best(shares: Counter[int]) -> float:
    return max(shares.values()) / sum(shares.values())


def every(symbols: int, length: int) -> list[tuple[list[int], float]]:
    """Strings of 1 to `length` symbols, weighted so that each length counts the same."""
    return [(list(s), symbols**-size) for size in range(1, length + 1) for s in product(range(symbols), repeat=size)]


@pytest.mark.parametrize("ties", ["smallest", "largest", "first"])
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("symbols", [2, 3])
def test_the_chance_of_majority_is_that_of_all_strings(ties: str, cumulative: bool, symbols: int) -> None:
    shares: Counter[int] = Counter()
    for string, weight in every(symbols, 6):
        for answer in winners(string, ties, symbols)[0 if cumulative else -1 :]:
            shares[answer] += weight  # type: ignore[assignment]
    task = made(f"majority(least=1, length=6, symbols={symbols}, ties='{ties}', cumulative={cumulative})")
    assert task.chance == pytest.approx(best(shares))


def test_the_chance_of_a_long_running_majority_is_that_of_its_ties() -> None:
    task = made("majority(least=1, length=1500, cumulative=True)")
    ties = [(1501 - size) * math.comb(size, size // 2) / 2**size for size in range(2, 1501, 2)]
    assert task.chance == pytest.approx(0.5 + sum(ties) / (1500 * 1501), abs=1e-12)


@pytest.mark.parametrize(("symbols", "length"), [(2, 1), (3, 5), (4, 6)])
def test_the_chance_of_a_count_is_that_of_all_strings(symbols: int, length: int) -> None:
    shares: Counter[int] = Counter()
    for string, weight in every(symbols, length):
        shares[min(symbols - 1, max(map(string.count, string)))] += weight  # type: ignore[assignment]
    task = made(f"majority(least=1, length={length}, symbols={symbols}, count=True)")
    assert task.chance == pytest.approx(best(shares))


@pytest.mark.parametrize("signs", ["+-*", "*", "+-"])
@pytest.mark.parametrize("size", [4, 7, 9])
def test_values_of_expressions_are_as_likely_as_among_all(signs: str, size: int) -> None:
    bracketed, flat = Counter[int](), Counter[int]()
    for text, share in grammar(size, signs, 3):
        bracketed[eval(text) % 3] += share  # type: ignore[assignment]
    for parts in product(*(("012", signs)[place % 2] for place in range(size - 1 + size % 2))):
        flat[eval("".join(parts)) % 3] += 1
    options = f"least={size}, length={size}, modulus=3, operators='{signs}'"
    task = made(f"modular_arithmetic(brackets=True, {options})")
    assert task.chance == pytest.approx(best(bracketed))
    assert task.space == len(grammar(size, signs, 3))
    assert made(f"modular_arithmetic({options})").chance == pytest.approx(best(flat))


def test_the_answers_of_a_stack_are_as_often_due_as_among_all_strings() -> None:
    shares: Counter[int] = Counter()
    for size, bits in [(2, 1), (3, 1), (3, 2), (5, 1), (5, 2), (5, 3), (5, 4)]:
        for string in product(*[(0, 1)] * bits, *[(2, 3, 4)] * (size - bits)):
            for answer in [*stacked(list(string)), 2]:
                shares[answer] += 1 / (size - 1) / 2**bits / 3 ** (size - bits)  # type: ignore[operator]
    found = [sum(made("stack_manipulation").expected_counts(size)[answer] for size in (2, 3, 5)) for answer in range(3)]
    assert found == pytest.approx([shares[answer] for answer in range(3)])


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_the_bits_of_roots_are_counted(size: int) -> None:
    ones = sum(math.isqrt(n).bit_count() for n in range(1, 2**size)) / (2**size - 1)
    assert made("square_root").expected_counts(size) == pytest.approx([(size + 1) // 2 - ones, ones])


@pytest.mark.parametrize("text", ["reverse", "bucket_sort", "unique_set(symbols=9)"])
def test_the_plateau_is_the_most_frequent_answer_of_each_row(text: str) -> None:
    found = [row.answers for row in rows(text, 4000)]
    share = sum(max(Counter(answers).values()) for answers in found) / sum(map(len, found))
    assert made(text).plateau == pytest.approx(share, abs=0.005)
