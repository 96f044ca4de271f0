"""A cost that a mixer adds to the loss of any model it is part of, such as a penalty on what it selects."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def add_cost(y: Tensor, cost: Tensor) -> Tensor:
    """y unchanged, but the gradient of any loss of y becomes that of loss + cost."""
    return _AddCost.apply(y, cost)  # pyright: ignore[reportReturnType]


class _AddCost(torch.autograd.Function):
    """Returns y, and gives the cost a gradient of 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, cost: Tensor) -> Tensor:
        del cost
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        del inputs, output
        ctx.weight = _weight[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        return grad, grad.new_ones(()) * ctx.weight


_weight: list[float | Tensor] = [1.0]


@contextmanager
def weighted_costs(weight: float | Tensor) -> Iterator[None]:
    """Costs of models that are run in here count so much: for a batch that is read in parts, the share of the part."""
    _weight.append(weight)
    try:
        yield
    finally:
        _weight.pop()
