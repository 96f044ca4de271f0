"""Gated Oja rule (Hu, 2026, a note in flash-linear-attention): a memory that learns which key a value has.

    S_t = S~ + beta_t (k_t - S~ v_t) v_t^T,  S~ = S_{t-1} Diag(alpha_t),  y_t = S_t^T q_t       (keys by values)
    q, k, v = SiLU(short convolution(W x)), of unit length, q of 1 / sqrt(key),  beta_t = sigmoid(w x_t)
    alpha_t = exp(-A softplus(W2 W1 x_t + dt)) in every value channel,  output = W_o (RMSNorm(y) * sigmoid(U2 U1 x + c))

Where the delta rule erases along the key, this erases along the value. Transposed it is a delta rule with keys and
values exchanged, but read from the other side, so `run` is its own (equations there). Initialisation as in `kda`.
Departs from the paper: the note and its code give the rule for unit values and no layer; this layer is that of
Kimi Delta Attention (2025) around it.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bestiary.mixers._delta import Decay, GatedOutput, Streams, low_rank, unit_queries
from bestiary.mixers._mixer import Chosen, Features, Mixer, State, Where, head_width, take
from bestiary.mixers.kda import START
from bestiary.ops.drive import Key, Matrix, Value
from bestiary.ops.norm import normalize
from bestiary.ops.precision import upcast
from bestiary.ops.recurrence import decayed_sum, iterate_chunks, scores, split_chunks
from bestiary.spec import Positive


class GatedOja(Mixer):
    """S_t = S_{t-1} Diag(alpha_t) (I - beta_t v_t v_t^T) + beta_t k_t v_t^T, alpha per value channel."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, key=8, value=4, conv=1",)

    class Memory(NamedTuple):
        """The state after the inputs read so far."""

        local: State  # of the convolution
        matrix: Matrix  # the transpose of S

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        key: Positive | None = None,
        value: Positive | None = None,
        conv: Positive = 4,
    ) -> None:
        super().__init__()
        key = head_width(dim, heads) if key is None else key
        value = key if value is None else value
        self.shape = heads, value, key
        self.streams = Streams(dim, heads, (key, key, value), conv, START)
        self.beta = START.linear(dim, heads)
        self.decay = Decay(heads, value, low_rank(dim, value, heads * value, START), START)
        gate = low_rank(dim, value, heads * value, START, bias=True)
        self.answer = GatedOutput(dim, heads, value, gate, start=START)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        y, after = self.recur(x, self.Memory(None, x.new_zeros(len(x), *self.shape)) if state is None else state)
        return self.answer(y, x), after

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        y, _ = self.recur(x, self.Memory(None, x.new_zeros(len(x), *self.shape)))
        return self.answer(take(y, where), take(x, where))

    def recur(self, x: Features, state: Memory) -> tuple[Value, Memory]:
        """Outputs of every head, and the state after the last input."""
        (q, k, v), local = self.streams(x, state.local)
        beta = self.beta(x).sigmoid().unsqueeze(-1)
        y, matrix = run(unit_queries(q), normalize(k), normalize(v), self.decay(x), beta, state.matrix)
        return y, self.Memory(local, matrix)


def run(
    q: Key, k: Key, v: Value, g: Value, beta: Tensor, matrix: Tensor, *, chunk: int = 64
) -> tuple[Value, Float[Tensor, "batch heads value key"]]:
    """All y_t and the last T = S^T, in chunks.

    With G the sums of g and w_t = beta_t (k_t - S~ v_t), T_t = e^{G_t} T_0 + sum_{j<=t} e^{G_t - G_j} v_j w_j^T, so

        w_t = beta_t (k_t - T_0^T (e^{G_t} v_t) - sum_{j<t} (v_t . e^{G_t - G_j} v_j) w_j)      a triangular system
        y_t = e^{G_t} T_0 q_t + sum_{j<=t} (q_t . w_j) e^{G_t - G_j} v_j
    """
    time, given = q.shape[1], q.dtype
    chunk = 2 ** (min(chunk, time) - 1).bit_length()
    q, k, v, g, beta = (split_chunks(upcast(x), chunk) for x in (q, k, v, g, beta))
    total = g.cumsum(-2)
    end = total[..., -1:, :]
    system = torch.eye(chunk, dtype=q.dtype, device=q.device) + beta * scores(total, total, reach=1)(v, v)
    seen, kept, shrunk = v * total.exp(), (v * (end - total).exp()).mT, end.exp().mT
    states, writes, matrix = [], [], upcast(matrix)
    for b, key, value, chunk_system, left, held in iterate_chunks(beta, k, seen, system, shrunk, kept):
        states.append(matrix)
        wanted = b * (key - value @ matrix)
        writes.append(torch.linalg.solve_triangular(chunk_system, wanted, upper=False, unitriangular=True))
        matrix = left * matrix + held @ writes[-1]
    w = torch.stack(writes, dim=2)
    y = total.exp() * (q @ torch.stack(states, dim=2).mT) + decayed_sum(q @ w.mT, v, total)
    return y.flatten(2, 3)[:, :, :time].transpose(1, 2).to(given), matrix
