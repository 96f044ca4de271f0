"""Raven (Afzal et al., 2026, goombalab/raven): slots that a router writes into, and the others stay as they were.

    p_t = sigmoid(W_r x_t),   r_t = p_t on its `top` largest entries, divided by their sum, and 0 elsewhere
    a_t = exp(f_t r_t),   f_t = -A softplus(w x_t + dt),   one entry of a for each slot, 1 where r is 0
    K_t = K_{t-1} Diag(a_t) + k_t (1 - a_t)^T,   V_t = Diag(a_t) V_{t-1} + (1 - a_t) v_t^T
    y_t = W_o RMSNorm(SiLU(V_t^T softmax(K_t^T q_t))),   q, k = RMSNorm(SiLU(W x)),   v = SiLU(W x)

So it is gated slot attention (`gsa`) whose gate is sparse; the norm of q and k is that of a head, the last one that of
all heads together. There are as many slots as a head has channels unless said otherwise (as in the authors' layer),
and half of them are written (theirs: 32 of 64). Initialisation as in the authors' code (afc329f): maps N(0, 0.02), A
uniform in (0, 16), dt log-uniform in (0.001, 0.1).
Equal to the layer in flash-linear-attention (bc3b101), its kernels replaced by loops, to 1.2e-6 in float32, with
copied weights.

Departs from the paper: no noise on the router in training, which is an option there.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bestiary.mixers._delta import Decay
from bestiary.mixers._mixer import Features, linear
from bestiary.mixers._norm import RMSNorm
from bestiary.mixers._start import NORMAL
from bestiary.mixers.gsa import GSA, slot_scores
from bestiary.ops.drive import Drive, Value
from bestiary.ops.recurrence import run
from bestiary.spec import Positive


class Raven(GSA):
    """Slots hold decaying sums of keys and of values; a token is written into `top` of them, the others stay."""

    family: ClassVar = "gated linear"
    variants: ClassVar = ("heads=4, slots=5, top=2",)

    def __init__(
        self, dim: int, *, heads: Positive = 2, slots: Positive | None = None, top: Positive | None = None
    ) -> None:
        super().__init__(dim, heads=heads, slots=slots, init="fla")
        self.top = max(1, self.slots // 2) if top is None else top
        if self.top > self.slots:
            raise ValueError(f"raven(top={top}): there are {self.slots} slots to choose from")
        del self.forget
        self.route, self.decay = linear(dim, heads * self.slots), Decay(heads, 1, linear(dim, heads), NORMAL)
        self.q_norm, self.k_norm = RMSNorm(dim // heads, eps=1e-5), RMSNorm(dim // heads, eps=1e-5)

    def recall(self, x: Features, state: GSA.Memory) -> tuple[Value, GSA.Memory]:
        q, k, v = (F.silu(project(x)).unflatten(-1, (self.heads, -1)) for project in (self.q, self.k, self.v))
        q, k, g = self.q_norm(q), self.k_norm(k), self.decay(x) * self.routing(x)
        write = -torch.expm1(g)
        scores, keys = slot_scores(q, k, write, g, state.keys)
        y, values = run(Drive(scores.softmax(-1), write, v, g), state.values)
        return y, self.Memory(keys, values)

    def routing(self, x: Features) -> Float[Tensor, "batch time heads slots"]:
        """r: how much of each slot is written."""
        open = self.route(x).unflatten(-1, (self.heads, -1)).sigmoid()
        best, places = open.topk(self.top, dim=-1)
        return torch.zeros_like(open).scatter(-1, places, best / (best.sum(-1, keepdim=True) + 1e-9))
