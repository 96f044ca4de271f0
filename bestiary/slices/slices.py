"""The loss of language models on AR hits and on other tokens, and how much of a gap between two models hits explain.

    share of the gap due to AR hits
      in log-perplexity   (D_hits x hits) / (D x tokens),  D = log ppl(model) - log ppl(reference), of hits or of all
      in perplexity       (ppl(model) - ppl(mended)) / (ppl(model) - ppl(reference)),
                          mended: the model with the reference's losses on the hits
    gap closed by a hybrid
      (base - hybrid) / (base - attention), of perplexities or of their logarithms

The first is the share of "Zoology" (Arora et al., 2023, section 3), which is capped at 100 % there but not here, so
that it shows when a model is better than the reference on other tokens.
Intervals are over documents, because the tokens of one document are not independent: Student's t times the standard
error of the jackknife, which leaves out one document at a time. A percentile bootstrap is much too narrow for few
documents (it covers 0.72 of means at 3 documents and 0.88 at 8, where 0.95 is meant).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bestiary.runs.intervals import t_quantile

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUGH = 20  # documents below which an interval is no more than a rough guide
SLICES = ("overall", "hits", "other")
LOG_SHARE = "share = (D_hits x hits) / (D x tokens), D = log ppl(model) - log ppl(reference)"
PERPLEXITY_SHARE = (
    "share = (ppl(model) - ppl(model with the reference's losses on hits)) / (ppl(model) - ppl(reference))"
)
GAP_CLOSED = "closed = (base - hybrid) / (base - reference)"


class Interval(NamedTuple):
    """A number with the bounds of its 95 % interval, which are nan for a single document."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f}" + ("" if math.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}]")

    @property
    def percent(self) -> str:
        """The number and its interval in percent."""
        ends = "" if math.isnan(self.low) else f" [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return f"{100 * self.value:.1f} %{ends}"


class Sums(NamedTuple):
    """Tokens and losses of a text, summed over hits and over other tokens, for each document and model."""

    tokens: "NDArray[np.float64]"  # (documents, 2): hits, others
    losses: "dict[str, NDArray[np.float64]]"  # (documents, 2) of each model, nats

    @classmethod
    def from_losses(
        cls, losses: "Mapping[str, NDArray]", hits: "NDArray[np.bool_]", documents: "NDArray[np.integer]"
    ) -> "Sums":
        """From the losses of each model, where the hits are, and the document of each token, all (contexts, length).

        Raises ValueError if the shapes differ or a loss is not a number.
        """
        for name, given in losses.items():
            if given.shape != hits.shape:
                raise ValueError(f"{name} has losses of shape {given.shape}, the text is {hits.shape}")
            if not np.isfinite(given).all():
                raise ValueError(f"{name} gives {int((~np.isfinite(given)).sum()):,} tokens no finite loss")
        _, document = np.unique(documents, return_inverse=True)
        count = int(document.max(initial=-1)) + 1
        cell = (2 * document.reshape(hits.shape) + ~hits).ravel()

        def total(weights: "NDArray | None") -> "NDArray[np.float64]":
            return np.bincount(cell, weights, minlength=2 * count).astype(np.float64).reshape(count, 2)

        return cls(total(None), {name: total(given.ravel().astype(np.float64)) for name, given in losses.items()})


class Estimates:
    """What a text says of its models, with intervals over its documents.

    Row 0 of every array is of the text, and each other row of the text without one of its documents.
    """

    def __init__(self, sums: Sums) -> None:
        if not len(sums.tokens):
            raise ValueError("there is no token to measure")
        columns = np.concatenate([sums.tokens, *sums.losses.values()], axis=1)
        whole = columns.sum(0, keepdims=True)
        self.documents = len(columns)
        tokens, *losses = np.split(np.concatenate([whole, whole - columns]), 1 + len(sums.losses), axis=1)
        self.tokens = sums_by_slice(tokens)
        self.losses = dict(zip(sums.losses, map(sums_by_slice, losses), strict=True))

    def log_perplexity(self, model: str, part: str = "overall") -> "NDArray[np.float64]":
        """Mean loss in nats, of shape (1 + documents,)."""
        return divide(self.losses[model][part], self.tokens[part])

    def share_of_hits(self) -> Interval:
        """The share of tokens that are hits."""
        return Interval(*np.clip(self.interval(divide(self.tokens["hits"], self.tokens["overall"])), 0.0, 1.0).tolist())

    def perplexity(self, model: str, part: str = "overall") -> Interval:
        """The perplexity of a model on all tokens, hits or other tokens."""
        return Interval(*map(exp, self.interval(self.log_perplexity(model, part))))

    def share_of_gap(self, model: str, reference: str, *, log: bool = True) -> Interval:
        """How much of the gap to the reference the hits explain, by `LOG_SHARE` or by `PERPLEXITY_SHARE`."""
        gap = self.losses[model]["overall"] - self.losses[reference]["overall"]
        on_hits = self.losses[model]["hits"] - self.losses[reference]["hits"]
        if log:
            return self.interval(divide(on_hits, gap))
        tokens = self.tokens["overall"]
        mended = np.exp((self.losses[model]["overall"] - on_hits) / tokens)
        plain = [np.exp(self.log_perplexity(name)) for name in (model, reference)]
        return self.interval(divide(plain[0] - mended, plain[0] - plain[1]))

    def gap_closed(
        self, hybrid: str, base: str, reference: str, *, part: str = "overall", log: bool = True
    ) -> Interval:
        """How much of the gap between a base and the reference a hybrid closes, by `GAP_CLOSED`."""
        of = [self.log_perplexity(name, part) for name in (base, hybrid, reference)]
        of = of if log else [np.exp(values) for values in of]
        return self.interval(divide(of[0] - of[1], of[0] - of[2]))

    def gap(self, model: str, reference: str, part: str = "overall") -> Interval:
        """log ppl(model) - log ppl(reference), in nats."""
        return self.interval(self.log_perplexity(model, part) - self.log_perplexity(reference, part))

    def recall_formed(self, model: str) -> bool:
        """Whether a model recalls at all: its loss on hits is lower than on other tokens, beyond the interval."""
        return self.recall(model).high < 0

    def recall(self, model: str) -> Interval:
        """log ppl(hits) - log ppl(other tokens); without an interval unless both are of two documents or more.

        Its t is that of the fewer documents: those with hits may be few, and are no more certain for all the others.
        """
        hits, other = (self.log_perplexity(model, part) for part in ("hits", "other"))
        return self.interval(hits - other, min(count_documents(hits), count_documents(other)))

    def interval(self, values: "NDArray[np.float64]", counted: int | None = None) -> Interval:
        """The value of the text with its interval, from the values of all rows; none from a single document.

        Student's t is of `counted` documents; if not given, of all that have a part in the value.
        """
        value, rest = float(values[0]), values[1:]
        if self.documents < 2 or not np.isfinite(values).all():
            return Interval(value, math.nan, math.nan)
        counted = count_documents(values) if counted is None else counted
        half = t_quantile(max(1, counted - 1)) * standard_error(rest)
        return Interval(value, value - half, value + half)


def count_documents(values: "NDArray[np.float64]") -> int:
    """How many documents have a part in a value: without them it is another than that of the text, in row 0."""
    return int((values[1:] != values[0]).sum())


def standard_error(rest: "NDArray[np.float64]") -> float:
    """The standard error of a number, from its values without each document in turn (the jackknife)."""
    return math.sqrt((len(rest) - 1) / len(rest) * ((rest - rest.mean()) ** 2).sum())


def exp(value: float) -> float:
    """The exponential, infinite where it is too large for a float."""
    return math.inf if value > 700 else math.exp(value)


def sums_by_slice(sums: "NDArray[np.float64]") -> "dict[str, NDArray[np.float64]]":
    """Sums over all tokens, hits and other tokens, from an array (rows, 2) of hits and others."""
    return {"overall": sums.sum(1), "hits": sums[:, 0], "other": sums[:, 1]}


def divide(above: "NDArray[np.float64]", below: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """A quotient without warnings: nan or inf where the divisor is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return above / below


def share_of_gap(model: Sequence[float], reference: Sequence[float], hits: float) -> float:
    """`LOG_SHARE` from the perplexities (overall, hits) of both and the share of hits, capped at 1 as published."""
    gap, on_hits = (math.log(model[i] / reference[i]) for i in (0, 1))
    return min(1.0, on_hits * hits / gap)


def share_of_hits(overall: float, hits: float, other: float) -> float:
    """The share of hits among tokens that three perplexities of one model imply."""
    return math.log(other / overall) / math.log(other / hits)


def share_or_reason(text: Estimates, model: str, reference: str) -> dict[str, Any]:
    """The gap and the share of it in both measures, or under "why" the reason why no share is given."""
    gap = text.gap(model, reference)
    if text.documents < 2:
        return {"why": "a single document has no interval"}
    if math.isnan(text.recall(reference).high):
        return {"why": "no interval: the hits, or the other tokens, are of fewer than two documents"}
    if not text.recall_formed(reference):
        hits, other = (text.perplexity(reference, part) for part in ("hits", "other"))
        why = f"{reference} has a perplexity of {hits} on hits and {other} on other tokens"
        return {"why": f"recall has not formed: {why}"}
    if not gap.low > 0:
        return {"why": f"{model} is not behind {reference}: the gap in log-perplexity is {gap}"}
    found = {"log": text.share_of_gap(model, reference), "plain": text.share_of_gap(model, reference, log=False)}
    return {"gap": gap, **found}


def binned_losses(
    losses: "Mapping[str, NDArray]",
    by: "NDArray[np.integer]",
    where: "NDArray[np.bool_]",
    edges: Sequence[int],
    documents: "NDArray[np.integer]",
) -> Iterator[dict[str, Any]]:
    """Mean loss of each model over the tokens `where`, in bins [edge, next edge) of a facet; empty bins are left out.

    `half` is half the width of the 95 % interval over documents, nan for a bin with a single document.
    """
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = where & (by >= low) & (by < high)
        if not inside.any():
            continue
        _, owner, counts = np.unique(documents[inside], return_inverse=True, return_counts=True)
        for name, given in losses.items():
            values, tokens = given[inside].astype(np.float64), int(counts.sum())
            half = math.nan
            if len(counts) > 1:
                rest = (values.sum() - np.bincount(owner, values)) / (tokens - counts)
                half = t_quantile(len(counts) - 1) * standard_error(rest)
            yield {"model": name, "low": low, "high": high, "tokens": tokens, "loss": values.mean(), "half": half}


def doubling_edges(most: int, *, first: int = 1) -> list[int]:
    """Edges first, 2 * first, 4 * first ... up to the first one above `most`."""
    edges = [first]
    while edges[-1] <= most:
        edges.append(2 * edges[-1])
    return edges
