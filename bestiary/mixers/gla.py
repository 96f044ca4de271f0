"""Gated linear attention (Yang et al., 2023, section 4): a decay per key channel that depends on the token.

    S_t = Diag(alpha_t) S_{t-1} + k_t v_t^T,   alpha_t = sigmoid(W_2 W_1 x_t + b)^(1/16),  W_1 to `rank` channels
    y_t = W_o (RMSNorm(S_t^T q_t / sqrt(key)) * SiLU(W_g x_t)),  the norm over each head

Widths follow the paper: keys half and values all of the model, split over the heads. Initialisation follows the
authors' code: Xavier with gain 2^-2.5, b PyTorch's.
Departs from the paper: as in the authors' code, RMSNorm instead of LayerNorm and no bias in the output gate.
"""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import FastWeight, Features, State, check_rank, head_width
from bestiary.mixers._norm import RMSNorm
from bestiary.ops.drive import Drive
from bestiary.spec import Positive


class GLA(FastWeight):
    """S_t = Diag(alpha_t) S_{t-1} + k_t v_t^T with alpha_t = sigmoid(low-rank map of x_t)^(1/16)."""

    family: ClassVar = "gated linear"
    variants: ClassVar = ("heads=1, key=12, rank=3",)

    def __init__(
        self, dim: int, *, heads: Positive = 2, key: Positive | None = None, rank: Positive | None = None
    ) -> None:
        super().__init__()
        value, rank = head_width(dim, heads), check_rank(dim, min(16, dim) if rank is None else rank)
        self.shape = heads, max(1, value // 2) if key is None else key, value
        keys = heads * self.shape[1]
        self.q, self.k, self.v = (nn.Linear(dim, width, bias=False) for width in (keys, keys, dim))
        self.low, self.decay = nn.Linear(dim, rank, bias=False), nn.Linear(rank, keys)
        self.gate, self.norm = nn.Linear(dim, dim, bias=False), RMSNorm(value, eps=1e-5)
        self.out = nn.Linear(dim, dim, bias=False)
        for part in (self.q, self.k, self.v, self.low, self.decay, self.gate, self.out):
            nn.init.xavier_uniform_(part.weight, gain=2**-2.5)

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        g = F.logsigmoid(self.decay(self.low(x))) / 16
        q, k, v, g = (z.unflatten(-1, (self.shape[0], -1)) for z in (self.q(x), self.k(x), self.v(x), g))
        return Drive(q * q.shape[-1] ** -0.5, k, v, g), None

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.out(self.norm(y).flatten(2) * F.silu(self.gate(x)))
