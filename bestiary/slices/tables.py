"""Turns the losses of language models on a text into tables, figures, sentences and the passages of a page."""

from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bestiary.report.plot import Line, panels
from bestiary.report.words import count_noun
from bestiary.slices.hits import count_earlier
from bestiary.slices.slices import (
    LOG_SHARE,
    PERPLEXITY_SHARE,
    ROUGH,
    SLICES,
    Estimates,
    Interval,
    Sums,
    binned_losses,
    doubling_edges,
    share_or_reason,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bestiary.slices.losses import Text
    from bestiary.slices.page import Passage

THRESHOLDS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
PASSAGES = 60  # on a page
TITLE = 60  # characters of the title of a passage


def estimate_text(text: "Text", losses: "Mapping[str, NDArray]", threshold: int) -> Estimates:
    """Sums over hits and other tokens, for the text and for the text without each of its documents."""
    return Estimates(Sums.from_losses(losses, text.facets.hits(threshold), text.documents))


def perplexity_row(name: str, found: Estimates) -> dict[str, Any]:
    """The perplexities of one model with their intervals, as columns."""
    row: dict[str, Any] = {"model": name}
    for part in SLICES:
        row |= interval_columns(part, found.perplexity(name, part))
        row[f"{part}_nats"] = float(found.log_perplexity(name, part)[0])
    return row | {"formed": found.recall_formed(name)}


def interval_columns(name: str, interval: Interval) -> dict[str, float]:
    """A number and its interval as three columns."""
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def share_columns(found: Estimates, model: str, reference: str) -> dict[str, Any]:
    """The share of the gap that hits explain, as columns; nan and the reason where no share is given."""
    given = share_or_reason(found, model, reference)
    nothing = Interval(np.nan, np.nan, np.nan)
    log, plain = given.get("log", nothing), given.get("plain", nothing)
    return {
        **interval_columns("share", log),
        **interval_columns("share_plain", plain),
        "why": given.get("why", "").partition(":")[0],
    }


def losses_by_distance(text: "Text", losses: "Mapping[str, NDArray]", threshold: int) -> Iterator[dict[str, Any]]:
    """Loss on hits by the distance to the earlier occurrence."""
    facets = text.facets
    edges = doubling_edges(int(facets.distance.max(initial=1)))
    return binned_losses(losses, facets.distance, facets.hits(threshold), edges, text.documents)


def losses_by_position(text: "Text", losses: "Mapping[str, NDArray]") -> Iterator[dict[str, Any]]:
    """Loss on all tokens by how many tokens of the context come before."""
    before = np.broadcast_to(np.arange(1, text.shape[1] + 1), text.shape)
    edges = doubling_edges(text.shape[1])
    return binned_losses(losses, before, np.ones(text.shape, bool), edges, text.documents)


def losses_by_count(text: "Text", losses: "Mapping[str, NDArray]", *, repeated: bool) -> Iterator[dict[str, Any]]:
    """Loss by how often the bigram was counted, for bigrams that repeat in the context or for the others."""
    facets = text.facets
    edges = [0, *doubling_edges(int(facets.seen.max(initial=1)))]
    return binned_losses(losses, facets.seen, (facets.longest > 0) == repeated, edges, text.documents)


def losses_by_kind(text: "Text", losses: "Mapping[str, NDArray]", threshold: int) -> Iterator[dict[str, Any]]:
    """Loss of each model on several kinds of hits: unique or ambiguous, first or later, by longest repeat, ..."""
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


def shares_by_threshold(
    text: "Text", losses: "Mapping[str, NDArray]", reference: str, chosen: int = 0
) -> Iterator[dict[str, Any]]:
    """The share of hits and of the gap at THRESHOLDS and at the chosen one; no share where recall has not formed."""
    for threshold in sorted({*THRESHOLDS, chosen}):
        hits = text.facets.hits(threshold)
        if not hits.any() or hits.all():
            continue
        found = estimate_text(text, losses, threshold)
        for name in losses:
            row = {"threshold": threshold, "model": name, "hits_share": found.share_of_hits().value}
            row |= interval_columns("hits", found.perplexity(name, "hits"))
            yield row | (share_columns(found, name, reference) if name != reference else {})


def summary_sentences(text: "Text", found: Estimates, names: Sequence[str], threshold: int) -> list[str]:
    """The result in sentences, with its numbers and formulas; the last of several models is the reference."""
    gram = "bigram" if text.order == 2 else f"{text.order}-gram"
    rate = 1e6 * threshold / max(1, text.counts.total)
    times = "once" if threshold == 1 else f"{threshold:,} times"
    rare = f"at most {times} in the {text.counts.total:,} tokens counted ({rate:.3g} per million)"
    tail = f"and {rare}" if text.order == 2 else f"and its last bigram {rare}"
    lines = [
        f"{text.name}: {text.documents.size:,} tokens of {count_noun(found.documents, text.unit)} in contexts of "
        f"{text.shape[1]:,}; {found.share_of_hits().percent} are hits: the {gram} that they end occurred earlier in "
        f"the context {tail}."
    ]
    for name in names:
        of = [str(found.perplexity(name, part)) for part in ("overall", "hits", "other")]
        formed = " Recall has not formed in it." if found.recall(name).high >= 0 else ""
        lines.append(f"{name}: perplexity {of[0]}, on hits {of[1]}, on other tokens {of[2]}.{formed}")
    for name in names[:-1]:
        given, whose = share_or_reason(found, name, names[-1]), f"of {name} " if len(names) > 2 else ""
        if "why" in given:
            lines.append(f"No share of the gap {whose}: {given['why']}.".replace(" :", ":"))
        else:
            lines.append(f"Share of the gap {whose}due to hits: {given['log'].percent} in log-perplexity, {LOG_SHARE}.")
            lines.append(f"In perplexity: {given['plain'].percent}, {PERPLEXITY_SHARE}.")
    return [*lines, *interval_sentences(found.documents, text.unit)]


def far_sentences(
    text: "Text", losses: "Mapping[str, NDArray]", windowed: "Mapping[str, NDArray]", window: int
) -> list[str]:
    """What each model gains from more than `2 * window` tokens back, on the tokens that have so many before them.

    `windowed` has the losses with a window, as "MODEL, last WINDOW".
    """
    far = np.broadcast_to(np.arange(1, text.shape[1] + 1) > 2 * window, text.shape)
    lines = []
    for name in losses:
        given = windowed.get(f"{name}, last {window:,}")
        if given is None:  # of a file, which cannot be measured again
            continue
        of = Estimates(Sums.from_losses({"whole": losses[name], "window": given}, far, text.documents))
        gain = of.gap("window", "whole", "hits")
        lines.append(
            f"{name}, where more than {2 * window:,} tokens came before: its loss is {gain} nats lower than with the "
            f"last {window:,} to {2 * window:,} alone."
        )
    return lines


def threshold_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """What follows from other thresholds, from `shares_by_threshold`: one row each, the models side by side."""
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows)
    wide = table.pivot(index=["threshold", "hits_share"], columns="model", values="hits")
    wide = wide[list(dict.fromkeys(table["model"]))].rename(columns=lambda name: f"hits: {name}")
    return wide.reset_index().rename(columns={"hits_share": "share of tokens"})


def interval_sentences(count: int, unit: str) -> list[str]:
    """What the intervals are over, and how far they can be trusted."""
    if count < 2:
        return [f"A single {unit} has no intervals."]
    lines = [f"Intervals of 95 % are over {count_noun(count, unit)}."]
    if count < ROUGH:
        lines.append(f"With fewer than {ROUGH} {unit}s they are a rough guide.")
    if unit == "piece":
        lines.append("Pieces are cut from longer documents, so intervals over them say nothing about other documents.")
    return lines


def selection_note(models: int, unit: str = "document") -> str:
    """How the passages of a page about one or two models were selected."""
    what = "the highest loss" if models == 1 else "the largest gap"
    return f"Shown are the contexts with {what} on hits, one of each {unit} in turn: no random sample."


CURVE_NOTE = "Mean and 95 % interval over documents; each bin at its lower edge, 0.5 is never."
FACETS = {  # the tables of curves, by name: title and x axis
    "position": ("All tokens", "Tokens before"),
    "distance": ("Hits", "Tokens back"),
    "count": ("Repeated bigrams", "Times counted"),
    "count-new": ("New bigrams", "Times counted"),
}


def curve_figure(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Perplexity on hits by distance, and by count of repeated and of new bigrams."""
    shown = {FACETS[name][0]: table for name, table in tables.items() if not table.empty}
    return loss_figure(shown, x=dict(FACETS.values()), note=CURVE_NOTE)


def page_figures(tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """The panels of `curve_figure` as SVG, one by one, so that a page can put them beside or below each other."""
    for name, table in tables.items():
        if not table.empty:
            title, axis = FACETS[name]
            figure, svg = loss_figure({title: table}, x={title: axis}, size=(1.6, 2.5)), StringIO()
            for legend in figure.legends:
                legend.remove()
            figure.axes[0].legend(loc="best", fontsize=7, frameon=False)
            figure.savefig(svg, format="svg", metadata={"Date": None})
            yield svg.getvalue()


def threshold_figure(rows: pd.DataFrame) -> Figure:
    """The share of tokens that are hits, and of the gap that they explain, by threshold."""
    x = np.maximum(rows["threshold"], 0.5).tolist()
    lines = [
        Line("of the tokens", x, rows["hits_share"].tolist()),
        Line("of the gap, in log-perplexity", x, *(rows[f"share{end}"].tolist() for end in ("", "_low", "_high"))),
        Line("of the gap, in perplexity", x, rows["share_plain"].tolist()),
    ]
    note = "Hits: repeated bigrams counted at most so often (0.5: never); no share before recall has formed."
    return fit_share_axis(panels({"": lines}, x="Threshold", y="Share", note=note, size=(4.2, 2.7)), lines)


def fit_share_axis(figure: Figure, lines: Sequence[Line]) -> Figure:
    """Extends the axis of shares to everything that is drawn, which may lie outside 0 to 1."""
    drawn = [value for line in lines for part in (line.y, line.low, line.high) for value in part or ()]
    for axis in figure.axes:
        axis.set_ylim(min([-0.03, *filter(np.isfinite, drawn)]), max([1.03, *filter(np.isfinite, drawn)]))
        axis.axhline(1, color="0.6", linewidth=0.8)
    return figure


def loss_figure(
    tables: Mapping[str, pd.DataFrame],
    *,
    x: Mapping[str, str],
    note: str = "",
    size: tuple[float, float] = (2.6, 2.7),
) -> Figure:
    """Perplexity of each model against a facet, one panel for each table of `binned_losses`."""
    contents = {title: [model_line(str(name), part) for name, part in rows.groupby("model", sort=False)]
                for title, rows in tables.items()}  # fmt: skip
    return panels(contents, x=x, y="Perplexity", note=note, shares=False, size=size)


def model_line(name: str, rows: pd.DataFrame) -> Line:
    """The line of one model, each bin at its lower edge; what was never seen is drawn at one half."""
    ends = [np.exp(rows["loss"] + sign * rows["half"]).tolist() for sign in (-1, 1)]
    return Line(name, np.maximum(rows["low"], 0.5).tolist(), np.exp(rows["loss"]).tolist(), *ends)


def select_passages(
    text: "Text", losses: "Sequence[NDArray]", threshold: int, *, limit: int = PASSAGES
) -> "list[Passage]":
    """The contexts shown on a page: those with the largest gap (or loss) on hits, one from each document in turn."""
    from bestiary.slices.page import Passage

    facets, hits, tokenizer = text.facets, text.facets.hits(threshold), text.corpus.tokenizer
    gap = (losses[0] - losses[-1] if len(losses) > 1 else losses[0]) * hits
    order = np.argsort(-gap.sum(1), kind="stable")
    turn = count_earlier(text.documents[order, 0][None])[0]  # how many contexts of the same document come earlier
    found = []
    for i in order[np.argsort(turn, kind="stable")][:limit]:
        distance = facets.distance[i]
        at = np.where(distance > 0, np.arange(1, text.shape[1] + 1) - distance, -1)
        tokens = text.contexts[i]
        found.append(
            Passage(
                pieces=tokenizer.pieces(tokens),
                losses=[[float("nan"), *map(float, part[i].round(4))] for part in losses],
                hits=[0, *map(int, hits[i])],
                distances=[0, *map(int, distance)],
                counts=[0, *map(int, facets.seen[i])],
                earlier=[-1, *map(int, at)],
                title=first_words(tokenizer.decode(tokens[tokens != tokenizer.separator])) or f"context {i}",
            )
        )
    return found


def first_words(text: str, most: int = TITLE) -> str:
    """The beginning of a text on one line, cut between words if they are not too long."""
    words = " ".join(text[: 10 * most].replace("\ufffd", " ").split())
    if len(words) <= most:
        return words
    kept = words[: most + 1].rpartition(" ")[0]
    return (kept if len(kept) > most // 2 else words[:most]) + "…"
