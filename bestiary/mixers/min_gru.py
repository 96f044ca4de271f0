"""minGRU (Feng et al., 2024): a gated recurrent unit whose gate and candidate do not see its state.

    z_t = sigmoid(W_z x_t),   c_t = g(W_c x_t),   h_t = (1 - z_t) * h_{t-1} + z_t * c_t,   h_0 = 0
    g(x) = x + 1/2 for x >= 0, sigmoid(x) below

g is that of the paper's log-space version. `expand` makes the state wider than the model, and a linear map brings it
back. Weights are drawn as PyTorch draws them.
Departs from the paper: the recurrence is not run in log space, which it does not need, being an average.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._mixer import Chosen, Features, Mixer, Where, take
from bestiary.ops.precision import upcast
from bestiary.ops.scan import scan
from bestiary.spec import Positive

State = Float[Tensor, "batch inner"]


class MinGRU(Mixer):
    """h_t = (1 - z_t) * h_{t-1} + z_t * c_t, gate z and candidate c linear in x_t but for their nonlinearities."""

    family: ClassVar = "recurrent"
    variants: ClassVar = ("expand=2",)

    def __init__(self, dim: int, *, expand: Positive = 1) -> None:
        super().__init__()
        self.z, self.c = nn.Linear(dim, expand * dim), nn.Linear(dim, expand * dim)
        self.out = nn.Linear(expand * dim, dim) if expand > 1 else nn.Identity()

    def forward(self, x: Features, state: State | None = None) -> tuple[Features, State]:
        states, last = self.states(x, state)
        return self.out(states), last

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.out(take(self.states(x, None)[0], where))

    def states(self, x: Features, h: State | None) -> tuple[Float[Tensor, "batch time inner"], State]:
        """Every h_t, and the last."""
        given = self.z(x)
        z, c = upcast(given), upcast(self.c(x))
        new = z.sigmoid() * torch.where(c >= 0, c + 0.5, c.sigmoid())
        states, last = scan((-z).sigmoid(), new, torch.zeros_like(new[:, 0]) if h is None else h)
        return states.to(given.dtype), last
