"""Retention of RetNet (Sun et al., 2023): linear attention with rotary positions and one fixed decay per head.

    S_t = gamma S_{t-1} + k_t v_t^T,   gamma = 1 - 2^(-5 - h) in head h
    q_t, k_t rotated to position t, k scaled by 1 / sqrt(key);  values are `expand` times as wide as keys
    y_t = W_o (norm(S_t^T q_t) * SiLU(W_g x_t)),  the norm over each head, without weights

The norm is RMSNorm with epsilon 1e-6, as in the authors' code since 5c89ffb (torchscale, 28 September 2023; LayerNorm
before). Initialisation as there since ff7c1f2, 24 November 2023: Xavier with gain 2^-2.5, of the output map 2^-1.
Departs from the paper: it also divides the scores by sums of theirs where these are above 1, which the norm undoes
up to its epsilon.
Departs from the authors' code: the frequencies of the rotation are 10,000^(-2i / key), there they end at 1 / 10,000.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._mixer import FastWeight, Features, State, head_width
from bestiary.ops import norm
from bestiary.ops.attention import rotate
from bestiary.ops.drive import Drive
from bestiary.spec import Positive


class RetNet(FastWeight):
    """S_t = gamma S_{t-1} + k_t v_t^T with rotated q and k and a fixed gamma per head."""

    family: ClassVar = "gated linear"
    variants: ClassVar = ("heads=4, expand=1",)

    def __init__(self, dim: int, *, heads: Positive = 2, expand: Positive = 2) -> None:
        super().__init__()
        key = head_width(dim, heads)
        if key % 2:
            raise ValueError(f"rotary positions need an even head width, {dim} / {heads} is odd")
        self.shape = heads, key, expand * key
        self.q, self.k = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.v, self.gate = nn.Linear(dim, expand * dim, bias=False), nn.Linear(dim, expand * dim, bias=False)
        self.out = nn.Linear(expand * dim, dim, bias=False)
        for part in (self.q, self.k, self.v, self.gate):
            nn.init.xavier_uniform_(part.weight, gain=2**-2.5)
        nn.init.xavier_uniform_(self.out.weight, gain=2**-1)

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        heads, key, _ = self.shape
        start = 0 if local is None else local
        now = torch.arange(start, start + x.shape[1], device=x.device)
        q, k, v = (project(x).unflatten(-1, (heads, -1)) for project in (self.q, self.k, self.v))
        q, k = (rotate(z.transpose(1, 2), now).transpose(1, 2) for z in (q, k))
        decay = torch.log1p(-(2.0 ** (-5 - torch.arange(heads, device=x.device, dtype=x.dtype))))
        g = decay.unsqueeze(-1).expand(*x.shape[:2], -1, -1)
        return Drive(q, k * key**-0.5, v, g), start + x.shape[1]

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.out(norm.rms(y, None, self.gate(x).unflatten(-1, y.shape[-2:]), epsilon=1e-6).flatten(2))
