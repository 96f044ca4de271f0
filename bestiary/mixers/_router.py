"""A router: how much each position is trusted to attend, and which positions are selected."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bestiary.mixers._cost import add_cost
from bestiary.mixers._mixer import Chosen, Features

PACE = 0.1  # of the running mean of the cut: some 10 passes


LEARNED = ("learned", "learned_repeat")  # ways to select with a router


def check_selection(
    select: str, *, share: float, most: int | None, penalty: float, open: int, seed: int, ramp: int
) -> None:
    """Raises ValueError for options of `selected` that do not go together."""
    if not 0 < share <= 1:
        raise ValueError(f"a share of {share} is not above 0 and at most 1")
    if penalty < 0 or (penalty and select not in LEARNED):
        raise ValueError(f"a penalty of {penalty} with select={select!r}: only a router has one, 0 or more")
    if open < 0 or (open and (select not in LEARNED or most is not None)):
        raise ValueError(f"open={open}: 0 or more passes, of a router, without `most`")
    if select == "learned_repeat" and most is not None:
        raise ValueError(f"most={most} with select='learned_repeat': a share of the positions is selected there")
    if seed and select != "random":
        raise ValueError(f"seed={seed} with select={select!r} changes nothing: it is of select='random'")
    if ramp != 400 and not open:
        raise ValueError(f"ramp={ramp} without `open` changes nothing: every pass is like the first")
    if share != 0.25 and select != "random" and not open:
        raise ValueError(f"share={share} changes nothing: it is of select='random', and of a router with `open`")


class Router(nn.Linear):
    """g_i = sigmoid(w . x_i); position i is selected where w . x_i > cut. Weights are drawn N(0, 0.02).

    Without `open` the cut is 0, so that g_i > 1/2 selects, and the weight of what is selected is g_i: as in Zoology,
    but what is not selected has no weight from the first step, so that it cannot show that it should be.
    With `open`, the weight of what is selected is 1, and training has three stages, counted in training passes: for
    `open` passes all are selected; over the next `ramp` passes the share that is falls to `share`, the lowest scores
    first; and then it stays. The gradient is that of g_i everywhere, so that a position that is not selected comes back
    if it would help. The cut is a running mean of the score that the wanted share of the positions of a pass exceeds.
    Outside training nothing differs but that the cut stays as it is.
    """

    passes: Tensor
    cut: Tensor

    def __init__(self, dim: int, *, share: float, most: int | None, penalty: float, open: int, ramp: int) -> None:
        super().__init__(dim, 1, bias=False)
        nn.init.normal_(self.weight, std=0.02)
        self.share, self.most, self.penalty, self.open, self.ramp = share, most, penalty, open, ramp
        if open:
            self.register_buffer("passes", torch.zeros(()))
            self.register_buffer("cut", torch.tensor(-math.inf))

    def selects(self, x: Chosen) -> Bool[Tensor, "batch asked"]:
        """Where the router selects."""
        return self(x).squeeze(-1) > (self.cut if self.open else 0)

    def factor(
        self, x: Chosen, on: Bool[Tensor, "batch asked"], may: Bool[Tensor, "batch asked"]
    ) -> Float[Tensor, "batch asked 1"]:
        """The weight of each position, those `on` that attend; its gradient is that of g where they `may`."""
        gate, on, may = self(x).sigmoid(), on.unsqueeze(-1), may.unsqueeze(-1)
        value = on.to(gate.dtype) if self.open else torch.where(on, gate, torch.zeros_like(gate)).detach()
        return value + torch.where(may, gate - gate.detach(), torch.zeros_like(gate))

    def after_training_pass(self, y: Chosen, x: Features, may: Bool[Tensor, "batch time"]) -> Chosen:
        """y, with the penalty as a cost; the stage and the cut take notice of x, where it `may` attend."""
        if self.open:
            self.observe(x, may)
        if not self.penalty:
            return y
        excess = self(x).sigmoid().mean() - (self.most or math.sqrt(x.shape[1])) / x.shape[1]
        return add_cost(y, self.penalty * excess.clamp(min=0))

    @torch.no_grad()
    def observe(self, x: Features, may: Bool[Tensor, "batch time"]) -> None:
        """Count a training pass and let the cut follow its scores."""
        scores = self(x).squeeze(-1).masked_fill(~may, -math.inf).flatten().sort().values
        fallen = ((self.passes - self.open) / self.ramp).clamp(0, 1)
        at = ((1 - self.share) * fallen * len(scores)).long().clamp(max=len(scores) - 1)
        level = scores.gather(0, at.unsqueeze(0)).squeeze(0).to(self.cut.dtype)
        following = torch.where(self.cut.isfinite(), torch.lerp(self.cut, level, PACE), level)
        self.cut.copy_(torch.where(fallen > 0, following, torch.full_like(level, -math.inf)))
        self.passes.add_(1)
