"""minLSTM (Feng et al., 2024): an LSTM whose gates and candidate do not see its state, with gates that sum to one.

    f_t = sigmoid(W_f x_t),   i_t = sigmoid(W_i x_t),   c_t = g(W_c x_t),   h_0 = 0
    h_t = f_t / (f_t + i_t) * h_{t-1} + i_t / (f_t + i_t) * c_t,   g(x) = x + 1/2 for x >= 0, sigmoid(x) below

g is that of the paper's log-space version. `expand` makes the state wider than the model, and a linear map brings it
back. Weights are drawn as PyTorch draws them.
Departs from the paper: the recurrence is not run in log space, which it does not need, being an average.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, Mixer, Where, take
from bestiary.ops.precision import upcast
from bestiary.ops.scan import scan
from bestiary.spec import Positive

State = Float[Tensor, "batch inner"]


class MinLSTM(Mixer):
    """h_t = (f_t * h_{t-1} + i_t * c_t) / (f_t + i_t), gates f, i and candidate c from x_t alone."""

    family: ClassVar = "recurrent"
    variants: ClassVar = ("expand=2",)

    def __init__(self, dim: int, *, expand: Positive = 1) -> None:
        super().__init__()
        self.f, self.i, self.c = (nn.Linear(dim, expand * dim) for _ in range(3))
        self.out = nn.Linear(expand * dim, dim) if expand > 1 else nn.Identity()

    def forward(self, x: Features, state: State | None = None) -> tuple[Features, State]:
        states, last = self.states(x, state)
        return self.out(states), last

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.out(take(self.states(x, None)[0], where))

    def states(self, x: Features, h: State | None) -> tuple[Float[Tensor, "batch time inner"], State]:
        """Every h_t, and the last."""
        given = self.f(x), self.i(x), self.c(x)
        f, i, c = map(upcast, given)
        odds = F.logsigmoid(f) - F.logsigmoid(i)  # log of f / i
        new = (-odds).sigmoid() * torch.where(c >= 0, c + 0.5, c.sigmoid())
        states, last = scan(odds.sigmoid(), new, torch.zeros_like(new[:, 0]) if h is None else h)
        return states.to(given[0].dtype), last
