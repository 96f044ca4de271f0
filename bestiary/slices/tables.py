"""From the losses of language models on a text to rows, lines of curves and the passages of a page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bestiary.report.plot import Line, panels
from bestiary.slices.hits import before
from bestiary.slices.slices import LOG, PLAIN, SLICES, Bootstrap, Interval, Sums, curve, doubling, verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bestiary.slices.losses import Text
    from bestiary.slices.page import Passage

THRESHOLDS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
PASSAGES = 60


def bootstrap(text: "Text", losses: "Mapping[str, NDArray]", threshold: int) -> Bootstrap:
    """Sums over hits and others, and over samples of the documents."""
    return Bootstrap(Sums.of(losses, text.facets.hits(threshold), text.documents))


def slices(name: str, found: Bootstrap) -> dict[str, Any]:
    """One model's perplexities with their intervals, as columns."""
    row: dict[str, Any] = {"model": name}
    for part in SLICES:
        row |= columns(part, found.perplexity(name, part))
        row[f"{part}_nats"] = float(found.log_perplexity(name, part)[0])
    return row | {"formed": found.formed(name)}


def columns(name: str, found: Interval) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def shares(found: Bootstrap, model: str, reference: str) -> dict[str, Any]:
    """The share of the gap that hits explain, as columns; nan and why where there is none to speak of."""
    given = verdict(found, model, reference)
    nothing = Interval(np.nan, np.nan, np.nan)
    log, plain = given.get("log", nothing), given.get("plain", nothing)
    return {**columns("share", log), **columns("share_plain", plain), "why": given.get("why", "").partition(":")[0]}


def by_distance(text: "Text", losses: "Mapping[str, NDArray]", threshold: int) -> Iterator[dict[str, Any]]:
    """Loss on hits against the distance to the earlier occurrence."""
    facets = text.facets
    edges = doubling(int(facets.distance.max(initial=1)))
    return curve(losses, facets.distance, facets.hits(threshold), edges, text.documents)


def by_count(text: "Text", losses: "Mapping[str, NDArray]", *, repeated: bool) -> Iterator[dict[str, Any]]:
    """Loss against how often the bigram occurred in training, of bigrams repeated in the context or of the others."""
    facets = text.facets
    edges = [0, *doubling(int(facets.seen.max(initial=1)))]
    return curve(losses, facets.seen, (facets.distance > 0) == repeated, edges, text.documents)


def facet_rows(text: "Text", losses: "Mapping[str, NDArray]", threshold: int) -> Iterator[dict[str, Any]]:
    """Loss of each model on the hits of each kind: unique or ambiguous, first or later, by the last and by length."""
    facets = text.facets
    hits = facets.hits(threshold)
    kinds = {
        "unique continuation": facets.continuations == 1,
        "ambiguous": facets.continuations > 1,
        "last occurrence right": facets.last,
        "last occurrence wrong": ~facets.last,
        "first hit": facets.earlier == 1,
        "later hit": facets.earlier > 1,
        **{f"longest repeat {n}": facets.longest == n for n in (2, 3, 4, 5)},
    }
    for kind, where in kinds.items():
        inside = hits & where
        for name, given in losses.items():
            if inside.any():
                yield {"model": name, "kind": kind, "tokens": int(inside.sum()), "loss": float(given[inside].mean())}


def by_threshold(
    text: "Text", losses: "Mapping[str, NDArray]", reference: str, thresholds: Sequence[int] = THRESHOLDS
) -> Iterator[dict[str, Any]]:
    """How the share of hits and of the gap move with the threshold; no share where recall has not formed."""
    for threshold in thresholds:
        hits = text.facets.hits(threshold)
        if not hits.any() or hits.all():
            continue
        found = bootstrap(text, losses, threshold)
        for name in losses:
            row = {"threshold": threshold, "model": name, "hits_share": found.share_of_hits().value}
            row |= columns("hits", found.perplexity(name, "hits"))
            yield row | (shares(found, name, reference) if name != reference else {})


def sentences(text: "Text", found: Bootstrap, names: Sequence[str], threshold: int) -> list[str]:
    """What was found, in words with the numbers and the formulas in them."""
    gram = "bigram" if text.order == 2 else f"{text.order}-gram"
    rare = f"at most {threshold:,} times in {text.counts.total:,} tokens of training"
    tail = f"and {rare}" if text.order == 2 else f"and its last bigram {rare}"
    lines = [
        f"{text.name}: {text.documents.size:,} tokens of {found.documents:,} documents in contexts of "
        f"{text.shape[1]:,}; {found.share_of_hits().percent} are hits: the {gram} that they end occurred earlier in "
        f"the context {tail}."
    ]
    for name in names:
        of = [str(found.perplexity(name, part)) for part in ("overall", "hits", "other")]
        formed = "" if found.formed(name) or found.documents < 2 else " Recall has not formed in it."
        lines.append(f"{name}: perplexity {of[0]}, on hits {of[1]}, on other tokens {of[2]}.{formed}")
    if len(names) == 2:
        given = verdict(found, *names)
        if "why" in given:
            lines.append(f"No share of the gap: {given['why']}.")
        else:
            lines.append(f"Share of the gap due to hits: {given['log'].percent} in log-perplexity, {LOG}.")
            lines.append(f"In perplexity: {given['plain'].percent}, {PLAIN}.")
    one = "A single document has no intervals."
    return [*lines, "Intervals of 95 % are bootstrapped over documents." if found.documents > 1 else one]


EXTREME = "Shown are the contexts with the largest gap on hits, document by document: no sample."


def curves(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Perplexity on hits by distance, and by count of repeated and of new bigrams."""
    titles = {"distance": "Hits", "count": "Repeated bigrams", "count-new": "New bigrams"}
    axes = {"Hits": "Tokens back", "Repeated bigrams": "Count in training", "New bigrams": "Count in training"}
    shown = {titles[name]: table for name, table in tables.items() if not table.empty}
    return loss_figure(
        shown, x=axes, note="Mean and 95 % interval over documents; each bin at its lower edge, 0.5 is never."
    )


def threshold_figure(rows: pd.DataFrame) -> Figure:
    """How the share of tokens that are hits, and of the gap that they explain, move with the threshold."""
    x = np.maximum(rows["threshold"], 0.5).tolist()
    lines = [
        Line("of the tokens", x, rows["hits_share"].tolist()),
        Line("of the gap, in log-perplexity", x, *(rows[f"share{end}"].tolist() for end in ("", "_low", "_high"))),
        Line("of the gap, in perplexity", x, rows["share_plain"].tolist()),
    ]
    note = "Hits: repeated bigrams seen at most so often in training (0.5: never); no share before recall has formed."
    return unbounded(panels({"": lines}, x="Threshold", y="Share", note=note, size=(4.2, 2.7)), lines)


def unbounded(figure: Figure, lines: Sequence[Line]) -> Figure:
    """An axis of shares as long as what is drawn, which may leave 0 to 1."""
    drawn = [value for line in lines for part in (line.y, line.low, line.high) for value in part or ()]
    (axis,) = figure.axes
    axis.set_ylim(min([-0.03, *filter(np.isfinite, drawn)]), max([1.03, *filter(np.isfinite, drawn)]))
    axis.axhline(1, color="0.6", linewidth=0.8)
    return figure


def loss_figure(tables: Mapping[str, pd.DataFrame], *, x: Mapping[str, str], note: str = "") -> Figure:
    """Perplexity of each model against a facet, one panel for each table of `curve`."""
    contents = {title: [line(str(name), part) for name, part in rows.groupby("model", sort=False)]
                for title, rows in tables.items()}  # fmt: skip
    return panels(contents, x=x, y="Perplexity", note=note, shares=False, size=(2.6, 2.7))


def line(name: str, rows: pd.DataFrame) -> Line:
    """A model's line, each bin at its lower edge, and at one half what was never seen."""
    values = [np.exp(rows["loss"] + sign * rows["half"].fillna(0)).tolist() for sign in (0, -1, 1)]
    return Line(name, np.maximum(rows["low"], 0.5).tolist(), *values)


def passages(text: "Text", losses: "Sequence[NDArray]", threshold: int, *, limit: int = PASSAGES) -> "list[Passage]":
    """The contexts for a page: those with the largest gap on hits, document by document."""
    from bestiary.slices.page import Passage

    facets, hits = text.facets, text.facets.hits(threshold)
    gap = (losses[0] - losses[-1] if len(losses) > 1 else losses[0]) * hits
    order = np.argsort(-gap.sum(1), kind="stable")
    turn = before(text.documents[order, 0][None])[0]  # how many contexts of the same document come earlier
    found = []
    for i in order[np.argsort(turn, kind="stable")][:limit]:
        distance = facets.distance[i]
        at = np.where(distance > 0, np.arange(1, text.shape[1] + 1) - distance, -1)
        found.append(
            Passage(
                pieces=text.corpus.tokenizer.pieces(text.contexts[i]),
                losses=[[float("nan"), *map(float, part[i].round(4))] for part in losses],
                hits=[0, *map(int, hits[i])],
                distances=[0, *map(int, distance)],
                counts=[0, *map(int, facets.seen[i])],
                earlier=[-1, *map(int, at)],
                title=f"context {i}, document {int(text.documents[i, 0])}",
            )
        )
    return found
