"""Titans' long-term memory (Behrouz, Zhong & Mirrokni, 2025, section 3): learning with momentum and forgetting.

    S_t = eta_t S_{t-1} - theta_t d loss_t(M*) / d M*,   M_t = (1 - alpha_t) M_{t-1} + S_t,   y_t = f(q_t; M_t)
    f(x; M) = x + LayerNorm(GELU(x M1 + b1) M2 + b2),   loss_t(M) = |f(k_t; M) - v_t|^2 / 2
    q, k, v = SiLU(short convolution(W x)),  unit q_t and k_t,  output = W_o (RMSNorm(y) * sigmoid(W_g x))

M* is the memory before the chunk of t (section 3.2); chunks are bounded by absolute positions, and chunk=1 is the
recurrence of section 3.1. eta, alpha = sigmoid(w x_t + c) and theta = sigmoid(w x_t + c) / width, one per head.
Within a chunk, (M, S) after each token is what they were before plus a sum over what it learned, with weights that
are products of the decays of M and S. `depth` layers, hidden ones four times as wide as a head; M_0 is learnt.
Departs from the paper: this is the memory alone, without attention and without persistent tokens. The residual and
the LayerNorm in f, as in TTT, are not the paper's but both public implementations have them. The paper states no
initialisation: here linear maps and M_0 are N(0, 0.02), biases zero but that of alpha, -4, so that little is
forgotten; the scale 1 / width of theta is that of TTT. No gradient of the model's loss passes through a step at an
output whose variance is below 1e-6, such as that of a zero input, where it would grow without bound. Unit vectors are
x / sqrt(|x|^2 + 1e-6), whose slope at zero is 1,000.
With depth=1, as drawn, float32 and float64 differ by 0.06 to 0.5 of the output after 1,000 tokens of N(0, 1), with
depth=2 or chunk=4 by 1e-6 to 3e-6: steps of 16 tokens from one memory overshoot together, and so small differences
grow from chunk to chunk.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._delta import GatedOutput, Streams
from bestiary.mixers._learner import Learner
from bestiary.mixers._mixer import Features, State, head_width, linear
from bestiary.mixers._norm import check_normed
from bestiary.mixers._test_time import Network, Weights, decay_matrix, group_aligned, minus_product, unbind_chunks
from bestiary.ops.norm import normalize
from bestiary.ops.precision import upcast
from bestiary.spec import Positive


class Titans(Learner):
    """M_t = (1 - alpha_t) M_{t-1} + S_t, S_t = eta_t S_{t-1} - theta_t gradient_t, y_t = f(q_t; M_t)."""

    family: ClassVar = "test time"
    variants: ClassVar = ("heads=1, conv=1, chunk=1, depth=1",)

    def __init__(
        self,
        dim: int,
        *,
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
        self.theta, self.eta, self.alpha = (linear(dim, heads, bias=True) for _ in range(3))
        nn.init.constant_(self.alpha.bias, -4.0)
        self.answer = GatedOutput(dim, heads, width, linear(dim, dim))

    def first_momentum(self, weights: Weights) -> Weights:
        return tuple(torch.zeros_like(weight) for weight in weights)

    def plan(self, x: Features, past: State, time: int) -> tuple[Iterator[list[Tensor]], State]:
        (q, k, v), past = self.streams(x, past)
        theta, moving, keeping = self.rates(x)
        streams = [z.transpose(1, 2) for z in (normalize(q), normalize(k), v, theta, moving, keeping)]
        groups = group_aligned(streams, self.chunk, time)
        return (now for q, k, v, *rates in groups for now in unbind_chunks((q, k, v, *decays(*rates)))), past

    def rates(self, x: Features) -> tuple[Tensor, Tensor, Tensor]:
        """theta, log eta and log(1 - alpha) at each token, batch time heads 1."""
        theta = self.theta(x).sigmoid() / self.width
        rates = theta, F.logsigmoid(upcast(self.eta(x))), F.logsigmoid(-upcast(self.alpha(x)))
        return theta.unsqueeze(-1), rates[1].unsqueeze(-1), rates[2].unsqueeze(-1)

    def read_chunk(
        self, streams: list[Tensor], weights: Weights, momentum: Weights, anchor: Weights
    ) -> tuple[Tensor, Weights, Weights]:
        """Tokens of one chunk, and M and S after the last."""
        q, k, v, keep, push, mix, hold, last = streams
        entered, slopes = self.network.gradients(k, v, anchor)

        def layer(i: int, x: Tensor) -> Tensor:
            before = torch.addcmul(keep * (x @ weights[i]), push, x @ momentum[i])
            return minus_product(before, (x @ entered[i].mT) * mix, slopes[i])

        y = self.network.apply_layers(q, [lambda x, i=i: layer(i, x) for i in range(len(weights))])
        held, pushed, wrote = keep[..., -1:, :], push[..., -1:, :], mix[..., -1:, :]
        parts = list(zip(weights, momentum, entered, slopes, strict=True))
        after = tuple(
            minus_product(torch.addcmul(held * m, pushed, s), x.mT * wrote, slope) for m, s, x, slope in parts
        )
        return y, after, tuple(minus_product(hold * s, x.mT * last, slope) for _, s, x, slope in parts)


def decays(theta: Tensor, moving: Tensor, keeping: Tensor) -> tuple[Tensor, ...]:
    """How much of M and S is left in M at each token of a chunk, how much of what each token learned; the same for S.

    The last two are of S after the chunk: how much of it is left, and of what each token learned.
    """
    moved, kept = decay_matrix(moving), decay_matrix(keeping)
    push, mix = kept @ moving.cumsum(-2).exp(), kept @ (moved * theta.mT)
    hold, last = moving.sum(-2, keepdim=True).exp(), moved[..., -1:, :] * theta.mT
    return keeping.cumsum(-2).exp(), push, mix, hold, last
