"""The convolutions are the sum that defines them, at every combination of lengths."""

import pytest
import torch
from torch import Tensor

from bestiary.ops.convolution import fft_length, long, recent_inputs, short, sliding_is_faster, step


def by_steps(x: Tensor, filter: Tensor, past: Tensor) -> Tensor:
    outputs = []
    for t in range(x.shape[1]):
        outputs.append(step(x[:, t], filter, past))
        past = recent_inputs(x[:, t : t + 1], past, len(filter))
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("way", [short, long])
@pytest.mark.parametrize("taps", [1, 2, 4, 9, 30])
@pytest.mark.parametrize(("past", "time"), [(0, 1), (0, 2), (0, 17), (1, 1), (3, 17), (20, 5)])
def test_both_ways_agree_with_the_sum(way: object, taps: int, past: int, time: int) -> None:
    before, x = (torch.randn(2, n, 3, dtype=torch.float64) for n in (past, time))
    filter, before = torch.randn(taps, 3, dtype=torch.float64), recent_inputs(before, None, taps)
    found = (short if way is short else long)(x, filter, before)
    torch.testing.assert_close(found, by_steps(x, filter, before), rtol=1e-10, atol=1e-10)


def test_a_step_is_the_written_sum() -> None:
    past, filter = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[10.0], [100.0], [1000.0]])
    assert step(torch.tensor([[3.0]]), filter, past).item() == 10 * 3 + 100 * 2 + 1000 * 1


@pytest.mark.parametrize("taps", [4, 30])
def test_gradients_of_the_long_convolution_are_right(taps: int) -> None:
    x = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    filter = torch.randn(taps, 3, dtype=torch.float64, requires_grad=True)
    past = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(long, (x, filter, past))
    assert torch.autograd.gradgradcheck(long, (x, filter, past))


@pytest.mark.parametrize("size", [1, 7, 127, 1000, 2049])
def test_transform_sizes_are_fast_and_large_enough(size: int) -> None:
    found = fft_length(size)
    assert size <= found <= 1.2 * size + 2
    for prime in (2, 3, 5):
        while found % prime == 0:
            found //= prime
    assert found == 1


def test_half_precision_is_computed_in_float32_and_returned_as_it_came() -> None:
    x, filter, past = (torch.randn(*shape).bfloat16() for shape in ((2, 9, 3), (6, 3), (2, 5, 3)))
    found = long(x, filter, past)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, long(x.float(), filter.float(), past.float()).bfloat16())


@pytest.mark.timeout(20)
@pytest.mark.parametrize("way", [short, long])
@pytest.mark.parametrize("taps", [1, 9])
@pytest.mark.parametrize(("batch", "time"), [(2, 0), (0, 0), (0, 17)])
def test_nothing_convolved_is_nothing(way: object, taps: int, batch: int, time: int) -> None:
    x, filter = torch.randn(batch, time, 3), torch.randn(taps, 3)
    past = recent_inputs(torch.randn(batch, 5, 3), None, taps)
    for before in (None, past):
        assert (short if way is short else long)(x, filter, before).shape == x.shape
    if time == 0:
        assert torch.equal(recent_inputs(x, past, taps), past)
    assert fft_length(0) == 2


def test_filters_slide_while_that_takes_fewer_products_than_the_transform() -> None:
    assert sliding_is_faster(64, 64)  # half of its taps meet no input
    assert sliding_is_faster(1024, 36)
    assert not sliding_is_faster(256, 256)
    assert not sliding_is_faster(1024, 64)
    assert sliding_is_faster(1, 1)
