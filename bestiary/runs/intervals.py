"""Intervals of 95 % for shares of answers, and for means of such shares over seeds."""

import math
from collections.abc import Sequence

T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # Student's t, 1 to 10 degrees


def interval(shares: Sequence[float], answers: int) -> tuple[float, float]:
    """A 95 % interval for the mean of accuracies over seeds.

    Student's t interval over several seeds, but never narrower than Wilson's interval for all their answers together.
    A single seed has Wilson's interval.
    """
    mean = sum(shares) / len(shares)
    low, high = wilson(mean, answers)
    if len(shares) > 1:
        spread = math.sqrt(sum((x - mean) ** 2 for x in shares) / (len(shares) - 1) / len(shares))
        half = (T95[len(shares) - 2] if len(shares) <= len(T95) + 1 else 1.96) * spread
        low, high = min(low, mean - half), max(high, mean + half)
    return max(0.0, low), min(1.0, high)


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for a share of `count` answers."""
    if count == 0:
        return 0.0, 1.0
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
