"""Linear attention (Katharopoulos et al., 2020), with the feature maps compared by Based (Arora et al., 2024).

    y_t = sum_{i<=t} phi(q_t).phi(k_i) v_i / (sum_{i<=t} phi(q_t).phi(k_i) + 1e-12)

    elu         elu(x) + 1, the original
    relu        max(x, 0)
    square      x^2
    identity    x, whose normaliser may vanish: better without (normalise=False)
    polynomial  ((A x)^2 + B x^2) / sqrt(2), A and B learnt and shared by queries, keys and heads; B has both signs, so
                that the normaliser may vanish here too: as drawn, four heads of width 16 gave outputs up to 56
    cosformer   max(x, 0) times cos and sin of (pi / 2) t / horizon, so that a weight falls with the cosine of its
                age; refuses to read on beyond the horizon (Qin et al., 2022)
    performer   exp(w.z - |z|^2 / 2) / sqrt(samples) with z = x / features^(1/4) and fixed random w, orthogonal in
                blocks: softmax's weights on average (Choromanski et al., 2021)

The normaliser is one more column of values. Maps are drawn N(0, 0.02), A and B N(0, 1 / sqrt(features)).
Departs from the paper: no biases; the small constant keeps the normaliser from 0 alone, the authors' code has 1e-6.
Departs from the study: cosformer's horizon is fixed (there it is the length of the batch), performer's w have the
lengths of normal vectors, as FAVOR+ needs, and no maximum is taken out of the exponents.
"""

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import FastWeight, Features, State, head_width, linear
from bestiary.ops.drive import Drive
from bestiary.ops.precision import upcast_type
from bestiary.spec import Positive

Map = Literal["elu", "relu", "square", "cosformer", "performer", "polynomial", "identity"]


class LinearAttention(FastWeight):
    """S_t = S_{t-1} + phi(k_t) [v_t, 1]^T, read by phi(q_t) and divided by its last column."""

    family: ClassVar = "linear"
    variants: ClassVar = (
        "feature='cosformer', heads=2, features=8",
        "feature='performer', features=8, samples=24",
        "feature='polynomial', normalise=False, heads=2",
    )

    directions: Tensor  # of the random features

    def __init__(
        self,
        dim: int,
        *,
        feature: Map = "elu",
        heads: Positive = 1,
        features: Positive | None = None,
        normalise: bool = True,
        horizon: Positive = 2048,
        samples: Positive = 256,
    ) -> None:
        super().__init__()
        if horizon != 2048 and feature != "cosformer":
            raise ValueError(f"horizon={horizon} with feature={feature!r} changes nothing: it is of 'cosformer'")
        if samples != 256 and feature != "performer":
            raise ValueError(f"samples={samples} with feature={feature!r} changes nothing: they are of 'performer'")
        value = head_width(dim, heads)
        features = value if features is None else features
        self.feature: Map = feature
        self.normalise, self.horizon = normalise, horizon
        expanded = {"cosformer": 2 * features, "performer": samples}.get(feature, features)
        self.shape = heads, expanded, value + normalise
        self.q, self.k, self.v = (linear(dim, heads * width) for width in (features, features, value))
        self.out = linear(dim, dim)
        if feature == "polynomial":
            self.inner, self.outer = (linear(features, features, std=features**-0.5) for _ in range(2))
        if feature == "performer":
            self.register_buffer("directions", random_directions(samples, features))

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        q, k, v = (project(x).unflatten(-1, (self.shape[0], -1)) for project in (self.q, self.k, self.v))
        time = 0 if local is None else local
        q, k = self.phi(q, time), self.phi(k, time)
        drive = Drive(q, k, F.pad(v, (0, 1), value=1.0) if self.normalise else v)
        return drive, time + x.shape[1] if self.feature == "cosformer" else None

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.out((y[..., :-1] / (y[..., -1:] + 1e-12) if self.normalise else y).flatten(2))

    def phi(self, x: Float[Tensor, "batch time heads features"], start: int) -> Tensor:
        """Features of queries or keys, the first of which stands at position `start`."""
        match self.feature:
            case "elu":
                return F.elu(x) + 1
            case "relu":
                return F.relu(x)
            case "square":
                return x.square()
            case "identity":
                return x
            case "polynomial":
                return (self.inner(x).square() + self.outer(x.square())) / math.sqrt(2)
            case "cosformer":
                return self.cosine_features(F.relu(x), start)
            case "performer":
                z = x * x.shape[-1] ** -0.25
                exponents = z @ self.directions.T - z.square().sum(-1, keepdim=True) / 2
                return exponents.exp() / math.sqrt(len(self.directions))

    def cosine_features(self, x: Float[Tensor, "batch time heads features"], start: int) -> Tensor:
        """x times cos and sin of its position. Raises ValueError beyond the horizon."""
        end = start + x.shape[1]
        if end > self.horizon:
            raise ValueError(f"cosformer's horizon is {self.horizon} positions, the input needs {end}")
        where = torch.arange(start, end, device=x.device, dtype=upcast_type(x))[:, None, None]
        angle = where * (math.pi / 2 / self.horizon)
        return torch.cat([x * angle.cos().to(x.dtype), x * angle.sin().to(x.dtype)], dim=-1)


def random_directions(count: int, width: int) -> Float[Tensor, "{count} {width}"]:
    """Random vectors as long as normal ones, orthogonal within each block of `width`."""
    blocks = [nn.init.orthogonal_(torch.empty(width, width)) for _ in range(math.ceil(count / width))]
    return torch.cat(blocks)[:count] * torch.randn(count, width).norm(dim=1, keepdim=True)
