"""Norms of rows, and the streams of a short convolution, by kernels: what PyTorch's operations give in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_native import NEEDS_COMPILER, close
from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.nn import functional as F

from bestiary.mixers import ShortConv, normalize
from bestiary.mixers._norm import RMSNorm
from bestiary.ops import _native, backend, convolution, norm
from bestiary.ops.drive import Drive
from bestiary.ops.recurrence import run

SHAPES = ((3, 70, 5, 16), (2, 7, 1, 3), (2, 130, 33), (40, 5), (2, 3, 4, 5, 24), (1, 1, 1, 1))


def graded(way: Callable[..., Any], given: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """What comes out, and its gradients."""
    leaves = [x.to(dtype).requires_grad_() for x in given]
    found = way(*leaves)
    found = list(found) if isinstance(found, tuple) else [found]
    total = sum((y * y.detach().cos()).sum() for y in found)
    return [*found, *torch.autograd.grad(total, leaves)]


def agree(native: Callable[..., Any], exact: Callable[..., Any], given: list[Tensor]) -> None:
    """Both ways to the same, in value and in gradient."""
    pairs = zip(graded(native, given, torch.float32), graded(exact, given, torch.float64), strict=True)
    for one, other in pairs:
        close(one, other)


@NEEDS_COMPILER
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_a_norm_agrees_with_torch_in_value_and_gradient(
    shape: tuple[int, ...], activation: norm.Activation, weighted: bool, gated: bool
) -> None:
    given = [torch.randn(shape), *([torch.randn(shape[-1:])] * weighted), *([5 * torch.randn(shape)] * gated)]

    def way(chosen: backend.Backend, x: Tensor, *rest: Tensor) -> Tensor:
        weight, gate = (rest[0] if weighted else None), (rest[-1] if gated else None)
        return norm.rms(x, weight, gate, activation=activation, epsilon=0.1, backend=chosen)

    def plain(x: Tensor, *rest: Tensor) -> Tensor:
        y = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
        y = y * rest[0] if weighted else y
        return y * (rest[-1].sigmoid() * (rest[-1] if activation == "silu" else 1)) if gated else y

    agree(lambda *parts: way("native", *parts), plain, given)
    agree(lambda *parts: way("torch", *parts), plain, given)


@NEEDS_COMPILER
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)  # a row of one number is a sign, and its gradient nothing
def test_unit_rows_agree_with_torch_in_value_and_gradient(shape: tuple[int, ...]) -> None:
    def plain(x: Tensor) -> Tensor:
        return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()

    agree(lambda x: norm.normalize(x, backend="native"), plain, [torch.randn(shape)])


@NEEDS_COMPILER
def test_rows_of_zeros_of_huge_numbers_and_of_no_numbers() -> None:
    x = torch.zeros(2, 3, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(norm.normalize(x, backend="native").sum(), x)
    torch.testing.assert_close(slope, torch.full_like(x, 1e3))
    huge = torch.full((2, 3, 4), 1e15)
    torch.testing.assert_close(norm.normalize(huge, backend="native"), torch.full_like(huge, 0.5))
    huge[0, 0, 0] = torch.nan
    y = norm.normalize(huge, backend="native")
    assert y[0, 0].isnan().all()
    assert not y[0, 1:].isnan().any()
    assert not y[1].isnan().any()
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0, 4), (2, 3, 0)):
        empty = torch.randn(shape)
        assert norm.normalize(empty, backend="native").shape == empty.shape


@NEEDS_COMPILER
def test_norms_read_parts_of_wider_arrays_and_half_precision() -> None:
    wide, weight = torch.randn(2, 9, 3 * 20), torch.randn(5)
    for dtype in (torch.float32, torch.bfloat16):
        _, x, gate = (z.unflatten(-1, (4, 5)) for z in wide.to(dtype).split(20, dim=-1))
        found = norm.rms(x, weight.to(dtype), gate, epsilon=1e-5, backend="native")
        assert found.dtype == dtype
        exact = norm.rms(x.double(), weight.to(dtype).double(), gate.double(), epsilon=1e-5)
        close(found, exact, rtol=1e-5 if dtype == torch.float32 else 1e-2)
        assert norm.rms(x, weight, gate, epsilon=1e-5, backend="native").dtype == torch.float32
    sums = torch.full((1, 2, 1, 512), 100.0, dtype=torch.float16)  # whose squares, summed in half, are infinite
    for way in ("native", "torch"):
        close(norm.normalize(sums, backend=way), sums.double() * 512**-0.5 / 100, rtol=1e-3)


@NEEDS_COMPILER
@pytest.mark.parametrize("weighted", [True, False])
def test_norms_may_be_stacked(weighted: bool) -> None:
    """Gradients under vmap, with a weight for each model, are those of each alone."""
    x, gate, weight = torch.randn(3, 2, 70, 2, 40), torch.randn(3, 2, 70, 2, 40), torch.randn(3, 40)

    def loss(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
        return norm.rms(x, weight if weighted else None, gate, epsilon=1e-5, backend="native").cos().sum()

    found = vmap(grad(loss, argnums=(0, 1, 2)))(x, gate, weight)
    for i in range(3):
        alone = [z[i].requires_grad_() for z in (x.clone(), gate.clone(), weight.clone())]
        wanted = torch.autograd.grad(loss(*alone), alone, allow_unused=True, materialize_grads=True)
        for one, other in zip(found, wanted, strict=True):
            close(one[i], other)
    shared = vmap(grad(loss, argnums=2), in_dims=(0, 0, None))(x, gate, weight[0])
    close(shared[0], vmap(grad(loss, argnums=2))(x, gate, weight[:1].expand(3, -1))[0])


@NEEDS_COMPILER
def test_small_and_double_rows_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    called, call = [], _native.call
    monkeypatch.setattr(_native, "call", lambda name, given: (called.append(name), call(name, given)))
    norm.normalize(torch.randn(1, 1, 8, 16))
    norm.normalize(torch.randn(64, 64, 4).double())
    RMSNorm(4, eps=1e-5)(torch.randn(2, 3, 4))
    assert called == []
    normalize(torch.randn(64, 64, 4))
    RMSNorm(4, eps=1e-5)(torch.randn(64, 64, 4))
    assert called == ["norm_forward", "norm_forward"]
    with pytest.raises(ValueError, match="cannot compute this norm: it computes in float32"):
        norm.normalize(torch.randn(2, 3).double(), backend="native")


@NEEDS_COMPILER
def test_gates_are_broadcast_and_weights_of_another_width_refused() -> None:
    x, weight = torch.randn(2, 3, 4, 5), torch.randn(5)
    for shape in ((2, 3, 1, 5), (5,), (1, 3, 4, 1)):
        gate = torch.randn(shape, requires_grad=True)
        slopes = []
        for chosen in ("native", "torch"):
            y = norm.rms(x, weight, gate, epsilon=0.1, backend=chosen)
            slopes.append((y.detach(), torch.autograd.grad(y.cos().sum(), gate)[0]))
        for one, other in zip(*slopes, strict=True):
            close(one, other)
    for chosen in ("native", "torch"):
        with pytest.raises(ValueError, match="weights of shape"):
            norm.rms(x, weight[:3], epsilon=0.1, backend=chosen)
        assert norm.rms(x.bfloat16(), weight, epsilon=0.1, backend=chosen).dtype == torch.float32
        with pytest.raises(ValueError, match="no backend 'fla'"):
            norm.normalize(torch.randn(3), backend="fla")
    close(norm.normalize(x[0, 0, 0], backend="native"), norm.normalize(x[0, 0, 0], backend="torch"))


@NEEDS_COMPILER
def test_a_gradient_of_the_gradient_of_a_norm_is_that_of_torch() -> None:
    given = [torch.randn(2, 3, 4, 5), torch.randn(5), torch.randn(2, 3, 4, 5)]
    found = []
    for chosen, dtype in (("native", torch.float32), ("torch", torch.float64)):
        leaves = [z.to(dtype).requires_grad_() for z in given]
        y = norm.rms(*leaves, epsilon=0.1, backend=chosen)
        slopes = torch.autograd.grad(y.cos().sum(), leaves, create_graph=True)
        found.append([*slopes, *torch.autograd.grad(sum(slope.square().sum() for slope in slopes), leaves)])
    for one, other in zip(*found, strict=True):
        close(one.detach(), other.detach())


@NEEDS_COMPILER
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_kernels_under_vjp_and_tracing() -> None:
    """What `vjp` saved is used after its level is closed; a trace holds operations of torch."""
    x, filter = torch.randn(2, 40, 4, 16), torch.randn(4, 64)

    def normalized(x: Tensor) -> Tensor:
        return norm.normalize(x)

    def streamed(x: Tensor) -> Tensor:
        return torch.cat(convolution.streams(x.flatten(2), filter, None, None, (24, 40)), dim=-1)

    def recurred(x: Tensor) -> Tensor:
        return run(Drive(x, x, x), torch.zeros(2, 4, 16, 16))[0]

    for way in (normalized, streamed, recurred):
        y, pull = vjp(way, x)
        leaf = x.clone().requires_grad_()
        close(pull(torch.ones_like(y))[0], torch.autograd.grad(way(leaf).sum(), leaf)[0])
    for way in (normalized, streamed):
        with torch.no_grad():
            traced = torch.jit.trace(way, x, check_trace=False)
        other = torch.randn_like(x)
        close(traced(other), way(other))


@NEEDS_COMPILER
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("batch", "time", "taps", "widths"),
    [(3, 70, 4, (30, 30, 40)), (2, 5, 3, (64,)), (1, 2, 4, (3, 4)), (2, 33, 1, (17,)), (9, 2, 9, (5, 130))],
)
def test_streams_agree_with_torch_in_value_and_gradient(
    batch: int, time: int, taps: int, widths: tuple[int, ...], bias: bool, before: int
) -> None:
    given = [torch.randn(batch, time, sum(widths)), torch.randn(taps, sum(widths))]
    given += [torch.randn(sum(widths))] * bias + [torch.randn(batch, before, sum(widths))] * (before > 0)

    def way(x: Tensor, filter: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return convolution.streams(x, filter, rest[0] if bias else None, rest[-1] if before else None, widths)

    def plain(x: Tensor, filter: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        seen = torch.cat([rest[-1], x], dim=1) if before else x
        shifted = [F.pad(seen, (0, 0, i, 0))[:, : seen.shape[1]] * filter[i] for i in range(taps)]
        y = sum(shifted)[:, before:]
        return F.silu(y + rest[0] if bias else y).split(widths, dim=-1)

    agree(way, plain, given)


@NEEDS_COMPILER
def test_streams_of_stacked_models_read_halves_and_carry_on() -> None:
    convs = [ShortConv(9, 3, bias=True) for _ in range(2)]
    x = torch.randn(2, 6, 9)
    filters, biases = (torch.stack([getattr(one, name).detach() for one in convs]) for name in ("filter", "bias"))

    def loss(filter: Tensor, bias: Tensor) -> Tensor:
        return sum(part.cos().sum() for part in convolution.streams(x, filter, bias, None, (4, 5)))

    found = vmap(grad(loss, argnums=(0, 1)))(filters, biases)
    for i, conv in enumerate(convs):
        wanted = torch.autograd.grad(loss(conv.filter, conv.bias), (conv.filter, conv.bias))
        for one, other in zip(found, wanted, strict=True):
            close(one[i], other)
    whole, _ = convs[0].streams(x, None, (4, 5))
    past, pieces = None, []
    for start, end in ((0, 1), (1, 4), (4, 5), (5, 6)):
        parts, past = convs[0].streams(x[:, start:end], past, (4, 5))
        pieces.append(parts)
    for one, parts in zip(whole, zip(*pieces, strict=True), strict=True):
        close(torch.cat(parts, dim=1), one)
    plain = convolution.streams(x.bfloat16(), convs[0].filter.bfloat16(), None, None, (9,))[0]
    assert plain.dtype == torch.bfloat16
    assert convolution.streams(x.bfloat16(), convs[0].filter, convs[0].bias, None, (9,))[0].dtype == torch.float32
    wider = convolution.streams(x, convs[0].filter, convs[0].bias.double(), None, (9,))[0]
    assert wider.dtype == torch.float64  # torch computes what is not all in float32
    close(wider, torch.cat(whole, dim=-1))
