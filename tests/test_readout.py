"""The blockwise read-out is PyTorch's cross-entropy: loss, gradients, and answers."""

import pytest
import torch
from torch.nn import functional as F

from bestiary.ops import readout
from bestiary.tasks._task import SILENT


@pytest.mark.parametrize("block", [1, 100, 10**9])
def test_it_is_cross_entropy(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "BLOCK", block)
    x, weight = (torch.randn(n, 7, dtype=torch.float64, requires_grad=True) for n in (23, 31))
    targets = torch.randint(31, (23,))
    targets[[0, 5, 22]] = SILENT
    loss, right = readout.cross_entropy(x, weight, targets)
    wanted = F.cross_entropy(x @ weight.T, targets, ignore_index=SILENT, reduction="sum")
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=1e-10)
    assert right == ((x @ weight.T).argmax(1) == targets).sum()
    one, two = (torch.autograd.grad(value / 20, (x, weight)) for value in (loss, wanted))
    for found, other in zip(one, two, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-10, atol=1e-10)


def test_large_logits_stay_finite_in_float32() -> None:
    x, weight = (100 * torch.randn(n, 64) for n in (9, 50))
    loss, _ = readout.cross_entropy(x.requires_grad_(), weight.requires_grad_(), torch.randint(50, (9,)))
    loss.backward()
    assert all(found is not None and found.isfinite().all() for found in (loss, x.grad, weight.grad))


def test_no_answers_cost_nothing() -> None:
    x, weight = torch.randn(0, 7, requires_grad=True), torch.randn(31, 7, requires_grad=True)
    loss, right = readout.cross_entropy(x, weight, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert (loss.item(), right.item(), weight.grad is not None and weight.grad.abs().max()) == (0, 0, 0)
