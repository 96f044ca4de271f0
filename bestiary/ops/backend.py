"""Which code computes an engine: PyTorch operations one by one, the same compiled, or special kernels.

`torch` is the reference and runs anywhere. `native` is our own kernels for CPUs, compiled at first use. `compiled` is
the reference through torch.compile: compiled anew for each shape, which takes a minute, so it pays in long runs. `fla`
is the Triton kernels of flash-linear-attention, on CUDA. `auto` is what `use` has set; otherwise `fla` on a CUDA device
that has it, `native` on a CPU where it is faster, and `torch` everywhere else. The choice is logged once for each
engine and device. In float64 `auto` is always `torch`, on a CPU where `use` has set `fla` too, and under transforms of
`torch.func`, of which only `native` knows some: vmap and one gradient.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from bestiary.ops import _native

Backend = Literal["auto", "torch", "native", "compiled", "fla"]
ENGINES: dict[str, tuple[Backend, ...]] = {
    "recurrence": ("native", "compiled", "fla"),
    "scan": ("native", "compiled"),
    "convolution": ("native",),  # of a few taps
    "norm": ("native",),
}
Function = TypeVar("Function", bound=Callable[..., Any])

log = logging.getLogger(__name__)
_set: list[Backend] = ["auto"]
_called: list[set[str]] = []


def use(backend: str) -> None:
    """Set what `auto` means in this process from now on. Raises ValueError for an unknown or unavailable backend."""
    if backend not in get_args(Backend):
        raise ValueError(f"no backend {backend!r} among {list(get_args(Backend))}")
    if backend == "fla":
        require_fla(torch.device("cuda"))
    elif backend == "native" and isinstance(why := _native.library(), str):
        raise ValueError(f"backend 'native' is not there: {why}")
    _set[0] = cast(Backend, backend)


def choose(engine: str, backend: Backend, *given: Tensor, pays: bool = True) -> Backend:
    """The backend that computes the engine for these tensors; `pays` says whether native kernels are faster for them.

    Raises ValueError if the one named cannot.
    """
    for called in _called:
        called.add(engine)
    able = ENGINES[engine]
    if backend not in ("auto", "torch", *able):
        raise ValueError(f"the {engine} has no backend {backend!r} among {['auto', 'torch', *able]}")
    if backend == "fla":
        require_fla(given[0].device)
    elif backend == "native":
        if (why := _native.refusal(*given)) is not None:
            raise ValueError(f"backend 'native' cannot compute this {engine}: {why}")
    elif backend == "auto":
        backend = choose_automatically(able, given, pays)
        if not torch.compiler.is_compiling():
            log_backend(engine, given[0].device.type, backend)
    return backend


def choose_automatically(able: tuple[Backend, ...], given: tuple[Tensor, ...], pays: bool) -> Backend:
    """The backend that `auto` stands for, for these tensors."""
    chosen, first = _set[0], given[0]
    if chosen not in able and chosen != "torch":
        chosen = "auto"
    if chosen == "torch" or first.is_meta or first.dtype == torch.float64 or torch.compiler.is_compiling():
        return "torch"
    if chosen == "native" or (chosen == "auto" and pays and "native" in able and first.device.type == "cpu"):
        return "native" if _native.refusal(*given) is None else "torch"
    if under_transform():
        return "torch"
    if chosen == "compiled":
        return chosen
    return "fla" if "fla" in able and first.is_cuda and has_fla() else "torch"


@cache
def log_backend(engine: str, device: str, backend: Backend) -> None:
    """Log the choice, the first time that it is made."""
    log.info("the %s on %s is computed by %s", engine, device, backend)


def under_transform() -> bool:
    """Whether this runs under vmap, grad or another transform of torch.func."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]


def shows_numbers(x: Tensor) -> bool:
    """Whether the numbers of a tensor can be looked at, and not its shape alone."""
    hidden = x.is_meta or isinstance(x, FakeTensor) or capturing(x)
    return not (hidden or under_transform() or torch.compiler.is_compiling())


def capturing(x: Tensor) -> bool:
    """Whether a CUDA graph is being recorded, in which no number can be looked at."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


@cache
def has_fla() -> bool:
    """Whether flash-linear-attention is installed."""
    return find_spec("fla") is not None


def require_fla(device: torch.device) -> None:
    """Raises ValueError where the kernels of flash-linear-attention cannot run."""
    if not has_fla():
        raise ValueError("backend 'fla' needs flash-linear-attention: pip install 'bestiary[fla]'")
    if device.type != "cuda" or not torch.cuda.is_available():
        raise ValueError("backend 'fla' needs a CUDA device")


@cache
def compile_once(function: Function) -> Function:
    """The function through torch.compile, the same object each time."""
    return torch.compile(function)  # pyright: ignore[reportReturnType]


@contextmanager
def record_engines() -> Iterator[set[str]]:
    """The names of the engines that are called inside the `with` block."""
    called: set[str] = set()
    _called.append(called)
    try:
        yield called
    finally:
        _called.remove(called)
