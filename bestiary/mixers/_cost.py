"""A cost of a mixer's own, such as a penalty on what it selects, added to the loss of whatever it is part of."""

from typing import Any

import torch
from torch import Tensor


def add_cost(y: Tensor, cost: Tensor) -> Tensor:
    """y as it is; where a loss is differentiated that comes of y, loss + cost is."""
    return _AddCost.apply(y, cost)  # pyright: ignore[reportReturnType]


class _AddCost(torch.autograd.Function):
    """Passes y on, and gives the cost the gradient 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, cost: Tensor) -> Tensor:
        del cost
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        del ctx
        (grad,) = grads
        return grad, grad.new_ones(())
