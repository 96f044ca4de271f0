"""One linear recurrence, two ways to run it.

Every fast-weight mixer keeps one matrix per head and updates it by

    S_t = Diag(exp g_t) S_{t-1}  +  a_t (b_t^T S_{t-1})  +  k_t v_t^T        y_t = q_t^T S_t
          forget                    erase                   write                  read

and differs from the others only in how it computes q, k, v, g, a, b from its input. Erase reads the state before
it decays, so that every exponent below is negative. `step` is the definition; `run` is the same in chunks.

Within a chunk write G_i = g_1 + ... + g_i. Unrolling from the state S_0 before the chunk,

    S_i = e^{G_i} S_0 + sum_{j<=i} e^{G_i - G_j} (k_j v_j^T + a_j u_j^T),      u_i = b_i^T S_{i-1}

so the reads u solve (I - echo) u = known, unit lower-triangular, with echo_ij = b_i^T e^{G_{i-1} - G_j} a_j and
known_i = b_i^T (e^{G_{i-1}} S_0 + sum_{j<i} e^{G_{i-1} - G_j} k_j v_j^T). Then y_i = q_i^T S_i is two matrix
products, and the last S_i starts the next chunk.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Matrix = Float[Tensor, "batch heads key value"]
Key = Float[Tensor, "batch time heads key"]
Value = Float[Tensor, "batch time heads value"]


class Drive(NamedTuple):
    """What a mixer feeds the recurrence at each position."""

    q: Key
    k: Key
    v: Value
    g: Float[Tensor, "batch time heads #key"] | None = None  # log decay, <= 0, shared by keys if 1 wide
    erase: tuple[Key, Key] | None = None  # (a, b)

    def map(self, f: Callable[[Tensor], Tensor]) -> "Drive":
        g = None if self.g is None else f(self.g)
        erase = None if self.erase is None else (f(self.erase[0]), f(self.erase[1]))
        return self._make((f(self.q), f(self.k), f(self.v), g, erase))

    def split(self, size: int) -> Iterator["Drive"]:
        """Consecutive pieces in time, each with time moved behind heads."""
        for start in range(0, self.q.shape[1], size):
            yield self.map(lambda x, start=start: x[:, start : start + size].transpose(1, 2))


def step(drive: Drive, state: Matrix) -> tuple[Value, Matrix]:
    """Advance one position, as the equation reads."""
    now = drive.map(lambda x: x.squeeze(1))
    new = (state if now.g is None else now.g.exp().unsqueeze(-1) * state) + outer(now.k, now.v)
    if now.erase is not None:
        a, b = now.erase
        new = new + outer(a, read(b, state))
    return read(now.q, new).unsqueeze(1), new


def run(drive: Drive, state: Matrix, *, chunk: int = 64) -> tuple[Value, Matrix]:
    """Advance any number of positions: in parallel within a chunk, in sequence across chunks."""
    if drive.q.shape[1] == 1:
        return step(drive, state)
    if drive.g is not None and drive.g.shape[-1] > 1:
        chunk = min(chunk, 16)  # a decay per key costs chunk * key numbers per position
    outputs = []
    for piece in drive.split(chunk):
        output, state = run_chunk(piece, state)
        outputs.append(output)
    return torch.cat(outputs, dim=2).transpose(1, 2), state


def run_chunk(drive: Drive, state: Matrix) -> tuple[Tensor, Matrix]:
    """Advance one chunk. Here time comes after heads."""
    q, k, v, g, erase = drive
    total = None if g is None else g.cumsum(-2)
    decay = decays(total, like=q)
    y = fade(q, total) @ state + scores(q, k, decay) @ v
    new = (state if total is None else total[..., -1:, :].exp().mT * state) + outlast(k, total).mT @ v
    if erase is not None:
        a, b = erase
        before = F.pad(decay[..., :-1, :, :], (0, 0, 0, 0, 1, 0))  # e^{G_{i-1} - G_j} for j < i
        known = fade(b, None if g is None or total is None else total - g) @ state + scores(b, k, before) @ v
        identity = torch.eye(q.shape[-2], dtype=q.dtype, device=q.device)
        echo = scores(b, a, before)
        u = torch.linalg.solve_triangular(identity - echo, known, upper=False, unitriangular=True)
        y = y + scores(q, a, decay) @ u
        new = new + outlast(a, total).mT @ u
    return y, new


def decays(total: Tensor | None, *, like: Tensor) -> Float[Tensor, "... chunk chunk #key"]:
    """e^{G_i - G_j} for j <= i, zero elsewhere."""
    past = torch.ones(like.shape[-2], like.shape[-2], dtype=torch.bool, device=like.device).tril().unsqueeze(-1)
    if total is None:
        return past.to(like.dtype)
    gap = total.unsqueeze(-2) - total.unsqueeze(-3)
    return gap.masked_fill(~past, -torch.inf).exp()  # mask before exp, or gradients are NaN


def scores(x: Tensor, y: Tensor, decay: Tensor) -> Float[Tensor, "... chunk chunk"]:
    """sum_c x_ic y_jc decay_ijc."""
    if decay.shape[-1] == 1:
        return (x @ y.mT) * decay.squeeze(-1)
    return torch.einsum("...ic,...jc,...ijc->...ij", x, y, decay)


def fade(x: Tensor, total: Tensor | None) -> Tensor:
    """x_i e^{G_i}: what reads the state before the chunk."""
    return x if total is None else x * total.exp()


def outlast(x: Tensor, total: Tensor | None) -> Tensor:
    """x_j e^{G_end - G_j}: what is left of a write at the end of the chunk."""
    return x if total is None else x * (total[..., -1:, :] - total).exp()


def outer(x: Tensor, y: Tensor) -> Tensor:
    return x.unsqueeze(-1) * y.unsqueeze(-2)


def read(x: Tensor, state: Tensor) -> Tensor:
    return (x.unsqueeze(-2) @ state).squeeze(-2)
