"""MesaNet (von Oswald et al., 2025): at every token the least-squares fit of values to keys, found to the end.

    H_t = gamma_t H_{t-1} + beta_t k_t k_t^T,   G_t = gamma_t G_{t-1} + beta_t k_t v_t^T
    y_t = G_t^T (H_t + Lambda)^{-1} q_t,   output = W_o RMSNorm(y)
    q, k = unit(SiLU(short convolution(W x))),  v = W_v x,  gamma, beta = sigmoid(W x + bias),  one per head

Lambda is diagonal, 0.25 + softplus of a parameter. The inverse is `steps` steps of conjugate gradients from zero,
with as many steps as a head has channels it is exact; its gradient is that of the exact inverse, again by conjugate
gradients. The state holds each entry of the symmetric H once. Initialisation as in the authors' code: linear maps
N(0, 0.02), biases zero, Lambda = 1.
Departs from the paper: a fixed number of steps in generation too. The authors' code adds 1e-5 to the denominators
of conjugate gradients, which limits how close they come; here they are only kept off zero. Convolutions are drawn as
PyTorch draws them, where the code shrinks them to N(0, 0.02) too.
"""

import math
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._delta import GatedOutput, Streams
from bestiary.mixers._mixer import Chosen, Features, Mixer, State, Where, head_width, linear, take
from bestiary.mixers._normal import normal_equations, solve, triangle_index
from bestiary.ops.drive import Drive, Matrix, Value
from bestiary.ops.norm import normalize
from bestiary.ops.precision import upcast
from bestiary.ops.recurrence import run, split_chunks
from bestiary.spec import Positive


class MesaNet(Mixer):
    """y_t = G_t^T (H_t + Lambda)^{-1} q_t, with H_t and G_t decaying sums of beta k k^T and beta k v^T."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=4, conv=1, steps=3",)

    class Memory(NamedTuple):
        """The last inputs of the convolution, H and G."""

        local: State  # of the convolution
        gram: Float[Tensor, "batch heads half"]  # H on and above its diagonal
        matrix: Matrix  # G

    def __init__(self, dim: int, *, heads: Positive = 2, conv: Positive = 4, steps: Positive = 30) -> None:
        super().__init__()
        width = head_width(dim, heads)
        self.shape, self.steps = (heads, width, width), steps
        self.streams, self.value = Streams(dim, heads, (width, width), conv), linear(dim, dim)
        self.gamma, self.beta = linear(dim, heads, bias=True), linear(dim, heads, bias=True)
        self.ridge = nn.Parameter(torch.full((dim,), math.log(math.expm1(0.75))))
        self.answer = GatedOutput(dim, heads, width)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        y, after = self.recur(x, self.initial_state(x) if state is None else state)
        return self.answer(y, x), after

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.answer(take(self.recur(x, self.initial_state(x))[0], where), take(x, where))

    def initial_state(self, x: Features) -> Memory:
        """The state before the first token."""
        heads, width, _ = self.shape
        return self.Memory(None, x.new_zeros(len(x), heads, width * (width + 1) // 2), x.new_zeros(len(x), *self.shape))

    def recur(self, x: Features, state: Memory) -> tuple[Value, Memory]:
        """y at every position before the norm, and the state after the last."""
        heads, width, _ = self.shape
        (q, k), local = self.streams(x, state.local)
        q, k, v = normalize(q), normalize(k), self.value(x).unflatten(-1, (heads, -1))
        g, beta = F.logsigmoid(self.gamma(x)).unsqueeze(-1), self.beta(x).sigmoid().unsqueeze(-1)
        upper = torch.triu_indices(width, width, device=x.device).unbind()
        ridge = 0.25 + F.softplus(self.ridge).reshape(heads, 1, 1, width)
        past = upcast(state.gram)[..., triangle_index(width, x)]
        maps, gram = normal_equations(upcast(k), upcast(beta * k), upcast(g), upcast(ridge), past)
        solved = solve(maps, split_chunks(upcast(q), maps.decay.shape[-1]), self.steps)
        solved = solved.flatten(2, 3)[:, :, : x.shape[1]].transpose(1, 2).to(x.dtype)
        y, matrix = run(Drive(solved, k, beta * v, g), state.matrix)
        return y, self.Memory(local, gram[(..., *upper)], matrix)
