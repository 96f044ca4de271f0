"""How many sequences a task has, and how often those are right who guess among what was shown."""

import math
from collections.abc import Callable, Sequence
from typing import Any

MEASURED: dict[tuple[Any, ...], tuple[float, float]] = {}


def from_bits(bits: int | float) -> float:
    """How many sequences there are, from its logarithm, which may be large."""
    return 2.0 ** min(bits, 1000.0)


def choice_bits(among: int, size: int) -> float:
    """In bits, how many ordered choices of `size` different things there are."""
    return (math.lgamma(among + 1) - math.lgamma(among - size + 1)) / math.log(2)


def subset_bits(among: int, size: int) -> float:
    """In bits, how many choices of `size` different things there are, whatever their order."""
    return math.log2(math.comb(among, size))


def mean_inverse_distinct(draws: int | float, among: int) -> float:
    """About the mean of 1 / kinds, where so many uniform draws give so many different kinds of things.

    The expansion to second order around the mean number, of which mean and variance are exact. A guess among the
    things drawn is right so often.
    """
    missed, both = (1 - 1 / among) ** draws, max(0.0, 1 - 2 / among) ** draws
    mean = among * (1 - missed)
    variance = among * (among - 1) * both + among * missed - (among * missed) ** 2
    return min(1.0, 1 / mean + max(0.0, variance) / mean**3)


def guess_accuracy(candidates: int | float, sizes: Sequence[int], *, any_length: bool = False) -> float:
    """The accuracy, token by token, of guessing an answer of several tokens among so many that are known to occur.

    Token i is uniform among sizes[i]. The right tokens before it have been seen, and one guesses among the answers that
    agree with them. With `any_length` an answer ends after any of its tokens, each length equally likely.
    """
    agree, right, asked = 1.0, 0.0, 0.0
    for place, size in enumerate(sizes):
        goes_on = 1 - place / len(sizes) if any_length else 1.0
        lucky = (1 - (1 - agree * goes_on) ** candidates) / (candidates * agree * goes_on)
        right += goes_on * (lucky + (1 - lucky) / size)
        asked += goes_on
        agree /= size
    return min(1.0, right / asked)


def measure_once(key: tuple[Any, ...], measure: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Chance and plateau of a task that has to measure them, under this key: its name and options."""
    if key not in MEASURED:
        MEASURED[key] = measure()
    return MEASURED[key]
