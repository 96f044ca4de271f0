"""ReBased (Aksenov et al., 2024): linear attention whose weight is the square of a learnt affine similarity.

    y_t = sum_{i<=t} w_ti v_i / (sum_{i<=t} w_ti + 1e-12),   w_ti = (q_t . k_i)^2 / features,
    q, k = gamma * norm(W x) + beta,  one gamma and beta for queries, one for keys

Without `norm`, `scale` or `shift` q and k lack the norm, gamma or beta (the paper's ablation, its table 1).
Squares let a weight reach zero, which Based's Taylor features cannot. A square of f terms is a dot product of the
f (f + 1) / 2 products of pairs, so the state holds each once. The norm runs over all heads together, as in the
authors' code; weights are drawn N(0, 0.02).
Departs from the paper: this is its linear attention alone; the architecture alternates it with short convolutions,
which a pattern says: "base_conv, rebased".
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import FastWeight, Features, State, head_width, linear
from bestiary.mixers._norm import check_normed
from bestiary.ops.drive import Drive
from bestiary.spec import Positive


class ReBased(FastWeight):
    """S_t = S_{t-1} + phi(k_t) [v_t, 1]^T, phi the products of pairs of normalised channels."""

    family: ClassVar = "linear"
    variants: ClassVar = ("heads=2, features=7", "norm=False, shift=False", "norm=False, scale=False, shift=False")

    pairs: Tensor  # which channels each feature multiplies

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 1,
        features: Positive = 16,
        norm: bool = True,
        scale: bool = True,
        shift: bool = True,
    ) -> None:
        super().__init__()
        value = head_width(dim, heads)
        if norm:
            check_normed(heads * features, f"heads={heads}, features={features}")
        self.shape = heads, features * (features + 1) // 2, value + 1
        self.q, self.k, self.v = (linear(dim, heads * width) for width in (features, features, value))
        self.norm_q, self.norm_k = (_Affine(heads * features, norm, scale, shift) for _ in range(2))
        self.out = linear(dim, dim)
        self.register_buffer("pairs", torch.triu_indices(features, features), persistent=False)

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(x)), self.v(x)
        q, k, v = (z.unflatten(-1, (self.shape[0], -1)) for z in (q, k, v))
        return Drive(self.products(q), self.products(k), F.pad(v, (0, 1), value=1.0)), None

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.out((y[..., :-1] / (y[..., -1:] + 1e-12)).flatten(2))

    def products(self, x: Float[Tensor, "batch time heads features"]) -> Tensor:
        """Each product of two channels once, scaled so that dot products are squares."""
        first, second = self.pairs
        scale = (torch.where(first == second, 1.0, 2.0).to(x.dtype) / x.shape[-1]).sqrt()
        return x[..., first] * x[..., second] * scale


class _Affine(nn.Module):
    """gamma * norm(x) + beta, with any of the three left out."""

    def __init__(self, width: int, norm: bool, scale: bool, shift: bool) -> None:
        super().__init__()
        self.norm = norm
        self.weight = nn.Parameter(torch.ones(width)) if scale else None
        self.bias = nn.Parameter(torch.zeros(width)) if shift else None

    def forward(self, x: Features) -> Features:
        if self.norm:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias)
        x = x if self.weight is None else self.weight * x
        return x if self.bias is None else x + self.bias
