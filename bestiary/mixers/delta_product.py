"""DeltaProduct (Siems et al., 2025): several steps of the delta rule for each token.

    S <- (I - beta_ti k_ti k_ti^T) S + beta_ti k_ti v_ti^T   for i = 1 ... steps, after S <- alpha_t S if it forgets
    q, k_i, v_i = SiLU(short convolution(W x)),  unit k_i, |q| = 1 / sqrt(key),  beta_ti = 2 sigmoid(w_i x_t)
    alpha_t = exp(-A softplus(U x_t + dt)),  output = W_o (RMSNorm(S_t^T q_t) * SiLU(W_g x))

`forget=True` is the paper's Gated DeltaProduct, with one alpha for each head; decay="channel" gives every channel of
the keys its own, as Kimi Delta Attention does, and is not the paper's. negative=False halves beta_ti, so that no
eigenvalue of a step is negative. Keys are 0.75 and values 1.5 of the model wide, split over the heads,
as in Gated DeltaNet. A is uniform in (0, 16), dt log-uniform in (0.001, 0.1). Linear maps, by `init`:

    "paper"  Xavier with gain 2^-2.5, each step's maps by themselves: automl/DeltaProduct (340683f, 4 June 2025)
    "fla"    N(0, 0.02), convolutions too: flash-linear-attention's layer as its model calls it
    "short"  N(0, 1 / sqrt(inputs)) and A uniform in (0, 1): ours, for a few hundred steps, as in Gated DeltaNet

Departs from the paper: nothing known.
"""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._delta import Decay, GatedOutput, Streams, unit_queries
from bestiary.mixers._mixer import Chosen, FastWeight, Features, State, Where, take
from bestiary.mixers._start import FLA, SHORT, XAVIER
from bestiary.ops.drive import Drive
from bestiary.ops.norm import normalize
from bestiary.ops.recurrence import run
from bestiary.spec import Positive

STARTS = {"paper": XAVIER, "fla": FLA, "short": SHORT}


class DeltaProduct(FastWeight):
    """S_t = alpha_t prod_i (I - beta_ti k_ti k_ti^T) S_{t-1} + what the steps write."""

    family: ClassVar = "delta"
    variants: ClassVar = (
        "heads=1, key=8, value=4, steps=3, forget=True, init='fla'",
        "forget=True, decay='channel', negative=False",
    )
    later_options: ClassVar = ("decay", "negative")

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        key: Positive | None = None,
        value: Positive | None = None,
        conv: Positive = 4,
        steps: Positive = 2,
        forget: bool = False,
        init: Literal["paper", "fla", "short"] = "paper",
        decay: Literal["head", "channel"] = "head",
        negative: bool = True,
    ) -> None:
        super().__init__()
        if decay == "channel" and not forget:
            raise ValueError("decay='channel' changes nothing without forget=True")
        key = max(1, 3 * dim // (4 * heads)) if key is None else key
        value = 2 * key if value is None else value
        self.shape, self.steps, self.most = (heads, key, value), steps, 2 if negative else 1
        start = STARTS[init]
        self.streams = Streams(dim, heads, (key, steps * key, steps * value), conv, start, (1, steps, steps))
        self.beta = nn.Linear(dim, heads * steps, bias=False)
        start.fill(self.beta.weight.data, heads)
        wide = key if decay == "channel" else 1
        self.decay = Decay(heads, wide, start.linear(dim, heads * wide), start) if forget else None
        self.answer = GatedOutput(dim, heads, value, start.linear(dim, heads * value), "silu", start)

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        """The steps of each token after one another: the first forgets, the last is asked."""
        (q, k, v), local = self.streams(x, local)
        k, v, beta = normalize(self.stepwise(k)), self.stepwise(v), self.betas(x)
        q = F.pad(unit_queries(q).unsqueeze(2), (0, 0, 0, 0, self.steps - 1, 0)).flatten(1, 2)
        if self.decay is None:
            return Drive(q, k, beta * v, rewrite=(-beta, k)), local
        g = F.pad(self.decay(x).unsqueeze(2), (0, 0, 0, 0, 0, self.steps - 1)).flatten(1, 2)
        return Drive(q, k, beta * v, g, rewrite=(-beta, g.exp() * k)), local

    def betas(self, x: Features) -> Float[Tensor, "batch steps heads 1"]:
        """beta of every step, in (0, 2) or (0, 1)."""
        return self.most * self.stepwise(self.beta(x).unflatten(-1, (self.shape[0], -1))).sigmoid()

    def stepwise(self, x: Float[Tensor, "batch time heads wide"]) -> Float[Tensor, "batch steps heads width"]:
        """What belongs to each step, in the order of time."""
        return x.unflatten(-1, (self.steps, -1)).transpose(2, 3).flatten(1, 2)

    def forward(self, x: Features, state: FastWeight.Memory | None = None) -> tuple[Features, FastWeight.Memory]:
        local, matrix = (None, x.new_zeros(len(x), *self.shape)) if state is None else state
        drive, local = self.drive(x, local)
        y, matrix = run(drive, matrix)
        return self.read(y[:, self.steps - 1 :: self.steps], x), self.Memory(local, matrix)

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        y, _ = run(self.drive(x, None)[0], x.new_zeros(len(x), *self.shape))
        return self.read(take(y[:, self.steps - 1 :: self.steps], where), take(x, where))

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.answer(y, x)
