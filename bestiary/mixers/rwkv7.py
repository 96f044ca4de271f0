"""RWKV-7 time mixing (Peng et al., 2025, section 4): a delta rule with a decay and a learning rate per channel.

    each input is x_t + mu (x_{t-1} - x_t), one mu for each of r, w, k, v, a, g
    w_t = exp(-e^{-1/2} sigmoid(w0 + W2 tanh(W1 x_t))),  a_t = sigmoid(a0 + A2 A1 x_t),  g_t = G2 sigmoid(G1 x_t)
    kappa_t = unit(xi * k_t),  k~_t = k_t * (1 + (a_t - 1) * rho)
    output = W_o (g_t * (GroupNorm(S_t^T r_t) + (r_t . (u * k~_t)) v_t))

Initialisation as in the authors' code for layer `layer` of `layers`: r, v uniform within 0.5 / sqrt(dim), k a tenth of
it, W_o zero; W1, A1, G1 zero, W2, A2, G2 orthogonal times 0.1; mu, w0, a0, xi by channel, rho = 1.02, u = -0.04.
Weight decay acts on W_r, W_k, W_v and W_o alone, as there (RWKV-LM, RWKV-v7/train_temp/src/model.py).
Departs from the paper: from the second layer on, the model blends the values of the first layer into its own,
which one mixer cannot see. Low ranks follow the authors' rule for language models but are at most the width. Unit
vectors are x / sqrt(|x|^2 + 1e-6), as in the other delta rules, where the authors divide by max(|x|, 1e-12).
"""

import math
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._mixer import Chosen, Features, Mixer, Where, head_width, take
from bestiary.mixers._norm import check_normed
from bestiary.ops.drive import Drive, Matrix
from bestiary.ops.norm import normalize
from bestiary.ops.recurrence import run
from bestiary.spec import Positive


class RWKV7(Mixer):
    """S_t = (Diag(w_t) - (a_t * kappa_t) kappa_t^T) S_{t-1} + k~_t v_t^T."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, layer=3, layers=4",)
    without_decay: ClassVar = (
        "mix",
        "bonus",
        *(f"{part}.{place}.weight" for part in ("decay", "rate", "gate") for place in (0, 2)),
    )

    class Memory(NamedTuple):
        """The last input, and S."""

        last: Float[Tensor, "batch dim"]  # the previous input, for the token shift
        matrix: Matrix

    def __init__(self, dim: int, *, heads: Positive = 2, layer: int = 0, layers: Positive = 12) -> None:
        super().__init__()
        if not 0 <= layer < layers:
            raise ValueError(f"rwkv7(layer={layer}): there are layers 0 to {layers - 1}")
        width = check_normed(head_width(dim, heads), f"heads={heads}")
        depth, rest, channel = layer / max(1, layers - 1), 1 - layer / layers, torch.arange(dim)
        ramp = channel / max(1, dim - 1)
        zigzag = (2 * (channel % width) / max(1, width - 1)) - 1
        zigzag = zigzag * zigzag.abs()
        self.shape = heads, width, width
        powers = (rest * torch.tensor([0.2, 0.9, 0.7, 0.7, 0.9, 0.2])).unsqueeze(1)
        self.mix = nn.Parameter(1 - (channel / dim) ** powers)
        self.r, self.k, self.v, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        for part, bound in ((self.r, 0.5), (self.k, 0.05), (self.v, 0.5), (self.out, 0.0)):
            nn.init.uniform_(part.weight, -bound / dim**0.5, bound / dim**0.5)
        decay = -5.5 + 6 * ramp ** (1 + depth**0.3) + 2.5 * zigzag
        self.decay = low_rank(dim, low_rank_width(dim, 2.5), nn.Tanh(), decay)
        self.rate = low_rank(dim, low_rank_width(dim, 2.5), nn.Identity(), -0.19 + 0.3 * zigzag + 0.4 * (ramp - 0.5))
        self.gate = low_rank(dim, low_rank_width(dim, 5.0), nn.Sigmoid(), None)
        self.remove = nn.Parameter(0.71 - 0.1 * (ramp - 0.5))
        self.replace = nn.Parameter(torch.full((dim,), 1.02))
        self.bonus = nn.Parameter(torch.full((heads, width), -0.04))
        self.norm = nn.GroupNorm(heads, dim, eps=64e-5)
        nn.init.constant_(self.norm.weight, ((layer + 1) / layers) ** 0.7)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        y, bonus, gate, after = self.recur(x, self.initial_state(x) if state is None else state)
        return self.read(y, bonus, gate), after

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        y, bonus, gate, _ = self.recur(x, self.initial_state(x))
        return self.read(take(y, where), take(bonus, where), take(gate, where))

    def initial_state(self, x: Features) -> Memory:
        """The state before the first token."""
        return self.Memory(torch.zeros_like(x[:, 0]), x.new_zeros(len(x), *self.shape))

    def recur(self, x: Features, state: Memory) -> tuple[Features, Features, Features, Memory]:
        """What is read from memory, what the present adds to it, the gate on both, and the memory after."""
        away = torch.cat([state.last.unsqueeze(1), x[:, :-1]], dim=1) - x
        for_r, for_w, for_k, for_v, for_a, for_g = (x + away * mu for mu in self.mix)
        k, a = self.k(for_k), self.rate(for_a).sigmoid()
        g = -math.exp(-0.5) * self.decay(for_w).sigmoid()
        written = k * (1 + (a - 1) * self.replace)
        parts = (self.r(for_r), k * self.remove, written, self.v(for_v), a, g)
        r, removed, k, v, a, g = (z.unflatten(-1, (self.shape[0], -1)) for z in parts)
        kappa = normalize(removed)
        y, matrix = run(Drive(r, k, v, g, erase=(a * kappa, -kappa)), state.matrix)
        bonus = (r * k * self.bonus).sum(-1, keepdim=True) * v
        return y.flatten(2), bonus.flatten(2), self.gate(for_g), self.Memory(x[:, -1], matrix)

    def read(self, y: Chosen, bonus: Chosen, gate: Chosen) -> Chosen:
        """The output from what was read out of memory."""
        return self.out(gate * (self.norm(y.flatten(0, 1)).view_as(y) + bonus))


def low_rank_width(dim: int, scale: float) -> int:
    """How narrow a low-rank map is."""
    return min(dim, max(32, round(scale * dim**0.5 / 32) * 32))


def low_rank(dim: int, rank: int, activation: nn.Module, bias: Tensor | None) -> nn.Sequential:
    """A map through `rank` channels that starts at zero, plus a bias."""
    down, up = nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim, bias=bias is not None)
    nn.init.zeros_(down.weight)
    nn.init.orthogonal_(up.weight, gain=0.1)
    if bias is not None:
        up.bias.data.copy_(bias)
    return nn.Sequential(down, activation, up)
