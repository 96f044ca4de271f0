"""VLA, variational linear attention (Pandey & Singh, 2026): a delta rule that writes along a preconditioned key.

    M_t = M_{t-1} + u_t u_t^T / key,   M_0 = 0.1 I,   u_t = unit(W_u W_k x_t)
    S_t = S_{t-1} + a_t (v_t - S_{t-1}^T k_t)^T,   a_t = M_t^{-1} k_t / |M_t^{-1} k_t|,   k_t = unit(phi(W_k x_t))
    y_t = S_t^T q_t / (q_t . sum_{i<=t} phi(W_k x_i)),   q_t = phi(W_q x_t),   phi(z) = ELU(z) + 1
    output = W_o LayerNorm(y), the norm over all heads together

There is no gate, and nothing is forgotten but by writing. y falls as the denominator grows, with the length, and soon
below the epsilon of the norm: that is the authors' definition (version 3). The state holds each entry of the symmetric
M once, without M_0. Initialisation as in the authors' code (Vishal-sys-code/variational-linear-attention, 71b33b1, 22
April 2026, notebook 7): PyTorch's for all maps, which have biases but for W_u.
Departs from the paper: the authors' code keeps A_t = M_t^{-1} by rank-one updates, one token at a time, and adds 0.001
to its diagonal at every twentieth; here M is kept, from which A follows without drift, and nothing is added. But for
that the code is equal to this to 1.3e-6 in float32; with it, outputs of size 3.6 differ by 1.5e-3 after 300 tokens.

In a chunk that begins with A_0 = M_0^{-1}, and U its u / sqrt(key) as rows, let L L^T = I + U A_0 U^T. The rows w_j of
L^{-1} U A_0 are what the rank-one updates would subtract, A_t = A_0 - sum_{j<=t} w_j w_j^T.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import FastWeight, Features, head_width
from bestiary.mixers._normal import triangle_index
from bestiary.ops.drive import Drive, Key, Matrix, Value
from bestiary.ops.norm import normalize
from bestiary.ops.precision import upcast, without_autocast
from bestiary.ops.recurrence import chunk_states, split_chunks
from bestiary.spec import Positive

RIDGE = 0.1


class Sums(NamedTuple):
    """What is summed over the inputs read so far."""

    gram: Float[Tensor, "batch heads half"]  # u u^T / key on and above its diagonal
    keys: Float[Tensor, "batch heads key"]  # phi(W_k x)


class VLA(FastWeight):
    """S_t = S_{t-1} + a_t (v_t - S_{t-1}^T k_t)^T with a_t along (0.1 I + sum u u^T / key)^{-1} k_t."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=4",)

    def __init__(self, dim: int, *, heads: Positive = 2) -> None:
        super().__init__()
        width = head_width(dim, heads)
        self.shape = heads, width, width
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.u, self.norm = nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim)

    def drive(self, x: Features, local: Sums | None) -> tuple[Drive, Sums]:
        heads, width, _ = self.shape
        raw = self.k(x)
        flat = F.elu(self.q(x)) + 1, F.elu(raw) + 1, self.v(x), self.u(raw)
        q, features, v, u = (z.unflatten(-1, (heads, -1)) for z in flat)
        if local is None:
            local = Sums(x.new_zeros(len(x), heads, width * (width + 1) // 2), x.new_zeros(len(x), heads, width))
        keys = upcast(local.keys).unsqueeze(1) + upcast(features).cumsum(1)
        q = q / (q * keys).sum(-1, keepdim=True).clamp(min=1e-6)
        gram, k = upcast(local.gram)[..., triangle_index(width, x)], normalize(features)
        along, gram = precondition(upcast(k), upcast(normalize(u) * width**-0.5), gram)
        upper = torch.triu_indices(width, width, device=x.device).unbind()
        drive = Drive(q.to(x.dtype), along.to(x.dtype), v, rewrite=(-torch.ones_like(v[..., :1]), k))
        return drive, Sums(gram[(..., *upper)], keys[:, -1])

    def read(self, y: Value, x: Features) -> Features:  # noqa: ARG002
        return self.out(self.norm(y.flatten(2)))


@without_autocast
def precondition(k: Key, u: Key, gram: Matrix) -> tuple[Key, Matrix]:
    """A_t k_t at length 1 with A_t the inverse of 0.1 I + gram + sum_{i<=t} u_i u_i^T, and gram after the last."""
    time = k.shape[1]
    chunk = 2 ** (min(32, time) - 1).bit_length()
    k, u = split_chunks(k, chunk), split_chunks(u, chunk)
    starts, gram = chunk_states(torch.ones_like(u[..., :1, :1]), u.mT @ u, gram)
    root = torch.linalg.cholesky(starts + RIDGE * torch.eye(k.shape[-1], device=k.device, dtype=k.dtype))
    solved = torch.cholesky_solve(torch.cat([u, k], dim=-2).mT, root).mT
    first_u, first_k = solved.split(chunk, dim=-2)  # U A_0 and K A_0
    lower = torch.linalg.cholesky(torch.eye(chunk, device=k.device, dtype=k.dtype) + first_u @ u.mT)
    w = torch.linalg.solve_triangular(lower, first_u, upper=False)
    along = first_k - (k @ w.mT).tril() @ w
    along = F.normalize(along, dim=-1)  # by its length alone: M grows, and A k gets short
    return along.flatten(2, 3)[:, :, :time].transpose(1, 2), gram
