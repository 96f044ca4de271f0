"""Kimi Delta Attention (Kimi Team, 2025): the delta rule on a memory whose keys each decay at a rate of their own.

    q, k, v = SiLU(short convolution(W x)),  unit k_t, |q_t| = 1 / sqrt(key),  beta_t = sigmoid(w x_t)
    alpha_t = exp(-A softplus(W2 W1 x_t + dt)) in every channel
    output = W_o (RMSNorm(S_t^T q_t) * sigmoid(U2 U1 x + c))

`negative` doubles beta_t, so that the eigenvalue along k_t lies in (-1, 1) (Grazzi et al., 2024).
Low ranks are a head's width. Initialisation as in the authors' layer and model in flash-linear-attention since b5d48b7,
27 October 2025: linear maps and convolutions N(0, 0.02), A uniform in (1, 16), dt log-uniform in (0.001, 0.1), c zero.
Departs from the paper: this is the attention alone; the model puts one layer of softmax attention behind every
three, which a pattern says. c is in the authors' layer, not in the weights that they released.
"""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from bestiary.mixers._delta import Decay, GatedOutput, Streams, low_rank, unit_queries
from bestiary.mixers._mixer import FastWeight, Features, State, head_width
from bestiary.mixers._start import FLA
from bestiary.ops.drive import Drive
from bestiary.ops.norm import normalize
from bestiary.spec import Positive

START = FLA._replace(rates=(1.0, 16.0))


class KDA(FastWeight):
    """S_t = (I - beta_t k_t k_t^T) Diag(alpha_t) S_{t-1} + beta_t k_t v_t^T, alpha per key channel, beta per head."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, key=8, value=4, conv=1, negative=True",)

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        key: Positive | None = None,
        value: Positive | None = None,
        conv: Positive = 4,
        negative: bool = False,
    ) -> None:
        super().__init__()
        key = head_width(dim, heads) if key is None else key
        value = key if value is None else value
        self.shape, self.most = (heads, key, value), 2 if negative else 1
        self.streams = Streams(dim, heads, (key, key, value), conv, START)
        self.beta = START.linear(dim, heads)
        self.decay = Decay(heads, key, low_rank(dim, value, heads * key, START), START)
        gate = low_rank(dim, value, heads * value, START, bias=True)
        self.answer = GatedOutput(dim, heads, value, gate, start=START)

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        (q, k, v), local = self.streams(x, local)
        q, k, beta, g = unit_queries(q), normalize(k), self.most * self.beta(x).sigmoid().unsqueeze(-1), self.decay(x)
        return Drive(q, k, beta * v, g, rewrite=(-beta, g.exp() * k)), local

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.answer(y, x)
