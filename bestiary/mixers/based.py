"""Linear attention of Based (Arora et al., 2024): a second-order Taylor expansion of softmax's exponential.

    y_t = sum_{i<=t} phi(q_t).phi(k_i) v_i / sum_{i<=t} phi(q_t).phi(k_i),   phi(q).phi(k) = 1 + s + s^2 / 2,
    s = q.k / sqrt(features)

phi(x) = [1, x, x_i x_j] holds each product once, so the state has no double entry: 1 + f + f (f + 1) / 2 features
by value + 1 numbers per head, the last column being the normaliser. Weights are drawn N(0, 0.02).
Departs from the paper: this is its linear attention alone; the architecture alternates it with sliding windows
and short convolutions, which a pattern says: "base_conv, based". From the authors' language model: the output map is
not scaled down by the number of layers, nor is it in Zoology's copy.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bestiary.mixers._mixer import FastWeight, Features, State, head_width, linear
from bestiary.ops.drive import Drive
from bestiary.spec import Positive


class Based(FastWeight):
    """S_t = S_{t-1} + phi(k_t) [v_t, 1]^T, read by phi(q_t) and divided by its last column."""

    family: ClassVar = "linear"
    variants: ClassVar = ("heads=2, features=8",)

    pairs: Tensor  # which channels each second-order feature multiplies

    def __init__(self, dim: int, *, heads: Positive = 1, features: Positive = 16) -> None:
        super().__init__()
        value = head_width(dim, heads)
        self.shape = heads, 1 + features + features * (features + 1) // 2, value + 1
        self.q, self.k, self.v = (linear(dim, heads * width) for width in (features, features, value))
        self.out = linear(dim, dim)
        self.register_buffer("pairs", torch.triu_indices(features, features), persistent=False)

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        q, k, v = (project(x).unflatten(-1, (self.shape[0], -1)) for project in (self.q, self.k, self.v))
        return Drive(self.taylor(q), self.taylor(k), F.pad(v, (0, 1), value=1.0)), None

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.out((y[..., :-1] / y[..., -1:]).flatten(2))

    def taylor(self, x: Float[Tensor, "batch time heads features"]) -> Tensor:
        """phi(x): 1, the channels and each product of two of them once."""
        x = x * x.shape[-1] ** -0.25
        first, second = self.pairs
        scale = torch.where(first == second, 0.5, 1.0).to(x.dtype).sqrt()
        products = x[..., first] * x[..., second] * scale
        return torch.cat([torch.ones_like(x[..., :1]), x, products], dim=-1)
