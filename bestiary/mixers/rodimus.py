"""Rodimus (He et al., 2025): gated linear attention whose one gate, at a temperature, both forgets and lets in.

    u, z = W_u x, W_z x,   h = SiLU(short convolution(u)),   g_t = softplus(W_g h_t + b),  tau_t = sigmoid(W_t h_t + c)
    S_t = Diag(exp(-g_t tau_t)) S_{t-1} + (g_t^tau_t * k_t) v_t^T,   unit k = W_k h_t,  v_t = sigmoid(W_2 W_1 u_t) * u_t
    y_t = S_t^T W_q h_t / sqrt(memory) + d * h_t,   output = W_o RMSNorm(y_t * SiLU(z_t))

This is its data-dependent tempered selection: with tau near 0 nothing is forgotten and each key is written whole.
There is one head, with `memory` keys and values twice as wide as the model. W_1 has `rank` channels, by default a 64th
of the width but at least 16 and at most all. W_2 has a bias.
Initialisation as in the authors' code (codefuse-ai/rodimus, 914d4ae, 23 April 2025): Xavier with gain 2^-2.5 for W_1,
W_2, W_q and W_k (one map) and W_g and W_t (another), N(0, 0.02) for the other maps, PyTorch's for the convolution and
its bias. softplus(b) is log-uniform in (0.001, 0.1), sigmoid(c) uniform in (1/16, 0.9), and d is 1.
Departs from the paper: this is the mixer alone, without the window of softmax attention of Rodimus+. The output map is
not divided by the square root of the number of layers. Unit keys are k / sqrt(|k|^2 + 1e-6), where the authors divide
by max(|k|, 1e-12).
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._delta import softplus
from bestiary.mixers._mixer import (
    Chosen,
    Features,
    Mixer,
    Past,
    ShortConv,
    Where,
    check_rank,
    linear,
    step_sizes,
    take,
)
from bestiary.mixers._norm import RMSNorm
from bestiary.mixers._start import XAVIER
from bestiary.ops.drive import Drive, Matrix
from bestiary.ops.norm import normalize
from bestiary.ops.recurrence import run
from bestiary.spec import Positive


class Rodimus(Mixer):
    """S_t = Diag(exp(-g_t tau_t)) S_{t-1} + (g_t^tau_t * k_t) v_t^T, with g_t and tau_t per key channel."""

    family: ClassVar = "gated linear"
    variants: ClassVar = ("memory=6, conv=1, rank=3",)

    class Memory(NamedTuple):
        """The last inputs of the convolution, and S."""

        past: Past | None
        matrix: Matrix

    def __init__(self, dim: int, *, memory: Positive = 64, conv: Positive = 4, rank: Positive | None = None) -> None:
        super().__init__()
        inner, rank = 2 * dim, check_rank(dim, min(dim, max(16, dim // 64)) if rank is None else rank)
        self.memory = memory
        self.up, self.gate, self.out = linear(dim, inner), linear(dim, inner), linear(inner, dim)
        self.conv = ShortConv(inner, conv, bias=True)
        self.qk = XAVIER.linear(inner, 2 * memory)
        self.select = XAVIER.linear(inner, 2 * memory, bias=True)
        temperature = torch.empty(memory).uniform_(1 / 16, 0.9)
        self.select.bias.data.copy_(torch.cat([step_sizes((memory,)), temperature.logit()]))
        self.low, self.share = XAVIER.linear(inner, rank), XAVIER.linear(rank, inner, bias=True)
        self.skip, self.norm = nn.Parameter(torch.ones(inner)), RMSNorm(inner, eps=1e-5)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        y, after = self.recur(x, state)
        return self.read(y, x), after

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.read(take(self.recur(x, None)[0], where), take(x, where))

    def recur(self, x: Features, state: Memory | None) -> tuple[Float[Tensor, "batch time inner"], Memory]:
        """y at every position before the gate, and the state after the last."""
        u = self.up(x)
        past, matrix = (None, x.new_zeros(len(x), 1, self.memory, u.shape[-1])) if state is None else state
        (h,), past = self.conv.streams(u, past, u.shape[-1:])
        (q, k), (select, temperature) = self.qk(h).chunk(2, dim=-1), self.select(h).chunk(2, dim=-1)
        g, tau = softplus(select), temperature.sigmoid()
        log_g = torch.where(select < -20, select, g.clamp(min=1e-9).log())  # softplus may underflow, its log need not
        k, v = normalize(k) * (tau * log_g).exp(), self.share(self.low(u)).sigmoid() * u
        drive = Drive(*(z.unsqueeze(2) for z in (q * self.memory**-0.5, k, v, -g * tau)))
        y, matrix = run(drive, matrix)
        return y.squeeze(2) + self.skip * h, self.Memory(past, matrix)

    def read(self, y: Float[Tensor, "batch _ inner"], x: Chosen) -> Chosen:
        """The output from what was read out of memory, and the input at the same positions."""
        return self.out(self.norm(y * F.silu(self.gate(x))))
