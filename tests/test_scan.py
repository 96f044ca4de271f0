"""The loop and the tree compute what steps compute, real and complex, stacked or not."""

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from bestiary.ops.scan import Way, scan, step

WAYS = pytest.mark.parametrize("way", ["loop", "tree"])


def given(dtype: torch.dtype, *lead: int, time: int = 37) -> tuple[Tensor, Tensor, Tensor]:
    a = torch.randn(*lead, 2, time, 5, dtype=dtype)
    return 0.9 * a / a.abs(), torch.randn(*lead, 2, time, 5, dtype=dtype), torch.randn(*lead, 2, 5, dtype=dtype)


def by_steps(a: Tensor, x: Tensor, state: Tensor) -> Tensor:
    states = []
    for t in range(x.shape[1]):
        state = step(a[:, t], x[:, t], state)
        states.append(state)
    return torch.stack(states, dim=1)


@WAYS
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("time", [1, 2, 37])
def test_scans_agree_with_steps_in_value_and_gradient(dtype: torch.dtype, time: int, way: Way) -> None:
    tensors = [x.requires_grad_() for x in given(dtype, time=time)]
    h, last = scan(*tensors, way=way)
    wanted = by_steps(*tensors)
    torch.testing.assert_close(h, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(last, wanted[:, -1], rtol=1e-10, atol=1e-10)
    one, two = (torch.autograd.grad((y * y.conj()).real.sum(), tensors) for y in (h, wanted))
    for found, right in zip(one, two, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-8)


@WAYS
def test_a_scan_may_be_stacked(way: Way) -> None:
    def loss(a: Tensor, x: Tensor, state: Tensor) -> Tensor:
        return scan(a, x, state, way=way)[0].square().sum()

    tensors = given(torch.float64, 4)
    together = vmap(grad(loss, argnums=(0, 1, 2)))(*tensors)
    shared = vmap(grad(loss), in_dims=(0, None, None))(tensors[0], tensors[1][0], tensors[2][0])
    for i in range(4):
        alone = grad(loss, argnums=(0, 1, 2))(*(x[i] for x in tensors))
        for found, right in zip(together, alone, strict=True):
            torch.testing.assert_close(found[i], right, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(shared[i], grad(loss)(tensors[0][i], tensors[1][0], tensors[2][0]))


def test_one_rate_for_all_channels_may_be_broadcast() -> None:
    a, x, state = given(torch.float64)
    found, _ = scan(a[..., :1], x, state, way="loop")
    torch.testing.assert_close(found, by_steps(a[..., :1], x, state))


def test_half_precision_is_computed_in_float32_and_returned_as_it_came() -> None:
    a, x, state = (z.bfloat16() for z in given(torch.float64))
    h, last = scan(a, x, state)
    wanted, end = scan(a.float(), x.float(), state.float())
    assert (h.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(h, wanted.bfloat16())
    torch.testing.assert_close(last, end)


@WAYS
@pytest.mark.parametrize("batch", [2, 0])
def test_no_positions_are_no_output_and_the_same_state(batch: int, way: Way) -> None:
    a, x, state = (z[:batch] for z in given(torch.float64))
    h, last = scan(a[:, :0], x[:, :0], state, way=way)
    assert h.shape == (batch, 0, 5)
    assert torch.equal(last, state)
    h, last = scan(a, x, state, way=way)
    assert (h.shape, last.shape) == (x.shape, state.shape)
