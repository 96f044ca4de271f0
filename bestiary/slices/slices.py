"""The loss of language models on AR hits and on other tokens, and how much of a gap between two the hits explain.

    share of the gap due to AR hits
      in log-perplexity   (D_hits x hits) / (D x tokens),  D = log ppl(model) - log ppl(reference), of hits or of all
      in perplexity       (ppl(model) - ppl(mended)) / (ppl(model) - ppl(reference)),
                          mended: the model with the reference's losses on the hits
    gap closed by a hybrid
      (base - hybrid) / (base - attention), of perplexities or of their logarithms

The first is that of "Zoology" (Arora et al., 2023, section 3), which cuts it off at 100 %; here it is not cut off, so
that a model better than the reference on other tokens shows. Intervals are bootstrapped over documents, since tokens
of one document are alike.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLES = 1000  # of the documents, for an interval of 95 %
DRAWN = 2**24  # documents drawn at a time
SLICES = ("overall", "hits", "other")
LOG = "share = (D_hits x hits) / (D x tokens), D = log ppl(model) - log ppl(reference)"
PLAIN = "share = (ppl(model) - ppl(model with the reference's losses on hits)) / (ppl(model) - ppl(reference))"
CLOSED = "closed = (base - hybrid) / (base - reference)"


class Interval(NamedTuple):
    """A number with the ends of its interval, which are nan where there is a single document."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f}" + ("" if math.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}]")

    @property
    def percent(self) -> str:
        ends = "" if math.isnan(self.low) else f" [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        return f"{100 * self.value:.1f} %{ends}"


class Sums(NamedTuple):
    """Tokens and losses of a text, summed over hits and over others, for each document and model."""

    tokens: "NDArray[np.float64]"  # (documents, 2): hits, others
    losses: "dict[str, NDArray[np.float64]]"  # (documents, 2) of each model, nats

    @classmethod
    def of(cls, losses: "Mapping[str, NDArray]", hits: "NDArray[np.bool_]", documents: "NDArray[np.integer]") -> "Sums":
        """From the losses of each model (contexts, length), where the hits are, and which document each token is of.

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


class Bootstrap:
    """Sums of the text itself and of texts made of documents drawn from it: row 0 is the text."""

    def __init__(self, sums: Sums, *, samples: int = SAMPLES, seed: int = 0) -> None:
        documents = len(sums.tokens)
        if documents == 0:
            raise ValueError("there is no token to measure")
        columns = np.concatenate([sums.tokens, *sums.losses.values()], axis=1)
        rng, rows, size = np.random.default_rng(seed), [columns.sum(0, keepdims=True)], max(1, DRAWN // documents)
        for start in range(0, samples, size):
            many = min(size, samples - start)
            rows.append(rng.multinomial(documents, np.full(documents, 1 / documents), size=many) @ columns)
        self.documents = documents
        tokens, *losses = np.split(np.concatenate(rows), 1 + len(sums.losses), axis=1)
        self.tokens, self.losses = parts(tokens), dict(zip(sums.losses, map(parts, losses), strict=True))

    def log_perplexity(self, model: str, part: str = "overall") -> "NDArray[np.float64]":
        """Mean loss in nats, of the text and of each sample."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.losses[model][part] / self.tokens[part]

    def share_of_hits(self) -> Interval:
        return self.interval(self.tokens["hits"] / self.tokens["overall"])

    def perplexity(self, model: str, part: str = "overall") -> Interval:
        return self.interval(np.exp(self.log_perplexity(model, part)))

    def share_of_gap(self, model: str, reference: str, *, log: bool = True) -> Interval:
        """How much of the gap to the reference the hits explain, by `LOG` or by `PLAIN`."""
        gap = self.losses[model]["overall"] - self.losses[reference]["overall"]
        on_hits = self.losses[model]["hits"] - self.losses[reference]["hits"]
        if log:
            return self.interval(divided(on_hits, gap))
        tokens = self.tokens["overall"]
        mended = np.exp((self.losses[model]["overall"] - on_hits) / tokens)
        plain = [np.exp(self.log_perplexity(name)) for name in (model, reference)]
        return self.interval(divided(plain[0] - mended, plain[0] - plain[1]))

    def closed(self, hybrid: str, base: str, reference: str, *, part: str = "overall", log: bool = True) -> Interval:
        """How much of the gap between a base and the reference a hybrid closes, by `CLOSED`."""
        of = [self.log_perplexity(name, part) for name in (base, hybrid, reference)]
        of = of if log else [np.exp(values) for values in of]
        return self.interval(divided(of[0] - of[1], of[0] - of[2]))

    def gap(self, model: str, reference: str, part: str = "overall") -> Interval:
        """log ppl(model) - log ppl(reference)."""
        return self.interval(self.log_perplexity(model, part) - self.log_perplexity(reference, part))

    def formed(self, model: str) -> bool:
        """Whether a model recalls at all: its hits are easier for it than other tokens, beyond the interval."""
        apart = self.interval(self.log_perplexity(model, "hits") - self.log_perplexity(model, "other"))
        return apart.high < 0

    def interval(self, values: "NDArray[np.float64]") -> Interval:
        if self.documents < 2 or not np.isfinite(values[1:]).any():
            return Interval(float(values[0]), math.nan, math.nan)
        low, high = np.nanpercentile(values[1:], [2.5, 97.5])
        return Interval(float(values[0]), float(low), float(high))


def parts(sums: "NDArray[np.float64]") -> "dict[str, NDArray[np.float64]]":
    return {"overall": sums.sum(1), "hits": sums[:, 0], "other": sums[:, 1]}


def divided(above: "NDArray[np.float64]", below: "NDArray[np.float64]") -> "NDArray[np.float64]":
    with np.errstate(invalid="ignore", divide="ignore"):
        return above / below


def share_of_gap(model: Sequence[float], reference: Sequence[float], hits: float) -> float:
    """`LOG` from perplexities (overall, hits) of both and the share of hits among tokens, cut off at 1 as published."""
    gap, on_hits = (math.log(model[i] / reference[i]) for i in (0, 1))
    return min(1.0, on_hits * hits / gap)


def share_of_hits(overall: float, hits: float, other: float) -> float:
    """The share of hits among tokens that three perplexities of one model imply."""
    return math.log(other / overall) / math.log(other / hits)


def verdict(text: Bootstrap, model: str, reference: str) -> dict[str, Any]:
    """The share of the gap in both measures, or why there is none to speak of."""
    gap = text.gap(model, reference)
    if text.documents < 2:
        return {"why": "a single document has no interval"}
    if not text.formed(reference):
        hits, other = (text.perplexity(reference, part) for part in ("hits", "other"))
        why = f"{reference} has a perplexity of {hits} on hits and {other} on other tokens"
        return {"why": f"recall has not formed: {why}"}
    if not gap.low > 0:
        return {"why": f"{model} is not behind {reference}: the gap in log-perplexity is {gap}"}
    found = {"log": text.share_of_gap(model, reference), "plain": text.share_of_gap(model, reference, log=False)}
    return {"gap": gap, **found}


def curve(
    losses: "Mapping[str, NDArray]",
    by: "NDArray[np.integer]",
    where: "NDArray[np.bool_]",
    edges: Sequence[int],
    documents: "NDArray[np.integer]",
) -> Iterator[dict[str, Any]]:
    """Mean loss of each model over the tokens `where`, by bins [edge, next edge) of a facet, but empty ones.

    `half` is that of an interval of 95 % over documents, nan where a bin has one alone.
    """
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = where & (by >= low) & (by < high)
        tokens, (_, owner) = int(inside.sum()), np.unique(documents[inside], return_inverse=True)
        for name, given in losses.items():
            if tokens:
                values = given[inside].astype(np.float64)
                apart = np.bincount(owner, values - values.mean())
                half = 1.96 * math.sqrt((apart**2).sum()) / tokens if len(apart) > 1 else math.nan
                yield {"model": name, "low": low, "high": high, "tokens": tokens, "loss": values.mean(), "half": half}


def doubling(most: int, *, first: int = 1) -> list[int]:
    """Edges first, 2 first, 4 first ... the last above `most`."""
    edges = [first]
    while edges[-1] <= most:
        edges.append(2 * edges[-1])
    return edges
