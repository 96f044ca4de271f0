"""The normal equations (H_t + Lambda) x_t = q_t of a fit that every token changes, solved at all tokens at once.

H_t = e^{g_t} H_{t-1} + beta_t k_t k_t^T is never written out: with G the sums of g within a chunk and H_0 its start,

    H_i p = e^{G_i} H_0 p + sum_{j<=i} e^{G_i - G_j} beta_j k_j (k_j . p)
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bestiary.ops.drive import Key, Matrix
from bestiary.ops.recurrence import chunk_states, scores, split_chunks


def triangle_index(width: int, x: Tensor) -> Tensor:
    """Where each entry of a symmetric matrix stands among those on and above its diagonal."""
    one = torch.arange(width, device=x.device)
    low, high = torch.minimum(one, one.unsqueeze(1)), torch.maximum(one, one.unsqueeze(1))
    return low * width - low * (low + 1) // 2 + high


class NormalEquations(NamedTuple):
    """The maps H_t + Lambda of every position, chunk by chunk."""

    k: Tensor  # batch heads chunks chunk key
    weighted: Tensor  # beta k
    decay: Tensor  # e^{G_i - G_j} for j <= i, zero elsewhere
    decay_from_start: Tensor  # e^{G_i}
    starts: Tensor  # H before each chunk
    ridge: Tensor

    def multiply(self, p: Tensor) -> Tensor:
        """(H_i + Lambda) p_i at every position."""
        start = torch.addcmul(self.ridge * p, self.decay_from_start, p @ self.starts)
        return start + ((p @ self.weighted.mT) * self.decay) @ self.k


def normal_equations(
    k: Key, weighted: Key, g: Tensor, ridge: Tensor, gram: Tensor, *, chunk: int = 64
) -> tuple[NormalEquations, Matrix]:
    """The maps, and H after the last position."""
    chunk = 2 ** (min(chunk, k.shape[1]) - 1).bit_length()
    k, weighted, g = (split_chunks(x, chunk).contiguous() for x in (k, weighted, g))  # one copy for all products
    total = g.cumsum(-2)
    end, one = total[..., -1:, :], torch.ones_like(total)
    starts, gram = chunk_states(end.exp(), (weighted * (end - total).exp()).mT @ k, gram)
    decay = scores(total, total, reach=0)(one, one)
    return NormalEquations(k, weighted, decay, total.exp(), starts, ridge), gram


def solve(maps: NormalEquations, q: Tensor, steps: int) -> Tensor:
    """x with (H + Lambda) x = q; the residual is zero in value, and carries the gradient of the exact solution."""
    with torch.no_grad():
        x = conjugate_gradients(maps, q, steps)
    return x + _Inverse.apply(q - maps.multiply(x), steps, *maps)


def conjugate_gradients(maps: NormalEquations, q: Tensor, steps: int) -> Tensor:
    """Conjugate gradients from zero."""
    x, r, p, size, tiny = torch.zeros_like(q), q, q, q.square().sum(-1, keepdim=True), 1e-30
    for _ in range(steps):
        ahead = maps.multiply(p)
        pace = size / ((p * ahead).sum(-1, keepdim=True) + tiny)
        x, r, last = torch.addcmul(x, pace, p), torch.addcmul(r, pace, ahead, value=-1), size
        size = r.square().sum(-1, keepdim=True)
        p = torch.addcmul(r, size / (last + tiny), p)
    return x


class _Inverse(torch.autograd.Function):
    """Zero, whose gradient is the inverse of the symmetric map applied to the gradient.

    torch.export keeps the zero and not the gradient: an exported model is for reading, not for training.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(residual: Tensor, _steps: int, *_maps: Tensor) -> Tensor:
        return torch.zeros_like(residual)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:  # noqa: ARG004
        ctx.steps = inputs[1]
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return conjugate_gradients(NormalEquations(*ctx.saved_tensors), grads[0], ctx.steps), *(None for _ in range(7))
