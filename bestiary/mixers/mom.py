"""Mixture-of-Memories (Du et al., 2025, "MoM"): a router writes each token into a few of several memories.

    p_t = softmax(W_r x_t),   r_t = p_t on its `top` largest entries, divided by their sum, and 0 elsewhere
    M_t^m = the gated delta rule of M_{t-1}^m with k^m, v^m, beta^m, alpha^m where r_t^m > 0, and M_{t-1}^m elsewhere
    y_t = sum_m r_t^m M_t^m^T q_t^m + M_t^0^T q_t^0,   output = W_o (RMSNorm(y) * SiLU(W_g x)),   M^0 takes every token

Each memory has its own maps to k, v, beta and alpha, W_q is that of all, and so are A and dt of alpha = exp(-A
softplus(w x + dt)). |q| = 1 / sqrt(key), |k| = 1. q, k, v = SiLU(short convolution(W x)), and the convolution, one
for all memories, runs over the tokens that a memory took: the token before is the one that it took before. In
training the cost `balance` * memories * sum_m share^m mean(p^m) is added to the loss, share^m the part of the tokens
that m took (after Fedus et al., 2021). Linear maps, by `init`:

    "paper"  Xavier with gain 2^-2.5: OpenSparseLLMs/MoM (033057c), and flash-linear-attention (bc3b101); A uniform in
             (0, 16), dt log-uniform in (0.001, 0.1)
    "short"  N(0, 1 / sqrt(inputs)) and A uniform in (0, 1): ours, for a few hundred steps

Equal to the layer in flash-linear-attention, its kernels replaced by loops and its sort made stable, to 8e-7 in
float32, with copied weights.
Departs from the paper: its other rules of writing are not built. From the authors' code: a convolution never reads
across the borders of memories and sequences, which it does there in training alone; each layer has a cost of its own,
as in their first code, where they now pool the tokens of all layers.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._cost import add_cost
from bestiary.mixers._delta import GatedOutput, softplus, unit_queries
from bestiary.mixers._mixer import Chosen, FastWeight, Features, Where, head_width, step_sizes
from bestiary.mixers._start import SHORT, XAVIER
from bestiary.ops import convolution
from bestiary.ops.drive import Drive
from bestiary.ops.norm import normalize
from bestiary.spec import Positive

Streams = Float[Tensor, "batch memories _ channels"]


class MoM(FastWeight):
    """Memories of the gated delta rule, of which a router chooses `top` for each token, and one that takes all."""

    family: ClassVar = "delta"
    variants: ClassVar = ("memories=3, heads=1, conv=1, init='short'",)

    def __init__(
        self,
        dim: int,
        *,
        memories: Positive = 4,
        top: Positive = 2,
        heads: Positive = 2,
        conv: Positive = 4,
        balance: float = 0.01,
        init: Literal["paper", "short"] = "paper",
    ) -> None:
        super().__init__()
        if top > memories:
            raise ValueError(f"mom(top={top}): there are {memories} memories to choose from")
        start, width = {"paper": XAVIER, "short": SHORT}[init], head_width(dim, heads)
        self.memories, self.heads, self.top, self.balance = memories, heads, top, balance
        self.shape = (memories + 1) * heads, width, width
        self.route, self.q = start.linear(dim, memories), start.linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * (memories + 1) * dim, bias=False)
        self.gates = nn.Linear(dim, 2 * (memories + 1) * heads, bias=False)
        for many in (self.kv, self.gates):  # each map is drawn by itself
            for part in many.weight.data.chunk(2 * (memories + 1)):
                start.fill(part)
        self.conv = start.conv(3 * dim, conv)
        self.rate, self.dt = start.rate(heads), nn.Parameter(step_sizes((heads,)))
        self.answer = GatedOutput(dim, heads, width, start.linear(dim, dim), "silu", start)

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        y = super().parallel(x, where)
        return add_cost(y, self.cost(x)) if self.training and self.balance else y

    def equal_state(self, time: int) -> int:
        return min(time, 1)

    def drive(self, x: Features, local: Streams | None) -> tuple[Drive, Streams]:
        chosen = F.pad(self.weights(x)[0], (0, 1), value=1.0) > 0
        kv = self.kv(x).unflatten(-1, (self.memories + 1, -1))
        q = self.q(x).unsqueeze(2).expand(-1, -1, self.memories + 1, -1)
        mixed, local = self.convolve(torch.cat([q, kv], dim=-1), chosen, local)
        q, k, v = (z.unflatten(-1, (self.heads, -1)).flatten(2, 3) for z in F.silu(mixed).chunk(3, dim=-1))
        step, beta = self.gates(x).unflatten(-1, (self.memories + 1, 2, -1)).unbind(3)
        g = -self.rate.exp() * softplus(step + self.dt)
        g, beta = (torch.where(chosen.unsqueeze(-1), z, 0).flatten(2).unsqueeze(-1) for z in (g, beta.sigmoid()))
        k = normalize(k)
        return Drive(unit_queries(q), k, beta * v, g, rewrite=(-beta, g.exp() * k)), local

    def read(self, y: Float[Tensor, "batch _ heads value"], x: Chosen) -> Chosen:
        weights = F.pad(self.weights(x)[0], (0, 1), value=1.0)
        y = y.unflatten(2, (self.memories + 1, self.heads))
        return self.answer((weights[..., None, None] * y).sum(2), x)

    def weights(self, x: Chosen) -> tuple[Float[Tensor, "batch _ memories"], Float[Tensor, "batch _ memories"]]:
        """r and p."""
        all = self.route(x).softmax(-1)
        best, places = all.topk(self.top, dim=-1)
        return torch.zeros_like(all).scatter(-1, places, best / best.sum(-1, keepdim=True)), all

    def cost(self, x: Features) -> Tensor:
        """What uneven use of the memories costs: `balance` * top where all are used alike."""
        weights, all = (z.flatten(0, 1) for z in self.weights(x))
        share = (weights > 0).to(all.dtype).mean(0)
        return self.balance * self.memories * (share * all.mean(0)).sum()

    def convolve(
        self,
        x: Float[Tensor, "batch time memories channels"],
        chosen: Bool[Tensor, "batch time memories"],
        past: Streams | None,
    ) -> tuple[Float[Tensor, "batch time memories channels"], Streams]:
        """The short convolution of each memory over its tokens alone, and the last inputs of each memory."""
        x, chosen, taps = x.transpose(1, 2), chosen.transpose(1, 2), len(self.conv.filter)
        past = x.new_zeros(*x.shape[:2], taps - 1, x.shape[-1]) if past is None else past
        first = chosen.int().argsort(dim=2, descending=True, stable=True)  # the tokens it took, in their order
        seen = torch.cat([past, rows(x, first)], dim=2)
        mixed = convolution.short(seen.flatten(0, 1), self.conv.filter)[:, taps - 1 :].unflatten(0, x.shape[:2])
        count = chosen.cumsum(2)
        kept = rows(seen, count[..., -1:] + torch.arange(taps - 1, device=x.device))
        return rows(mixed, (count - 1).clamp(min=0)).transpose(1, 2), kept


def rows(x: Streams, places: Tensor) -> Streams:
    """x at these places of each memory."""
    return x.gather(2, places.unsqueeze(-1).expand(*places.shape, x.shape[-1]))
