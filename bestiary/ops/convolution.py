"""Causal convolution along time with one filter per channel, short or long.

    y_t = sum_{i >= 0} filter_i x_{t-i}

Both forms take the inputs that came before (at most `taps - 1`, see `recent_inputs`) and are exact at every length.
`short` slides the filter; `long` uses a Fourier transform of at least past + time + taps points, so that nothing wraps
around.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bestiary.ops import _native
from bestiary.ops.backend import Backend, choose
from bestiary.ops.precision import upcast

Features = Float[Tensor, "batch time dim"]
Past = Float[Tensor, "batch past dim"]
Kept = Float[Tensor, "batch kept dim"]
Filter = Float[Tensor, "taps dim"]

CONVOLUTION = _native.structure(
    "Convolution",
    "batch time channels taps biased silu sharing threads x_batch x_time g_batch g_time gx_batch gx_time",
    _native.pointers("x filter y gy gx gfilter"),
)
SLIDES = 36  # products for each point of a Fourier transform up to which sliding is faster (benchmarks/convolution.py)


def step(x: Float[Tensor, "batch dim"], filter: Filter, past: Past) -> Float[Tensor, "batch dim"]:
    """The definition, at one position."""
    seen = torch.cat([past, x.unsqueeze(1)], dim=1).flip(1)[:, : len(filter)]
    return (seen * filter[: seen.shape[1]]).sum(1)


def short(x: Features, filter: Filter, past: Past | None = None, *, backend: Backend = "auto") -> Features:
    """The convolution, tap by tap: for filters of a few taps. Half precision is computed in float32 by `native`.

    Raises ValueError for a backend that is not there or cannot compute this.
    """
    if x.numel() == 0:
        return x.clone()
    if past is not None and x.shape[1] == 1:
        return step(x[:, 0], filter, past).unsqueeze(1)
    seen = x if past is None else torch.cat([past, x], dim=1)
    if choose("convolution", backend, x, filter, seen) == "native":
        return slide(upcast(seen), upcast(filter))[:, seen.shape[1] - x.shape[1] :].to(x.dtype)
    seen = F.pad(seen.mT, (len(filter) - 1 + x.shape[1] - seen.shape[1], 0))
    weight = filter.flip(0).mT.unsqueeze(1).to(seen.dtype)  # as autocast would do it, but not under vmap
    return F.conv1d(seen, weight, groups=x.shape[2]).mT


def streams(
    x: Features, filter: Filter, bias: Float[Tensor, " dim"] | None, past: Past | None, widths: Sequence[int]
) -> tuple[Float[Tensor, "batch time _"], ...]:
    """SiLU of the short convolution and its bias, in parts so wide: what most linear mixers make q, k and v of.

    `native` computes each part by one kernel, and writes the gradient of x in one piece.
    """
    seen = x if past is None else torch.cat([past, x], dim=1)
    whole = x.numel() and (past is None or x.shape[1] > 1)
    if whole and choose("convolution", "auto", x, filter, seen, *([] if bias is None else [bias])) == "native":
        parts = slide_streams(upcast(seen), upcast(filter), None if bias is None else upcast(bias), widths)
        found = x.dtype if bias is None else torch.promote_types(x.dtype, bias.dtype)
        return tuple(part[:, seen.shape[1] - x.shape[1] :].to(found) for part in parts)
    y = short(x, filter, past)
    return F.silu(y if bias is None else y + bias).split(tuple(widths), dim=-1)


def long(x: Features, filter: Filter, past: Past | None = None) -> Features:
    """The convolution by Fourier transform; `filter` may be shorter or longer than the input.

    Where native kernels are to be had they slide the filter as long as that is faster (`sliding_is_faster`).
    """
    if x.numel() == 0:  # of which there is no transform
        return x.clone()
    if past is not None and x.shape[1] == 1:
        return step(x[:, 0], filter, past).unsqueeze(1)
    seen = x if past is None else torch.cat([past, x], dim=1)
    filter = filter[: seen.shape[1]]
    sliding = sliding_is_faster(seen.shape[1], len(filter))
    if sliding and choose("convolution", "auto", x, filter, seen) == "native":
        return slide(upcast(seen), upcast(filter))[:, seen.shape[1] - x.shape[1] :].to(x.dtype)
    if x.dtype.itemsize < 4:  # transforms of which exist on few devices
        return long(seen.float(), filter.float())[:, seen.shape[1] - x.shape[1] :].to(x.dtype)
    y, _, _ = _Convolve.apply(seen.mT, filter.mT)
    return y.mT[:, seen.shape[1] - x.shape[1] :]


def sliding_is_faster(time: int, taps: int) -> bool:
    """Whether native kernels slide so many taps over `time >= taps` inputs faster than a Fourier transform takes.

    Only taps that meet an input are multiplied, so that a filter as long as its input costs half of its taps.
    """
    products = taps * time - taps * (taps - 1) / 2
    return products <= SLIDES * (time + taps - 1)


class _Convolve(torch.autograd.Function):
    """Causal convolution along the last axis, and the spectra of input and filter.

    Its gradients are convolutions with the other's reverse, so real transforms do; PyTorch's own gradient of a
    real transform is a complex one of twice the work.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, filter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size = fft_length(x.shape[-1] + filter.shape[-1] - 1)
        inputs, taps = torch.fft.rfft(x, n=size), torch.fft.rfft(filter, n=size)
        return torch.fft.irfft(inputs * taps, n=size)[..., : x.shape[-1]], inputs, taps

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, filter, inputs, taps = ctx.saved_tensors
        time, width = x.shape[-1], filter.shape[-1]
        size = fft_length(time + width - 1)
        if torch.is_grad_enabled():  # create_graph, or torch.func: transforms that have gradients
            inputs, taps = torch.fft.rfft(x, n=size), torch.fft.rfft(filter, n=size)
        dy = torch.fft.rfft(grads[0], n=size)
        dx = torch.fft.irfft(dy * taps.conj().resolve_conj(), n=size)
        dfilter = torch.fft.irfft((dy * inputs.conj().resolve_conj()).sum(0), n=size)
        return dx[..., :time], dfilter[..., :width]


def recent_inputs(x: Features, past: Past | None, taps: int) -> Kept:
    """The last `taps - 1` inputs (fewer near the start of a sequence), which later outputs of the convolution need."""
    seen = x if past is None else torch.cat([past, x], dim=1)
    return seen[:, max(0, seen.shape[1] - taps + 1) :]


def fft_length(size: int) -> int:
    """The least even number >= `size`, and above 0, without prime factors above 5, for which transforms are fast."""
    size = max(2, size + size % 2)
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2


# The kernel of the short convolution


def slide(x: Tensor, filter: Tensor) -> Tensor:
    """`convolution.short` in float32, of an input with nothing before it."""
    return _Slide.apply(False, False, x.shape[-1:], x, filter.unsqueeze(0))[0]


def slide_streams(x: Tensor, filter: Tensor, bias: Tensor | None, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """`convolution.streams` in float32, of an input with nothing before it."""
    rows = filter if bias is None else torch.cat([filter, bias.unsqueeze(0)])
    return _Slide.apply(True, bias is not None, tuple(widths), x, rows.unsqueeze(0))


def arguments(
    silu: bool, biased: bool, x: Tensor, filter: Tensor, gy: Tensor | None = None, **further: Tensor
) -> ctypes.Structure:
    """What the library is given: tensors with dense last axes, which the caller holds."""
    batch, time, channels = x.shape
    sharing = max(1, batch // max(1, len(filter)))
    strides = (step for z in (x, gy, further.get("gx")) for step in (x if z is None else z).stride()[:2])
    sizes = (batch, time, channels, filter.shape[1] - biased, biased, silu, sharing, torch.get_num_threads())
    given = CONVOLUTION(*sizes, *strides)
    for name, tensor in {"x": x, "filter": filter, **({} if gy is None else {"gy": gy}), **further}.items():
        setattr(given, name, tensor.data_ptr())
    return given


class _Slide(_native.Kernel):
    """y of x (batch, time, channels) and filters (one, or under vmap one a model; taps, channels) in parts so wide.

    After SiLU if so, and with a bias as the last row of the filters if so.
    """

    @staticmethod
    def forward(silu: bool, biased: bool, widths: Sequence[int], x: Tensor, filter: Tensor) -> tuple[Tensor, ...]:
        x = _native.dense_rows(x)
        ys = tuple(x.new_empty(*x.shape[:2], width) for width in widths)
        for part, filters, y in zip(x.split(widths, dim=-1), filter.split(widths, dim=-1), ys, strict=True):
            taps = filters.contiguous()
            _native.call("convolution_forward", arguments(silu, biased, part, taps, y=y))
        return ys

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None, None, *_SlideGradient.apply(*ctx.how, *ctx.saved_tensors, *grads)


class _SlideGradient(_native.Gradient):
    """The gradients of x and the filters."""

    @staticmethod
    def forward(
        silu: bool, biased: bool, widths: Sequence[int], x: Tensor, filter: Tensor, *gys: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, gx, gfilters = _native.dense_rows(x), x.new_empty(x.shape), []
        streams = zip(x.split(widths, dim=-1), gx.split(widths, dim=-1), filter.split(widths, dim=-1), gys, strict=True)
        for seen, grad, taps, gy in streams:
            taps, gy = taps.contiguous(), _native.dense_rows(gy)
            gfilter = x.new_empty(len(x), *taps.shape[1:])
            _native.call("convolution_backward", arguments(silu, biased, seen, taps, gy, gx=grad, gfilter=gfilter))
            gfilters.append(gfilter.unflatten(0, (len(filter), len(x) // len(filter))).sum(1))
        return gx, gfilters[0] if len(gfilters) == 1 else torch.cat(gfilters, dim=-1)
