"""OmegaNet of Atlas (Behrouz et al., 2025): a memory that learns from a window of tokens at once, not from the last.

    S_t = eta_t S_{t-1} - theta_t sum_{t-window<i<=t} gamma_i d loss_i(M*) / d M*,   M_t = (1 - alpha_t) M_{t-1} + S_t
    f(x; M) = x + LayerNorm(phi(x) M + b),   loss_i(M) = |f(k_i; M) - v_i|^2 / 2,   y_t = f(q_t; M_t)
    phi(x) = (a_1 x, a_2 x_i x_j for i <= j),  so that phi(q) . phi(k) = a_1^2 q . k + a_2^2 (q . k)^2

The Omega rule is the sum over the window, with phi of degree 2 a matrix can hold as many pairs as a head
has pairs of channels. a_i^2 starts at 1 / i!, as in the series of the exponential, and is
learnt; b is the constant feature. Everything else is as in Titans, M* is the memory before the chunk of t also for
tokens of the window that came before the chunk, and `window=1, degree=1` with gamma = 1 is Titans. `depth=2` gives
the memory a hidden layer, four times as wide as a head.
The rule is taken from restatements of the paper, whose text could not be compared.
Departs from the paper: gamma_i = sigmoid(w x_i + c) depends on the token alone, where the paper lets it change with t.
Atlas itself takes Newton-Schulz steps on S_t before it is added (Muon); these are left out. The residual and the
LayerNorm in f, the rates and the initialisation are those of our Titans, of which the paper states none, and so are
off-diagonal products counted sqrt(2) times. `window` and `chunk` are ours.
As drawn, float32 and float64 differ by 0.3 to 0.6 of the output after 1,000 tokens of N(0, 1), with depth=2 by 3e-6:
see Titans.
"""

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bestiary.mixers._mixer import Features, State, linear
from bestiary.mixers._test_time import Network, group_aligned, unbind_chunks
from bestiary.mixers.titans import Titans, decays
from bestiary.ops.norm import normalize
from bestiary.ops.precision import upcast
from bestiary.spec import Positive


class Polynomial(Network):
    """f of the channels of its input and, with degree 2, of their products."""

    pairs: Tensor  # which channels each product multiplies

    def __init__(self, heads: int, width: int, hidden: tuple[int, ...], degree: int) -> None:
        features = width + (degree - 1) * width * (width + 1) // 2
        super().__init__(heads, (features, *hidden, width))
        self.powers = nn.Parameter(torch.tensor([1 / math.sqrt(math.factorial(i + 1)) for i in range(degree)]))
        self.register_buffer("pairs", torch.triu_indices(width, width), persistent=False)

    def expand(self, x: Tensor) -> Tensor:
        """phi(x)."""
        first, second = self.pairs
        often = torch.where(first == second, 1.0, 2.0).to(x.dtype).sqrt()
        parts = [x, x[..., first] * x[..., second] * often][: len(self.powers)]
        return torch.cat([a * part for a, part in zip(self.powers, parts, strict=True)], dim=-1)


class Atlas(Titans):
    """M_t = (1 - alpha_t) M_{t-1} + S_t, S_t = eta_t S_{t-1} - theta_t sum of gamma_i gradient_i over a window."""

    family: ClassVar = "test time"
    variants: ClassVar = ("heads=1, conv=1, chunk=5, window=7, depth=2, degree=1",)

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        conv: Positive = 4,
        window: Positive = 4,
        degree: Literal[1, 2] = 2,
        depth: Positive = 1,
        chunk: Positive = 16,
    ) -> None:
        super().__init__(dim, heads=heads, conv=conv, depth=depth, chunk=chunk)
        self.lag = window - 1
        self.network = Polynomial(heads, self.width, (4 * self.width,) * (depth - 1), degree)
        self.gamma = linear(dim, heads, bias=True)

    def plan(self, x: Features, past: State, time: int) -> tuple[Iterator[list[Tensor]], State]:
        local, recent = (None, None) if past is None else past
        (q, k, v), local = self.streams(x, local)
        given = [upcast(z).transpose(1, 2) for z in (normalize(k), v, self.gamma(x).sigmoid().unsqueeze(-1))]
        if recent is None:  # tokens that weigh nothing
            recent = [z.new_zeros(*z.shape[:2], self.lag, z.shape[3]) for z in given]
        written = [torch.cat(z, dim=2) for z in zip(recent, given, strict=True)]
        streams = [z.transpose(1, 2) for z in (normalize(q), *self.rates(x))]
        length = x.shape[1]
        return self.windows(streams, written, time), (local, tuple(z[:, :, length:] for z in written))

    def windows(self, streams: list[Tensor], written: list[Tensor], time: int) -> Iterator[list[Tensor]]:
        """What `read_chunk` is given: keys and values also of the window before the chunk."""
        begin = 0
        for q, *rates in group_aligned(streams, self.chunk, time):
            count, length = q.shape[2:4]
            wide, end = self.lag + length, begin + self.lag + count * length
            k, v, gamma = (z[:, :, begin:end].unfold(2, wide, length).mT for z in written)
            lag = torch.arange(length, device=q.device).unsqueeze(-1) + self.lag - torch.arange(wide, device=q.device)
            weighs = gamma.mT * ((lag >= 0) & (lag <= self.lag))
            keep, push, mix, hold, last = decays(*rates)
            yield from unbind_chunks((q, k, v, keep, push, mix @ weighs, hold, last @ weighs))
            begin += count * length
