"""mLSTM (Beck et al., 2024, section 2.3), in the layer of xLSTM 7B (2025): linear attention with exponential gates.

    C_t = f_t C_{t-1} + e^i_t k_t v_t^T,   n_t = f_t n_{t-1} + e^i_t k_t,   f_t = sigmoid(cap(W_f x_t + b_f))
    h_t = C_t^T q_t / max(|n_t . q_t|, 1),   i_t = cap(W_i x_t + b_i),   cap(z) = 15 tanh(z / 15),   q scaled
    y_t = W_o (sigmoid(W_g x_t) * norm(h_t)),  the norm over each head, with weights

C and n, its last column here, are kept times e^-m with m_t = max(log f_t + m_{t-1}, i_t) and m_0 = 0, so nothing
overflows; then 1 is e^-m_t, and 1e-6 is added to the divisor. Keys are half as wide as values.
Initialisation: N(0, sqrt(2 / (5 dim))); gates do not see their input at first, b_f from 3 to 6, b_i from N(0, 0.1).
Departs from the paper: its block around the cell (up-projection, convolution, skip) is left to the pattern, and cap
and narrow keys are of the 7B, which starts b_i at -10; the output map is not scaled down by the number of layers.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, Mixer, Where, head_width, linear, take
from bestiary.mixers._norm import check_normed
from bestiary.ops.drive import Drive, Matrix
from bestiary.ops.precision import upcast
from bestiary.ops.recurrence import run
from bestiary.spec import Positive

Peaks = Float[Tensor, "batch time heads"]


class MLSTM(Mixer):
    """C_t = f_t C_{t-1} + e^i_t k_t [v_t, 1]^T, read by q_t and divided by max(|its last column|, 1)."""

    family: ClassVar = "gated linear"
    variants: ClassVar = ("heads=1, key=8",)

    class Memory(NamedTuple):
        """The matrix and its exponent."""

        matrix: Matrix  # C and n, times e^-m
        m: Float[Tensor, "batch heads"]

    def __init__(self, dim: int, *, heads: Positive = 2, key: Positive | None = None) -> None:
        super().__init__()
        value = check_normed(head_width(dim, heads), f"heads={heads}")
        key = max(1, value // 2) if key is None else key
        self.shape = heads, key, value + 1
        std = (2 / (5 * dim)) ** 0.5
        self.q, self.k, self.v = (linear(dim, heads * width, std=std) for width in (key, key, value))
        self.i, self.f = (linear(dim, heads, bias=True, std=0.0) for _ in range(2))
        nn.init.normal_(self.i.bias, std=0.1)
        self.f.bias.data.copy_(torch.linspace(3, 6, heads))
        self.gate, self.out = linear(dim, dim, std=0.0), linear(dim, dim, std=std)
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        matrix, m = self.initial_state(x) if state is None else state
        drive, ms = self.drive(x, m)
        y, matrix = run(drive, matrix)
        return self.read(y, ms, x), self.Memory(matrix, ms[:, -1])

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        matrix, m = self.initial_state(x)
        drive, ms = self.drive(x, m)
        return self.read(take(run(drive, matrix)[0], where), take(ms, where), take(x, where))

    def initial_state(self, x: Features) -> Memory:
        """The state before the first token."""
        return self.Memory(x.new_zeros(len(x), *self.shape), x.new_zeros(len(x), self.shape[0]))

    def drive(self, x: Features, m: Float[Tensor, "batch heads"]) -> tuple[Drive, Peaks]:
        """What the recurrence consumes, and every m_t."""
        q, k, v = (project(x).unflatten(-1, (self.shape[0], -1)) for project in (self.q, self.k, self.v))
        i, f = (upcast(15 * torch.tanh(project(x) / 15)) for project in (self.i, self.f))
        forget, m = F.logsigmoid(f), upcast(m).unsqueeze(1)
        total = forget.cumsum(1)
        ms = torch.cat([m, i - total], dim=1).cummax(1).values[:, 1:] + total
        g = forget + torch.cat([m, ms[:, :-1]], dim=1) - ms
        k = k * (i - ms).exp().unsqueeze(-1).to(k.dtype)
        return Drive(q * q.shape[-1] ** -0.5, k, F.pad(v, (0, 1), value=1.0), g.unsqueeze(-1)), ms

    def read(self, y: Float[Tensor, "batch _ heads value"], ms: Float[Tensor, "batch _ heads"], x: Chosen) -> Chosen:
        """The output from what was read out of memory."""
        least = (-ms).clamp(max=60.0).exp().unsqueeze(-1)  # beyond e^60 nothing is left of h anyway
        h = y[..., :-1] / (torch.maximum(y[..., -1:].abs(), least) + 1e-6)
        normed = F.layer_norm(h, h.shape[-1:], eps=1e-6).flatten(2)
        return self.out((self.gate(x).sigmoid() * normed * self.scale).to(self.out.weight.dtype))
