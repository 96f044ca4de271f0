"""Does Bestiary measure what others published? Published numbers, and the same ones measured here.

Each row is an anchor: a number from a paper, its code or an independent rerun, with the recipe as it was stated. One
seed chooses the rate on the selection stream, where there are several (by a recipe after a paper's code on the test
stream, as there), the lowest of equal ones, and three seeds run at it.
The verdict is by a rule that was fixed before the first run, but for ties and the best of seeds. With a tolerance of
0.03, or two published standard deviations if that is more, an anchor is *reproduced* if the mean over seeds is within
the tolerance. If it is not, and our 95 % interval does not reach into the tolerance either, it is *not reproduced*.
Otherwise, and with fewer than three seeds, it *cannot be told*; nor can it where the best of the seeds counts and is
outside the tolerance, as one seed chosen by its score has no interval over seeds. Anchors that say "solves" compare the
share of seeds that reach 0.95. Where a failure was published, a model that guesses may be within the tolerance:
`guessing` says so.
`small` takes two cores some hours; `paper` has every cell of Figure 2 of Zoology and 35 points of its frontier, with
all rates, and is for a GPU. Where a recipe is smaller than published, the table says in what.
"""

from collections.abc import Iterable, Iterator
from statistics import fmean

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._anchors import Anchor, paper_anchors, small_anchors
from bestiary.report.plot import identity
from bestiary.runs.intervals import interval
from bestiary.runs.table import diverged_as_zero, scaled_accuracy
from bestiary.training.recipe import Recipe

SEEDS = range(3)
TOLERANCE = 0.03
SOLVES = 0.95
ONLY: tuple[str, ...] = ()  # the names of the anchors to measure, all if there are none
COLUMNS = ["anchor", "family", "published", "ours", "low", "high", "seeds", "verdict", "guessing", "rate", "minutes"]


def anchors(scale: str) -> list[Anchor]:
    """The anchors of a scale; those of `smoke` are three of `small`, trained for a few steps."""
    if scale != "smoke":
        found = small_anchors() if scale == "small" else paper_anchors()
        return [anchor for anchor in found if not ONLY or anchor.name in ONLY]
    tiny = {"steps": 4, "every": 2, "hold": 1, "warmup": 0, "batch": 8, "selection_rows": 8, "test_rows": 8, "dim": 8}
    chosen = [one for one in small_anchors() if not one.recipe.distinct][:8:3]
    return [one._replace(recipe=one.recipe.model_copy(update=tiny)) for one in chosen]


def choices() -> list[str]:
    """What `--only` chooses among: the names of all anchors."""
    return [anchor.name for anchor in (*small_anchors(), *paper_anchors())]


def recipes(scale: str) -> Iterator[Recipe]:
    """Every anchor with all seeds if it has one rate, otherwise at each rate with the first seed.

    Raises ValueError if this scale has none of those that were chosen.
    """
    if not anchors(scale):
        raise ValueError(f"{scale} has none of these numbers: {', '.join(ONLY)}")
    yield from distinct(
        recipe
        for anchor in anchors(scale)
        for recipe in (anchor.runs(anchor.rates[0], SEEDS) if len(anchor.rates) == 1 else anchor.runs())
    )


def next_recipes(table: pd.DataFrame, scale: str) -> list[Recipe]:
    """The other seeds of anchors whose rates have all been tried, at the best of them."""
    more = []
    for anchor in anchors(scale):
        tried = runs_of(table, anchor.runs())
        if len(tried) == len(anchor.rates) > 1:
            more += anchor.runs(best_rate(tried), SEEDS)[1:]
    return distinct(more)


def distinct(recipes: Iterable[Recipe]) -> list[Recipe]:
    """Each recipe once: two sources may have a number of the same runs."""
    return list({recipe.key: recipe for recipe in recipes}.values())


def runs_of(table: pd.DataFrame, recipes: Iterable[Recipe]) -> pd.DataFrame:
    """One row for each of these runs that is in the table, with its mean accuracy over test tasks."""
    rows = table[table["key"].isin([recipe.key for recipe in recipes])]
    rows = rows.assign(accuracy=rows["accuracy"].fillna(0.0), asked=rows["asked"].fillna(0))
    sums = {"accuracy": "mean", "asked": "sum"} | dict.fromkeys(["rate", "seed", "selection", "outcome"], "first")
    return rows.groupby("key", sort=False).agg(sums | {"seconds": "first"}).reset_index()


def best_rate(tried: pd.DataFrame) -> float:
    """The rate with the highest accuracy on the selection stream, the lowest of equal ones."""
    return float(diverged_as_zero(tried).sort_values(["selection", "rate"], ascending=[False, True])["rate"].iloc[0])


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each anchor of which something was run: published, ours with its interval, and the verdict."""
    known = [*anchors("smoke"), *anchors("small"), *anchors("paper")]
    rows = [row for anchor in known if (row := compare(anchor, table)) is not None]
    return pd.DataFrame(rows, columns=[*COLUMNS, "source", "departs"])


def compare(anchor: Anchor, table: pd.DataFrame) -> dict[str, object] | None:
    """The row of an anchor, None if none of its runs is in the table."""
    tried = runs_of(table, anchor.runs())
    if tried.empty:
        return None
    rate = best_rate(tried)
    runs = runs_of(table, anchor.runs(rate, SEEDS))
    ours, low, high = score(anchor, runs)
    return {
        "anchor": anchor.name,
        "family": anchor.family,
        "published": anchor.published,
        "ours": ours,
        "low": low,
        "high": high,
        "seeds": len(runs),
        "verdict": verdict(anchor, ours, low, high) if len(runs) == len(SEEDS) else "cannot be told",
        "guessing": "within the tolerance" if tolerates(anchor, guess(anchor)) else "",
        "rate": rate,
        "minutes": runs["seconds"].sum() / 60,
        "source": anchor.source,
        "departs": anchor.departs,
    }


def score(anchor: Anchor, runs: pd.DataFrame) -> tuple[float, float, float]:
    """What the runs score as the anchor measures it, a share from 0 to 1, with its interval.

    Intervals are those of the accuracies, scaled as these are, or of the share of seeds that solve. Where the best seed
    counts, its interval is over its answers alone.
    """
    kept = runs.nlargest(1, "accuracy") if anchor.best else runs
    shares, answers = kept["accuracy"].tolist(), int(kept["asked"].sum())
    chance = anchor.recipe.test[0].build().chance if anchor.measure == "scaled" else 0.0
    if anchor.measure == "solves":
        shares, answers = [float(share >= SOLVES) for share in shares], len(shares)
    low, high = (max(0.0, scaled_accuracy(edge, chance)) for edge in interval(shares, answers))
    return sum(max(0.0, scaled_accuracy(share, chance)) for share in shares) / len(shares), low, high


def verdict(anchor: Anchor, ours: float, low: float, high: float) -> str:
    """Whether the number was reproduced, by the rule in the docstring of this file."""
    if tolerates(anchor, ours):
        return "reproduced"
    reaches = low <= anchor.published + tolerance(anchor) and high >= anchor.published - tolerance(anchor)
    return "cannot be told" if reaches or anchor.best else "not reproduced"


def tolerance(anchor: Anchor) -> float:
    """How far from the published number ours may be."""
    return max(TOLERANCE, 2 * anchor.spread)


def tolerates(anchor: Anchor, ours: float) -> bool:
    """Whether a number is within the tolerance of the published one."""
    return abs(ours - anchor.published) <= tolerance(anchor) + 1e-9


def guess(anchor: Anchor) -> float:
    """What a model that guesses scores as the anchor measures it."""
    return fmean(task.build().chance for task in anchor.recipe.test) if anchor.measure == "accuracy" else 0.0


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Ours against published: a dot for each anchor, and the diagonal with the tolerance."""
    found = summary(table)
    note = f"{len(found)} anchors; grey is the tolerance of {TOLERANCE}.\n"
    note += "Bars are 95 % intervals over seeds, of the best seed over its answers."
    yield "", identity(found, x="published", y="ours", by="family", tolerance=TOLERANCE, note=note)
