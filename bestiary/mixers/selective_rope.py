"""GLA with Selective RoPE (Movahedi, Carstensen, Afzal et al., 2025): queries and keys turn by angles from the input.

    u_t = x_t with the slice of each head scaled to length 1,   phi_t = short convolution(W_2 W_1 u_t)
    theta_t = theta_{t-1} + phi_t omega,   omega_i = 500,000^(-2i / key)
    S_t = Diag(alpha_t) S_{t-1} + k_t v_t^T,   k_t = R(theta_t) W_k x_t,   q_t = R(theta_t) W_q x_t / sqrt(key)

R turns channel i and channel i + key / 2 of a head by the angle theta_i. alpha and the output are those of `gla`. Alpha
decays the two channels of a pair at different rates, so that the angle cannot be taken out of S and is part of
the state. `phase_gate` multiplies phi_t by sigmoid(w u_t + b), one per head. With rotation="fixed" phi_t = 1, which is
RoPE with these frequencies; with "none" nothing turns: the paper's ablations.
W_1 has `turns` channels, 32 as in the authors' configurations or as many as the model if it has fewer. Initialisation
as in the authors' code (timurcarstensen/selective-rope, d12e825, 1 March 2026): linear maps and the convolution
N(0, 0.02), so that nothing turns visibly at first. init="short", ours, for a few hundred steps, draws all linear maps
N(0, 1 / sqrt(inputs)) and the convolution as PyTorch does.
Departs from the paper: keys are half of the model wide, as in its language models; its synthetic tasks have keys as
wide as the model. q, k and v have no short convolutions, which its language models have. The code can also learn
omega, a bias of phi or a full-rank W_2 W_1; none of its configurations does, and they are not here.
Equal to the authors' rotation of q and k with copied weights to 1.2e-7; it computes angles in float32.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bestiary.mixers._mixer import Features, Past, check_rank, head_width
from bestiary.mixers._start import FLA, SHORT
from bestiary.mixers.gla import GLA
from bestiary.ops.drive import Drive
from bestiary.ops.norm import normalize
from bestiary.ops.precision import upcast
from bestiary.spec import Positive

Angle = Float[Tensor, "batch time heads pairs"]


class Turned(NamedTuple):
    """What the rotation keeps of the inputs read so far."""

    past: Past | None  # of the convolution
    angle: Float[Tensor, "batch heads pairs"]


class SelectiveRope(GLA):
    """S_t = Diag(alpha_t) S_{t-1} + k_t v_t^T, with q_t and k_t turned by sums of angles that depend on the tokens."""

    family: ClassVar = "gated linear"
    variants: ClassVar = (
        "heads=1, key=12, rank=3, turns=5, phase_gate=True, init='short'",
        "rotation='fixed'",
    )

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        key: Positive | None = None,
        rank: Positive | None = None,
        turns: Positive | None = None,
        conv: Positive = 4,
        rotation: Literal["selective", "fixed", "none"] = "selective",
        phase_gate: bool = False,
        init: Literal["paper", "short"] = "paper",
    ) -> None:
        width = head_width(dim, heads)
        key = max(2, width // 4 * 2) if key is None else key
        if key % 2:
            raise ValueError(f"rotations need an even width of keys, {key} is odd")
        if rotation != "selective" and (phase_gate or conv != 4 or turns is not None):
            given = f"turns={turns}, conv={conv}, phase_gate={phase_gate}"
            raise ValueError(f"{given} with rotation={rotation!r}: they are of rotation='selective'")
        super().__init__(dim, heads=heads, key=key, rank=rank, init="fla")
        turns = check_rank(dim, min(32, dim) if turns is None else turns)
        start = FLA if init == "paper" else SHORT
        for part in (self.q, self.k, self.v, self.low, self.decay, self.gate, self.out):
            start.fill(part.weight.data)
        self.rotation, self.pairs = rotation, key // 2
        self.phase_gate = None
        if rotation == "selective":
            self.down, self.up = start.linear(dim, turns), start.linear(turns, heads * self.pairs)
            self.conv = start.conv(heads * self.pairs, conv)
            self.phase_gate = start.linear(dim, heads, bias=True) if phase_gate else None

    def drive(self, x: Features, local: Turned | None) -> tuple[Drive, Turned | None]:
        drive, _ = super().drive(x, None)
        if self.rotation == "none":
            return drive, None
        steps, past = self.turn(x, None if local is None else local.past)
        steps = upcast(steps)  # half precision cannot count beyond 256
        rates = 500_000.0 ** -(torch.arange(self.pairs, device=x.device, dtype=steps.dtype) / self.pairs)
        angle = (steps * rates).cumsum(1)
        angle = angle if local is None else angle + local.angle.unsqueeze(1)
        return drive._replace(q=turn(drive.q, angle), k=turn(drive.k, angle)), Turned(past, angle[:, -1])

    def turn(self, x: Features, past: Past | None) -> tuple[Angle, Past | None]:
        """phi at every position, and the last inputs of the convolution."""
        heads = self.shape[0]
        if self.rotation == "fixed":
            return x.new_ones(len(x), x.shape[1], heads, self.pairs), None
        u = normalize(x.unflatten(-1, (heads, -1))).flatten(2)
        phi, past = self.conv(self.up(self.down(u)), past)
        phi = phi.unflatten(-1, (heads, -1))
        return (phi if self.phase_gate is None else phi * self.phase_gate(u).sigmoid().unsqueeze(-1)), past


def turn(x: Float[Tensor, "batch time heads key"], angle: Angle) -> Float[Tensor, "batch time heads key"]:
    """Channel i and channel i + key / 2 turned by angle i."""
    (first, second), cos, sin = x.chunk(2, dim=-1), angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
