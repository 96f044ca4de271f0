"""MDN, momentum DeltaNet (Huang et al., 2026): the delta rule as gradient descent with momentum at every token.

    P_t = mu_t P_{t-1} + eta_t k_t (v_t - alpha_t S_{t-1}^T k_t)^T,   S_t = alpha_t S_{t-1} + beta_t P_t,  y = S_t^T q_t
    eta_t = 1 + tanh(e x_t / sqrt(dim)),   mu_t = exp(-min(2, B softplus(m x_t + dt'))),   tan theta_t = f eta_t
    alpha_t = cos^2 theta_t exp(-A softplus(w x_t + dt)),   beta_t = sin^2 theta_t sigmoid(b x_t)

f, A, B are one per head. q, k, v = SiLU(short convolution(W x)), q_t = unit(q_t - d k_t) / sqrt(key), then unit k_t;
output = W_o (RMSNorm(y) * sigmoid(W_g x)). theta keeps S and P, a system of second order, from growing.
Keys are 0.75 and values 1.5 of the model wide, split over the heads. Initialisation as in the authors' code
(HuuYuLong/MomentumDeltaNet, c6e77fa, 8 May 2026): linear maps and convolutions N(0, 0.02), A and B uniform in (0, 16),
dt = dt' log-uniform in (0.001, 0.1), f uniform in (0, 4), d in (0, 1). init="short", ours, for a few hundred steps, is
that of `gated_delta`, with B in (0, 1) too.
Departs from the paper: nothing known. The authors' code has P with the opposite sign. Equal to its plain recurrence to
1e-6 in float32.

In a chunk, what token j learned, z_j = v_j - alpha_j S_{j-1}^T k_j, is in S_i with the weight

    reach_ij = sum_{j<=l<=i} (alpha_{l+1} ... alpha_i) beta_l (mu_{j+1} ... mu_l)

a product of two triangular matrices, all of whose entries are positive and at most 1 but for beta. z solves a
triangular system.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._delta import Decay, GatedOutput, Streams, unit_queries
from bestiary.mixers._mixer import Chosen, Features, Mixer, State, Where, take
from bestiary.mixers._start import FLA, SHORT
from bestiary.mixers._test_time import decay_matrix
from bestiary.ops.drive import Key, Matrix, Value
from bestiary.ops.norm import normalize
from bestiary.ops.precision import upcast, without_autocast
from bestiary.ops.recurrence import iterate_chunks, split_chunks
from bestiary.spec import Positive

STARTS = {"paper": FLA, "short": SHORT}
PerHead = Float[Tensor, "batch time heads 1"]


class MDN(Mixer):
    """P_t = mu_t P_{t-1} + eta_t k_t (v_t - alpha_t S_{t-1}^T k_t)^T and S_t = alpha_t S_{t-1} + beta_t P_t."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, key=8, value=4, conv=1, init='short'",)

    class Memory(NamedTuple):
        """The last inputs of the convolution, S and P."""

        local: State
        matrix: Matrix
        momentum: Matrix

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        key: Positive | None = None,
        value: Positive | None = None,
        conv: Positive = 4,
        init: Literal["paper", "short"] = "paper",
    ) -> None:
        super().__init__()
        key = max(1, 3 * dim // (4 * heads)) if key is None else key
        value = 2 * key if value is None else value
        self.shape, self.spread = (heads, key, value), dim**-0.5
        start = STARTS[init]
        self.streams = Streams(dim, heads, (key, key, value), conv, start)
        self.beta, self.eta = start.linear(dim, heads), start.linear(dim, heads)
        self.decay, self.moving = (Decay(heads, 1, start.linear(dim, heads), start) for _ in range(2))
        self.moving.dt.data.copy_(self.decay.dt.data)
        self.factor = nn.Parameter(torch.empty(heads).uniform_(0, 4).log())  # log f
        self.correction = nn.Parameter(torch.empty(heads).uniform_(0, 1).log())  # log d
        self.answer = GatedOutput(dim, heads, value, start.linear(dim, heads * value), start=start)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        y, after = self.recur(x, self.initial_state(x) if state is None else state)
        return self.answer(y, x), after

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.answer(take(self.recur(x, self.initial_state(x))[0], where), take(x, where))

    def initial_state(self, x: Features) -> Memory:
        """The state before the first token."""
        return self.Memory(None, x.new_zeros(len(x), *self.shape), x.new_zeros(len(x), *self.shape))

    def recur(self, x: Features, state: Memory) -> tuple[Value, Memory]:
        """y at every position before the norm, and the state after the last."""
        (q, k, v), local = self.streams(x, state.local)
        q, k = unit_queries(q - self.correction.exp().unsqueeze(-1) * k), normalize(k)
        eta = 1 + (self.spread * self.eta(x)).tanh().unsqueeze(-1)
        square = (eta * self.factor.exp().unsqueeze(-1)).square()  # tan^2 theta
        beta = square / (1 + square) * self.beta(x).sigmoid().unsqueeze(-1)
        alpha, mu = self.decay(x) - square.log1p(), self.moving(x).clamp(min=-2)
        y, matrix, momentum = run_momentum(*map(upcast, (q, k, v, eta, beta, alpha, mu, *state[1:])))
        return y.to(x.dtype), self.Memory(local, matrix, momentum)


@without_autocast
def run_momentum(
    q: Key, k: Key, v: Value, eta: PerHead, beta: PerHead, alpha: PerHead, mu: PerHead, s: Matrix, p: Matrix
) -> tuple[Value, Matrix, Matrix]:
    """y at every position, and S and P after the last; alpha and mu are given as logarithms."""
    time = v.shape[1]
    chunk = 2 ** (min(32, time) - 1).bit_length()
    q, k, v, eta, beta, alpha, mu = (split_chunks(z, chunk) for z in (q, k, v, eta, beta, alpha, mu))
    kept, moved = decay_matrix(alpha), decay_matrix(mu)
    from_s, left, pushed = alpha.cumsum(-2).exp(), mu.cumsum(-2).exp(), beta * moved
    from_p, reach = kept @ (beta * left), kept @ pushed  # of P and of what each token learned, in S
    before = kept.tril(-1)  # the same in alpha_i S_{i-1}
    system, from_p_before = (k @ (eta * k).mT) * (before @ pushed), before @ (beta * left)
    into_s, into_p = (matrix[..., -1:, :].mT * eta * k for matrix in (reach, moved))
    ends = (z[..., -1:, :] for z in (from_s, from_p, left))
    starts, learned = [], []
    for now in iterate_chunks(system, v, from_s * k, from_p_before * k, into_s, into_p, *ends):
        triangle, values, by_s, by_p, write_s, write_p, stay, push, hold = now
        starts.append((s, p))
        z = torch.linalg.solve_triangular(triangle, values - by_s @ s - by_p @ p, upper=False, unitriangular=True)
        learned.append(z)
        s, p = stay * s + push * p + write_s.mT @ z, hold * p + write_p.mT @ z
    olds, olds_p = (torch.stack(part, dim=2) for part in zip(*starts, strict=True))
    y = (from_s * q) @ olds + (from_p * q) @ olds_p + ((q @ (eta * k).mT) * reach) @ torch.stack(learned, dim=2)
    return y.flatten(2, 3)[:, :, :time].transpose(1, 2), s, p
