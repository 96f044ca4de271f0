"""One linear recurrence, two ways to run it.

Every fast-weight mixer keeps one matrix per head and updates it by

    S_t = Diag(exp g_t) S_{t-1}  +  a_t (b_t^T S_{t-1})  +  k_t v_t^T        y_t = q_t^T S_t
          forget                    erase                   write                  read

and differs from the others only in how it computes q, k, v, g, a, b from its input. Erase reads the state before
it decays, so that every exponent below is negative. `step` is the definition; `run` is the same in chunks.

Within a chunk write G_i = g_1 + ... + g_i. Unrolling from the state S_0 before the chunk,

    S_i = e^{G_i} S_0 + sum_{j<=i} e^{G_i - G_j} (k_j v_j^T + a_j u_j^T),      u_i = b_i^T S_{i-1}

so the reads u solve (I - echo) u = e^{G_{i-1}} b S_0 + blind, unit lower-triangular, with
echo_ij = b_i^T e^{G_{i-1} - G_j} a_j and blind_i = sum_{j<i} b_i^T e^{G_{i-1} - G_j} k_j v_j^T. Everything that
does not hold S_0 comes from matrix products over all chunks at once; what goes from chunk to chunk is the solution
u and the last S. The delta rule takes back where it writes, a_j = w_j k_j: what it writes in all, z_j = v_j + w_j u_j,
then solves (I - w echo) z = v + w e^{G_{i-1}} b S_0 with b_i^T e^{G_{i-1} - G_j} k_j for the echo, and half of the
products are gone.

With a decay per key, x_i^T e^{G_i - G_j} y_j for all j <= i is no product of matrices: e^{-G_j} alone overflows. But
with any r between j and i both factors of e^{G_i - G_r} e^{G_r - G_j} are at most 1, so the triangle is made of a
square (rows of its second half, columns of its first, r the border) and two triangles of half the size, and so on
(`triangular_scores`): log2(chunk) products, and 2 log2(chunk) exponentials for each key and position.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bestiary.ops import _fla, _native
from bestiary.ops.backend import Backend, choose, compile_once
from bestiary.ops.drive import Drive, Matrix, Value
from bestiary.ops.precision import no_autocast, upcast


def step(drive: Drive, state: Matrix) -> tuple[Value, Matrix]:
    """Advance one position, as the equation reads."""
    now = drive.map(lambda x: x.squeeze(1))
    new = (state if now.g is None else now.g.exp().unsqueeze(-1) * state) + outer(now.k, now.v)
    if now.erase is not None:
        a, b = now.erase
        new = new + outer(a, read(b, state))
    if now.rewrite is not None:
        w, b = now.rewrite
        new = new + outer(w * now.k, read(b, state))
    return read(now.q, new).unsqueeze(1), new


def run(drive: Drive, state: Matrix, *, chunk: int = 32, backend: Backend = "auto") -> tuple[Value, Matrix]:
    """Advance any number of positions: in parallel within a chunk, in sequence across chunks.

    `chunk` is rounded up to a power of two, and is never longer than the input needs. Half precision is computed in
    float32, and so is everything under autocast; outputs have the type of the input, the state stays float32. Raises
    ValueError for a chunk below 1, for integers, and for a backend that is not there.
    """
    time, given = drive.q.shape[1], drive.q.dtype
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: a chunk has at least one position")
    if not given.is_floating_point:
        raise ValueError(f"the recurrence computes with real numbers, not {given}")
    if time == 0:
        return drive.v.clone(), upcast(state)
    parts = [x for x in (*drive[:4], *(drive.erase or ()), *(drive.rewrite or ()), state) if x is not None]
    chosen = choose("recurrence", backend, *parts, pays=_native.pays(drive)) if time > 1 else "torch"
    if chosen == "fla":
        y, state = _fla.run(drive, state)
        return y.to(given), state
    if drive.q.is_meta:  # shapes are all there is to compute
        return torch.empty_like(drive.v), upcast(state)
    drive, state = drive.map(upcast), upcast(state)
    with no_autocast(drive.q):  # whose products would be rounded, and the sums with them
        if time == 1:
            y, state = step(drive, state)
        elif chosen == "native":
            y, state = _native.run(drive, state)
        else:
            y, state = (compile_once(chunks) if chosen == "compiled" else chunks)(drive, state, chunk)
    return y.to(given), state


def chunks(drive: Drive, state: Matrix, chunk: int) -> tuple[Value, Matrix]:
    """`run` by PyTorch."""
    time = drive.v.shape[1]
    chunk = 2 ** (min(chunk, time) - 1).bit_length()
    q, k, v, g, erase, rewrite = drive.map(lambda x: split_chunks(x, chunk))
    total = torch.zeros_like(v[..., :1]) if g is None else g.cumsum(-2)  # G
    before = F.pad(total[..., :-1, :], (0, 0, 1, 0))  # G_{i-1}, without the rounding of G_i - g_i
    now, earlier, forget = scores(total, total, reach=0), scores(before, total, reach=1), total[..., -1:, :].exp().mT
    if rewrite is not None:
        w, b = rewrite
        states, z, state = solve_chunks(forget, ChunkSystem(-w * earlier(b, k), v, w, b, before, k, total), state)
        y = now(q, k) @ z
    elif erase is not None:
        a, b = erase
        solving = ChunkSystem(-earlier(b, a), earlier(b, k) @ v, torch.ones_like(v[..., :1]), b, before, a, total)
        states, u, state = solve_chunks(forget, solving, state, written=sum_writes(k, v, total))
        y = now(q, k) @ v + now(q, a) @ u
    else:
        states, state = chunk_states(forget, sum_writes(k, v, total), state)
        y = now(q, k) @ v
    y = y + read_decayed(q, states, total)
    return y.flatten(2, 3)[:, :, :time].transpose(1, 2), state


def chunk_states(forget: Tensor, written: Tensor, state: Matrix) -> tuple[Tensor, Matrix]:
    """The state before each chunk, and the last: S_end = forget * S_0 + written."""
    states = []
    for kept, new in iterate_chunks(forget, written):
        states.append(state)
        state = kept * state + new
    return torch.stack(states, dim=2), state


class ChunkSystem(NamedTuple):
    """The system (I + system) z = known + w read_decayed(b) of each chunk, whose solution z is written under k."""

    system: Tensor  # below the diagonal
    known: Tensor
    w: Tensor
    b: Tensor
    before: Tensor
    k: Tensor
    total: Tensor


def solve_chunks(
    forget: Tensor, solving: ChunkSystem, state: Matrix, *, written: Tensor | None = None
) -> tuple[Tensor, Tensor, Matrix]:
    """The state before each chunk, the solution z of each, and the last state."""
    states, found = [], []
    besides = torch.zeros_like(forget) if written is None else written
    for kept, new, system, known, w, b, before, k, total in iterate_chunks(forget, besides, *solving):
        states.append(state)
        wanted = known + w * read_decayed(b, state, before)
        found.append(torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True))
        state = kept * state + sum_writes(k, found[-1], total)
        state = state if written is None else state + new
    return torch.stack(states, dim=2), torch.stack(found, dim=2), state


def iterate_chunks(*parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The parts of each chunk in turn. Unbinds, since the gradient of an index is as large as the whole tensor."""
    return zip(*(part.unbind(2) for part in parts), strict=True)


def sum_writes(k: Tensor, v: Tensor, total: Tensor) -> Tensor:
    """sum_j e^{total_end - total_j} k_j v_j^T: the writes of a chunk, decayed to its end."""
    left = (total[..., -1:, :] - total).exp()
    return (left * k).mT @ v if total.shape[-1] > 1 else product(k.mT, left * v)


def read_decayed(q: Tensor, state: Tensor, total: Tensor) -> Tensor:
    """q_i^T e^{total_i} S: what each position reads from the state before its chunk."""
    return (total.exp() * q) @ state if total.shape[-1] > 1 else total.exp() * product(q, state)


def product(x: Tensor, y: Tensor) -> Tensor:
    """x @ y; where heads share x, in one product for all of them."""
    heads = y.shape[1]
    if x.shape[1] == heads:
        return x @ y
    return (x.squeeze(1) @ y.movedim(1, -2).flatten(-2)).unflatten(-1, (heads, -1)).movedim(-2, 1)


def split_chunks(
    x: Float[Tensor, "batch time heads width"], chunk: int
) -> Float[Tensor, "batch heads chunks chunk width"]:
    """Split time into chunks, after the heads, and pad with zeros, which write nothing and are never read."""
    x = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % chunk))
    return x.unflatten(1, (-1, chunk)).movedim(3, 1)


def scores(after: Tensor, before: Tensor, *, reach: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The map (x, y) -> sum_c x_ic y_jc e^{after_ic - before_jc} for j <= i - reach, zero elsewhere; reach <= 1."""
    if after.shape[-1] > 1:
        return partial(triangular_scores, after, before, reach=reach)
    past = torch.ones(after.shape[-2], after.shape[-2], dtype=torch.bool, device=after.device).tril(-reach)
    decay = (after - before.mT).masked_fill(~past, -torch.inf).exp()  # masked before exp, or gradients are NaN
    return lambda x, y: (x @ y.mT) * decay


def triangular_scores(after: Tensor, before: Tensor, x: Tensor, y: Tensor, *, reach: int) -> Tensor:
    """`scores` with a decay for each key, from squares whose factors are at most 1."""
    diagonal = (x * y).sum(-1).expand(-1, after.shape[1], -1, -1)  # where after = before; heads may share x and y
    blocks, size = diagonal[..., None, None] * (1 - reach), 1
    while size < x.shape[-2]:
        late, early = (z.unflatten(-2, (-1, 2, size))[..., half, :, :] for z, half in ((x, 1), (y, 0)))
        risen, fallen = (z.unflatten(-2, (-1, 2, size))[..., half, :, :] for z, half in ((after, 1), (before, 0)))
        border = fallen[..., -1:, :]
        square = (late * (risen - border).exp()) @ (early * (border - fallen).exp()).mT
        first, second = blocks.unflatten(-3, (-1, 2)).unbind(-3)
        upper = torch.cat([first, torch.zeros_like(first)], dim=-1)
        blocks, size = torch.cat([upper, torch.cat([square, second], dim=-1)], dim=-2), 2 * size
    return blocks.squeeze(-3)


def decayed_sum(weights: Tensor, v: Tensor, total: Tensor) -> Tensor:
    """sum_{j<=i} weights_ij e^{total_i - total_j} v_j with a decay for each value, in squares as above."""
    y, size = weights.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) * v, 1
    while size < v.shape[-2]:
        blocks = weights.unflatten(-2, (-1, 2 * size)).unflatten(-1, (-1, 2 * size))
        square = blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)[..., size:, :size]
        early, late = total.unflatten(-2, (-1, 2, size)).unbind(-3)
        border, old = early[..., -1:, :], v.unflatten(-2, (-1, 2, size))[..., 0, :, :]
        new = (late - border).exp() * (square @ ((border - early).exp() * old))
        y, size = y + F.pad(new, (0, 0, size, 0)).flatten(-3, -2), 2 * size
    return y


def outer(x: Tensor, y: Tensor) -> Tensor:
    """x y^T, of the last axis of each."""
    return x.unsqueeze(-1) * y.unsqueeze(-2)


def read(x: Tensor, state: Tensor) -> Tensor:
    """x^T S."""
    return (x.unsqueeze(-2) @ state).squeeze(-2)
