"""Mamba-2 (Dao & Gu, 2024): Mamba with one decay for a whole head, whose state is then that of linear attention.

    z, m, dt = W u,   x, B, C = SiLU(short convolution(m)),   dt = softplus(dt + bias),   A > 0 and D one per head
    S_t = exp(-dt_t A) S_{t-1} + dt_t B_t x_t^T,   y_t = S_t^T C_t + D x_t,   output = W_out RMSNorm(y * SiLU(z))

All heads share B and C. Heads are 64 wide, or as wide as divides both 64 and the inner width. Initialisation as in
the authors' code: A uniform in (1, 16), dt log-uniform in (0.001, 0.1) through its bias, D = 1, the rest PyTorch's.
D is `skip`: at 1 what is read of a value written before is at first a tenth of what the input itself adds, and 0 lets
some seeds learn recall within a few hundred steps (ours).
`taper=LENGTH` is PoST (arXiv 2604.07658) for a model trained on so many tokens: see `TaperedRates`. At the start,
with dt = 0.05, whose bias is not trained, heads at position t forget within 1 to t LENGTH tokens, evenly in the
logarithm.
Departs from the paper: one group of B and C. From the authors' language model: the output map is not scaled down by
the number of layers.
"""

import math
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, Mixer, Past, ShortConv, Where, step_sizes, take
from bestiary.mixers._norm import RMSNorm
from bestiary.mixers._taper import TaperedRates
from bestiary.ops.drive import Drive, Matrix
from bestiary.ops.recurrence import run
from bestiary.spec import Positive

Heads = Float[Tensor, "batch _ heads value"]
STEP = 0.05  # dt of PoST at the start


class Mamba2(Mixer):
    """S_t = exp(-dt_t A) S_{t-1} + dt_t B_t x_t^T, read by C_t, with dt, B, C, x linear in the input; gated output."""

    family: ClassVar = "state space"
    variants: ClassVar = ("state=8, head=16, conv=1, expand=1", "skip=0.0", "head=8, taper=32")
    later_options: ClassVar = ("taper",)

    class Memory(NamedTuple):
        """The last inputs of the convolution, S, and how many tokens were read."""

        conv: Past
        matrix: Matrix
        read: int

    def __init__(
        self,
        dim: int,
        *,
        state: Positive = 128,
        head: Positive | None = None,
        conv: Positive = 4,
        expand: Positive = 2,
        skip: float = 1.0,
        taper: Positive | None = None,
    ) -> None:
        super().__init__()
        inner = expand * dim
        head = math.gcd(inner, 64) if head is None else head
        if inner % head:
            raise ValueError(f"heads of width {head} do not fill an inner width of {inner}")
        self.shape, self.widths = (inner // head, state, head), (inner, state, state)
        self.into, self.gate = nn.Linear(dim, sum(self.widths), bias=False), nn.Linear(dim, inner, bias=False)
        self.conv = ShortConv(sum(self.widths), conv, bias=True)
        self.dt = nn.Linear(dim, inner // head, bias=taper is None)
        if taper is None:
            self.dt.bias.data.copy_(step_sizes((inner // head,)))
            self.rate = nn.Parameter(torch.empty(inner // head).uniform_(1, 16).log())
        else:
            self.rate = TaperedRates(-math.log(STEP * taper), -math.log(STEP), inner // head, taper)
        self.skip = nn.Parameter(torch.full((inner // head,), float(skip)))
        self.norm, self.out = RMSNorm(inner, eps=1e-5), nn.Linear(inner, dim, bias=False)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        conv, matrix, read = (None, x.new_zeros(len(x), *self.shape), 0) if state is None else state
        drive, inner, conv = self.drive(x, conv, read)
        y, matrix = run(drive, matrix)
        return self.read(y, inner, x), self.Memory(conv, matrix, read + x.shape[1])

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        drive, inner, _ = self.drive(x, None, 0)
        y, _ = run(drive, x.new_zeros(len(x), *self.shape))
        return self.read(take(y, where), take(inner, where), take(x, where))

    def drive(self, x: Features, conv: Past | None, read: int) -> tuple[Drive, Heads, Past]:
        """What the recurrence consumes, and x after the convolution; `read` tokens came before x."""
        (inner, b, c), past = self.conv.streams(self.into(x), conv, self.widths)
        inner = inner.unflatten(-1, (self.shape[0], -1))
        b, c = b.unsqueeze(2), c.unsqueeze(2)
        tapered = isinstance(self.rate, TaperedRates)
        dt = F.softplus(self.dt(x) + math.log(math.expm1(STEP)) if tapered else self.dt(x)).unsqueeze(-1)
        rate = self.rate(x, read) if isinstance(self.rate, TaperedRates) else self.rate.exp()
        return Drive(c, b, dt * inner, -dt * rate.unsqueeze(-1)), inner, past

    def read(self, y: Heads, inner: Heads, x: Chosen) -> Chosen:
        """The output from what was read out of memory."""
        y = (y + self.skip.unsqueeze(-1) * inner).flatten(2)
        return self.out(self.norm(y * F.silu(self.gate(x))))
