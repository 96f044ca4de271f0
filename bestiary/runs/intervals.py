"""Intervals of 95 % for shares of answers, and for means of such shares over seeds."""

import math
from collections.abc import Sequence

T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # Student's t, 1 to 10 degrees


def interval(shares: Sequence[float], answers: int) -> tuple[float, float]:
    """A 95 % interval for the mean of accuracies over seeds.

    Student's t interval over several seeds, but never narrower than Wilson's interval for all their answers together.
    A single seed has Wilson's interval.
    """
    low, high = wilson(sum(shares) / len(shares), answers)
    if len(shares) > 1:
        least, most = mean_interval(shares)
        low, high = min(low, least), max(high, most)
    return max(0.0, low), min(1.0, high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's t interval of 95 % for the mean of two or more numbers; NaN of fewer, which say nothing of spread."""
    if len(values) < 2:
        return math.nan, math.nan
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1) / len(values))
    half = (T95[len(values) - 2] if len(values) <= len(T95) + 1 else 1.96) * spread
    return mean - half, mean + half


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for a share of `count` answers."""
    if count == 0:
        return 0.0, 1.0
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
