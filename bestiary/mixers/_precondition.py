"""The diagonal preconditioner of delta rules (Tumma, Loo & Rus, 2026): how far to write along each key channel."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._delta import Decay
from bestiary.mixers._mixer import Features, State
from bestiary.mixers._start import Start
from bestiary.ops.drive import Drive, Key
from bestiary.ops.precision import upcast
from bestiary.ops.scan import scan


class Preconditioned(NamedTuple):
    """What is kept beside the memory."""

    local: State  # of the convolution
    curvature: Float[Tensor, "batch heads key"]  # a


class Precondition(nn.Module):
    """k_t 1.5^(-r / (1 + |r|)) with r = log(a_t + 1e-6) - c,  a_t = decay_t a_{t-1} + rate_t k_t^2, in every channel.

    decay_t is as in `Decay`, one per head, rate_t = sigmoid(w x_t), and c is learnt, one per head, from -0.2 on.
    """

    def __init__(self, dim: int, heads: int, start: Start) -> None:
        super().__init__()
        self.decay, self.rate = Decay(heads, 1, start.linear(dim, heads), start), start.linear(dim, heads)
        self.center = nn.Parameter(torch.full((heads,), -0.2))

    def drive(
        self, rule: Callable[[Features, State], tuple[Drive, State]], x: Features, local: Preconditioned | None
    ) -> tuple[Drive, Preconditioned]:
        """What drives a rule, with preconditioned keys."""
        past, curvature = (None, None) if local is None else local
        drive, past = rule(x, past)
        k, curvature = self(drive.k, x, curvature)
        return drive._replace(k=k), Preconditioned(past, curvature)

    def forward(self, k: Key, x: Features, past: Float[Tensor, "batch heads key"] | None) -> tuple[Key, Tensor]:
        """The preconditioned keys and a after the last."""
        heads, width = k.shape[2:]
        keep = self.decay(x).exp().expand(-1, -1, -1, width)
        new = self.rate(x).sigmoid().unsqueeze(-1) * k.square()
        past = k.new_zeros(len(k), heads * width) if past is None else past.flatten(1)
        curvature, last = scan(upcast(keep).flatten(2), upcast(new).flatten(2), past)
        r = (curvature + 1e-6).log().unflatten(-1, (heads, width)) - self.center.unsqueeze(-1)
        return (k * (-math.log(1.5) * r / (1 + r.abs())).exp()).to(k.dtype), last.unflatten(-1, (heads, width))
