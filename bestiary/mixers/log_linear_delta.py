"""Log-linear Gated DeltaNet (Guo et al., 2025): Gated DeltaNet with a state for each block of a Fenwick tree.

    y_t = sum_l lambda_t^l S_t^l^T q_t,   S_t^l = sum_{s in level l of t} M_t ... M_{s+1} beta_s k_s v_s^T,  unit q_t
    M_t = alpha_t (I - beta_t k_t k_t^T),   lambda_t^l = softplus(L_l (W_l u_t)_l)

Levels, and what is kept after t tokens, are those of `log_linear`; alpha, beta, q, k, v, their convolutions and the
gated output those of `gated_delta`, whose query scale the authors divide out of lambda again. Pieces of up to 64
positions are computed at once. With G the sums of log alpha and A = (Q K^T * e^{G_t - G_s}) R^-1 on and below the
diagonal, R = I + beta_t e^{G_t - G_s} k_t . k_s below it,

    y_t = sum_{s<=t} lambda_t^{level(t, s)} A_ts beta_s v_s   within the piece, and of each block S before it
        + lambda_t^l S^T (e^{G_t} q_t - sum_s A_ts beta_s e^{G_s} k_s)

Initialisation: L starts at 1, dt and A as in `gated_delta`, linear maps as `init` there says; by default N(0, 0.02),
convolutions too, as flash-linear-attention's layer, on which the authors' builds (HanGuo97/log-linear-attention,
6 June 2025; their language models have N(0, 0.006)).
Departs from the paper: levels beyond the last share its lambda, as in `log_linear`.
"""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from bestiary.mixers import gated_delta
from bestiary.mixers._delta import softplus
from bestiary.mixers._mixer import Chosen, Features, Mixer, Past, Where, take
from bestiary.mixers.log_linear import SQUARE, aligned_length, fullest_length
from bestiary.ops.drive import Matrix, Value
from bestiary.ops.precision import upcast, without_autocast
from bestiary.spec import Positive


class LogLinearDelta(Mixer):
    """y_t = sum_l lambda_t^l S_t^l^T q_t, each S^l under the gated delta rule of every later token."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, key=8, value=4, conv=1, negative=True, levels=4, init='short'",)
    without_decay: ClassVar = ("strength",)

    class Memory(NamedTuple):
        """The state after the inputs read so far."""

        conv: Past
        blocks: tuple[Matrix, ...]  # one for each bit of `time`, the longest first
        time: int

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        key: Positive | None = None,
        value: Positive | None = None,
        conv: Positive = 4,
        negative: bool = False,
        levels: Positive = 15,
        init: Literal["paper", "fla2024", "fla", "short"] = "fla",
    ) -> None:
        super().__init__()
        self.rule = gated_delta.GatedDelta(
            dim, heads=heads, key=key, value=value, conv=conv, negative=negative, init=init
        )
        self.levels = gated_delta.STARTS[init].linear(dim, heads * levels)
        self.strength = nn.Parameter(torch.ones(heads, levels))

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        conv, blocks, time = (None, (), 0) if state is None else state
        y, conv, blocks = self.recall(x, conv, blocks, time)
        return self.rule.read(y, x), self.Memory(conv, blocks, time + x.shape[1])

    def largest_state(self, time: int) -> int:
        return fullest_length(time, math.prod(self.rule.shape), self.rule.conv.filter)

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.rule.read(take(self.recall(x, None, (), 0)[0], where), take(x, where))

    def recall(
        self, x: Features, past: Past | None, blocks: tuple[Matrix, ...], time: int
    ) -> tuple[Value, Past, tuple[Matrix, ...]]:
        """y at every position, the inputs the convolution still needs, and the blocks after the last."""
        (heads, key, _), (drive, kept) = self.rule.shape, self.rule.drive(x, past)
        assert drive.g is not None
        assert drive.rewrite is not None
        q, beta = drive.q * key**0.5, -drive.rewrite[0]
        levels = self.strength * self.levels(x).unflatten(-1, (heads, -1))
        given = (q, drive.k, drive.v, drive.g, beta, softplus(levels))
        parts = [upcast(z).transpose(1, 2) for z in given]
        outputs, start = [], 0
        while start < x.shape[1]:
            size = min(SQUARE, aligned_length(time + start, x.shape[1] - start))
            piece = [z[..., start : start + size, :] for z in parts]
            y, blocks = read_piece(*piece, blocks=blocks, time=time + start)
            outputs.append(y)
            start += size
        return torch.cat(outputs, dim=-2).transpose(1, 2).to(x.dtype), kept, blocks


@without_autocast
def read_piece(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    strength: Tensor,
    *,
    blocks: tuple[Matrix, ...],
    time: int,
) -> tuple[Tensor, tuple[Matrix, ...]]:
    """Outputs of 2^n positions from `time`, a multiple of 2^n, on, and the blocks after them."""
    length, last = q.shape[-2], strength.shape[-1] - 1
    total = g.cumsum(-2)
    decay = (total - total.mT).tril().exp().tril()
    system = torch.eye(length, dtype=q.dtype, device=q.device) + (beta * decay * (k @ k.mT)).tril(-1)
    entering = beta * total.exp() * k
    weights = torch.linalg.solve_triangular(system, decay * (q @ k.mT), upper=False, left=False, unitriangular=True)
    y = (weights * strength.gather(-1, within(length, last, q).expand_as(weights))) @ v
    asked = total.exp() * q - weights @ entering
    bits = [bit for bit in reversed(range(time.bit_length())) if time >> bit & 1]
    for bit, block in zip(bits, blocks, strict=True):
        y = y + strength[..., min(bit + 1, last), None] * (asked @ block)
    end = total[..., -1:, :]
    left = (k * (end - total).exp()).mT
    solved = torch.linalg.solve_triangular(system, torch.cat([v, entering], -1), upper=False, unitriangular=True)
    written, erased = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    new, kept = left @ written, [end.exp() * block - left @ (erased @ block) for block in blocks]
    while time & length:  # two blocks of one length become one
        new, length = new + kept.pop(), 2 * length
    return y, (*kept, new)


def within(length: int, last: int, like: Tensor) -> Int[Tensor, "{length} {length}"]:
    """The level at which each position of an aligned piece reads each one before it."""
    place = torch.arange(length, device=like.device)
    apart = place.unsqueeze(1) ^ place
    level = (apart.unsqueeze(-1) >= 2 ** torch.arange(length.bit_length(), device=like.device)).sum(-1)
    return level.clamp(max=last)
