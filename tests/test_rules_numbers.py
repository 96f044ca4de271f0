"""Rules learnt in context, of numbers: linear functions in bins, and bits against the best predictor."""

import math

import pytest
import torch

from bestiary.tasks._task import SILENT, stream
from bestiary.tasks.dynamic_ngrams import DynamicNgrams
from bestiary.tasks.linear_regression import LinearRegression
from tests.test_recall_induction import Largest

# Linear regression


def test_values_are_the_inner_products_and_bins_are_equal() -> None:
    task = LinearRegression(dim=3, points=40, bins=8, scored="all")
    batch = task.sample(1500, stream("line"))
    points, values = batch.tokens[:, ::2].double(), batch.tokens[:, 1::2].double()
    assert (values[:, :, 1:] == 0).all()
    found = torch.linalg.lstsq(points, values[:, :, :1]).solution
    torch.testing.assert_close(found.norm(dim=1), torch.ones(1500, 1, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(points @ found, values[:, :, :1], atol=1e-4, rtol=0)
    bins = batch.targets[:, ::2]
    assert (batch.targets[:, 1::2] == SILENT).all()
    share = torch.bincount(bins.flatten(), minlength=8) / bins.numel()
    assert (share - 1 / 8).abs().max() < 0.01
    probability = 0.5 * (1 + torch.erf(values[:, :, 0] / math.sqrt(2)))
    inside = (probability * 8 - bins - 0.5).abs()
    assert inside.max() <= 0.5 + 1e-4
    assert torch.equal(batch.facets["examples"][0, ::2], torch.arange(40, dtype=torch.int32))


def test_certain_questions_begin_behind_as_many_examples_as_dimensions() -> None:
    task = LinearRegression(dim=3, points=6)
    batch = task.sample(5, stream("line"))
    asked = batch.targets[0] != SILENT
    assert asked.nonzero().flatten().tolist() == [6, 8, 10]
    every = LinearRegression(dim=3, points=6, scored="all")
    known = every.solve(batch.tokens)
    assert torch.equal(known, batch.targets)
    assert torch.equal(every.sample(5, stream("line")).targets[:, 6:], batch.targets[:, 6:])


def test_the_distance_from_the_right_bin_is_counted() -> None:
    task = LinearRegression(dim=1, points=5, bins=4)
    batch = task.sample(3, stream("off"))
    logits = torch.nn.functional.one_hot(torch.full((12,), 2), 4).float()
    asked = batch.targets[batch.targets != SILENT]
    assert task.extra_scores(batch, logits)["bins_off"].tolist() == [abs(bin_ - 2) for bin_ in asked.tolist()]


# Dynamic N-grams


def test_the_best_predictor_counts_what_came_behind_the_same_bits() -> None:
    task = DynamicNgrams(context=3, length=80)
    batch = task.sample(40, stream("bits"))
    every = [task.right(batch, torch.full_like(batch.targets, bit)) for bit in (0, 1)]
    for row, bits in enumerate(batch.tokens.tolist()):
        assert (batch.targets[row, :2] == SILENT).all()
        assert batch.targets[row, 2:-1].tolist() == bits[3:]
        for time in range(2, 80):
            before = [bits[t] for t in range(3, time + 1) if bits[t - 3 : t] == bits[time - 2 : time + 1]]
            ones, zeros = before.count(1), before.count(0)
            assert bool(every[1][row, time]) is (ones >= zeros)
            assert bool(every[0][row, time]) is (zeros >= ones)
            assert batch.facets["seen"][row, time] == ones + zeros
            assert batch.facets["margin"][row, time] == abs(ones - zeros)


def test_the_loss_of_the_best_predictor_has_no_excess_and_a_fair_coin_has() -> None:
    task = DynamicNgrams(context=2, length=60)
    batch = task.sample(300, stream("bits"))
    ones, zeros = batch.truth["counts"][..., 1].double(), batch.truth["counts"][..., 0].double()
    best = (ones + 0.5) / (ones + zeros + 1)
    logits = torch.stack([(1 - best).log(), best.log()], 2)[batch.targets != SILENT]
    torch.testing.assert_close(task.extra_scores(batch, logits)["excess"], 0 * logits[:, 0], atol=1e-6, rtol=0)
    assert task.extra_scores(batch, 0 * logits)["excess"].mean() > 0.1


def test_the_table_is_drawn_from_the_arcsine_law() -> None:
    """Behind two equal bits, which are fair, k more come with the k-th moment of the law, C(2k, k) / 4^k."""
    tokens = DynamicNgrams(context=2, length=10).sample(12_000, stream("table")).tokens
    for bit in (0, 1):
        more = (tokens[(tokens[:, :2] == bit).all(1), 2:] == bit).cumprod(1).double().mean(0)
        wanted = [math.comb(2 * k, k) / 4**k for k in range(1, 9)]
        assert more.tolist() == pytest.approx(wanted, abs=0.03)  # of even chances they are 1 / (k + 1)


def test_rows_with_large_tables_are_drawn_some_at_a_time() -> None:
    task = DynamicNgrams(context=12, length=120)
    with Largest() as largest:
        batch = task.sample(520, stream("bits"))
    assert batch.tokens.shape == (520, 120)
    assert largest.numbers <= 2**22
