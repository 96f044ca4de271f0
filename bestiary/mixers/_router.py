"""A router: how much each position is trusted to attend, and which positions are selected."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bestiary.mixers._cost import add_cost
from bestiary.mixers._mixer import Chosen, Features

PACE = 0.02  # of the running mean of the cut: some 50 passes


class Router(nn.Linear):
    """g_i = sigmoid(w . x_i); position i is selected where w . x_i > cut. Weights are drawn N(0, 0.02).

    Without `soft` the cut is 0, so that g_i > 1/2 selects, and what is not selected has no weight from the first step.
    Then a router learns little: only what attends can show that it should. With `soft`, training has three stages,
    counted in training passes: for `soft` passes every position attends, weighted by g; over the next `ramp` passes the
    weight of what is not selected fades to 0; and after that only what is selected attends. The cut is a running mean
    of the score that a share `share` of the positions of a pass exceeds, so that the share holds. Outside training
    nothing differs but that the stage and the cut stay as they are.
    """

    passes: Tensor
    cut: Tensor

    def __init__(self, dim: int, *, share: float, most: int | None, penalty: float, soft: int, ramp: int) -> None:
        super().__init__(dim, 1, bias=False)
        nn.init.normal_(self.weight, std=0.02)
        self.share, self.most, self.penalty, self.soft, self.ramp = share, most, penalty, soft, ramp
        if soft:
            self.register_buffer("passes", torch.zeros(()))
            self.register_buffer("cut", torch.zeros(()))

    @property
    def hardness(self) -> Tensor | float:
        """How far what is not selected has faded, 0 to 1."""
        return ((self.passes - self.soft) / self.ramp).clamp(0, 1) if self.soft else 1.0

    def selects(self, x: Chosen) -> Bool[Tensor, "batch asked"]:
        """Where the router selects."""
        return self(x).squeeze(-1) > (self.cut if self.soft else 0)

    def factor(self, x: Chosen, on: Bool[Tensor, "batch asked"]) -> Float[Tensor, "batch asked 1"]:
        """The weight of each position; its gradient is that of g everywhere, or with `most` where `on`."""
        gate = self(x).sigmoid()
        off = gate - self.hardness * gate.detach() if self.most is None else torch.zeros_like(gate)
        return torch.where(on.unsqueeze(-1), gate, off)

    def after_pass(self, y: Chosen, x: Features) -> Chosen:
        """y, with the penalty as a cost in training; the stage and the cut take notice of x."""
        if self.training and self.soft:
            self.observe(x)
        if not (self.training and self.penalty):
            return y
        excess = self(x).sigmoid().mean() - (self.most or math.sqrt(x.shape[1])) / x.shape[1]
        return add_cost(y, self.penalty * excess.clamp(min=0))

    @torch.no_grad()
    def observe(self, x: Features) -> None:
        """Count a training pass and let the cut follow its scores."""
        scores = self(x).flatten().sort().values
        level = scores[min(len(scores) - 1, int((1 - self.share) * len(scores)))]
        self.cut.copy_(torch.where(self.passes > 0, torch.lerp(self.cut, level, PACE), level))
        self.passes.add_(1)
