"""Lightning attention (Qin et al., 2024), as a layer of MiniMax-01 (2025): linear attention with fixed decays.

    S_t = e^-s S_{t-1} + k_t v_t^T,   s = 2^(-8 h / heads) (1 - layer / (layers - 1)),  h = 1 ... heads
    q, k, v = SiLU(W x),   y_t = W_o (RMSNorm(S_t^T q_t) * sigmoid(W_g x_t)),  the norm over all heads together

In the layer number `layer` of `layers`, so the last one hardly forgets; 1e-5 keeps both parts of the factor from
zero, as in the published model. Weights are drawn N(0, 0.02). Without positions other than the decay.
Public copies of the code interpolate where heads are no power of two, as ALiBi does; here the formula holds for any
number of heads.
Departs from the paper: nothing known; its subject is a fast way to compute this in blocks, as any recurrence here.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bestiary.mixers._mixer import FastWeight, Features, State, head_width, linear
from bestiary.mixers._norm import RMSNorm
from bestiary.ops.drive import Drive
from bestiary.spec import Positive


class Lightning(FastWeight):
    """S_t = e^-s S_{t-1} + k_t v_t^T with SiLU of q, k, v and a fixed s per head and layer."""

    family: ClassVar = "gated linear"
    variants: ClassVar = ("heads=4, layer=1, layers=3",)

    def __init__(self, dim: int, *, heads: Positive = 2, layer: int = 0, layers: Positive = 12) -> None:
        super().__init__()
        if not 0 <= layer < layers:
            raise ValueError(f"lightning(layer={layer}): there are layers 0 to {layers - 1}")
        width = head_width(dim, heads)
        self.shape, self.strength = (heads, width, width), 1 - layer / (layers - 1 + 1e-5) + 1e-5
        self.q, self.k, self.v, self.gate, self.out = (linear(dim, dim) for _ in range(5))
        self.norm = RMSNorm(dim, eps=1e-6)

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        heads = self.shape[0]
        q, k, v = (F.silu(project(x)).unflatten(-1, (heads, -1)) for project in (self.q, self.k, self.v))
        rates = 2.0 ** (-8 / heads * torch.arange(1, heads + 1, device=x.device, dtype=x.dtype)) * self.strength
        return Drive(q, k, v, -rates.unsqueeze(-1).expand(*x.shape[:2], -1, -1)), None

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.out(self.norm(y.flatten(2), self.gate(x), "sigmoid"))
