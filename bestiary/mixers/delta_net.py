"""DeltaNet (Schlag, Irie & Schmidhuber, 2021; Yang et al., 2024): a memory that replaces what a key retrieves.

    q, k, v = SiLU(short convolution(W x)),  unit k_t, |q_t| = 1 / sqrt(key),  beta_t = sigmoid(w x_t)
    output = W_o RMSNorm(S_t^T q_t)

`negative` doubles beta_t, so that the eigenvalue along k_t lies in (-1, 1) (Grazzi et al., 2024). Linear maps, by
`init`:

    "paper"  Xavier with gain 2^-2.5: flash-linear-attention, the code of Yang et al., from March 2024 to March 2025
    "fla"    N(0, 0.02), convolutions too: the same library since dc861e3, 24 June 2025; from 4 March (d30c083) W_o was
             PyTorch's draw over sqrt(2 layers)

Departs from the paper: nothing known. From the authors' language model: the output map is not scaled down by the
number of layers.
"""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from bestiary.mixers._delta import GatedOutput, Streams, unit_queries
from bestiary.mixers._mixer import FastWeight, Features, State, head_width
from bestiary.mixers._start import FLA, XAVIER
from bestiary.ops.drive import Drive
from bestiary.ops.norm import normalize
from bestiary.spec import Positive

STARTS = {"paper": XAVIER, "fla": FLA}


class DeltaNet(FastWeight):
    """S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, one beta per head."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, conv=1, negative=True, init='fla'",)

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        conv: Positive = 4,
        negative: bool = False,
        init: Literal["paper", "fla"] = "paper",
    ) -> None:
        super().__init__()
        width = head_width(dim, heads)
        self.shape, self.most = (heads, width, width), 2 if negative else 1
        start = STARTS[init]
        self.streams = Streams(dim, heads, (width, width, width), conv, start)
        self.beta = start.linear(dim, heads)
        self.answer = GatedOutput(dim, heads, width, start=start)

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        (q, k, v), local = self.streams(x, local)
        q, k, beta = unit_queries(q), normalize(k), self.most * self.beta(x).sigmoid().unsqueeze(-1)
        return Drive(q, k, beta * v, rewrite=(-beta, k)), local

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.answer(y, x)
