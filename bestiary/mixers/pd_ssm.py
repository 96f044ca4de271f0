"""PD-SSM (Terzić et al., 2025): state transitions that are a choice of one place for each place, times a diagonal.

    h_t = P_t D_t h_{t-1} + B x_t,   y_t = W_o [Re h_t, Im h_t] + d * x_t,   h complex, h_0 = (1, 0, ..., 0)
    P_t = the largest entry of each column of M_t = sum_k softmax(S x_t)_k M_k as 1, and 0 elsewhere
    D_t = sigmoid(MLP(x_t)) e^(2 pi i sigmoid(MLP'(x_t))),   MLPs of one hidden layer of GELU, 2 `state` wide

A one-layer model of N places can follow any automaton of N states, since column n of P_t says where state n goes. The
choice passes the gradient on to the softmax of each column of M_t. Columns are one-hot and D within the unit circle,
so no state grows. Initialisation as in the authors' code for state tracking (IBM/expressive-sparse-state-space-model,
8682e78): M_k N(0, 1 / sqrt(state)), both parts of B N(0, 1 / sqrt(2 state)), d N(0, 1 / sqrt(dim)), the rest
PyTorch's; K = 8.
Equal to that code to 3e-7 in float32, once its transition matrices are transposed.

Departs from the paper: the state is 32 wide (128 there), tokens are read one after another instead of by a parallel
scan. From that code, which has one-hot rows and D_t before them: columns and P_t D_t, as in the paper and in the
authors' other code. The norm after the layer and the dropout are left to the model.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, Mixer, Where, take
from bestiary.ops.precision import upcast, without_autocast
from bestiary.spec import Positive

baddbmm = without_autocast(torch.baddbmm)


class PDSSM(Mixer):
    """h_t = P_t D_t h_{t-1} + B x_t, with a column one-hot P_t and a diagonal D_t, both of the token."""

    family: ClassVar = "state space"
    variants: ClassVar = ("state=7, matrices=3",)
    without_decay: ClassVar = ("places",)

    def __init__(self, dim: int, *, state: Positive = 32, matrices: Positive = 8) -> None:
        super().__init__()
        self.size, self.matrices, hidden = state, matrices, 2 * state
        self.modulus, self.turn = (
            nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, state)) for _ in range(2)
        )
        self.choose = nn.Linear(dim, matrices, bias=False)
        self.places = nn.Parameter(torch.randn(matrices, state, state) * state**-0.5)  # M_k
        self.into = nn.Parameter(torch.randn(2, state, dim) * (2 * state) ** -0.5)  # Re B and Im B
        self.skip = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.out = nn.Linear(2 * state, dim)

    def forward(
        self, x: Features, state: Complex[Tensor, "batch state"] | None = None
    ) -> tuple[Features, Complex[Tensor, "batch state"]]:
        states = self.states(x, state)
        return self.read(states, x), torch.view_as_complex(states[:, -1].contiguous())

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.read(take(self.states(x, None), where), take(x, where))

    def equal_state(self, time: int) -> int:
        return min(time, 1)

    def states(self, x: Features, state: Complex[Tensor, "batch state"] | None) -> Float[Tensor, "batch time state 2"]:
        """Real and imaginary part of every h_t."""
        modulus, angle = upcast(self.modulus(x)).sigmoid(), 2 * math.pi * upcast(self.turn(x)).sigmoid()
        diagonal = torch.stack([modulus * angle.cos(), modulus * angle.sin()], dim=-1)
        new = upcast(torch.stack([x @ part.mT for part in self.into], dim=-1))
        if state is None:
            first = torch.zeros_like(new[:, 0])
            h = first + F.pad(torch.ones_like(first[:, :1, :1]), (0, 1, 0, self.size - 1))
        else:
            h = torch.view_as_real(state)
        states = []
        for place, d, b in zip(self.transitions(x).unbind(1), diagonal.unbind(1), new.unbind(1), strict=True):
            turned = torch.stack([(d * h * d.new_tensor([1, -1])).sum(-1), (d * h.flip(-1)).sum(-1)], dim=-1)
            h = baddbmm(b, place, turned)
            states.append(h)
        return torch.stack(states, dim=1)

    def transitions(self, x: Features) -> Float[Tensor, "batch time state state"]:
        """P_t; its gradient is that of the softmax of the columns of M_t."""
        mixed = self.choose(x).softmax(-1) @ self.places.flatten(1)
        soft = upcast(mixed).unflatten(-1, (self.size, self.size)).softmax(-2)
        hard = torch.zeros_like(soft).scatter(-2, soft.argmax(-2, keepdim=True), 1.0)
        return hard + (soft - soft.detach())

    def read(self, states: Float[Tensor, "batch _ state 2"], x: Chosen) -> Chosen:
        """The output from the states and the input at the same positions."""
        return self.out(states.to(x.dtype).mT.flatten(2)) + self.skip * x
