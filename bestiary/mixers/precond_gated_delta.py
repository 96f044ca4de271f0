"""Preconditioned gated DeltaNet (Tumma, Loo & Rus, 2026): a delta rule that minds the curvature of its loss.

    a_t = c_t a_{t-1} + r_t k_t^2,   p_t = k_t 1.5^(-s / (1 + |s|)) with s = log(a_t + 1e-6) - m, in every key channel
    S_t = alpha_t S_{t-1} + beta_t p_t (v_t - alpha_t S_{t-1}^T k_t)^T,   y_t = S_t^T q_t

Channels of the key that have been written often are written less, within 1 / 1.5 and 1.5: a diagonal approximation of
least squares (the paper's ATK). c_t = exp(-C softplus(w x_t + dt')) and r_t = sigmoid(u x_t) are one per head, as is m,
which is learnt. alpha, beta, q, k, v, the output and the widths are those of `gated_delta`.
`negative` doubles beta_t. As p_t . k_t is up to 1.5, the eigenvalue of a step is then alpha_t times a number between -2
and 1, so that what is along p_t can grow.
Initialisation as in the authors' code (fla-org/flash-linear-attention, e47d5d2, 20 August 2026, contributed by them):
linear maps and convolutions N(0, 0.02), C uniform in (0, 16), dt' log-uniform in (0.001, 0.1), m = -0.2; the rest is
init="fla" of `gated_delta`. init="short" is its "short", ours, with C in (0, 1).
Departs from the paper: its models have values as wide as keys and no output gate. With unit vectors taken alike, equal
to the authors' plain recurrence to 2e-8 in float32.
"""

from typing import ClassVar, Literal

from bestiary.mixers._mixer import Features
from bestiary.mixers._precondition import Precondition, Preconditioned
from bestiary.mixers._start import FLA, SHORT
from bestiary.mixers.gated_delta import GatedDelta
from bestiary.ops.drive import Drive
from bestiary.spec import Positive


class PrecondGatedDelta(GatedDelta):
    """S_t = alpha_t S_{t-1} + beta_t p_t (v_t - alpha_t S_{t-1}^T k_t)^T, p_t the key scaled by what was written."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, key=8, value=4, conv=1, negative=True, init='short'",)

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        key: Positive | None = None,
        value: Positive | None = None,
        conv: Positive = 4,
        negative: bool = False,
        init: Literal["paper", "short"] = "paper",
    ) -> None:
        drawn, start = ("fla", FLA) if init == "paper" else ("short", SHORT)
        super().__init__(dim, heads=heads, key=key, value=value, conv=conv, negative=negative, init=drawn)
        self.precondition = Precondition(dim, heads, start)

    def drive(self, x: Features, local: Preconditioned | None) -> tuple[Drive, Preconditioned]:
        return self.precondition.drive(super().drive, x, local)
