"""HGRN2 (Qin et al., 2024): a gated linear RNN whose state is a matrix, its input gate what the forget gate leaves.

    f_t = lower + (1 - lower) sigmoid(W_f x_t),   S_t = Diag(f_t) S_{t-1} + (1 - f_t) i_t^T,   i_t = W_i x_t
    y_t = W_o norm(S_t^T SiLU(W_q x_t)),  the RMS norm over all heads together and without weights

A head's width is the paper's expansion, 128 there. Weights are drawn N(0, 0.02), as in the authors' language model.
Departs from the paper: the lower bound is fixed, one number; there one vector per layer, growing with depth from 0,
is learnt for all layers together and starts at layer / layers, which a pattern can say layer by layer.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bestiary.mixers._mixer import FastWeight, Features, State, head_width, linear
from bestiary.ops.drive import Drive
from bestiary.ops.precision import upcast
from bestiary.spec import Positive


class HGRN2(FastWeight):
    """S_t = Diag(f_t) S_{t-1} + (1 - f_t) i_t^T, f_t in (lower, 1) depending on the token."""

    family: ClassVar = "gated linear"
    variants: ClassVar = ("heads=4, lower=0.5",)

    def __init__(self, dim: int, *, heads: Positive = 1, lower: float = 0.0) -> None:
        super().__init__()
        if not 0 <= lower < 1:
            raise ValueError(f"hgrn2(lower={lower}): a lower bound of a forget gate lies in [0, 1)")
        width = head_width(dim, heads)
        self.shape, self.lower = (heads, width, width), lower
        self.q, self.f, self.i, self.out = (linear(dim, dim) for _ in range(4))

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        f = upcast(self.f(x))
        g = torch.log(self.lower + (1 - self.lower) * f.sigmoid()) if self.lower else F.logsigmoid(f)
        q, k = F.silu(self.q(x)), (1 - self.lower) * (-f).sigmoid()
        q, k, i, g = (z.unflatten(-1, (self.shape[0], -1)) for z in (q, k, self.i(x), g))
        return Drive(q, k, i, g), None

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.out(F.rms_norm(y.flatten(2), x.shape[-1:], eps=1e-6))
