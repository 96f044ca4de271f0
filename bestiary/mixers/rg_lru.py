"""RG-LRU in the recurrent block of Hawk and Griffin (De et al., 2024): a real linear recurrence with two gates.

    x = short convolution(W_x u),   r, i = sigmoid(block-diagonal maps of x),   a = exp(-8 softplus(rate) r)
    h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * i_t * x_t,   output = W_out (h * GELU(W_y u))

Initialisation as in the authors' code: exp(-softplus(rate)) in (0.9, 0.999), uniform in its square (the paper says so
of its eighth power), maps N(0, 1 / sqrt(inputs)), convolution N(0, 0.1 / sqrt(taps)), biases zero.
Departs from the paper: the inner width is that of the model unless given, as in RecurrentGemma (the paper's is 4/3 of
it). From the authors' code: W_out is not scaled down by the number of layers, where theirs, in every block, has the
variance 2 / (layers inputs); the first input enters as any other; 1 - a^2 is at least 1e-12, which bounds the gradient
of its root.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, Mixer, Past, ShortConv, Where, head_width, linear, take
from bestiary.ops.precision import upcast
from bestiary.ops.scan import scan
from bestiary.spec import Positive

Inner = Float[Tensor, "batch _ inner"]


class RGLRU(Mixer):
    """h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * i_t * x_t after a short convolution, a and i gates; gated output."""

    family: ClassVar = "recurrent"
    variants: ClassVar = ("width=36, heads=3, conv=1",)
    without_decay: ClassVar = ("bias",)

    class Memory(NamedTuple):
        """The last inputs of the convolution, and h."""

        conv: Past
        h: Float[Tensor, "batch inner"]

    def __init__(self, dim: int, *, width: Positive | None = None, heads: Positive = 1, conv: Positive = 4) -> None:
        super().__init__()
        width = dim if width is None else width
        block = head_width(width, heads)
        self.into, self.gate = (linear(dim, width, bias=True, std=dim**-0.5) for _ in range(2))
        self.conv = ShortConv(width, conv, bias=True)
        self.conv.filter.data.normal_(0, 0.1 * conv**-0.5)
        self.conv.bias = nn.Parameter(torch.zeros(width))
        self.gates = nn.Parameter(torch.randn(heads, block, 2 * block) * block**-0.5)
        self.bias = nn.Parameter(torch.zeros(heads, 2 * block))
        modulus = torch.empty(width).uniform_(0.9**2, 0.999**2).sqrt()
        self.rate = nn.Parameter(torch.log(1 / modulus - 1))
        self.out = linear(width, dim, bias=True, std=width**-0.5)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        conv, h = (None, None) if state is None else state
        inner, conv = self.conv(self.into(x), conv)
        states, h = self.states(inner, h)
        return self.read(states, x), self.Memory(conv, h)

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        states, _ = self.states(self.conv(self.into(x), None)[0], None)
        return self.read(take(states, where), take(x, where))

    def states(self, x: Inner, h: Float[Tensor, "batch inner"] | None) -> tuple[Inner, Float[Tensor, "batch inner"]]:
        """Every h_t, and the last."""
        split = x.unflatten(-1, (len(self.gates), -1))
        gates = torch.einsum("bthi,hio->btho", split, self.gates) + self.bias
        r, i = (upcast(z).flatten(2).sigmoid() for z in gates.chunk(2, dim=-1))
        log_a = -8 * F.softplus(upcast(self.rate)) * r
        new = (-torch.expm1(2 * log_a)).clamp(min=1e-12).sqrt() * i * upcast(x)
        return scan(log_a.exp(), new, torch.zeros_like(new[:, 0]) if h is None else h)

    def read(self, states: Inner, x: Chosen) -> Chosen:
        """The output from what was read out of memory."""
        return self.out((states * F.gelu(self.gate(x), approximate="tanh")).to(self.out.weight.dtype))
