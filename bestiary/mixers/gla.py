"""Gated linear attention (Yang et al., 2023, section 4): a decay per key channel that depends on the token.

    S_t = Diag(alpha_t) S_{t-1} + k_t v_t^T,   alpha_t = sigmoid(W_2 W_1 x_t + b)^(1/16),  W_1 to `rank` channels
    y_t = W_o (RMSNorm(S_t^T q_t / sqrt(key)) * SiLU(W_g x_t)),  the norm over each head

Widths follow the paper: keys half and values all of the model, split over the heads. With `rotary`, q_t and k_t are
turned to position t (Su et al., 2021). b starts at zero. Linear maps, by `init`:

    "paper"    Xavier with gain 2^-2.5 for W_1, W_2 and the maps of q and k, N(0, 0.02) for the others:
               berlino/gated_linear_attention (addabe1, 5 January 2024)
    "fla2024"  Xavier with gain 2^-2.5 for all: flash-linear-attention, the authors' library, to 4 March 2025
    "fla"      N(0, 0.02) for all: the same library since dc861e3, 24 June 2025; from 4 March (d30c083) W_o was
               PyTorch's draw over sqrt(2 layers)

Departs from the paper, as flash-linear-attention does: RMSNorm instead of LayerNorm, no bias in the output gate, and
1 / sqrt(key) on q, where the first code has 1 / sqrt(value) on k.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bestiary.mixers._mixer import FastWeight, Features, State, check_rank, head_width
from bestiary.mixers._norm import RMSNorm
from bestiary.mixers._start import FLA, NORMAL, XAVIER
from bestiary.ops.attention import rotate
from bestiary.ops.drive import Drive
from bestiary.spec import Positive

STARTS = {"paper": (XAVIER, NORMAL), "fla2024": (XAVIER, XAVIER), "fla": (FLA, FLA)}


class GLA(FastWeight):
    """S_t = Diag(alpha_t) S_{t-1} + k_t v_t^T with alpha_t = sigmoid(low-rank map of x_t)^(1/16)."""

    family: ClassVar = "gated linear"
    variants: ClassVar = ("heads=1, key=12, rank=3, rotary=True, init='fla2024'",)

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        key: Positive | None = None,
        rank: Positive | None = None,
        rotary: bool = False,
        init: Literal["paper", "fla2024", "fla"] = "paper",
    ) -> None:
        super().__init__()
        value, rank = head_width(dim, heads), check_rank(dim, min(16, dim) if rank is None else rank)
        self.shape = heads, max(1, value // 2) if key is None else key, value
        if rotary and self.shape[1] % 2:
            raise ValueError(f"rotary positions need an even width of keys, {self.shape[1]} is odd")
        keys, self.rotary = heads * self.shape[1], rotary
        start, rest = STARTS[init]
        self.q, self.k, self.v = start.linear(dim, keys), start.linear(dim, keys), rest.linear(dim, dim)
        self.low, self.decay = start.linear(dim, rank), start.linear(rank, keys, bias=True)
        self.gate, self.norm, self.out = rest.linear(dim, dim), RMSNorm(value, eps=1e-5), rest.linear(dim, dim)

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        g = F.logsigmoid(self.decay(self.low(x))) / 16
        q, k, v, g = (z.unflatten(-1, (self.shape[0], -1)) for z in (self.q(x), self.k(x), self.v(x), g))
        if self.rotary:
            start = 0 if local is None else local
            local = start + x.shape[1]
            now = torch.arange(start, local, device=x.device)
            q, k = (rotate(z.transpose(1, 2), now).transpose(1, 2) for z in (q, k))
        return Drive(q * q.shape[-1] ** -0.5, k, v, g), local

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.out(self.norm(y, self.gate(x).unflatten(-1, y.shape[-2:])).flatten(2))
