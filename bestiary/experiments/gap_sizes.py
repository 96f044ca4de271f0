"""How does the gap to attention on real text grow with a model and with its text? Four models, three seeds each.

The text and the layers are those of `gap`: attention, BaseConv, gated DeltaNet, and BaseConv with programmatic
selection. Widths of 64 to 256, which are 0.2, 0.8 and 3.1 million weights besides embeddings, see 3.3 million tokens
each; width 128 sees half and twice as many as well. The rate is 4e-3 at width 128, that of `gap`, and falls as 1 over
the width, as the best rate of Adam does for hidden matrices (Yang et al., 2022).
Zoology trains 17 models of 70 million to 1.4 billion weights (Arora et al., 2023, section 3). A law is fitted to the
gap in nats, `gap = a * weights^b`, by least squares over the seeds of all widths, and its interval at published sizes
stands beside the gaps published there. It would be shown wrong by a published gap outside that interval.
The paper also finds a small attention model below a much larger gated convolution on hits. So a line is fitted to the
loss of BaseConv on hits against the logarithm of its weights, in each seed: where does it meet the smallest attention?
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments import gap
from bestiary.experiments._text_rows import PARTS, gaps, gaps_closed, measure_models
from bestiary.experiments.gap_seeds import columns_over_seeds, counts_of_seeds, perplexities
from bestiary.report.plot import Line, panels
from bestiary.runs.intervals import t_quantile

MODELS = (gap.REFERENCE, gap.BASE, "gated_delta", "+ programmatic selection")
SEEDS, RATE, WIDTH, STEPS = range(3), 4e-3, 128, 1600
CELLS = {  # width and steps, in the order in which they are measured
    "smoke": ((16, 40), (32, 40), (32, 20)),
    "small": ((64, STEPS), (WIDTH, STEPS), (256, STEPS), (WIDTH, STEPS // 2), (WIDTH, 2 * STEPS)),
}


class Published(NamedTuple):
    """Perplexities of a model (overall, hits, other; Zoology, Tables 1, 2 and 5), and the attention beside it."""

    model: str
    millions: int  # of weights, with embeddings
    perplexity: tuple[float, float, float]
    attention: int  # its millions of weights


ATTENTION = {125: (11.01, 2.16, 12.45), 360: (9.44, 1.98, 10.62), 1400: (8.19, 1.91, 9.86)}
PUBLISHED = (
    Published("H3", 168, (12.06, 6.75, 12.60), 125),
    Published("H3", 357, (10.38, 4.81, 11.00), 360),
    Published("Hyena", 158, (11.60, 5.00, 12.28), 125),
    Published("Hyena", 358, (10.07, 3.83, 10.75), 360),
    Published("Hyena", 1400, (9.65, 3.43, 11.01), 1400),
    Published("RWKV", 169, (11.64, 5.70, 12.29), 125),
    Published("RWKV", 351, (9.79, 3.82, 10.51), 360),
    Published("BaseConv", 354, (11.01, 5.98, 11.52), 360),
)


def measure(scale: str, known: pd.DataFrame | None = None) -> Iterator[dict[str, Any]]:
    """A row for each model, width, number of steps and seed, cell by cell. Known models are not trained."""
    corpus = yield from gap.open_corpus_with_news(gap.find_setting(scale))
    for dim, steps in CELLS[scale]:
        changes: dict[str, Any] = {"dim": dim, "steps": steps, "rate": RATE * WIDTH / dim}
        models = [
            pair for seed in SEEDS for pair in gap.models(scale, corpus, only=MODELS, seed=seed, **changes).items()
        ]
        yield from (yield from measure_models(scale, corpus, models, known))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Perplexities of each model at each width and number of steps, and its gap to attention, over seeds.

    "gap" is in nats on hits and on other tokens; "closed" the share of BaseConv's gap that a model closes on hits.
    """
    found = []
    for (dim, _), cell in table.groupby(["dim", "steps"], sort=False):
        behind, closed = {part: gaps(cell, part) for part in PARTS}, gaps_closed(cell, "hits")
        for name, rows in cell.groupby("model", sort=False):
            row: dict[str, Any] = {"model": name, "width": dim, "weights": int(rows["parameters"].iloc[0])}
            row |= {"tokens": int(rows["tokens"].iloc[0])} | counts_of_seeds(rows) | perplexities(rows)
            for part in ("hits", "other"):
                given = [] if name == gap.REFERENCE else behind[part][name].dropna().tolist()
                row |= columns_over_seeds(f"gap_{part}", given)
            row |= columns_over_seeds("closed", closed[name].dropna().tolist() if name in closed else [])
            found.append(row)
    return pd.DataFrame(found)


class Law(NamedTuple):
    """`gap = exp(height) * weights^slope`, a line between logarithms, with what its interval needs."""

    height: float
    slope: float
    mean: float  # of the logarithms of weights
    squares: float  # the sum of squares around that mean
    spread: float  # the standard deviation of residuals
    points: int

    def at(self, weights: float) -> tuple[float, float, float]:
        """The gap at so many weights in nats, with the 95 % interval of the law there."""
        x = math.log(weights) - self.mean
        half = t_quantile(self.points - 2) * self.spread * math.sqrt(1 / self.points + x * x / self.squares)
        middle = self.height + self.slope * math.log(weights)
        return exponential(middle), exponential(middle - half), exponential(middle + half)


def exponential(x: float) -> float:
    """e to the x; infinite above what a number can hold."""
    return math.inf if x > 709 else math.exp(x)


def fit_law(weights: Sequence[float], nats: Sequence[float]) -> Law | None:
    """The law of these gaps; None if one of them is no gap, if there are fewer than three, or only one size."""
    if len(nats) < 3 or min(nats) <= 0 or len(set(weights)) < 2:
        return None
    x, y = np.log(weights), np.log(nats)
    slope, height = np.polyfit(x, y, 1)
    left = y - height - slope * x
    spread = math.sqrt(float(left @ left) / (len(x) - 2))
    return Law(float(height), float(slope), float(x.mean()), float(((x - x.mean()) ** 2).sum()), spread, len(x))


def by_width(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the cells that saw equally many tokens at several widths."""
    widths = table.groupby("steps")["dim"].nunique()
    return table[table["steps"] == widths.idxmax()]


def gap_points(table: pd.DataFrame, model: str, part: str) -> tuple[list[float], list[float]]:
    """Weights of attention at each width, and the gap of a model to it in nats, a point for each seed."""
    weights: list[float] = []
    nats: list[float] = []
    for _, cell in by_width(table).groupby("dim"):
        size = float(cell.loc[cell["model"] == gap.REFERENCE, "parameters"].iloc[0])
        given = gaps(cell, part).get(model, pd.Series(dtype=float)).dropna().tolist()
        weights, nats = weights + [size] * len(given), nats + given
    return weights, nats


def compare_published(table: pd.DataFrame) -> pd.DataFrame:
    """Each published gap beside what BaseConv's law says at attention's size, in nats, overall, on hits and others."""
    rows = []
    for part in PARTS:
        law = fit_law(*gap_points(table, gap.BASE, part))
        for model, millions, perplexity, attention in PUBLISHED:
            gap_there = math.log(perplexity[PARTS.index(part)] / ATTENTION[attention][PARTS.index(part)])
            said = (math.nan,) * 3 if law is None else law.at(1e6 * attention)
            row = {"tokens": part, "model": model, "millions": millions, "attention": attention, "published": gap_there}
            row |= dict(zip(("law", "law_low", "law_high"), said, strict=True))
            rows.append(row | {"inside": law is not None and said[1] <= gap_there <= said[2]})
    return pd.DataFrame(rows)


def meeting_ratio(table: pd.DataFrame) -> dict[str, Any]:
    """How many times the weights of the smallest attention BaseConv needs for its loss on hits, by a line in each seed.

    Infinite where the loss does not fall with the weights. The interval is over seeds, of the logarithm of the ratio;
    seeds in which one of these models diverged are counted apart.
    """
    rows, ratios = by_width(table), []
    for _, seed in rows.groupby("seed"):
        base, best = (seed[seed["model"] == name].sort_values("parameters") for name in (gap.BASE, gap.REFERENCE))
        if base["hits_nats"].isna().any() or math.isnan(best["hits_nats"].iloc[0]):
            continue
        slope, height = np.polyfit(np.log(base["parameters"]), base["hits_nats"], 1)
        at = (best["hits_nats"].iloc[0] - height) / slope if slope < 0 else math.inf
        ratios.append(float(at) - math.log(best["parameters"].iloc[0]))
    counts = {"seeds": len(ratios), "diverged": rows["seed"].nunique() - len(ratios)}
    return counts | {name: exponential(value) for name, value in columns_over_seeds("ratio", ratios).items()}


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Perplexity against width and against tokens, and the gap on hits against weights, as far as published ones."""
    found = summary(table)
    note = "Means and 95 % intervals over three seeds."
    wide = found[found["tokens"] == by_width(table)["tokens"].iloc[0]]
    yield "", perplexity_figure(wide, "width", "Width", note)
    widths = found.groupby("width")["tokens"].nunique()
    yield "-tokens", perplexity_figure(found[found["width"] == widths.idxmax()], "tokens", "Million tokens", note)
    yield "-gap", gap_figure(table, wide)


def perplexity_figure(found: pd.DataFrame, column: str, label: str, note: str) -> Figure:
    """A line for each model, on hits and on other tokens."""
    contents: dict[str, list[Line]] = {}
    for title, part in (("AR hits", "hits"), ("Other tokens", "other")):
        contents[title] = []
        for name, rows in found.sort_values(column, kind="stable").groupby("model", sort=False):
            x = [float(f"{value / 1e6:.2g}") if column == "tokens" else value for value in rows[column].tolist()]
            ends = (rows[f"{part}{end}"].tolist() for end in ("", "_low", "_high"))
            contents[title].append(Line(str(name), x, *ends))
    return panels(contents, x=label, y="Perplexity", note=note, shares=False)


def gap_figure(table: pd.DataFrame, wide: pd.DataFrame) -> Figure:
    """The gap on hits in nats: measured, the law of each model with its interval, and published."""
    lines, sizes = [], [4.0**i for i in range(-1, 6)]  # millions
    law_of = {name: fit_law(*gap_points(table, name, "hits")) for name in (gap.BASE, "gated_delta")}
    for name, law in law_of.items():
        rows = wide[wide["model"] == name].sort_values("width")
        sizes_here = wide[wide["model"] == gap.REFERENCE].set_index("width")["weights"] / 1e6
        lines.append(Line(name, sizes_here[rows["width"]].round(2).tolist(), rows["gap_hits"].tolist()))
        if law is not None:
            middle, low, high = map(list, zip(*[law.at(1e6 * size) for size in sizes], strict=True))
            lines.append(Line(f"{name}, law", sizes, middle, low, high))
    for name in dict.fromkeys(row.model for row in PUBLISHED):
        given = [row for row in PUBLISHED if row.model == name]
        nats = [math.log(row.perplexity[1] / ATTENTION[row.attention][1]) for row in given]
        lines.append(Line(name, [row.attention for row in given], nats, published=True))
    note = "Gap to attention, at its weights; published ones count embeddings. Bands are intervals of the law."
    return panels({"AR hits": lines}, x="Million weights", y="Gap in nats", note=note, shares=False, size=(4.6, 3.2))


def pages(table: pd.DataFrame, stem: Path) -> Iterator[Path]:
    """The published gaps beside the law, and the ratio of sizes at which attention and BaseConv meet, as tables."""
    for suffix, rows in (("published", compare_published(table)), ("ratio", pd.DataFrame([meeting_ratio(table)]))):
        place = stem.with_name(f"{stem.name}-{suffix}.csv")
        rows.to_csv(place, index=False)
        yield place
