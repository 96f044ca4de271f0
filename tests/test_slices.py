"""Slices of the loss: sums against a plain reading, and the published shares from their published inputs."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bestiary.runs.intervals import t_quantile
from bestiary.slices import slices, tables
from bestiary.slices.hits import facets
from bestiary.slices.slices import (
    Estimates,
    Sums,
    binned_losses,
    doubling_edges,
    share_of_gap,
    share_of_hits,
    share_or_reason,
)

ATTENTION = {125: (11.01, 2.16, 12.45), 360: (9.44, 1.98, 10.62)}
ROWS = [  # Table 1 of Zoology: overall, hits, other, percentage of the gap
    (125, "Long Conv", (16.98, 25.62, 16.46), 40.1),
    (125, "H3", (12.06, 6.75, 12.60), 88.4),
    (125, "Hyena", (11.60, 5.00, 12.28), 100.0),
    (125, "RWKV", (11.64, 5.70, 12.29), 100.0),
    (360, "Long Conv", (13.13, 13.27, 13.12), 40.5),
    (360, "H3", (10.38, 4.81, 11.00), 65.8),
    (360, "RWKV", (9.79, 3.82, 10.51), 100.0),
]


@pytest.mark.parametrize(("size", "name", "row", "printed"), ROWS, ids=lambda part: str(part))
def test_published_shares_follow_from_published_perplexities(size: int, name: str, row: Any, printed: float) -> None:
    hits = share_of_hits(*ATTENTION[size])
    assert hits == pytest.approx(0.070, abs=0.001)
    assert 100 * share_of_gap(row, ATTENTION[size], hits) == pytest.approx(printed, abs=0.8), name


def test_one_published_share_does_not_follow() -> None:
    """Hyena at 360M: 98.2 is printed, its row gives 65 to 72."""
    found = 100 * share_of_gap((10.07, 3.83), ATTENTION[360], share_of_hits(*ATTENTION[360]))
    assert 65 < found < 73


def test_the_share_at_the_largest_size_follows_from_its_own_hits() -> None:
    attention = (8.19, 1.91, 9.86)
    assert 100 * share_of_gap((9.65, 3.43), attention, share_of_hits(*attention)) == pytest.approx(40.3, abs=0.2)


def draw_losses(documents: int = 12, seed: int = 0) -> tuple[dict[str, Any], Any, Any]:
    rng = np.random.default_rng(seed)
    hits = rng.random((6, 40)) < 0.2
    of = np.sort(rng.integers(documents, size=240)).reshape(6, 40)
    good = rng.gamma(2.0, 0.2, size=hits.shape) + 2.0 * ~hits
    poor = good + 0.1 + 1.5 * hits
    return {"good": good, "poor": poor}, hits, of


def test_sums_equal_a_plain_reading() -> None:
    losses, hits, of = draw_losses()
    text = Estimates(Sums.from_losses(losses, hits, of))
    for name, given in losses.items():
        for part, where in {"overall": np.ones_like(hits), "hits": hits, "other": ~hits}.items():
            value, low, high = text.perplexity(name, part)
            assert value == pytest.approx(math.exp(given[where].mean()))
            assert low < value < high
    assert text.share_of_hits().value == pytest.approx(hits.mean())
    share = (losses["poor"] - losses["good"])[hits].sum() / (losses["poor"] - losses["good"]).sum()
    assert text.share_of_gap("poor", "good").value == pytest.approx(share)
    mended = np.where(hits, losses["good"], losses["poor"])
    ppl = {name: math.exp(x.mean()) for name, x in {**losses, "mended": mended}.items()}
    plain = (ppl["poor"] - ppl["mended"]) / (ppl["poor"] - ppl["good"])
    assert text.share_of_gap("poor", "good", log=False).value == pytest.approx(plain)


def draw_documents(count: int, rng: np.random.Generator, lengths: float, skew: bool) -> Sums:
    """Documents that differ in how hard they are and, with `lengths` above 0, in how long; a quarter is hits."""
    sizes = np.ceil(10 * rng.lognormal(0, lengths, count))[:, None] * [1, 3]
    hard = rng.gamma(2.0, 0.3 / math.sqrt(2), count) + 0.576 if skew else rng.normal(1.0, 0.3, count)
    losses = sizes * hard[:, None] + rng.normal(0, 0.05, sizes.shape)
    return Sums(sizes, {"model": losses, "reference": np.zeros_like(losses)})


@pytest.mark.parametrize(("lengths", "skew", "least"), [(0.0, False, 0.93), (0.5, False, 0.91), (0.5, True, 0.87)])
@pytest.mark.parametrize("count", [3, 4, 8, 50])
def test_an_interval_covers_the_mean_of_all_documents(count: int, lengths: float, skew: bool, least: float) -> None:
    """Where a percentile bootstrap covers 0.73, 0.79, 0.90 and 0.94 of them."""
    rng, rounds = np.random.default_rng(0), 500
    covered = np.zeros(3)
    for _ in range(rounds):
        text = Estimates(draw_documents(count, rng, lengths, skew))
        for i, part in enumerate(slices.SLICES):
            ppl, gap = text.perplexity("model", part), text.gap("model", "reference", part)
            covered[i] += ppl.low <= math.exp(1.0 if not skew else 1.0003) <= ppl.high
            assert (ppl.low <= math.e <= ppl.high) == (gap.low <= 1.0 <= gap.high)
    assert (covered / rounds >= least).all(), covered / rounds
    assert (covered / rounds <= 0.975).all()


@pytest.mark.parametrize("with_hits", [2, 3, 5])
def test_recall_is_claimed_of_few_documents_with_hits_no_more_often_than_of_many(with_hits: int) -> None:
    """Hits and other tokens are equally hard, so a claim is an error: 2.5 % are meant, where 12, 7 and 5 % are made."""
    rng, rounds, documents = np.random.default_rng(0), 1000, 40
    tokens = np.stack([20.0 * (np.arange(documents) < with_hits), np.full(documents, 1000.0)], axis=1)
    formed = 0
    for _ in range(rounds):
        losses = tokens * (5 + rng.normal(size=tokens.shape) * [1.0, 0.2])
        formed += Estimates(Sums(tokens, {"model": losses})).recall_formed("model")
    assert formed / rounds < 0.037


def test_documents_without_part_in_a_number_do_not_count() -> None:
    losses, hits, of = draw_losses(documents=4)
    few = hits & (of < 2)
    text = Estimates(Sums.from_losses(losses, few, of))
    more = [np.concatenate([part, part[:3]]) for part in (few, of)]
    more[0][6:], more[1][6:] = False, np.arange(120).reshape(3, 40) + 10  # 120 documents more, without hits
    grown = {name: np.concatenate([part, part[:3]]) for name, part in losses.items()}
    wide = Estimates(Sums.from_losses(grown, *more)).perplexity("poor", "hits")
    narrow = text.perplexity("poor", "hits")
    assert wide.value == pytest.approx(narrow.value)
    assert math.log(wide.high / wide.low) > 0.8 * math.log(narrow.high / narrow.low)
    alone = Estimates(Sums.from_losses(losses, hits & (of == 1), of))
    assert math.isnan(alone.perplexity("poor", "hits").low)
    assert not alone.recall_formed("good")


def test_a_gap_is_closed_by_what_lies_between() -> None:
    losses, hits, of = draw_losses()
    losses["half"] = (losses["good"] + losses["poor"]) / 2
    text = Estimates(Sums.from_losses(losses, hits, of))
    for part in slices.SLICES:
        assert text.gap_closed("half", "poor", "good", part=part).value == pytest.approx(0.5)
        assert text.gap_closed("good", "poor", "good", part=part, log=False).value == pytest.approx(1)
        assert text.gap_closed("half", "poor", "good", part=part, log=False).value > 0.5  # the exponential is convex


def test_without_recall_no_share_is_printed() -> None:
    losses, hits, of = draw_losses()
    text = Estimates(Sums.from_losses(losses, hits, of))
    assert share_or_reason(text, "poor", "good")["log"].value > 0.5
    assert "good is not behind poor" in share_or_reason(text, "good", "poor")["why"]
    worse = Estimates(Sums.from_losses({"deaf": losses["good"] + 5 * hits, "poor": losses["poor"] + 5}, hits, of))
    assert "recall has not formed: deaf has a perplexity of" in share_or_reason(worse, "poor", "deaf")["why"]
    assert set(share_or_reason(worse, "poor", "deaf")) == {"why"}


def test_of_hits_in_a_single_document_nothing_is_claimed() -> None:
    losses, hits, of = draw_losses(documents=4)
    few = hits & (of == 1)
    text = Estimates(Sums.from_losses(losses, few, of))
    assert share_or_reason(text, "poor", "good")["why"].startswith("no interval: the hits, or the other tokens, are of")
    given: Any = SimpleNamespace(
        name="it", order=2, unit="document", documents=of, shape=of.shape, counts=SimpleNamespace(total=10**6)
    )
    told = " ".join(tables.summary_sentences(given, text, ["poor", "good"], 3))
    assert "No share of the gap: no interval: the hits" in told
    assert "ecall has not formed" not in told


def test_the_chosen_threshold_is_tried_and_no_row_is_an_empty_table() -> None:
    losses, hits, of = draw_losses()
    seen = np.where(hits, 4000, 9000)
    text: Any = SimpleNamespace(facets=SimpleNamespace(hits=lambda most: seen <= most), documents=of)
    assert tables.threshold_table(list(tables.shares_by_threshold(text, losses, "good"))).empty
    rows = list(tables.shares_by_threshold(text, losses, "good", 5000))
    assert [(row["model"], row["threshold"]) for row in rows] == [("good", 5000), ("poor", 5000)]
    assert len(tables.threshold_table(rows)) == 1


def test_bigrams_that_repeat_are_called_so_where_longer_n_grams_are_looked_for() -> None:
    counts: Any = SimpleNamespace(vocab=10, lookup=lambda first, _: np.zeros(first.shape, int))
    for order in (2, 3):
        of = facets(np.array([[1, 2, 9, 1, 2]]), counts, order=order)
        text: Any = SimpleNamespace(facets=of, documents=np.zeros((1, 4), int))
        rows = [list(tables.losses_by_count(text, {"it": np.arange(4.0)[None]}, repeated=yes)) for yes in (True, False)]
        assert [(row["tokens"], row["loss"]) for (row,) in rows] == [(1, 3.0), (3, 1.0)]


def test_a_bin_without_an_interval_has_no_band() -> None:
    line = tables.model_line("it", pd.DataFrame({"low": [0, 1], "loss": [1.0, 2.0], "half": [0.5, math.nan]}))
    assert np.allclose([line.y, line.low, line.high], np.exp([[1, 2], [0.5, np.nan], [1.5, np.nan]]), equal_nan=True)


def test_one_document_has_no_interval() -> None:
    losses, hits, of = draw_losses()
    value, low, high = Estimates(Sums.from_losses(losses, hits, np.zeros_like(of))).perplexity("good")
    assert value > 1
    assert math.isnan(low)
    assert math.isnan(high)


def test_curves_are_means_of_bins() -> None:
    losses, hits, of = draw_losses()
    by = np.arange(hits.size).reshape(hits.shape) % 9
    rows = list(binned_losses(losses, by, hits, doubling_edges(8), of))
    assert [(row["low"], row["high"]) for row in rows if row["model"] == "good"] == [(1, 2), (2, 4), (4, 8), (8, 16)]
    for row in rows:
        inside = hits & (by >= row["low"]) & (by < row["high"])
        assert row["tokens"] == inside.sum()
        values = losses[row["model"]][inside]
        assert row["loss"] == pytest.approx(values.mean())
        there = [document for document in range(12) if (of[inside] == document).any()]
        rest = np.array([values[of[inside] != document].mean() for document in there])
        error = math.sqrt((len(there) - 1) / len(there) * ((rest - rest.mean()) ** 2).sum())
        assert row["half"] == pytest.approx(t_quantile(len(there) - 1) * error)
    assert not list(binned_losses(losses, by, hits, [100, 200], of))
    (alone, _) = binned_losses(losses, by, hits, [0, 9], np.zeros_like(of))
    assert math.isnan(alone["half"])


def test_losses_that_do_not_fit_are_refused() -> None:
    losses, hits, of = draw_losses()
    with pytest.raises(ValueError, match=r"short has losses of shape \(6, 39\), the text is \(6, 40\)"):
        Sums.from_losses({"short": losses["good"][:, :-1]}, hits, of)
    with pytest.raises(ValueError, match="odd gives 1 tokens no finite loss"):
        Sums.from_losses({"odd": np.where(np.arange(240).reshape(6, 40) == 7, np.nan, losses["good"])}, hits, of)
    with pytest.raises(ValueError, match="no token to measure"):
        Estimates(Sums.from_losses({}, hits[:0], of[:0]))
