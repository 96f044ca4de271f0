"""Half precision is for storing and for products; sums over time and exponents are computed in float32 at least."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor

Called = TypeVar("Called", bound=Callable[..., object])


def upcast(x: Tensor) -> Tensor:
    """Half precision as float32; anything else as it is."""
    return x.float() if x.dtype.itemsize < 4 else x


def exact(x: Tensor) -> Tensor:
    """x as float64, in which long sums keep what their differences need; as it is on Apple's GPUs, which have none."""
    return x if x.device.type == "mps" else x.double()


def upcast_type(x: Tensor) -> torch.dtype:
    """The type that `upcast` gives x, such as for positions, of which half precision cannot count beyond 256."""
    return torch.float32 if x.dtype.itemsize < 4 else x.dtype


def without_autocast(function: Called) -> Called:
    """The function, whose first argument is a tensor, with products in the precision of what they are given."""

    @wraps(function)
    def wrapped(x: Tensor, *given: object, **named: object) -> object:
        with no_autocast(x):
            return function(x, *given, **named)

    return wrapped  # pyright: ignore[reportReturnType]


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which products on the device of x have the precision of what they are given."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)
