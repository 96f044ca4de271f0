"""Recurrences and scans by `native.cpp`, and what all its kernels share: float32 on a CPU, first derivatives, vmap.

Each kernel is two autograd functions, one for each direction, so that `torch.func` can transform both. All of them
work on each sequence of a batch by itself, so under vmap the new axis joins the batch. The forward pass of a recurrence
and of a selective scan also returns the states that the backward pass starts from (`kept`), empty where no gradient is
wanted.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers

from bestiary.ops._build import library
from bestiary.ops.drive import Drive, Matrix, Value

Form = Literal["plain", "rewrite", "erase"]
FORMS: tuple[Form, ...] = ("plain", "rewrite", "erase")


def refusal(*given: Tensor) -> str | None:
    """Why these tensors cannot be computed here, or None."""
    for x in given:
        if x.device.type != "cpu":
            return f"it computes on a CPU, not on {x.device.type}"
        if type(x) not in (Tensor, torch.nn.Parameter):
            return f"it knows no {type(x).__name__}"
        if x.dtype != torch.float32 and not (x.is_floating_point() and x.dtype.itemsize < 4):
            return f"it computes in float32, not {x.dtype}"
    if torch.compiler.is_compiling():
        return "torch.compile does not look into it"
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return "torch.jit.trace does not look into it"
    if not only_vmap_and_one_gradient():
        return "of the transforms of torch.func it knows vmap and one gradient"
    found = library()
    return found if isinstance(found, str) else None


def only_vmap_and_one_gradient() -> bool:
    """Whether this runs under no other transform of torch.func, nor in forward mode."""
    if torch.autograd.forward_ad._current_level >= 0:
        return False
    if torch._C._functorch.peek_interpreter_stack() is None:  # pyright: ignore[reportAttributeAccessIssue]
        return True
    stack = torch._C._functorch.get_interpreter_stack() or []  # pyright: ignore[reportAttributeAccessIssue]
    names = [interpreter.key().name for interpreter in stack]
    return set(names) <= {"Vmap", "Grad"} and names.count("Grad") <= 1


def wants_gradient(tensors: Sequence[Tensor]) -> bool:
    """Whether a gradient may be wanted: under torch.func it cannot be told."""
    transformed = torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
    return torch.is_grad_enabled() and (transformed or any(x.requires_grad for x in tensors))


# What the library is given


class Rows(ctypes.Structure):
    """A tensor (batch, time, heads, width) whose last axis is dense."""

    _fields_ = [("first", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "time", "head"))]


def structure(name: str, sizes: str, parts: Sequence[tuple[str, Any]]) -> type[ctypes.Structure]:
    fields = [*((size, ctypes.c_int64) for size in sizes.split()), *parts]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def pointers(names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_void_p) for name in names.split()]


RECURRENCE = structure(
    "Recurrence",
    "batch time heads key value decays shared form threads",
    [
        *((name, Rows) for name in ["q", "k", "v", "g", "a", "b"]),
        *pointers("state y last kept gy glast gq gk gv gg ga gb gstate"),
    ],
)
SELECTIVE = structure(
    "Selective",
    "batch time channels modes sharing negative threads",
    [
        *pointers("dt u rate b c"),
        *((name, ctypes.c_int64) for name in ["b_batch", "b_time", "c_batch", "c_time"]),
        *pointers("state y last kept gy glast gdt gu grate gb_c gstate"),
    ],
)
SCAN = structure("Scan", "batch time channels threads", pointers("a x state h gh ga gx gstate"))


def dense_rows(x: Tensor) -> Tensor:
    """The same numbers, the last axis without gaps."""
    return x if x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()


def rows(x: Tensor) -> Rows:
    return Rows(x.data_ptr(), *x.stride()[:3])


def point(given: ctypes.Structure, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tell the library where the tensors lie, made dense: those that come back, which must live as long."""
    for name, x in tensors.items():
        tensors[name] = dense = x.contiguous()  # vmap repeats what is saved without a copy
        setattr(given, name, dense.data_ptr())
    return tensors


def fit(name: str, x: Tensor, lead: Sequence[int], *width: int) -> Tensor:
    """x of shape (*lead, *width), repeated where it is 1 long in one of `lead`. Raises ValueError for other shapes."""
    shape = (*lead, *width)
    if x.shape == shape:
        return x
    broadcast = all(given in (1, wanted) for given, wanted in zip(x.shape, lead, strict=False))
    if x.ndim != len(shape) or x.shape[len(lead) :] != width or not broadcast:
        raise ValueError(f"{name} has the shape {tuple(x.shape)}, but to go with the others it must have {shape}")
    return x.expand(shape)


def call(name: str, given: ctypes.Structure) -> None:
    """Raises MemoryError."""
    if getattr(library(), name)(ctypes.byref(given)):
        raise MemoryError(f"{name} finds no memory to work in")


def kept_size(name: str, given: ctypes.Structure) -> int:
    """How many numbers of each sequence the forward pass keeps for the backward pass."""
    return getattr(library(), f"{name}_kept")(ctypes.byref(given))


def join(info: Any, in_dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors under vmap with its axis and the batch as one."""
    moved = (
        x.expand(info.batch_size, *x.shape) if d is None else x.movedim(d, 0)
        for x, d in zip(tensors, in_dims, strict=True)
    )
    return [x.flatten(0, 1) for x in moved]


def part(info: Any, found: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Results with vmap's axis and the batch apart again, and where that axis is."""
    return tuple(x.unflatten(0, (info.batch_size, -1)) for x in found), (0,) * len(found)


def fill(grads: Sequence[Tensor | None], *like: Tensor) -> list[Tensor]:
    """Gradients, zeros where there is none."""
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, like, strict=False)]


class Kernel(torch.autograd.Function):
    """A function of what is no tensor first, then tensors with the batch as their first axis.

    It starts quickly: `Function.apply` looks up the signature of `forward` at each call, which takes 70 us.
    """

    @classmethod
    def apply(cls, *given: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch._C._functorch.peek_interpreter_stack() is not None:  # pyright: ignore[reportAttributeAccessIssue]
            return super().apply(*given)
        given = unwrap_dead_wrappers(given)
        if not torch.is_grad_enabled() and torch.autograd.forward_ad._current_level < 0:
            return cls.forward(*given)
        return super(torch.autograd.Function, cls).apply(*given)  # pyright: ignore[reportAttributeAccessIssue]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        del output
        plain = count_plain(inputs)
        ctx.how = inputs[:plain]
        ctx.save_for_backward(*inputs[plain:])

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, *inputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        plain = count_plain(inputs)
        found = cls.apply(*inputs[:plain], *join(info, in_dims[plain:], inputs[plain:]))
        return part(info, found) if isinstance(found, tuple) else (found.unflatten(0, (info.batch_size, -1)), 0)


def count_plain(inputs: Sequence[Any]) -> int:
    """How many of them are no tensors."""
    return sum(not isinstance(x, Tensor) for x in inputs)


class Gradient(Kernel):
    """A gradient, which has no gradient itself."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(
            'the native backend has first derivatives only: bestiary.ops.backend.use("torch") gives them all'
        )


# The recurrence

LARGEST = 12_288  # numbers of a state for which products of matrices are slower (benchmarks/native.py, `forms`)


def pays(drive: Drive) -> bool:
    """Whether this is faster than chunks: always, unless the state is large and products of matrices are most of it."""
    products = drive.erase is None and drive.rewrite is None and (drive.g is None or drive.g.shape[-1] == 1)
    return not products or drive.k.shape[-1] * drive.v.shape[-1] <= LARGEST


def run(drive: Drive, state: Tensor) -> tuple[Value, Matrix]:
    """`recurrence.run` in float32. Raises ValueError for shapes that do not go together."""
    q, k, v, g, erase, rewrite = drive
    form: Form = "rewrite" if rewrite is not None else "erase" if erase is not None else "plain"
    (batch, time, heads, _), (key, value) = v.shape, state.shape[-2:]
    lead = batch, time, heads
    own = (batch, time, 1) if form == "plain" and q.shape[2] == k.shape[2] == 1 else lead
    parts = [fit("q", q, own, key), fit("k", k, own, key), fit("v", v, lead, value)]
    if rewrite is not None:
        parts += [fit("w", rewrite[0], lead, 1), fit("b", rewrite[1], lead, key)]
    elif erase is not None:
        parts += [fit("a", erase[0], lead, key), fit("b", erase[1], lead, key)]
    parts.append(fit("the state", state, (batch, heads), key, value))
    if g is not None:
        parts.append(fit("g", g, lead, 1 if g.shape[-1] == 1 else key))
    y, last, _ = _Recurrence.apply(form, wants_gradient(parts), *parts)
    return y, last


def recurrence(form: Form, parts: Sequence[Tensor], **further: Tensor) -> tuple[ctypes.Structure, Any]:
    """What the library is given, and the tensors that must live as long."""
    q, k, v, *rest = (dense_rows(x) for x in parts)
    (a, b), rest = (rest[:2], rest[2:]) if form != "plain" else ((None, None), rest)
    state, g = rest[0].contiguous(), (rest[1] if len(rest) > 1 else None)
    (batch, time, heads, value), key, decays = v.shape, q.shape[-1], 0 if g is None else g.shape[-1]
    sizes = (batch, time, heads, key, value, decays, q.shape[2] < heads, FORMS.index(form), torch.get_num_threads())
    views = (Rows() if x is None else rows(x.expand(-1, -1, heads, -1)) for x in (q, k, v, g, a, b))
    given = RECURRENCE(*sizes, *views, state.data_ptr())
    return given, (q, k, v, a, b, g, state, point(given, further))


class _Recurrence(Kernel):
    """y, the last state and what is kept; of (q, k, v), (a, b) or (w, b) if something is erased, the state, and g."""

    @staticmethod
    def forward(form: Form, keep: bool, *parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, v = parts[0], parts[2]
        y, last = v.new_empty(v.shape), v.new_empty(len(v), v.shape[2], q.shape[-1], v.shape[-1])
        given, held = recurrence(form, parts, y=y, last=last)
        kept = v.new_empty(len(v), kept_size("recurrence", given) if keep else 0)
        given.kept = kept.data_ptr() if kept.numel() else None
        call("recurrence_forward", given)
        del held
        return y, last, kept

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.form, _, *parts = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)  # or `kept` gets zeros
        ctx.save_for_backward(*parts, output[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        saved = ctx.saved_tensors
        outer = fill(grads, saved[2], saved[3 if ctx.form == "plain" else 5])
        return None, None, *_RecurrenceGradient.apply(ctx.form, *outer, *saved)


class _RecurrenceGradient(Gradient):
    """The gradient of each part."""

    @staticmethod
    def forward(form: Form, gy: Tensor, glast: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
        *parts, kept = saved
        names = ["gq", "gk", "gv", *(["ga", "gb"] if form != "plain" else []), "gstate", "gg"]
        grads = {name: x.new_empty(x.shape) for name, x in zip(names, parts, strict=False)}
        given, held = recurrence(form, parts, gy=gy, glast=glast, kept=kept, **grads)
        call("recurrence_backward", given)
        del held
        return tuple(grads.values())


# The selective scan


def selective_scan(
    dt: Tensor, u: Tensor, a: Tensor | None, b: Tensor, c: Tensor, state: Tensor, negative: bool
) -> tuple[Tensor, Tensor]:
    """`scan.selective_scan` in float32. Raises ValueError for shapes that do not go together."""
    (batch, time, channels), modes = u.shape, state.shape[-1]
    parts = [fit("dt", dt, u.shape), u, fit("B", b, (batch, time), modes), fit("C", c, (batch, time), modes)]
    parts.append(fit("the state", state, (batch, channels), modes).mT)
    if a is not None:
        parts.append(fit("A", a, (channels, modes)).mT.unsqueeze(0))
    y, last, _ = _Selective.apply(negative, wants_gradient(parts), *parts)
    return y, last.mT


def selective(negative: bool, parts: Sequence[Tensor], **further: Tensor) -> tuple[ctypes.Structure, Any]:
    """What the library is given, and the tensors that must live as long."""
    dt, u, b, c, state, *rates = parts
    dt, u, state, *rates = (x.contiguous() for x in (dt, u, state, *rates))
    b, c = dense_rows(b), dense_rows(c)
    sharing = max(1, len(dt) // max(1, len(rates[0]))) if rates else 1
    sizes = (*dt.shape, b.shape[-1], sharing, negative, torch.get_num_threads())
    rate = rates[0].data_ptr() if rates else None
    strides = (*b.stride()[:2], *c.stride()[:2])
    given = SELECTIVE(*sizes, dt.data_ptr(), u.data_ptr(), rate, b.data_ptr(), c.data_ptr(), *strides, state.data_ptr())
    return given, (dt, u, rates, b, c, state, point(given, further))


class _Selective(Kernel):
    """y, the last state and what is kept; of dt, u, B, C, the state, and A if there is one (under vmap one a model)."""

    @staticmethod
    def forward(negative: bool, keep: bool, *parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dt, state = parts[0], parts[4]
        y, last = dt.new_empty(dt.shape), dt.new_empty(state.shape)
        given, held = selective(negative, parts, y=y, last=last)
        kept = dt.new_empty(len(dt), kept_size("selective", given) if keep else 0)
        given.kept = kept.data_ptr() if kept.numel() else None
        call("selective_forward", given)
        del held
        return y, last, kept

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.negative, _, *parts = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[2], *parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        saved = ctx.saved_tensors
        return None, None, *_SelectiveGradient.apply(ctx.negative, *fill(grads, saved[1], saved[5]), *saved)


class _SelectiveGradient(Gradient):
    """The gradient of each part."""

    @staticmethod
    def forward(negative: bool, gy: Tensor, glast: Tensor, kept: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        dt, u, b, _, state, *rates = parts
        gdt, gu, gstate = (x.new_empty(x.shape) for x in (dt, u, state))
        gb_c = b.new_empty(*b.shape, 2)
        grates = [x.new_empty(len(dt), *x.shape[1:]) for x in rates]
        grads = {"gdt": gdt, "gu": gu, "gb_c": gb_c, "gstate": gstate, **({"grate": grates[0]} if rates else {})}
        given, held = selective(negative, parts, gy=gy, glast=glast, kept=kept, **grads)
        call("selective_backward", given)
        del held
        grates = [g.unflatten(0, (len(x), len(dt) // len(x))).sum(1) for g, x in zip(grates, rates, strict=True)]
        return gdt, gu, *gb_c.unbind(-1), gstate, *grates


# The elementwise recurrence


def scan(a: Tensor, x: Tensor, state: Tensor) -> Tensor:
    """`scan.loop` in float32."""
    return _Scan.apply(a.expand_as(x), x, state.expand_as(x[:, 0]))


def elementwise(a: Tensor, x: Tensor, state: Tensor, **further: Tensor) -> tuple[ctypes.Structure, Any]:
    """What the library is given, and the tensors that must live as long."""
    a, x, state = a.contiguous(), x.contiguous(), state.contiguous()
    sizes = (*x.shape[:2], math.prod(x.shape[2:]), torch.get_num_threads())
    given = SCAN(*sizes, a.data_ptr(), x.data_ptr(), state.data_ptr())
    return given, (a, x, state, point(given, further))


class _Scan(Kernel):
    """Every h."""

    @staticmethod
    def forward(a: Tensor, x: Tensor, state: Tensor) -> Tensor:
        h = x.new_empty(x.shape)
        given, held = elementwise(a, x, state, h=h)
        call("scan_forward", given)
        del held
        return h

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        a, _, state = inputs
        ctx.save_for_backward(a, state, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _ScanGradient.apply(*ctx.saved_tensors, *grads)


class _ScanGradient(Gradient):
    """The gradients of a, x and the state."""

    @staticmethod
    def forward(a: Tensor, state: Tensor, h: Tensor, gh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ga, gx, gstate = (x.new_empty(x.shape) for x in (h, h, state))
        given, held = elementwise(a, gh, state, h=h, gh=gh, ga=ga, gx=gx, gstate=gstate)
        call("scan_backward", given)
        del held
        return ga, gx, gstate
