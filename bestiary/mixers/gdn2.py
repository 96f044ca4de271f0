"""Gated DeltaNet-2 (Hatamizadeh, Choi & Kautz, 2026): what is erased and what is written have gates of their own.

    q, k, v = SiLU(short convolution(W x)),  unit k_t, |q_t| = 1 / sqrt(key)
    b_t = sigmoid(W_b x_t),  w_t = sigmoid(W_w x_t)
    alpha_t = exp(-A softplus(W2 W1 x_t + dt)) in every channel
    output = W_o (RMSNorm(S_t^T q_t) * sigmoid(U2 U1 x + c))

Equal constant gates b and w make it Kimi Delta Attention. Low ranks are a head's width. A is uniform in (1, 16), dt
log-uniform in (0.001, 0.1), c starts at zero. Linear maps, by `init`:

    "paper"  Xavier with gain 2^-2.5: the authors' code (NVlabs/GatedDeltaNet-2, 21 May 2026, read in a public copy)
    "fla"    N(0, 0.02), convolutions too: flash-linear-attention since dd7867d, 3 June 2026

Departs from the paper: this is the attention alone, which the paper also alternates with sliding windows.
Departs from the authors' code: their layer's output gate is SiLU; flash-linear-attention's is the sigmoid.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bestiary.mixers._delta import Decay, GatedOutput, Streams, low_rank, unit_queries
from bestiary.mixers._mixer import FastWeight, Features, State, head_width
from bestiary.mixers._start import FLA, XAVIER
from bestiary.ops.drive import Drive
from bestiary.ops.norm import normalize
from bestiary.spec import Positive

RATES = (1.0, 16.0)
STARTS = {"paper": XAVIER._replace(rates=RATES), "fla": FLA._replace(rates=RATES)}


class GDN2(FastWeight):
    """S_t = (I - k_t (b_t * k_t)^T) Diag(alpha_t) S_{t-1} + k_t (w_t * v_t)^T, every gate per channel."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, key=8, value=4, conv=1, init='fla'",)

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        key: Positive | None = None,
        value: Positive | None = None,
        conv: Positive = 4,
        init: Literal["paper", "fla"] = "paper",
    ) -> None:
        super().__init__()
        key = head_width(dim, heads) if key is None else key
        value = key if value is None else value
        self.shape = heads, key, value
        start = STARTS[init]
        self.streams = Streams(dim, heads, (key, key, value), conv, start)
        self.erase, self.write = start.linear(dim, heads * key), start.linear(dim, heads * value)
        self.decay = Decay(heads, key, low_rank(dim, value, heads * key, start), start)
        gate = low_rank(dim, value, heads * value, start, bias=True)
        self.answer = GatedOutput(dim, heads, value, gate, start=start)

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        (q, k, v), local = self.streams(x, local)
        b, w = (gate(x).sigmoid().unflatten(-1, (self.shape[0], -1)) for gate in (self.erase, self.write))
        q, k, g = unit_queries(q), normalize(k), self.decay(x)
        return Drive(q, k, w * v, g, rewrite=(-torch.ones_like(k[..., :1]), g.exp() * b * k)), local

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.answer(y, x)
