"""Does the gap to attention, and who closes it, depend on the seed or the learning rate? `gap` with three of each.

The models and the text are those of `gap` at the same scale. The first seed of each model tries three rates, the loss
on the selection split chooses among them, and two more seeds run at the rate chosen. A share of the gap is computed
within each seed, between models of that seed, and where the recall of attention has formed; means and Student's t
intervals are over seeds. The model of `gap` itself is the first seed at 4e-3.
"""

import json
import math
from collections.abc import Iterator
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments import gap
from bestiary.experiments._pretrained import MODELS
from bestiary.report.plot import DotRow, dots
from bestiary.runs.intervals import mean_interval

if TYPE_CHECKING:
    from bestiary.corpus.corpus import Corpus
    from bestiary.lm.pretraining import Pretraining

RATES, SEEDS = (2e-3, 4e-3, 8e-3), range(3)
PARTS = ("overall", "hits", "other")
CLOSED = ("closed_overall", "closed_hits")


def measure(scale: str) -> Iterator[dict[str, Any]]:
    """Train the models that are not trained yet, and slice their losses: a row for each model, rate and seed."""
    corpus = yield from gap.open_corpus_with_news(gap.find_setting(scale))
    tried = {rate: gap.models(scale, corpus, rate=rate) for rate in RATES}
    every = {f"{name}, rate {rate:g}": recipe for rate, group in tried.items() for name, recipe in group.items()}
    yield from train(scale, corpus, every)
    rates = {name: min(RATES, key=lambda rate: selection_loss(tried[rate][name])) for name in tried[RATES[0]]}
    chosen = {
        seed: {name: recipe_of(scale, corpus, name, rate, seed) for name, rate in rates.items()} for seed in SEEDS
    }
    yield from train(
        scale, corpus, {f"{name}, seed {seed}": recipe for seed in SEEDS for name, recipe in chosen[seed].items()}
    )
    for seed, recipes in chosen.items():
        finished = {name: recipe for name, recipe in recipes.items() if gap.outcome(recipe) != "diverged"}
        yield {"news": f"the losses of {len(finished)} of {len(recipes)} models of seed {seed} on the test text"}
        if not {gap.REFERENCE, gap.BASE} <= finished.keys():
            continue  # without both there is no gap
        text, losses = gap.read_losses(scale, corpus, finished)
        for row in gap.slice_rows(scale, finished, text, losses):
            yield row | {"seed": seed, "rate": rates[row["model"]]}


def recipe_of(scale: str, corpus: "Corpus", name: str, rate: float, seed: int) -> "Pretraining":
    """A model of `gap` at another rate and seed."""
    return gap.models(scale, corpus, only=(name,), rate=rate, seed=seed)[name]


def train(scale: str, corpus: "Corpus", recipes: "dict[str, Pretraining]") -> Iterator[dict[str, Any]]:
    """Train the models that are not trained yet, yielding rows of their logs. A model that diverged stays as it is."""
    from bestiary.experiments._pretrained import train_models

    yield {"news": f"{len(recipes)} models of {scale}"}
    for row in train_models(recipes, corpus):
        yield {"rows": "course", **row}


def selection_loss(recipe: "Pretraining") -> float:
    """The last loss on the selection split, in nats; infinite for a model that diverged."""
    if gap.outcome(recipe) == "diverged":
        return math.inf
    lines = map(json.loads, (MODELS / recipe.key / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["split"] == "selection"][-1]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Each model's perplexities and shares of the gap closed, with intervals over seeds; `formed` counts seeds."""
    found = []
    for name, rows in table[table["rows"] == "slices"].groupby("model", sort=False):
        row: dict[str, Any] = {"model": name, "rate": rows["rate"].iloc[0], "seeds": len(rows)}
        row["formed"] = int(rows["formed"].sum())
        for part in PARTS:
            values = [math.exp(number) for number in over_seeds(rows[f"{part}_nats"])]
            row |= dict(zip((part, f"{part}_low", f"{part}_high"), values, strict=True))
        for column in CLOSED:
            shares = rows[column].dropna() if column in rows else rows["rate"].iloc[:0]
            row |= dict(zip((column, f"{column}_low", f"{column}_high"), over_seeds(shares), strict=True))
            row[f"{column}_seeds"] = len(shares)
        found.append(row)
    return pd.DataFrame(found)


def over_seeds(values: "pd.Series[float]") -> tuple[float, float, float]:
    """The mean of numbers with its interval, NaN where there are none."""
    return (fmean(values), *mean_interval(values.tolist())) if len(values) else (math.nan, math.nan, math.nan)


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """How much of the gap each model closes, a mark for each seed, overall and on hits."""
    rows = table[table["rows"] == "slices"]
    for column, suffix, part in zip(CLOSED, ("", "-hits"), ("", " on AR hits"), strict=True):
        if column not in rows or rows[column].isna().all():
            continue
        closed = rows.dropna(subset=[column]).groupby("model", sort=False)[column]
        marks = [DotRow(str(name), shares.tolist()) for name, shares in closed]
        note = f"Between {gap.BASE} (0) and {gap.REFERENCE} (1) in log-perplexity; a mark for each seed."
        yield suffix, dots(marks, x=f"Share of the gap closed{part}", note=note, logarithmic=False)
