"""DeltaNet (Schlag, Irie & Schmidhuber, 2021; Yang et al., 2024): a memory that replaces what a key retrieves.

    q, k, v = SiLU(short convolution(W x)),  unit q_t and k_t,  beta_t = sigmoid(w x_t)
    output = W_o RMSNorm(S_t^T q_t)

`negative` doubles beta_t, so that the eigenvalue along k_t lies in (-1, 1) (Grazzi et al., 2024). Linear maps are
drawn N(0, 0.02), as in the authors' code.
Departs from the paper: convolutions are drawn as PyTorch draws them, where the authors' code shrinks them to
N(0, 0.02) too; queries are not scaled by 1 / sqrt(key), which the norm undoes.
"""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from bestiary.mixers._delta import GatedOutput, Streams
from bestiary.mixers._mixer import FastWeight, Features, State, head_width, linear, normalize
from bestiary.ops.drive import Drive
from bestiary.spec import Positive


class DeltaNet(FastWeight):
    """S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, one beta per head."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, conv=1, negative=True",)

    def __init__(self, dim: int, *, heads: Positive = 2, conv: Positive = 4, negative: bool = False) -> None:
        super().__init__()
        width = head_width(dim, heads)
        self.shape, self.most = (heads, width, width), 2 if negative else 1
        self.streams = Streams(dim, heads, (width, width, width), conv)
        self.beta = linear(dim, heads)
        self.answer = GatedOutput(dim, heads, width)

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        (q, k, v), local = self.streams(x, local)
        q, k, beta = normalize(q), normalize(k), self.most * self.beta(x).sigmoid().unsqueeze(-1)
        return Drive(q, k, beta * v, rewrite=(-beta, k)), local

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.answer(y, x)
