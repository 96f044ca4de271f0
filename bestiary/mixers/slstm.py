"""sLSTM of xLSTM (Beck et al., 2024): an LSTM with exponential input gates, a normaliser, and memory mixed in heads.

    i, f = W conv(x) + R h_{t-1} + b,   z, o = W x_t + R h_{t-1} + b,   conv = SiLU(short convolution), W, R per head
    c_t = sigmoid(f) c_{t-1} + e^i tanh(z),   n_t = sigmoid(f) n_{t-1} + e^i,   h_t = sigmoid(o) c_t / n_t
    output = LayerNorm(h) in each head, with a weight per channel

Kept are h, the average c / n and log n, the logarithm of its weight, of which nothing overflows: with
l_t = log(e^{l_{t-1}} sigmoid(f) + e^i) = log n_t the two terms of the average have weights that sum to one.
Initialisation as in the authors' code for a first block: W N(0, sqrt(2 / (5 dim))), R zero, b zero but for the forget
gate, where it is 5 - 12 (j / (head - 1))^0.3 in the j-th channel of a head; the convolution PyTorch's.
Departs from the paper: c / n and log n stand for c, n and the stabiliser m. The block's MLP is no part of a mixer.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Features, Mixer, Past, ShortConv, head_width
from bestiary.mixers._norm import check_normed
from bestiary.ops.precision import upcast, without_autocast
from bestiary.spec import Positive

Heads = Float[Tensor, "batch heads width"]

baddbmm = without_autocast(torch.baddbmm)


class SLSTM(Mixer):
    """c_t = sigmoid(f) c_{t-1} + e^i tanh(z), n_t = sigmoid(f) n_{t-1} + e^i, h_t = sigmoid(o) c_t / n_t."""

    family: ClassVar = "recurrent"
    variants: ClassVar = ("heads=1, conv=1",)
    without_decay: ClassVar = ("bias",)

    class Memory(NamedTuple):
        """The last inputs of the convolution, h, and c and n as mean and log weight."""

        conv: Past
        h: Heads
        mean: Heads  # c / n
        weight: Heads  # log n

    def __init__(self, dim: int, *, heads: Positive = 4, conv: Positive = 4) -> None:
        super().__init__()
        width = check_normed(head_width(dim, heads), f"heads={heads}")
        self.conv = ShortConv(dim, conv, bias=True)
        std = (2 / (5 * dim)) ** 0.5
        self.mixed, self.plain = (nn.Parameter(torch.randn(heads, width, 2 * width) * std) for _ in range(2))
        self.again = nn.Parameter(torch.zeros(heads, width, 4 * width))
        forget = 5 - 12 * torch.linspace(0, 1, width) ** 0.3
        self.bias = nn.Parameter(F.pad(forget, (width, 2 * width)).repeat(heads, 1))
        self.norm = nn.Parameter(torch.ones(dim))

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        conv, h, mean, weight = self.initial_state(x) if state is None else state
        (mixed,), conv = self.conv.streams(x, conv, x.shape[-1:])
        parts = headwise_linear(mixed, self.mixed), headwise_linear(x, self.plain)
        given = upcast(torch.cat(parts, dim=-1) + self.bias)
        h, mean, weight = (z.transpose(0, 1) for z in (h, mean, weight))  # heads first, for one product a step
        outputs, again = [], upcast(self.again)
        for now in given.permute(1, 2, 0, 3).contiguous().unbind(0):
            i, f, z, o = baddbmm(now, h, again).chunk(4, dim=-1)
            kept = F.logsigmoid(f) + weight
            weight = torch.logaddexp(kept, i)
            mean = torch.lerp(z.tanh(), mean, (kept - i).sigmoid())  # e^kept / (e^kept + e^i) of the old
            h = o.sigmoid() * mean
            outputs.append(h)
        y = F.layer_norm(torch.stack(outputs), h.shape[-1:]).permute(2, 0, 1, 3).flatten(2)
        state = self.Memory(conv, *(z.transpose(0, 1) for z in (h, mean, weight)))
        return y.to(x.dtype) * self.norm, state

    def equal_state(self, time: int) -> int:
        return min(time, len(self.conv.filter))

    def initial_state(self, x: Features) -> tuple[None, Heads, Heads, Heads]:
        """The memory before any input: an average of nothing, of a weight that anything exceeds."""
        zero = torch.zeros_like(upcast(x[:, 0])).unflatten(-1, self.again.shape[:2])
        return None, zero, zero, torch.full_like(zero, -1e30)


def headwise_linear(x: Features, map: Float[Tensor, "heads width out"]) -> Float[Tensor, "batch time heads out"]:
    """A linear map for each head."""
    return torch.einsum("bthi,hio->btho", x.unflatten(-1, map.shape[:2]), map)
