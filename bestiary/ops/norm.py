"""Vectors divided by their length: for unit keys and queries, and for norms of outputs.

    y = x w a(z) / sqrt(scale |x|^2 + epsilon)

along the last axis, w a weight for each channel or 1, a(z) a gate, SiLU or sigmoid, or 1. PyTorch has no such kernel
for a CPU: there the norm alone is five operations and its gradient ten, each of which goes through memory.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.nn import functional as F

from bestiary.ops import _native
from bestiary.ops.backend import Backend, choose, under_transform
from bestiary.ops.precision import upcast

Vectors = Float[Tensor, "*rows width"]
Weight = Float[Tensor, " _"]  # as wide as the rows

Activation = Literal["silu", "sigmoid"]
GATES = "", "silu", "sigmoid"  # as native.cpp numbers them
ACTIVATIONS = {"silu": F.silu, "sigmoid": torch.sigmoid}

NORM = _native.structure(
    "Norm",
    "batch time heads width sharing tile gate threads",
    [
        ("scale", ctypes.c_double),
        ("epsilon", ctypes.c_double),
        *((name, _native.Rows) for name in ("x", "z", "gy")),
        *_native.pointers("w y gx gz gw"),
    ],
)
TILE = 64  # positions that have a sum of their own in the gradient of a weight
LEAST = 4096  # numbers from which the kernel is faster than what it takes to call it (benchmarks/norm.py)


def normalize(x: Vectors, *, epsilon: float = 1e-6, backend: Backend = "auto") -> Vectors:
    """x / sqrt(|x|^2 + epsilon) along the last axis: of length 1, but for short rows, with a slope of 1,000 at zero.

    This epsilon is that of flash-linear-attention and transformers. Dividing by max(|x|, 1e-12), as torch.nn.functional
    does, has a slope of 1e12 at zero, which gradients do not survive where an input is zero.
    Raises ValueError for a backend that cannot do it.
    """
    if is_native(x, backend=backend):
        return divide(x, None, 1.0, epsilon)
    y = upcast(x)
    return (y * torch.rsqrt(y.square().sum(-1, keepdim=True) + epsilon)).to(x.dtype)


def rms(
    x: Vectors,
    weight: Weight | None = None,
    gate: Float[Tensor, "*#rows #width"] | None = None,
    *,
    activation: Activation = "silu",
    epsilon: float,
    backend: Backend = "auto",
) -> Vectors:
    """x w a(gate) / sqrt(mean of x^2 + epsilon). Raises ValueError for a backend that cannot do it."""
    if weight is not None:
        x = x.to(torch.promote_types(x.dtype, weight.dtype))
        if weight.shape != x.shape[-1:]:
            raise ValueError(f"weights of shape {tuple(weight.shape)} for rows of {x.shape[-1]} numbers")
    if is_native(x, *(z for z in (weight, gate) if z is not None), backend=backend):
        return divide(x, weight, 1 / x.shape[-1], epsilon, gate, activation)
    y = F.rms_norm(x, x.shape[-1:], weight, epsilon)
    return y if gate is None else y * ACTIVATIONS[activation](gate)


def is_native(x: Vectors, *given: Tensor, backend: Backend) -> bool:
    """Whether kernels of ours compute this; of few numbers only where they are asked for."""
    few = not torch.compiler.is_compiling() and x.numel() < LEAST
    return choose("norm", backend, x, *given, pays=not few) == "native"


def divide(
    x: Vectors,
    weight: Weight | None,
    scale: float,
    epsilon: float,
    gate: Float[Tensor, "*#rows #width"] | None = None,
    activation: Activation = "silu",
) -> Vectors:
    """x w a(gate) / sqrt(scale |x|^2 + epsilon) by the kernels, in float32."""
    parts = [with_heads(upcast(x))]
    parts += [] if gate is None else [with_heads(upcast(gate).expand_as(x))]
    parts += [] if weight is None else [upcast(weight).unsqueeze(0)]
    y = _Norm.apply(scale, epsilon, 0 if gate is None else GATES.index(activation), *parts).reshape(x.shape)
    return y.to(x.dtype if gate is None else torch.promote_types(x.dtype, gate.dtype))


def with_heads(x: Vectors) -> Float[Tensor, "batch time heads width"]:
    """The same numbers with four axes."""
    if x.ndim > 3:
        return x.flatten(2, -2)
    batch = len(x) if x.ndim == 3 else 1
    return x.reshape(batch, math.prod(x.shape[:-1]) // max(1, batch), 1, x.shape[-1])


def reference(scale: float, epsilon: float, gate: int, x: Tensor, *rest: Tensor) -> Tensor:
    """`_Norm` in PyTorch's operations, for the gradient of its gradient."""
    z, *weights = rest if gate else (None, *rest)
    y = x * torch.rsqrt(scale * x.square().sum(-1, keepdim=True) + epsilon)
    y = y if z is None else y * ACTIVATIONS[GATES[gate]](z)
    return y * weights[0] if weights else y


def norm(
    scale: float, epsilon: float, gate: int, parts: Sequence[Tensor], **further: Tensor
) -> tuple[ctypes.Structure, Any]:
    """What the library is given, and the tensors that must live as long."""
    x, *rest = (_native.dense_rows(part) for part in parts)
    z, *weights = rest if gate else (None, *rest)
    held = dict(zip(("w",), (weight.contiguous() for weight in weights), strict=False)) | further
    sharing = max(1, len(x) // len(weights[0])) if weights else 1
    views = (_native.Rows() if row is None else _native.rows(row) for row in (x, z, held.pop("gy", None)))
    given = NORM(*x.shape, sharing, TILE, gate, torch.get_num_threads(), scale, epsilon, *views)
    for name, tensor in held.items():
        setattr(given, name, tensor.data_ptr())
    return given, (x, z, held, further)


class _Norm(_native.Kernel):
    """y of x (batch, time, heads, width), z alike if there is a gate, and w, if any: (one or one a model, width)."""

    @staticmethod
    def forward(scale: float, epsilon: float, gate: int, *parts: Tensor) -> Tensor:
        y = parts[0].new_empty(parts[0].shape)
        given, held = norm(scale, epsilon, gate, parts, y=y)
        _native.call("norm_forward", given)
        del held
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        parts = unwrap_dead_wrappers(ctx.saved_tensors)
        leaves = [x for x in parts if x.requires_grad]
        if torch.is_grad_enabled() and leaves and not under_transform():  # create_graph: this has a gradient as well
            found = iter(torch.autograd.grad(reference(*ctx.how, *parts), leaves, grads, create_graph=True))
            return None, None, None, *(next(found) if x.requires_grad else None for x in parts)
        return None, None, None, *_NormGradient.apply(*ctx.how, *grads, *parts)


class _NormGradient(_native.Gradient):
    """The gradients of x, of z if there is a gate, and of w if there are weights."""

    @staticmethod
    def forward(scale: float, epsilon: float, gate: int, gy: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        x, weights = parts[0], parts[2 if gate else 1 :]
        found = [x.new_empty(x.shape) for _ in range(2 if gate else 1)]
        sums = [x.new_empty(len(x), -(-x.shape[1] // TILE), x.shape[-1]) for _ in weights]
        written = dict(zip(("gx", "gz"), found, strict=False)) | dict(zip(("gw",), sums, strict=False))
        given, held = norm(scale, epsilon, gate, parts, gy=_native.dense_rows(gy), **written)
        _native.call("norm_backward", given)
        del held
        pairs = zip(sums, weights, strict=True)
        return *found, *(each.unflatten(0, (len(w), len(x) // len(w))).sum((1, 2)) for each, w in pairs)
