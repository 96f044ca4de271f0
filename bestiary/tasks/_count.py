"""How many sequences a task has, and how often those are right who guess among what was shown."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bestiary.tasks._task import SILENT, Batch

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


def rate_by_counts(fit: Batch, held: Batch, words: int) -> float:
    """How often one is right in `held` who answers with what was right most often in `fit` where the same was asked.

    Only words of the row are answers: tokens below `words`. The question of a row is its last two tokens up to that
    where it is answered, and `truth["right"]` has the words that are right.
    """
    where = [(batch.targets != SILENT).byte().argmax(1, keepdim=True) for batch in (fit, held)]
    asked, again = (
        batch.tokens.gather(1, at - 1) * 2**20 + batch.tokens.gather(1, at)
        for batch, at in zip((fit, held), where, strict=True)
    )
    rows, right = fit.truth["right"].nonzero().unbind(1)
    seen, times = (asked[rows, 0] * 2**20 + right).unique(return_counts=True)
    wanted = again * 2**20 + held.tokens
    place = torch.searchsorted(seen, wanted).clamp(max=len(seen) - 1)
    often = (times[place] * (seen[place] == wanted)).masked_fill(held.tokens >= words, -1)
    answer = held.tokens.gather(1, often.argmax(1, keepdim=True))
    return held.truth["right"].gather(1, answer).double().mean().item()
