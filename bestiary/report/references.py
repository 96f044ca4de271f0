"""What a state of a given size can do in theory: three vertical lines on an axis of states.

bits suffice      as many numbers as hold the bits that every answer needs: below it, no model recalls (a theorem)
n log n           what an argmax over a memory of random keys needs, up to a constant (an asymptotic law)
least squares     the smallest square memory of random unit keys that recalls 0.99 by least squares (simulated); one
                  that is trained for the argmax needs less
"""

from collections.abc import Mapping
from functools import cache

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

RECALLED = 0.99
SEEDS = 3


@cache
def references(pairs: int, vocab: int) -> dict[str, float]:
    """The three states at which so many pairs of a vocabulary can be recalled, in numbers of 32 bits."""
    from bestiary.constructions.bounds import argmax_state, least_state

    return {
        "bits suffice": float(least_state(pairs, vocab)),
        "n log n": argmax_state(pairs),
        "least squares": float(least_width(pairs, vocab) ** 2),
    }


def least_width(pairs: int, vocab: int) -> int:
    """The least width at which least squares recall 0.99, the mean over seeds; by doubling and bisection."""
    high = 1
    while not recalls(pairs, high, vocab):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if recalls(pairs, middle, vocab) else (middle, high)
    return high


def recalls(pairs: int, width: int, vocab: int) -> bool:
    """Whether least squares recall 0.99 of the pairs at this width, the mean over seeds."""
    from bestiary.constructions.bounds import simulated_accuracy

    found = [simulated_accuracy("least squares", pairs, width, vocab, seed=seed) for seed in range(SEEDS)]
    return sum(found) / SEEDS >= RECALLED


def draw_references(figure: Figure, lines: Mapping[str, Mapping[str, float]]) -> None:
    """Draw vertical lines into the panels of these titles, each with its name along it."""
    for axis in figure.axes:
        for name, place in lines.get(axis.get_title(), {}).items():
            axis.axvline(place, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
            axis.annotate(
                name,
                (place, 0.98),
                xycoords=("data", "axes fraction"),
                xytext=(1, 0),
                textcoords="offset points",
                ha="left",
                va="top",
                rotation=90,
                color="0.4",
                size=6,
            )


def use_decade_ticks(figure: Figure) -> None:
    """Put ticks at powers of ten, for axes with too many values to label each."""
    for axis in figure.axes:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(numticks=10))
        axis.xaxis.set_minor_locator(LogLocator(subs="auto", numticks=100))
        axis.xaxis.set_minor_formatter("")
