"""M2RNN (Mishra et al., 2026, "Non-Linear RNNs with Matrix-Valued States"): an RNN whose state is a matrix.

    H_t = f_t H_{t-1} + (1 - f_t) tanh(H_{t-1} W + k_t v_t^T),   y_t = H_t^T q_t + D * v_t,   in each head
    f_t = exp(-A softplus(w x_t + dt)),   q, k, v = SiLU(short convolution(W x)),
    output = W_o RMSNorm(y * SiLU(W_g x))

All heads share q and k; W and D are one for each head, the norm is over all heads together. A state goes through a
tanh at every token, so the tokens are read one after another. Keys are 64 and values 16 channels wide as in the
authors' models; the heads fill the width of the model unless said otherwise (there: 1.3 times it). Initialisation as
in the authors' code (open-lm-engine/lm-engine, 36bad91): maps and convolution N(0, 0.02), W the identity, D 1, A
uniform in (0, 16), dt log-uniform in (0.001, 0.1).
Equal to the recurrence in that code to 2e-6 in float32.

Departs from the paper: the gradient of each state is not clipped at 1; the output map is not scaled down by the number
of layers.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._delta import Decay
from bestiary.mixers._mixer import Chosen, Features, Mixer, Past, Where, linear, take
from bestiary.mixers._norm import RMSNorm
from bestiary.mixers._start import FLA, NORMAL
from bestiary.ops.drive import Matrix, Value
from bestiary.ops.precision import upcast, without_autocast
from bestiary.spec import Positive

baddbmm = without_autocast(torch.baddbmm)


class M2RNN(Mixer):
    """H_t = f_t H_{t-1} + (1 - f_t) tanh(H_{t-1} W + k_t v_t^T), read by q_t; gated output."""

    family: ClassVar = "recurrent"
    variants: ClassVar = ("heads=2, key=6, value=5, conv=1",)
    without_decay: ClassVar = ("skip",)

    class Memory(NamedTuple):
        """The last inputs of the convolution, and H."""

        conv: Past
        matrix: Matrix

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive | None = None,
        key: Positive = 64,
        value: Positive = 16,
        conv: Positive = 4,
    ) -> None:
        super().__init__()
        heads = max(1, dim // value) if heads is None else heads
        self.shape, self.widths = (heads, key, value), (key, key, heads * value)
        self.qkv, self.conv = linear(dim, sum(self.widths)), FLA.conv(sum(self.widths), conv)
        self.decay = Decay(heads, 1, linear(dim, heads), NORMAL)
        self.again = nn.Parameter(torch.eye(value).repeat(heads, 1, 1))
        self.skip = nn.Parameter(torch.ones(heads, value))
        self.gate, self.norm = linear(dim, heads * value), RMSNorm(heads * value, eps=1e-5)
        self.out = linear(heads * value, dim)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        y, after = self.recall(x, state)
        return self.read(y, x), after

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.read(take(self.recall(x, None)[0], where), take(x, where))

    def equal_state(self, time: int) -> int:
        return min(time, len(self.conv.filter))

    def recall(self, x: Features, state: Memory | None) -> tuple[Value, Memory]:
        """y at every position, and the state after the last."""
        conv, matrix = (None, upcast(x.new_zeros(len(x), *self.shape))) if state is None else state
        (q, k, v), conv = self.conv.streams(self.qkv(x), conv, self.widths)
        v = v.unflatten(-1, (self.shape[0], -1))
        f, again = upcast(self.decay(x).exp()), upcast(self.again)
        y, matrix = recur(upcast(q), upcast(k), upcast(v), f, again, matrix)
        return y.to(x.dtype) + self.skip * v, self.Memory(conv, matrix)

    def read(self, y: Value, x: Chosen) -> Chosen:
        """The output from what was read out of memory."""
        return self.out(self.norm(y.flatten(2) * F.silu(self.gate(x))))


def recur(
    q: Tensor, k: Tensor, v: Value, f: Float[Tensor, "batch time heads 1"], again: Tensor, state: Matrix
) -> tuple[Value, Matrix]:
    """H_t^T q_t at every position, and the last H. Heads come first, for one product a step."""
    state, outputs = state.transpose(0, 1), []
    for query, now, value, kept in zip(*(z.unbind(1) for z in (q, k, v, f)), strict=True):
        new = now.unsqueeze(-1) * value.transpose(0, 1).unsqueeze(-2)
        new = baddbmm(new.flatten(1, 2), state.flatten(1, 2), again).tanh().unflatten(1, state.shape[1:3])
        state = torch.lerp(new, state, kept.transpose(0, 1).unsqueeze(-1))
        outputs.append((query.unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs).permute(2, 0, 1, 3), state.transpose(0, 1)
