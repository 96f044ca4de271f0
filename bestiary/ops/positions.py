"""Positions of sequences, chosen for each."""

from jaxtyping import Float, Int
from torch import Tensor

Where = Int[Tensor, "batch asked"]


def take(x: Float[Tensor, "batch time *rest"], where: Where | None) -> Float[Tensor, "batch _ *rest"]:
    """The positions `where` of each sequence, or all."""
    if where is None:
        return x
    return x.gather(1, where.reshape(*where.shape, *(1 for _ in x.shape[2:])).expand(-1, -1, *x.shape[2:]))
