"""Preconditioned KDA (Tumma, Loo & Rus, 2026): Kimi Delta Attention that minds the curvature of its loss.

    S_t = Diag(alpha_t) S_{t-1} + beta_t p_t (v_t - S_{t-1}^T Diag(alpha_t) k_t)^T,   y_t = S_t^T q_t

p_t is the preconditioned key of `precond_gated_delta`, whose decay is one per head; the rest is `kda`. `negative`
doubles beta_t: without decay the eigenvalue of a step is then between -2 and 1, and what is along p_t can grow.
Initialisation as in the authors' code (fla-org/flash-linear-attention, e47d5d2, 20 August 2026, contributed by them):
that of `kda`, for the preconditioner too, with m = -0.2. In their training code for the paper the rates of decay
started in (0, 16).
Departs from the paper: nothing known.
"""

from typing import ClassVar

from bestiary.mixers._mixer import Features
from bestiary.mixers._precondition import Precondition, Preconditioned
from bestiary.mixers.kda import KDA, START
from bestiary.ops.drive import Drive
from bestiary.spec import Positive


class PrecondKDA(KDA):
    """S_t = Diag(alpha_t) S_{t-1} + beta_t p_t (v_t - S_{t-1}^T Diag(alpha_t) k_t)^T, p_t a preconditioned key."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, key=8, value=4, conv=1, negative=True",)

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        key: Positive | None = None,
        value: Positive | None = None,
        conv: Positive = 4,
        negative: bool = False,
    ) -> None:
        super().__init__(dim, heads=heads, key=key, value=value, conv=conv, negative=negative)
        self.precondition = Precondition(dim, heads, START)

    def drive(self, x: Features, local: Preconditioned | None) -> tuple[Drive, Preconditioned]:
        return self.precondition.drive(super().drive, x, local)
