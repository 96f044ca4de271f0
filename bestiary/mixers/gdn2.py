"""Gated DeltaNet-2 (Hatamizadeh, Choi & Kautz, 2026): what is erased and what is written have gates of their own.

    q, k, v = SiLU(short convolution(W x)),  unit q_t and k_t,  b_t = sigmoid(W_b x_t),  w_t = sigmoid(W_w x_t)
    alpha_t = exp(-A softplus(W2 W1 x_t + dt)) in every channel,  output = W_o (RMSNorm(S_t^T q_t) * sigmoid(U2 U1 x))

Equal constant gates b and w make it Kimi Delta Attention. Low ranks are a head's width. Initialisation as in
flash-linear-attention's layer: linear maps N(0, 0.02), A uniform in (1, 16), dt log-uniform in (0.001, 0.1).
Departs from the paper: this is the attention alone, which the paper also alternates with sliding windows.
Convolutions are drawn as PyTorch draws them; queries are not scaled by 1 / sqrt(key), which the norm undoes; the
output gate has no bias, as in Kimi Delta Attention.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bestiary.mixers._delta import Decay, GatedOutput, Streams, low_rank
from bestiary.mixers._mixer import FastWeight, Features, State, head_width, linear, normalize
from bestiary.ops.drive import Drive
from bestiary.spec import Positive


class GDN2(FastWeight):
    """S_t = (I - k_t (b_t * k_t)^T) Diag(alpha_t) S_{t-1} + k_t (w_t * v_t)^T, every gate per channel."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, key=8, value=4, conv=1",)

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        key: Positive | None = None,
        value: Positive | None = None,
        conv: Positive = 4,
    ) -> None:
        super().__init__()
        key = head_width(dim, heads) if key is None else key
        value = key if value is None else value
        self.shape = heads, key, value
        self.streams = Streams(dim, heads, (key, key, value), conv)
        self.erase, self.write = linear(dim, heads * key), linear(dim, heads * value)
        self.decay = Decay(heads, key, low_rank(dim, value, heads * key), low=1.0)
        self.answer = GatedOutput(dim, heads, value, low_rank(dim, value, heads * value))

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        (q, k, v), local = self.streams(x, local)
        b, w = (gate(x).sigmoid().unflatten(-1, (self.shape[0], -1)) for gate in (self.erase, self.write))
        q, k, g = normalize(q), normalize(k), self.decay(x)
        return Drive(q, k, w * v, g, rewrite=(-torch.ones_like(k[..., :1]), g.exp() * b * k)), local

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.answer(y, x)
