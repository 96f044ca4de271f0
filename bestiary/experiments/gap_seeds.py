"""Does the gap to attention, and who closes it, depend on the seed or the learning rate? `gap` with three of each.

The models and the text are those of `gap` at the same scale. The first seed of each model tries three rates, the loss
on the selection split chooses among them, and two more seeds run at the rate chosen. A share of the gap is computed
within each seed, between models of that seed, and where the recall of attention has formed; means and Student's t
intervals are over seeds. The model of `gap` itself is the first seed at 4e-3.
"""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments import gap
from bestiary.experiments._text_rows import PARTS, gaps_closed, measure_models
from bestiary.report.plot import DotRow, dots
from bestiary.runs.intervals import mean_interval

RATES, SEEDS = (4e-3, 2e-3, 8e-3), range(3)


def measure(scale: str, known: pd.DataFrame | None = None) -> Iterator[dict[str, Any]]:
    """A row for each model, rate and seed. Models are trained unless they are trained already, or known."""
    corpus = yield from gap.open_corpus_with_news(gap.find_setting(scale))
    tried = [pair for rate in RATES for pair in gap.models(scale, corpus, rate=rate).items()]
    first = yield from measure_models(scale, corpus, tried, known)
    seeds = [
        (name, gap.models(scale, corpus, only=(name,), rate=rate, seed=seed)[name])
        for seed in SEEDS[1:]
        for name, rate in best_rates(pd.DataFrame(first)).items()
    ]
    yield from [*first, *(yield from measure_models(scale, corpus, seeds, known))]


def best_rates(table: pd.DataFrame) -> dict[str, float]:
    """The rate of each model whose first seed has the lowest loss on the selection split, the lowest of equal ones."""
    first = table[table["seed"] == SEEDS[0]].sort_values(["selection", "rate"])
    rates = first.drop_duplicates("model").set_index("model")["rate"]
    return {str(name): float(rates[name]) for name in table["model"].unique()}


def at_best_rates(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each model at the rate chosen for it; the models in the order of the table."""
    chosen = table[table["rate"] == table["model"].map(best_rates(table))]
    order = pd.Index(table["model"].unique())
    return chosen.sort_values("model", key=order.get_indexer, kind="stable")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Each model's perplexities and shares of the gap closed, with intervals over seeds; `formed` counts seeds.

    Seeds that diverged have no perplexity: `diverged` counts them, and `seeds` the others.
    """
    found, chosen = [], at_best_rates(table)
    shares = {part: gaps_closed(chosen, part) for part in ("overall", "hits")}
    for name, rows in chosen.groupby("model", sort=False):
        row: dict[str, Any] = {"model": name, "rate": rows["rate"].iloc[0]}
        row |= counts_of_seeds(rows) | perplexities(rows)
        for part, closed in shares.items():
            values = closed[name].dropna().tolist() if name in closed else []
            row |= columns_over_seeds(f"closed_{part}", values) | {f"closed_{part}_seeds": len(values)}
        found.append(row)
    return pd.DataFrame(found)


def counts_of_seeds(rows: pd.DataFrame) -> dict[str, int]:
    """How many seeds of a model finished, diverged, and recall."""
    diverged = int((rows["outcome"] == "diverged").sum())
    return {"seeds": len(rows) - diverged, "diverged": diverged, "formed": int(rows["formed"].sum())}


def perplexities(rows: pd.DataFrame) -> dict[str, float]:
    """Perplexity overall, on hits and on other tokens with intervals: the exponential of the mean of nats."""
    found: dict[str, float] = {}
    for part in PARTS:
        nats = columns_over_seeds(part, rows[f"{part}_nats"].dropna().tolist())
        found |= {column: math.exp(value) for column, value in nats.items()}
    return found


def columns_over_seeds(name: str, values: Sequence[float]) -> dict[str, float]:
    """The mean of numbers with its interval over seeds, as three columns; NaN where there are none."""
    mean = (fmean(values), *mean_interval(values)) if values else (math.nan,) * 3
    return dict(zip((name, f"{name}_low", f"{name}_high"), mean, strict=True))


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """How much of the gap each model closes, a mark for each seed, overall and on hits."""
    chosen = at_best_rates(table)
    for part, suffix, where in (("overall", "", ""), ("hits", "-hits", " on AR hits")):
        closed = gaps_closed(chosen, part)
        names = [name for name in chosen["model"].unique() if name in closed and closed[name].notna().any()]
        if not names:
            continue
        marks = [DotRow(str(name), closed[name].dropna().tolist()) for name in names]
        note = f"Between {gap.BASE} (0) and {gap.REFERENCE} (1) in log-perplexity; a mark for each seed."
        yield suffix, dots(marks, x=f"Share of the gap closed{where}", note=note, logarithmic=False)
