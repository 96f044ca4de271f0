"""Log-linear attention (Guo et al., 2025) on Mamba-2: the past in blocks of doubling length, each with its own state.

    z, x, B, C = W u,   x, B, C = SiLU(short convolution),   dt_t = softplus(W_dt u + b),   g_t = -dt_t exp(rate)
    y_t = sum_l lambda_t^l S_t^l^T C_t + D x_t,   S_t^l = sum_{s in level l of t} e^{g_{s+1} + ... + g_t} B_s dt_s x_s^T
    lambda_t^l = softplus(L_l (W_l u_t)_l),   output = W_o RMSNorm(y * SiLU(z))

Level 0 of t is t itself; the bits of t say how what precedes it divides into the others, one block of 2^(l-1) positions
for each bit l - 1 that is set, the lowest bit nearest to t (a Fenwick tree). So one matrix per bit of t is kept after t
tokens: at most log2(t) + 1 of them, and one alone where t is a power of two. Within a piece of 2^n positions that
starts at a multiple of 2^n, the late half of each pair of blocks reads the early half: n steps over all positions at
once. Any stretch consists of a few such pieces. Heads of 64 channels share B and C. Initialisation: rate log(1),
log(2), ..., dt log-uniform in (0.001, 0.1) through b, L and D 1, the rest N(0, 0.02), the convolution PyTorch's.
Departs from the paper: levels beyond the last (the authors': 2^14 positions) share its lambda instead of failing; the
output map is not scaled down by the number of layers.
"""

from itertools import count
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, Mixer, Past, ShortConv, Where, linear, step_sizes, take
from bestiary.mixers._norm import RMSNorm
from bestiary.ops.drive import Matrix
from bestiary.ops.precision import no_autocast, upcast
from bestiary.spec import Positive

SQUARE = 64  # longer blocks are read through their matrix, shorter ones position by position


class LogLinear(Mixer):
    """y_t = sum_l lambda_t^l S_t^l^T C_t + D x_t, one decaying state per level of a Fenwick tree; gated output."""

    family: ClassVar = "gated linear"
    variants: ClassVar = ("heads=4, state=8, expand=1, conv=1, levels=4",)
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
        state: Positive = 128,
        heads: Positive | None = None,
        expand: Positive = 2,
        conv: Positive = 4,
        levels: Positive = 15,
    ) -> None:
        super().__init__()
        inner = expand * dim
        self.heads, self.widths = max(1, inner // 64) if heads is None else heads, (inner, state, state)
        if inner % self.heads:
            raise ValueError(f"{self.heads} heads do not divide an inner width of {inner}")
        self.into, self.conv = linear(dim, sum(self.widths)), ShortConv(sum(self.widths), conv, bias=True)
        self.gate, self.norm, self.out = linear(dim, inner), RMSNorm(inner, eps=1e-5), linear(inner, dim)
        self.dt, self.step = linear(dim, self.heads), nn.Parameter(step_sizes((self.heads,)))
        self.rate = nn.Parameter(torch.arange(1.0, self.heads + 1).log())
        self.skip = nn.Parameter(torch.ones(self.heads))
        self.levels, self.strength = linear(dim, self.heads * levels), nn.Parameter(torch.ones(self.heads, levels))

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        conv, blocks, time = (None, (), 0) if state is None else state
        y, conv, blocks = self.recall(x, conv, blocks, time)
        return self.read(y, x), self.Memory(conv, blocks, time + x.shape[1])

    def largest_state(self, time: int) -> int:
        inner, state, _ = self.widths
        return fullest_length(time, inner * state, self.conv.filter)

    def equal_state(self, time: int) -> int:
        shortest = min(time, len(self.conv.filter))
        return next(length for length in count(shortest) if length.bit_count() == time.bit_count())

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.read(take(self.recall(x, None, (), 0)[0], where), take(x, where))

    def recall(
        self, x: Features, past: Past | None, blocks: tuple[Matrix, ...], time: int
    ) -> tuple[Float[Tensor, "batch time inner"], Past, tuple[Matrix, ...]]:
        """y at every position, the inputs the convolution still needs, and the blocks after the last."""
        (inner, k, q), kept = self.conv.streams(self.into(x), past, self.widths)
        inner = inner.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        dt = F.softplus(self.dt(x) + self.step).mT.unsqueeze(-1)
        g = -self.rate.exp()[:, None, None] * dt
        strength = F.softplus(self.strength * self.levels(x).unflatten(-1, (self.heads, -1))).transpose(1, 2)
        given, outputs, start = [upcast(z) for z in (q.unsqueeze(1), k.unsqueeze(1), dt * inner, g, strength)], [], 0
        while start < x.shape[1]:
            size = aligned_length(time + start, x.shape[1] - start)
            with no_autocast(x):
                y, blocks = read_piece([z[..., start : start + size, :] for z in given], blocks, time + start)
            outputs.append(y)
            start += size
        y = torch.cat(outputs, dim=-2).to(x.dtype) + self.skip[:, None, None] * inner
        return y.transpose(1, 2).flatten(2), kept, blocks

    def read(self, y: Float[Tensor, "batch _ inner"], x: Chosen) -> Chosen:
        """The output from what was read out of memory."""
        return self.out(self.norm(y * F.silu(self.gate(x))))


def fullest_length(time: int, matrix: int, filter: Float[Tensor, "taps channels"]) -> int:
    """The length up to `time` with the most to keep: a matrix of so many numbers for each bit, and what is convolved.

    Any shorter length has a 0 where `time` has a 1 first; with only ones behind it, it is longest and has most bits.
    """
    taps, channels = filter.shape
    lengths = (time, *((time >> bit << bit) - 1 for bit in range(time.bit_length()) if time >> bit & 1))
    return max(lengths, key=lambda length: length.bit_count() * matrix + min(length, taps - 1) * channels)


def aligned_length(time: int, left: int) -> int:
    """The longest power of two that divides the position and fits into what is left."""
    longest = 1 << (left.bit_length() - 1)
    return min(longest, time & -time) if time else longest


def read_piece(given: list[Tensor], blocks: tuple[Matrix, ...], time: int) -> tuple[Tensor, tuple[Matrix, ...]]:
    """Outputs of 2^n positions from `time`, a multiple of 2^n, on, and the blocks after them."""
    q, k, v, g, strength = given
    total, last = g.cumsum(-2), strength.shape[-1] - 1
    end, y = total[..., -1:, :], read_within(q, k, v, g, strength)
    bits = [bit for bit in reversed(range(time.bit_length())) if time >> bit & 1]
    for bit, block in zip(bits, blocks, strict=True):
        y = y + strength[..., min(bit + 1, last), None] * ((q * total.exp()) @ block)
    new, kept = (k * sum_after(g).exp()).mT @ v, [end.exp() * block for block in blocks]
    length = q.shape[-2]
    while time & length:  # two blocks of one length become one
        new, length = new + kept.pop(), 2 * length
    return y, (*kept, new)


def read_within(q: Tensor, k: Tensor, v: Tensor, g: Tensor, strength: Tensor) -> Tensor:
    """What positions read of blocks within the piece: level by level, late halves of early halves."""
    y, size, level = strength[..., :1] * (q * k).sum(-1, keepdim=True) * v, 1, 1
    while size < q.shape[-2]:
        of = strength[..., min(level, strength.shape[-1] - 1), None]
        (_, late), (early, _), (value, _), (first, second), (_, of), (done, more) = (
            z.unflatten(-2, (-1, 2, size)).unbind(-3) for z in (q, k, v, g, of, y)
        )
        to, after = sum_after(first), second.cumsum(-2)  # to the border; differences of longer sums lose digits
        if size <= SQUARE:
            found = ((late @ early.mT) * (after + to.mT).exp()) @ value
        else:
            found = (late * after.exp()) @ ((early * to.exp()).mT @ value)
        y, size, level = torch.stack([done, more + of * found], dim=-3).flatten(-4, -2), 2 * size, level + 1
    return y


def sum_after(g: Tensor) -> Tensor:
    """The sum of what follows each position."""
    return F.pad(g[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)
