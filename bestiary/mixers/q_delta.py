"""Q-Delta (Park, Kim & Park, 2026): a gated delta rule whose error is read by the key and by the query together.

    S_t = alpha_t S_{t-1} + beta_t k_t (v_t - alpha_t S_{t-1}^T (k_t + lambda_t q_t))^T,   y_t = S_t^T q_t / sqrt(key)
    alpha_t = exp(-A softplus(w x_t + dt)),  beta_t = sigmoid(u x_t),  lambda_t = sigmoid(l x_t - 0.9)
    q, k, v = SiLU(short convolution(W x)),  unit q_t and k_t,  output = W_o (RMSNorm(y) * SiLU(W_g x))

With lambda_t = 0 it is gated DeltaNet. `negative` doubles beta_t and lambda_t, as the authors' code does. The
eigenvalue of a step, alpha_t (1 - beta_t k_t . (k_t + lambda_t q_t)), is then between -5 and 3 times alpha_t, where it
is between -1 and 1 without: the memory can grow. Keys are 0.75 and values 1.5 of the model wide, split over the heads.
Initialisation as in the authors' model (psmiz/Q-Delta, 4afe5b5,
13 July 2026): linear maps and convolutions N(0, 0.02), A uniform in (0, 16), dt log-uniform in (0.001, 0.1).
init="short" is that of `gated_delta`, ours, for a few hundred steps.
Departs from the paper: nothing known. The 0.9 is that of the authors' code, where it was 0.8 until that commit. Its
kernel for single tokens leaves lambda out; its layer does not call it by default.
"""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from bestiary.mixers._delta import Decay, GatedOutput, Streams
from bestiary.mixers._mixer import FastWeight, Features, State
from bestiary.mixers._start import FLA, SHORT
from bestiary.ops.drive import Drive
from bestiary.ops.norm import normalize
from bestiary.spec import Positive

STARTS = {"paper": FLA, "short": SHORT}


class QDelta(FastWeight):
    """S_t = alpha_t S_{t-1} + beta_t k_t (v_t - alpha_t S_{t-1}^T (k_t + lambda_t q_t))^T, read by q_t."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, key=8, value=4, conv=1, negative=True, init='short'",)

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        key: Positive | None = None,
        value: Positive | None = None,
        conv: Positive = 4,
        negative: bool = False,
        init: Literal["paper", "short"] = "paper",
    ) -> None:
        super().__init__()
        key = max(1, 3 * dim // (4 * heads)) if key is None else key
        value = 2 * key if value is None else value
        self.shape, self.most = (heads, key, value), 2 if negative else 1
        start = STARTS[init]
        self.streams = Streams(dim, heads, (key, key, value), conv, start)
        self.beta, self.share = start.linear(dim, heads), start.linear(dim, heads)
        self.decay = Decay(heads, 1, start.linear(dim, heads), start)
        self.answer = GatedOutput(dim, heads, value, start.linear(dim, heads * value), "silu", start)

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        (q, k, v), local = self.streams(x, local)
        q, k, g = normalize(q), normalize(k), self.decay(x)
        beta, share = (self.most * z.sigmoid().unsqueeze(-1) for z in (self.beta(x), self.share(x) - 0.9))
        return Drive(q * q.shape[-1] ** -0.5, k, beta * v, g, rewrite=(-beta, g.exp() * (k + share * q))), local

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.answer(y, x)
