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


@pytest.mark.parametrize("shape", [(), (3,)])
def test_its_gradient_has_a_gradient(shape: tuple[int, ...]) -> None:
    x, weight = (torch.randn(*shape, n, 7, dtype=torch.float64, requires_grad=True) for n in (23, 31))
    targets = torch.randint(31, (*shape, 23))
    targets[..., [0, 5, 22]] = SILENT
    odds = (x @ weight.mT).log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    found = []
    for loss in (readout.cross_entropy(x, weight, targets)[0], -(odds * (targets >= 0)).sum(-1)):
        slopes = torch.autograd.grad(loss.square().sum(), (x, weight), create_graph=True)
        found.append([*slopes, *torch.autograd.grad(sum(slope.square().sum() for slope in slopes), (x, weight))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


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


@pytest.mark.parametrize("shape", [(), (3,)])
def test_among_equal_logits_the_first_is_the_answer(shape: tuple[int, ...]) -> None:
    x, weight = torch.ones(*shape, 6, 2), torch.zeros(*shape, 5, 2)
    targets = torch.tensor([0, 1, 4, 3, 2, SILENT]).expand(*shape, 6)
    assert (readout.cross_entropy(x, weight, targets)[1] == 1).all()  # all are equal: 0 is said
    weight[..., [1, 3], :] = 2.0  # 1 and 3 are equal: 1 is said
    assert (readout.cross_entropy(x, weight, targets)[1] == 1).all()
    weight[..., 3, :] = 40.0  # far above the others
    assert (readout.cross_entropy(x, weight, targets)[1] == 1).all()
    assert (readout.cross_entropy(x, weight, torch.full_like(targets, 3))[1] == 6).all()
    assert (readout.cross_entropy(x, weight, torch.full_like(targets, 1))[1] == 0).all()


@pytest.mark.parametrize("shape", [(), (2,)])
def test_products_in_half_precision_give_nearly_the_same_in_float32(shape: tuple[int, ...]) -> None:
    x, weight = ((torch.randn(*shape, n, 64) / 4).requires_grad_() for n in (300, 1000))
    targets = torch.randint(1000, (*shape, 300))
    found, wanted = (readout.cross_entropy(x, weight, targets, dtype=dtype)[0] for dtype in (torch.bfloat16, None))
    torch.testing.assert_close(found, wanted, rtol=2e-3, atol=0)
    one, two = (torch.autograd.grad(loss.sum(), (x, weight)) for loss in (found, wanted))
    for rough, exact in zip(one, two, strict=True):
        assert rough.dtype == torch.float32
        assert 1e-4 < (rough - exact).norm() / exact.norm() < 0.01


def test_half_precision_is_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "BLOCK", 1)  # so that there are sums over blocks
    x, weight = ((torch.randn(n, 64) / 4).bfloat16().requires_grad_() for n in (9000, 50))
    targets = torch.randint(50, (9000,))
    loss, _ = readout.cross_entropy(x, weight, targets)
    wanted = F.cross_entropy(x.double() @ weight.double().T, targets, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-3, atol=0)
    found, exact = (torch.autograd.grad(value, weight)[0] for value in (loss, wanted))
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() / exact.norm() < 4e-3
