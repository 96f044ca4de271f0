"""The elementwise recurrence h_t = a_t h_{t-1} + x_t, real or complex.

`step` is the definition. `scan` runs it over time in one of two ways. As a *loop* it writes each h_t in place,
which is the least work; its gradient is the same recurrence run from the end, because dL/dh_t reaches h_{t-1}
through conj(a_t) alone:

    dx_t = dy_t + conj(a_{t+1}) dx_{t+1}        da_t = dx_t conj(h_{t-1})

As a *tree* it composes neighbouring maps h -> a h + x, twice as far apart each time, in log2(time) whole-tensor
operations: log2(time) times the work, but few launches, which is what a GPU wants.

`selective_scan` is the recurrence of Mamba with what goes in and what is read: its native kernel holds the state of one
position at a time, where tensors of all positions would be as many times larger than the input as there are modes.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.compiler import is_compiling

from bestiary.ops import _native
from bestiary.ops.backend import Backend, choose, compile_once
from bestiary.ops.positions import Where, take
from bestiary.ops.precision import upcast

Way = Literal["auto", "loop", "tree"]
Channels = Float[Tensor, "batch time channels"]
Shared = Float[Tensor, "batch time modes"]  # by all channels
State = Float[Tensor, "batch channels modes"]


def step(a: Tensor, x: Tensor, state: Tensor) -> Tensor:
    """h_t from h_{t-1}; no time axis."""
    return a * state + x


def scan(a: Tensor, x: Tensor, state: Tensor, *, way: Way = "auto", backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """All h_1 .. h_T and the last one. Time is axis 1 of `a` and `x`; `state` has no time axis.

    `way="auto"` is the loop on a CPU and the tree elsewhere, and compiled always the tree; all give the same numbers.
    Half precision is computed in float32; outputs have the type of the input, the last state stays float32. Raises
    ValueError for integers and for a backend that is not there or cannot compute this.
    """
    if not (x.is_floating_point() or x.is_complex()):
        raise ValueError(f"the scan computes with real or complex numbers, not {x.dtype}")
    given = x.dtype
    a, x, state = upcast(a), upcast(x), upcast(state)
    if x.shape[1] == 0:
        return x.to(given), state
    chosen = choose("scan", backend, x, a, state, pays=way == "auto")
    if chosen == "compiled":
        h = compile_once(tree)(a, x, state)
    elif chosen == "native":
        h = _native.scan(a, x, state)
    elif not is_compiling() and (way == "loop" or (way == "auto" and x.device.type == "cpu")):
        h = loop(a, x, state)
    else:
        h = tree(a, x, state)
    return h.to(given), h[:, -1]


def selective_scan(
    dt: Channels,
    u: Channels,
    a: Float[Tensor, "channels modes"] | None,
    b: Shared,
    c: Shared,
    state: State,
    where: Where | None = None,
    *,
    negative: bool = False,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, "batch _ channels"], State]:
    """y_t = C_t . h_t at the positions `where` or at all, and the last h, of h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t.

    Every channel has a state of its own, of so many modes. The decay is 2 exp(dt_t A) - 1 if it may be `negative`, and
    1 - dt_t B_t^2 without A (`longhorn`). Half precision as in `scan`. Raises ValueError for a backend that is not
    there or cannot compute this.
    """
    chosen = choose("scan", backend, *(x for x in (u, dt, a, b, c, state) if x is not None))
    if chosen == "native":
        y, last = _native.selective_scan(
            upcast(dt), upcast(u), None if a is None else upcast(a), upcast(b), upcast(c), upcast(state), negative
        )
        return take(y, where).to(u.dtype), last
    given, dt, u, b = u.dtype, upcast(dt).unsqueeze(-1), upcast(u).unsqueeze(-1), upcast(b).unsqueeze(-2)
    decay = 1 - dt * b.square() if a is None else torch.exp(dt * upcast(a))
    decay = 2 * decay - 1 if negative and a is not None else decay
    states, last = scan(decay, dt * u * b, state, backend=chosen)
    return (take(states, where) @ take(upcast(c), where).unsqueeze(-1)).squeeze(-1).to(given), last


def loop(a: Tensor, x: Tensor, state: Tensor) -> Tensor:
    """All h_t, one position after another."""
    return _Loop.apply(a.expand_as(x), x, state.expand_as(x[:, 0]), False)


def tree(a: Tensor, x: Tensor, state: Tensor) -> Tensor:
    """All h_t, by composing neighbours, twice as many at each step."""
    x = torch.cat([x[:, :1] + a[:, :1] * state.unsqueeze(1), x[:, 1:]], dim=1)
    reach = 1
    while reach < x.shape[1]:
        x = torch.cat([x[:, :reach], x[:, reach:] + a[:, reach:] * x[:, :-reach]], dim=1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], dim=1)
        reach *= 2
    return x


class _Loop(torch.autograd.Function):
    """The recurrence forward or backward in time; each is the gradient of the other."""

    @staticmethod
    def forward(a: Tensor, x: Tensor, state: Tensor, backward: bool) -> Tensor:
        h = torch.empty_like(x)
        for t in reversed(range(x.shape[1])) if backward else range(x.shape[1]):
            state = torch.addcmul(x[:, t], a[:, t], state, out=h[:, t])
        return h

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
        a, _, state, ctx.backward = inputs
        ctx.save_for_backward(a, state, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (a, state, h), (dy,) = ctx.saved_tensors, grads
        zero, first, state = torch.zeros_like(a[:, :1]), -1 if ctx.backward else 0, state.unsqueeze(1)
        if ctx.backward:
            ahead, previous = torch.cat([zero, a[:, :-1]], dim=1), torch.cat([h[:, 1:], state], dim=1)
        else:
            ahead, previous = torch.cat([a[:, 1:], zero], dim=1), torch.cat([state, h[:, :-1]], dim=1)
        dx = _Loop.apply(ahead.conj(), dy, torch.zeros_like(dy[:, 0]), not ctx.backward)
        return dx * previous.conj(), dx, dx[:, first] * a[:, first].conj(), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """Elementwise, so the new axis can join the batch."""
        *tensors, backward = inputs
        batched = [
            x.movedim(d, 0) if d is not None else x.expand(info.batch_size, *x.shape)
            for x, d in zip(tensors, in_dims, strict=False)
        ]
        h = _Loop.apply(*(x.flatten(0, 1) for x in batched), backward)
        return h.unflatten(0, (info.batch_size, -1)), 0
