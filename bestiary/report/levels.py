"""What guessing scores: the levels that an accuracy must be above to mean that something was learnt."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

Levels = Mapping[str, float]  # "chance" and "plateau", without those that are not known


def task_levels(tasks: Iterable[Any]) -> dict[str, float]:
    """`chance` and `plateau` of tasks, the mean over them; without those that are not known.

    Chance is the accuracy of the best single answer to everything. The plateau is that of the best guess which knows
    which answers occur in a sequence, but not which belongs to which question: 1 / pairs in multi-query recall.
    """
    built = list(tasks)
    if not built:
        return {}
    means = {name: sum(getattr(task, name) for task in built) / len(built) for name in ("chance", "plateau")}
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def guessing(levels: Levels) -> float | None:
    """The highest accuracy of those that guess, None if it is not known."""
    return max(levels.values()) if levels else None


def above(low: float | None, levels: Levels) -> bool:
    """Whether an accuracy whose interval begins at `low` is above guessing; it is if guessing is not known."""
    level = guessing(levels)
    return level is None or (low is not None and low > level)


def verdict(low: float, levels: Levels) -> str:
    """What an accuracy whose interval begins at `low` shows, as the end of a sentence."""
    if above(low, levels):
        return "is above guessing"
    beyond = low > levels.get("chance", 1.0)
    return "is above chance but not above the plateau" if beyond else "is not above chance"


def level_text(levels: Levels) -> str:
    """A sentence with the levels."""
    chance, plateau = levels.get("chance"), levels.get("plateau")
    if chance is None:
        return "" if plateau is None else f"The plateau, a guess among the answers that occur, is {plateau:.3f}."
    if plateau is None or plateau <= chance:
        return f"Chance is {chance:.3f}."
    return f"Chance is {chance:.3f}, the plateau (a guess among the answers that occur) {plateau:.3f}."
