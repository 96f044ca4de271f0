"""Moneta and Yaad of Miras (Behrouz et al., 2025): memories that learn from losses other than the squared error.

    M_t = (1 - alpha_t) M_{t-1} - eta_t d loss_t(M*) / d M*,   y_t = f(q_t; M_t)
    f(x; M) = x + LayerNorm(GELU(x M1 + b1) M2 + b2),   r = f(k_t; M*) - v_t
    "yaad"     d loss / d r = r where |r| <= delta_t,  else delta_t sign(r)     (Huber; |r| of the vector)
    "moneta"   loss = sum |r|^3,  d loss / d r = 3 r |r|              (l_p with p = 3; in each channel)

M* is the memory before the chunk of t; chunks are bounded by absolute positions, and chunk=1 is the
recurrence. q, k, v = SiLU(short convolution(W x)), unit q and k, output = W_o (RMSNorm(y) * sigmoid(W_g x)). Near
zero, sign(r) is tanh(10 r) and |r| is sqrt(r^2 + 1e-6). alpha, eta and delta are sigmoid,
sigmoid / width and softplus * sqrt(width) of w x_t + c. Initialisation as in our Titans, of which it is the memory
without momentum.
The rules are taken from restatements of the paper, whose text could not be compared.
Departs from the paper: alpha, eta and delta are one per head, not one per channel through a low rank. Moneta's q is
2, where keeping the memory small is decay; with the paper's q = 4, whose M is A / |A|_4^2, a larger A is a smaller
memory, which the LayerNorm answers with larger gradients. Memora is left out: of which slices its softmax is and how
its first weights are drawn, public text does not say. The 10 and the 1e-6, the scales of eta and delta and the
initialisation are ours. No gradient of the model's loss passes through a step at an output whose variance is below
1e-6.
As drawn, float32 and float64 differ by about 0.3 of the output after 1,000 tokens of N(0, 1), of Moneta by 1.1 to 1.3,
with chunk=1 by less than 1e-6: see Titans.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._delta import GatedOutput, Streams, softplus
from bestiary.mixers._learner import Learner
from bestiary.mixers._mixer import Features, State, head_width, linear
from bestiary.mixers._norm import check_normed
from bestiary.mixers._test_time import Network, Weights, decay_matrix, group_aligned, minus_product, unbind_chunks
from bestiary.ops.norm import normalize
from bestiary.ops.precision import upcast
from bestiary.spec import Positive

SHARP = 10.0  # sign(r) is tanh(SHARP r)
SMALL = 1e-6  # |r| is sqrt(r^2 + SMALL)


class Miras(Learner):
    """M_t = (1 - alpha_t) M_{t-1} - eta_t gradient_t, y_t = f(q_t; M_t), the gradient of a Huber or an l_3 loss."""

    family: ClassVar = "test time"
    variants: ClassVar = ("form='moneta', heads=1, conv=1, chunk=5, depth=1",)

    def __init__(
        self,
        dim: int,
        *,
        form: Literal["yaad", "moneta"] = "yaad",
        heads: Positive = 2,
        conv: Positive = 4,
        depth: Positive = 2,
        chunk: Positive = 16,
    ) -> None:
        super().__init__()
        width = check_normed(head_width(dim, heads), f"heads={heads}")
        self.chunk, self.conv, self.width = chunk, conv, width
        self.network = Network(heads, (width, *(4 * width for _ in range(depth - 1)), width))
        self.streams = Streams(dim, heads, (width, width, width), conv)
        self.eta, self.alpha = (linear(dim, heads, bias=True) for _ in range(2))
        nn.init.constant_(self.alpha.bias, -4.0)
        self.delta = linear(dim, heads, bias=True) if form == "yaad" else None
        self.answer = GatedOutput(dim, heads, width, linear(dim, dim))

    def plan(self, x: Features, past: State, time: int) -> tuple[Iterator[list[Tensor]], State]:
        (q, k, v), past = self.streams(x, past)
        rates = [self.eta(x).sigmoid() / self.width, F.logsigmoid(-upcast(self.alpha(x)))]
        if self.delta is not None:
            rates.append(self.width**0.5 * softplus(self.delta(x)))
        streams = [z.transpose(1, 2) for z in (normalize(q), normalize(k), v, *(rate.unsqueeze(-1) for rate in rates))]
        return self.chunks(streams, time), past

    def chunks(self, streams: list[Tensor], time: int) -> Iterator[list[Tensor]]:
        """What `read_chunk` is given: q, k, v, how much of M and of each gradient is left in M, and delta."""
        for q, k, v, eta, keeping, *delta in group_aligned(streams, self.chunk, time):
            mix = decay_matrix(keeping) * eta.mT
            yield from unbind_chunks((q, k, v, keeping.cumsum(-2).exp(), mix, *delta))

    def read_chunk(
        self, streams: list[Tensor], weights: Weights, momentum: Weights, anchor: Weights
    ) -> tuple[Tensor, Weights, Weights]:
        q, k, v, keep, mix, *delta = streams
        entered, slopes = self.network.gradients(k, v, anchor, lambda miss: loss_slope(miss, *delta))

        def layer(i: int, x: Tensor) -> Tensor:
            return minus_product(keep * (x @ weights[i]), (x @ entered[i].mT) * mix, slopes[i])

        y = self.network.apply_layers(q, [lambda x, i=i: layer(i, x) for i in range(len(weights))])
        held, wrote = keep[..., -1:, :], mix[..., -1:, :]
        parts = zip(weights, entered, slopes, strict=True)
        return y, tuple(minus_product(held * m, x.mT * wrote, slope) for m, x, slope in parts), momentum


def loss_slope(miss: Tensor, delta: Tensor | None = None) -> Tensor:
    """The slope of the Huber loss that turns at delta, or without it that of sum |r|^3."""
    if delta is None:
        return 3 * miss * (miss.square() + SMALL).sqrt()
    near = miss.square().sum(-1, keepdim=True) <= delta.square()
    return torch.where(near, miss, delta * (SHARP * miss).tanh())
