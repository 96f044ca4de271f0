"""Half precision is for storing and for products; sums over time and exponents are computed in float32 at least."""

from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """Half precision as float32; anything else as it is."""
    return x.float() if x.dtype.itemsize < 4 else x
