"""Mamba-3 (Lahoti, Li, Chen et al., 2026), one input and one output per channel: a trapezoidal, rotating Mamba-2.

    v, b, c, dt, a, l, w, z = W u,   k = RMSNorm(b) + bias_k,   q = RMSNorm(c) + bias_q,   dt = softplus(dt + bias)
    alpha = exp(-dt softplus(a)),   lam = sigmoid(l),   R turns pairs of keys by -pi dt tanh(w) and leaves the others
    S_t = R_t alpha_t (S_{t-1} + (1 - lam_t) dt_t k_{t-1} v_{t-1}^T) + lam_t dt_t k_t v_t^T
    y_t = S_t^T q_t + D v_t,   output = W_out (y * SiLU(z))

The turns since the cut are put into q and k, so that the recurrence itself only decays; after the last position they
are taken out of S, which therefore needs no angle beside it. What else is kept is the last write. With
S_t = U_t + lam_t dt_t k_t v_t^T, U takes one write per position: the previous one, with both its weights.
With rotation="fixed" each pair turns by an angle of its own at every position, 10,000^(-i / angles), as rotary
positions do (Su et al., 2021), with "none" nothing turns: the paper's ablations.
Initialisation as in the authors' code: dt log-uniform in (0.001, 0.1) through its bias, D and the biases of k and q
all 1, the rest PyTorch's. Heads are 64 wide, or as wide as divides both 64 and the inner width.
Departs from the paper: softplus(a) is at least 1e-4, so that every head forgets. The authors' code replaced softplus(a)
by a function with a heavier tail later.
"""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, Mixer, Where, step_sizes, take
from bestiary.mixers._norm import RMSNorm
from bestiary.ops.drive import Drive, Matrix
from bestiary.ops.precision import upcast
from bestiary.ops.recurrence import outer, run
from bestiary.spec import Positive

Heads = Float[Tensor, "batch _ heads value"]


class Mamba3(Mixer):
    """S_t = R_t alpha_t (S_{t-1} + (1 - lam_t) dt_t k_{t-1} v_{t-1}^T) + lam_t dt_t k_t v_t^T, R_t a rotation."""

    family: ClassVar = "state space"
    variants: ClassVar = (
        "state=6, head=16, angles=3, expand=1",
        "state=6, rotation='fixed'",
        "state=6, rotation='none'",
    )
    without_decay: ClassVar = ("bias_k", "bias_q")

    class Memory(NamedTuple):
        """S without its turns, and the last write."""

        matrix: Matrix
        b: Float[Tensor, "batch key"]  # the last write, before the bias of each head
        v: Float[Tensor, "batch heads value"]

    def __init__(
        self,
        dim: int,
        *,
        state: Positive = 128,
        head: Positive | None = None,
        angles: Positive | None = None,
        expand: Positive = 2,
        rotation: Literal["selective", "fixed", "none"] = "selective",
    ) -> None:
        super().__init__()
        inner = expand * dim
        head = math.gcd(inner, 64) if head is None else head
        if rotation == "none" and angles is not None:
            raise ValueError(f"angles={angles} with rotation='none' change nothing: nothing turns")
        default = 0 if rotation == "none" else min(max(1, state // 4), state // 2)
        angles = default if angles is None else angles
        if inner % head:
            raise ValueError(f"heads of width {head} do not fill an inner width of {inner}")
        if 2 * angles > state:
            raise ValueError(f"{angles} angles turn {2 * angles} keys, the state has {state}")
        heads, self.rotation, self.angles = inner // head, rotation, angles
        turns = angles if rotation == "selective" else 0
        self.shape, self.widths = (heads, state, head), (state, state, heads, heads, heads, turns)
        self.value, self.gate = nn.Linear(dim, inner, bias=False), nn.Linear(dim, inner, bias=False)
        self.into = nn.Linear(dim, sum(self.widths), bias=False)
        self.norm_k, self.norm_q = RMSNorm(state, eps=1e-5), RMSNorm(state, eps=1e-5)
        self.bias_k, self.bias_q = nn.Parameter(torch.ones(heads, state)), nn.Parameter(torch.ones(heads, state))
        self.dt = nn.Parameter(step_sizes((heads,)))
        self.skip = nn.Parameter(torch.ones(heads))
        self.out = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        y, after = self.mix(x, self.initial_state(x) if state is None else state)
        return self.read(y, x), after

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.read(take(self.mix(x, self.initial_state(x))[0], where), take(x, where))

    def initial_state(self, x: Features) -> Memory:
        """The state before the first token."""
        heads, key, value = self.shape
        return self.Memory(*(x.new_zeros(len(x), *shape) for shape in (self.shape, (key,), (heads, value))))

    def mix(self, x: Features, state: Memory) -> tuple[Heads, Memory]:
        """y at every position before the gate, and the state after the last."""
        v = self.value(x).unflatten(-1, (self.shape[0], -1))
        b, c, dt, a, lam, turn = self.into(x).split(self.widths, dim=-1)
        b, dt, lam = self.norm_k(b), F.softplus(dt + self.dt).unsqueeze(-1), lam.sigmoid().unsqueeze(-1)
        g = -dt * F.softplus(a).clamp(min=1e-4).unsqueeze(-1)
        angle = self.turned(dt, turn)
        q = rotate_pairs(self.norm_q(c).unsqueeze(2) + self.bias_q, angle)
        k = rotate_pairs(b.unsqueeze(2) + self.bias_k, angle)
        new = lam * dt
        weight = F.pad(new[:, :-1], (0, 0, 0, 0, 1, 0)) + (1 - lam) * dt
        keys = torch.cat([(state.b.unsqueeze(1) + self.bias_k).unsqueeze(1), k[:, :-1]], dim=1)
        values = torch.cat([state.v.unsqueeze(1), v[:, :-1]], dim=1)
        y, matrix = run(Drive(q, weight * g.exp() * keys, values, g), state.matrix)
        y = y + (new * (q * k).sum(-1, keepdim=True) + self.skip.unsqueeze(-1)) * v
        matrix = matrix + outer(new[:, -1] * k[:, -1], v[:, -1])
        return y, self.Memory(rotate_pairs(matrix.mT, -angle[:, -1].unsqueeze(2)).mT, b[:, -1], v[:, -1])

    def turned(
        self, dt: Float[Tensor, "batch time heads 1"], turn: Float[Tensor, "batch time _"]
    ) -> Float[Tensor, "batch time heads _"]:
        """The angles turned by since the cut; none at all without rotation."""
        dt = upcast(dt)
        if self.rotation == "selective":
            return (math.pi * dt * turn.tanh().unsqueeze(2)).cumsum(1)
        rates = 10_000.0 ** -(torch.arange(self.angles, device=dt.device, dtype=dt.dtype) / max(1, self.angles))
        return rates.expand(*dt.shape[:3], self.angles).cumsum(1)

    def read(self, y: Heads, x: Chosen) -> Chosen:
        """The output from what was read out of memory."""
        return self.out(y.flatten(2) * F.silu(self.gate(x)))


def rotate_pairs(x: Float[Tensor, "*rest key"], angle: Float[Tensor, "*any angles"]) -> Float[Tensor, "*rest key"]:
    """The first pairs of channels turned by the angles, one each."""
    pairs, still = x[..., : 2 * angle.shape[-1]].unflatten(-1, (-1, 2)), x[..., 2 * angle.shape[-1] :]
    (first, second), cos, sin = pairs.unbind(-1), angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    return torch.cat([torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2), still], -1)
