"""Search for learning rates: windows of rates that work, successive halving, and Optuna.

The score of a rate is the accuracy on the *selection* stream, the mean over seeds. Nothing in here trains: a search
passes recipes to a function that carries them out and returns the table of `bestiary.runs.table.results`. Every trial
is a run of its own in the store, so a search that was stopped goes on where it was.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bestiary.runs.table import WORKS, best, curve, diverged_as_zero, with_format
from bestiary.training.recipe import Recipe

if TYPE_CHECKING:  # imported where tables are put together
    import pandas as pd

CarryOut = Callable[[list[Recipe]], "pd.DataFrame"]  # carries recipes out and returns their results


def rates(low: float, high: float, count: int) -> tuple[float, ...]:
    """A logarithmic grid from low to high, to three significant figures, so that its recipes keep their keys."""
    if not (0 < low < high < math.inf and count >= 2):
        raise ValueError(f"no {count} rates from {low:g} to {high:g}: give 0 < low < high and a count of 2 or more")
    return tuple(round_rate(low * (high / low) ** (i / (count - 1))) for i in range(count))


def round_rate(rate: float) -> float:
    """Three significant figures."""
    return float(f"{rate:.3g}")


class Window(NamedTuple):
    """The rates that work, and how precisely the edges are known.

    `low` and `high` are the least and the greatest rate that work, NaN if none does. `below` and `above` are the
    nearest rates outside that failed, NaN if none was tried there. `holes` counts the rates inside that failed.
    """

    low: float
    high: float
    below: float
    above: float
    holes: int

    @property
    def decades(self) -> float:
        """The width of the window, in powers of ten."""
        return math.log10(self.high / self.low)

    def describe(self) -> str:
        """The window in a sentence."""
        if math.isnan(self.low):
            return f"no rate reaches {WORKS:g}"
        edges = [
            f"the {name} edge lies at or beyond the grid's end" if math.isnan(beyond) else f"{name} edge {text}"
            for name, beyond, text in (
                ("lower", self.below, f"between {self.below:g} and {self.low:g}"),
                ("upper", self.above, f"between {self.high:g} and {self.above:g}"),
            )
        ]
        holes = f", {self.holes} inside it failed" if self.holes else ""
        return f"works from {self.low:g} to {self.high:g}, {self.decades:.2f} decades{holes}; {', '.join(edges)}"


def window(scores: Mapping[float, float], *, works: float = WORKS) -> Window:
    """The window, given the mean selection accuracy of each rate."""
    tried = sorted(scores)
    working = [rate for rate in tried if scores[rate] >= works]
    if not working:
        return Window(math.nan, math.nan, math.nan, math.nan, 0)
    low, high = working[0], working[-1]
    below, above = [rate for rate in tried if rate < low], [rate for rate in tried if rate > high]
    inside = sum(low <= rate <= high for rate in tried)
    edges = max(below, default=math.nan), min(above, default=math.nan)
    return Window(low, high, *edges, inside - len(working))


def next_rates(scores: Mapping[float, float], *, within: float, works: float = WORKS) -> list[float]:
    """Rates to try next: the middle of each edge of the window that is not yet known to within the factor `within`.

    If no rate works, the middles on both sides of the best one. Every round halves an edge in the logarithm, until
    there is nothing left to try.
    """
    if not 1 < within < math.inf:
        raise ValueError(f"an edge is known to within a factor above 1, not {within:g}")
    if not scores:
        return []
    found, tried = window(scores, works=works), sorted(scores)
    if math.isnan(found.low):
        place = tried.index(max(tried, key=lambda rate: scores[rate]))
        near = tried[max(0, place - 1) : place + 2]
        edges = list(zip(near, near[1:], strict=False))
    else:
        edges = [(found.below, found.low), (found.high, found.above)]
    wide = [(a, b) for a, b in edges if b / a > within * 1.02]  # rates are rounded
    return [rate for a, b in wide if (rate := round_rate(math.sqrt(a * b))) not in scores]


def refine(recipes: Iterable[Recipe], table: "pd.DataFrame", *, within: float, works: float = WORKS) -> list[Recipe]:
    """The recipes that narrow the edges of the windows of a sweep: every seed at each new rate; [] when all are narrow.

    Recipes that differ only in rate and seed share a window. The table may hold the results of earlier rounds. A seed
    that a rate lacks, because its run has failed, counts as 0.
    """
    scored = dict(zip(table["key"], diverged_as_zero(table)["selection"], strict=True)) if len(table) else {}
    tried = sorted({float(rate) for rate in table["rate"]}) if scored else []
    groups: dict[str, list[Recipe]] = {}
    for recipe in recipes:
        groups.setdefault(recipe.shape_key, []).append(recipe)
    new = []
    for given in groups.values():
        seeds, scores = {recipe.seed: recipe for recipe in given}.values(), {}
        for rate in tried:
            asked = [one for one in given if one.rate == rate] or [at_rate(recipe, rate) for recipe in seeds]
            found = [scored[recipe.key] for recipe in asked if recipe.key in scored]
            if found:
                scores[rate] = sum(found) / len(asked)
        for rate in next_rates(scores, within=within, works=works):
            new += [at_rate(recipe, rate) for recipe in seeds]
    return new


def at_rate(recipe: Recipe, rate: float) -> Recipe:
    """The recipe at another learning rate."""
    return recipe.model_copy(update={"rate": rate})


def windows(table: "pd.DataFrame", *, group: Sequence[str], works: float = WORKS) -> "pd.DataFrame":
    """For each group the best rate, its test accuracy with an interval, and the window of rates that work.

    Columns besides the mean, interval, seeds and answers: `selection` there, `tried` rates, `window` in decades, `from`
    and `to`, `below` and `above`, the nearest that failed outside, and `holes`, those that failed inside. Rates with
    fewer seeds than others are left out (see `with_all_seeds`).
    """
    import pandas as pd

    rows = []
    for _, found in diverged_as_zero(table).groupby(with_format(table, group), sort=False, dropna=False):
        found = with_all_seeds(found)
        (kept,) = curve(best(found, group=group), group=(*group, "rate", "tried")).to_dict("records")
        means = found.groupby("rate")["selection"].mean()
        seen = window({float(rate): float(score) for rate, score in means.items()}, works=works)
        edges = {"from": seen.low, "to": seen.high, "below": seen.below, "above": seen.above, "holes": seen.holes}
        rows.append({**kept, "selection": means.max(), "window": seen.decades, **edges})
    return pd.DataFrame(rows).drop(columns=["solved", "solves"])


def with_all_seeds(table: "pd.DataFrame") -> "pd.DataFrame":
    """The rows of the rates with as many seeds as any. Of the others some runs have failed or are to come."""
    seeds = table.groupby("rate")["seed"].nunique()
    return table[table["rate"].isin(seeds.index[seeds == seeds.max()])]


def shorten(recipe: Recipe, share: float) -> Recipe:
    """A recipe with this share of the steps; warm-up and schedule shrink accordingly."""
    steps, hold = (max(1, round(count * share)) for count in (recipe.steps, recipe.hold))
    changes = {"steps": steps, "warmup": round(recipe.warmup * share), "hold": hold, "every": min(recipe.every, steps)}
    return recipe.model_copy(update=changes)


def survivors(table: "pd.DataFrame", recipes: Sequence[Recipe], *, eta: int) -> list[Recipe]:
    """The best one in `eta` of the candidates, each with all its seeds, by mean selection accuracy; ties by steps.

    A candidate is all recipes that differ in the seed alone. A recipe without results scores 0.
    """
    rows = diverged_as_zero(table).drop_duplicates("key").set_index("key") if len(table) else table
    candidates: dict[str, list[Recipe]] = {}
    for recipe in recipes:
        candidates.setdefault(recipe.model_copy(update={"seed": 0}).key, []).append(recipe)

    def rank(seeds: list[Recipe]) -> tuple[float, float]:
        found = rows.loc[[recipe.key for recipe in seeds if recipe.key in rows.index]]
        return (-found["selection"].sum() / len(seeds), found["steps"].mean()) if len(found) else (0.0, math.inf)

    kept = sorted(candidates.values(), key=rank)[: math.ceil(len(candidates) / eta)]
    return [recipe for seeds in kept for recipe in seeds]


def halving(recipes: Sequence[Recipe], carry: CarryOut, *, eta: int = 3, rungs: int = 3) -> "pd.DataFrame":
    """Successive halving (Jamieson & Talwalkar, 2016): short runs of all, then longer ones of the best 1 in `eta`.

    The last of `rungs` has the steps of the recipes, each before it 1 in `eta` of the next, as a recipe of its own.
    Returns the results of all rungs, with a column `share` of the steps.
    """
    import pandas as pd

    if eta < 2 or rungs < 1:
        raise ValueError(f"eta={eta} and rungs={rungs}: one in two or more survives, and there is a rung")
    tables, left = [], list(recipes)
    for rung in reversed(range(rungs)):
        share = float(eta) ** -rung
        short = {shorten(recipe, share).key: recipe for recipe in left}
        table = carry([shorten(recipe, share) for recipe in left])
        tables.append(table.assign(share=share))
        kept = survivors(table, [shorten(recipe, share) for recipe in left], eta=eta)
        left = [short[recipe.key] for recipe in kept]
    return pd.concat(tables, ignore_index=True)


def optuna_rates(
    make: Callable[[float, float | None], list[Recipe]],
    carry: CarryOut,
    *,
    low: float,
    high: float,
    decay: tuple[float, float] | None = None,
    trials: int = 20,
    batch: int = 4,
    seed: int = 0,
) -> "pd.DataFrame":
    """Rates, and weight decays between `decay` if given, as Optuna's tree-structured Parzen estimator proposes them.

    `make` returns the recipes of a trial, one for each seed; Optuna receives their mean selection accuracy. It proposes
    `batch` trials at a time. The sampler is seeded and receives results in order, so a search that is started again
    asks for the same runs. Returns the results of all trials. Raises ImportError without optuna.
    """
    import pandas as pd

    study, tables = make_study(seed), []
    for start in range(0, trials, batch):
        proposed = [study.ask() for _ in range(min(batch, trials - start))]
        recipes = []  # of each trial
        for trial in proposed:
            rate = round_rate(trial.suggest_float("rate", low, high, log=True))
            weight = round_rate(trial.suggest_float("weight_decay", *decay, log=True)) if decay else None
            recipes.append(make(rate, weight))
        table = carry(list({recipe.key: recipe for seeds in recipes for recipe in seeds}.values()))
        tables.append(table)
        scores = dict(zip(table["key"], diverged_as_zero(table)["selection"], strict=True)) if len(table) else {}
        for trial, seeds in zip(proposed, recipes, strict=True):
            study.tell(trial, sum(scores.get(recipe.key, 0.0) for recipe in seeds) / len(seeds))
    return pd.concat(tables, ignore_index=True).drop_duplicates(["key", "segment"])


def make_study(seed: int) -> Any:
    """A seeded and silent study of Optuna."""
    try:
        import optuna
    except ImportError as fault:
        raise ImportError("searching with Optuna needs optuna: pip install 'bestiary[search]'") from fault
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
