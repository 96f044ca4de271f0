"""What drives the linear recurrence (see `bestiary.ops.recurrence`), and the shapes of its parts."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

Matrix = Float[Tensor, "batch heads key value"]
Key = Float[Tensor, "batch time heads key"]
Value = Float[Tensor, "batch time heads value"]


class Drive(NamedTuple):
    """What a mixer feeds the recurrence at each position; without erasing, heads may share q and k (1 head)."""

    q: Float[Tensor, "batch time #heads key"]
    k: Float[Tensor, "batch time #heads key"]
    v: Value
    g: Float[Tensor, "batch time heads #key"] | None = None  # log decay, <= 0, shared by keys if 1 wide
    erase: tuple[Key, Key] | None = None  # (a, b)
    rewrite: tuple[Float[Tensor, "batch time heads 1"], Key] | None = None  # (w, b): a = w k, with less work

    def map(self, f: Callable[[Tensor], Tensor]) -> "Drive":
        """The drive with f applied to each of its tensors."""
        g = None if self.g is None else f(self.g)
        erase, rewrite = ((f(x[0]), f(x[1])) if x is not None else None for x in (self.erase, self.rewrite))
        return self._make((f(self.q), f(self.k), f(self.v), g, erase, rewrite))
