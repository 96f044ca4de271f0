"""Intervals of 95 % for shares of answers, and for means of such shares over seeds."""

import math
from collections.abc import Sequence

T_QUANTILES = (12.706, 4.303, 3.182, 2.776)  # Student's t at 0.975 for 1 to 4 degrees of freedom
Z = 1.959964  # that of the normal distribution


def interval(shares: Sequence[float], answers: int) -> tuple[float, float]:
    """A 95 % interval for the mean of accuracies over seeds.

    Student's t interval over several seeds, but never narrower than Wilson's interval for all their answers together.
    A single seed has Wilson's interval, which takes its answers as independent, also those about one sequence: where
    these are right or wrong together, it is too narrow.
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
    half = t_quantile(len(values) - 1) * spread
    return mean - half, mean + half


def t_quantile(degrees: int) -> float:
    """Student's t at 0.975, for intervals of 95 %; from 5 degrees of freedom on by its expansion, within 0.003."""
    if degrees <= len(T_QUANTILES):
        return T_QUANTILES[degrees - 1]
    first = (Z**3 + Z) / (4 * degrees)  # Abramowitz and Stegun, 26.7.5
    second = (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * degrees**2)
    third = (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / (384 * degrees**3)
    return Z + first + second + third


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for a share of `count` answers."""
    if count == 0:
        return 0.0, 1.0
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
