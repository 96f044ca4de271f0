"""Rows divided by their length: for unit keys and queries, and for norms of outputs.

    y = x w a(z) / sqrt(scale |x|^2 + epsilon)

along the last axis, w a weight for each channel or 1, a(z) a gate, SiLU or sigmoid, or 1. PyTorch has no such kernel
for a CPU: there the norm alone is five operations and its gradient ten, each of which goes through memory.
"""

import ctypes
import math
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bestiary.ops import _native
from bestiary.ops.backend import Backend, choose
from bestiary.ops.precision import upcast

Rows = Float[Tensor, "*rows width"]
Weight = Float[Tensor, " width"]

Activation = Literal["silu", "sigmoid"]
GATES = "", "silu", "sigmoid"  # as native.cpp numbers them
ACTIVATIONS = {"silu": F.silu, "sigmoid": torch.sigmoid}

NORM = _native.structure(
    "Norm",
    "batch time heads width sharing tiles gate threads",
    [
        ("scale", ctypes.c_double),
        ("epsilon", ctypes.c_double),
        *((name, _native.Rows) for name in ("x", "z", "gy")),
        *_native.pointers("w y gx gz gw"),
    ],
)
TILE = 64  # positions, POSITIONS in native.cpp
LEAST = 4096  # numbers from which the kernel is faster than what it takes to call it (benchmarks/norm.py)


def normalize(x: Rows, *, epsilon: float = 1e-6, backend: Backend = "auto") -> Rows:
    """x / sqrt(|x|^2 + epsilon) along the last axis: of length 1, but for short rows, with a slope of 1,000 at most.

    The epsilon is that of flash-linear-attention and transformers. Dividing by max(|x|, 1e-12), as torch.nn.functional
    does, has a slope of 1e12 at zero, which gradients do not survive where an input is zero.
    Raises ValueError for a backend that cannot do it.
    """
    if is_native(x, backend=backend):
        return divide(x, None, 1.0, epsilon)
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + epsilon)


def rms(
    x: Rows,
    weight: Weight | None = None,
    gate: Rows | None = None,
    *,
    activation: Activation = "silu",
    epsilon: float,
    backend: Backend = "auto",
) -> Rows:
    """x w a(gate) / sqrt(mean of x^2 + epsilon). Raises ValueError for a backend that cannot do it."""
    given = [z for z in (weight, gate) if z is not None]
    if is_native(x, *given, backend=backend):
        return divide(x, weight, 1 / x.shape[-1], epsilon, gate, activation)
    y = F.rms_norm(x, x.shape[-1:], weight, epsilon)
    return y if gate is None else y * ACTIVATIONS[activation](gate)


def is_native(x: Rows, *given: Tensor, backend: Backend) -> bool:
    """Whether kernels of ours compute this; of few numbers only where they are asked for."""
    return x.ndim > 1 and choose("norm", backend, x, *given, pays=x.numel() >= LEAST) == "native"


def divide(
    x: Rows,
    weight: Weight | None,
    scale: float,
    epsilon: float,
    gate: Rows | None = None,
    activation: Activation = "silu",
) -> Rows:
    """x w a(gate) / sqrt(scale |x|^2 + epsilon) by the kernels, in float32."""
    parts = [with_heads(upcast(z)) for z in (x, gate) if z is not None]
    parts += [] if weight is None else [upcast(weight).unsqueeze(0)]
    how = scale, epsilon, 0 if gate is None else GATES.index(activation)
    found = x.dtype
    for z in (weight, gate):
        found = found if z is None else torch.promote_types(found, z.dtype)
    return _Norm.apply(*how, *parts).reshape(x.shape).to(found)


def with_heads(x: Rows) -> Float[Tensor, "batch time heads width"]:
    """The same numbers with four axes."""
    return x.flatten(2, -2) if x.ndim > 3 else x.reshape(len(x), math.prod(x.shape[1:-1]), 1, x.shape[-1])


class Given(NamedTuple):
    """What a kernel computes with."""

    scale: float
    epsilon: float
    gate: int
    x: Tensor
    z: Tensor | None
    w: Tensor | None

    def call(self, name: str, **further: Tensor) -> None:
        """Call a function of the library; the further tensors are those that it writes to, and gy."""
        scale, epsilon, gate, x, z, w = self
        sharing = 1 if w is None else max(1, len(x) // len(w))
        given = NORM(*x.shape, sharing, tiles(x), gate, torch.get_num_threads(), scale, epsilon, _native.rows(x))
        for part, tensor in {"z": z, "w": w, **further}.items():
            if tensor is not None:
                setattr(given, part, _native.rows(tensor) if part in ("z", "gy") else tensor.data_ptr())
        _native.call(name, given)


def give(scale: float, epsilon: float, gate: int, x: Tensor, *rest: Tensor) -> Given:
    """Tensors as the library reads them: x, z if there is a gate, and w if there are weights."""
    z, *weights = rest if gate else (None, *rest)
    z = None if z is None else _native.dense_rows(z)
    return Given(scale, epsilon, gate, _native.dense_rows(x), z, weights[0].contiguous() if weights else None)


def tiles(x: Tensor) -> int:
    """How many parts of time have sums of their own."""
    return -(-x.shape[1] // TILE)


class _Norm(_native.Kernel):
    """y of x (batch, time, heads, width), z alike if there is a gate, and w, if any: (one or one a model, width)."""

    @staticmethod
    def forward(scale: float, epsilon: float, gate: int, *parts: Tensor) -> Tensor:
        y = parts[0].new_empty(parts[0].shape)
        give(scale, epsilon, gate, *parts).call("norm_forward", y=y)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        del output
        ctx.how = inputs[:3]
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, None, *_NormGradient.apply(*ctx.how, *grads, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        y = _Norm.apply(*inputs[:3], *_native.join(info, in_dims[3:], inputs[3:]))
        return y.unflatten(0, (info.batch_size, -1)), 0


class _NormGradient(_native.Gradient):
    """The gradients of x, of z if there is a gate, and of w if there are weights."""

    @staticmethod
    def forward(scale: float, epsilon: float, gate: int, gy: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        given = give(scale, epsilon, gate, *parts)
        x, z, w = given[3:]
        grads = {"gx": x.new_empty(x.shape)} | ({} if z is None else {"gz": x.new_empty(x.shape)})
        weights = {} if w is None else {"gw": x.new_empty(len(x), tiles(x), x.shape[-1])}
        given.call("norm_backward", gy=_native.dense_rows(gy), **grads, **weights)
        sums = (gw.unflatten(0, (len(w), len(x) // len(w))).sum((1, 2)) for gw in weights.values() if w is not None)
        return *grads.values(), *sums

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return _native.part(info, _NormGradient.apply(*inputs[:3], *_native.join(info, in_dims[3:], inputs[3:])))
