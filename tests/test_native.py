"""The native backend computes what steps compute, in value and gradient, and where it cannot, torch does."""

import inspect
import logging
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_recurrence import KINDS, by_steps, drive, leaves_of
from test_together import SMALL, members
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap

from bestiary.laws import variants
from bestiary.laws.mixers import build_perturbed, random_inputs
from bestiary.ops import _build, _native, backend, convolution, recurrence
from bestiary.ops.drive import Drive
from bestiary.ops.recurrence import run
from bestiary.ops.scan import scan, selective_scan
from bestiary.spec import Spec, load, names
from bestiary.training.together import train_together
from bestiary.training.train import train

HERE = Path(__file__).parent
BUILT = not isinstance(_build.library(), str)
NEEDS_COMPILER = pytest.mark.skipif(not BUILT, reason="there is no C++ compiler")
LENGTHS = (1, 2, 31, 33, 65, 130)
SHAPES = ((1, 8, 5), (2, 3, 17), (31, 16, 16), (33, 20, 33), (65, 5, 130), (130, 8, 75))  # time, keys, values


@pytest.fixture(autouse=True)
def _as_at_first(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(backend, "_set", ["auto"])
    yield
    monkeypatch.undo()
    if (isinstance(_build.library(), str)) == BUILT:
        _build.library.cache_clear()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that were called."""
    called, call = [], _native.call
    monkeypatch.setattr(_native, "call", lambda name, given: (called.append(name), call(name, given)))
    return called


def close(found: Tensor, wanted: Tensor, rtol: float = 1e-5) -> None:
    """Equal up to so small a part of the largest number."""
    assert found.shape == wanted.shape
    scale = wanted.abs().max().item() if wanted.numel() else 0.0
    torch.testing.assert_close(found.double(), wanted.double(), rtol=rtol, atol=rtol * scale)


def wider(given: Drive, key: int, value: int) -> Drive:
    """The same kind of drive with heads of other widths, in numbers that float32 has."""
    widths = {given.k.shape[-1]: key, given.v.shape[-1]: value}

    def repeat(x: Tensor) -> Tensor:
        wanted = widths.get(x.shape[-1], x.shape[-1])
        return torch.cat([x * s for s in torch.linspace(0.5, 1, wanted // x.shape[-1] + 1)], -1)[..., :wanted]

    return given.map(lambda x: repeat(x).float().detach())


def graded(
    way: Callable[[Drive, Tensor], tuple[Tensor, Tensor]], given: Drive, state: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """Outputs, the last state, and the gradients of everything given."""
    given = given.map(lambda x: x.detach().to(dtype).requires_grad_())
    state = state.detach().to(dtype).requires_grad_()
    found = way(given, state)
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype) for x in found]
    return [*found, *torch.autograd.grad(found, [*leaves_of(given), state], weights)]


def native(given: Drive, state: Tensor) -> tuple[Tensor, Tensor]:
    return _native.run(given, state) if given.q.shape[1] == 1 else run(given, state, backend="native")


@NEEDS_COMPILER
@pytest.mark.parametrize(("time", "key", "value"), SHAPES)
@pytest.mark.parametrize("kind", [*KINDS, "shared gla"])
def test_the_recurrence_agrees_with_steps_in_value_and_gradient(kind: str, time: int, key: int, value: int) -> None:
    given, state = wider(drive(kind, 0.5, time=time), key, value), torch.randn(2, 3, key, value)
    wanted = graded(by_steps, given, state, torch.float64)
    for one, other in zip(graded(native, given, state, torch.float32), wanted, strict=True):
        close(one, other)


@NEEDS_COMPILER
@pytest.mark.parametrize("strength", [50.0, 1e4])
@pytest.mark.parametrize("kind", KINDS)
def test_strong_decay_agrees_with_steps(kind: str, strength: float) -> None:
    given = wider(drive(kind, 1.0, time=40), 8, 5)
    given = given if given.g is None else given._replace(g=given.g.sign() * strength)
    state = torch.randn(2, 3, 8, 5)
    wanted = graded(by_steps, given, state, torch.float64)
    for one, other in zip(graded(native, given, state, torch.float32), wanted, strict=True):
        close(one, other)


@NEEDS_COMPILER
def test_what_is_not_a_number_stays_so() -> None:
    """A training that diverges must be seen to."""
    for bad in (float("nan"), float("inf")):
        given = drive("kda", 1.0).map(Tensor.float)
        assert given.g is not None
        given.g[0, 5, 0, 0] = bad
        assert not run(given, torch.zeros(2, 3, 8, 5), backend="native")[1][0, 0].isfinite().all()
        parts = selective_inputs(2, 9, 5, 3, torch.float32)
        parts[0].detach()[0, 4, 0] = bad
        assert not selective_scan(*parts, backend="native")[1][0, 0].isfinite().all()


def scan_inputs(shape: tuple[int, ...]) -> list[Tensor]:
    return [torch.rand(shape), torch.randn(shape), torch.randn(shape[0], *shape[2:])]


@NEEDS_COMPILER
@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("rest", [(), (5,), (64,), (67,), (9, 16)])
def test_the_scan_agrees_with_steps_in_value_and_gradient(rest: tuple[int, ...], time: int) -> None:
    given = scan_inputs((2, time, *rest))
    found = []
    for dtype, how in ((torch.float32, "native"), (torch.float64, "torch")):
        parts = [x.to(dtype).requires_grad_() for x in given]
        h, last = scan(*parts, backend=how)
        found.append([h, last, *torch.autograd.grad(h.square().sum() + last.sum(), parts)])
    for one, other in zip(*found, strict=True):
        close(one, other)


@NEEDS_COMPILER
@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize("taps", [1, 2, 4, 9])
@pytest.mark.parametrize(("time", "channels"), [(1, 5), (2, 64), (7, 67), (33, 130)])
def test_the_short_convolution_agrees_with_steps(time: int, channels: int, taps: int, before: int) -> None:
    parts = [
        torch.randn(3, time, channels),
        torch.randn(taps, channels),
        torch.randn(3, min(before, taps - 1), channels),
    ]

    def both(dtype: torch.dtype, way: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
        given = [x.to(dtype).requires_grad_() for x in parts]
        y = way(*given)
        return [y, *torch.autograd.grad((y * y.detach().cos()).sum(), given)]

    def by_single_steps(x: Tensor, filter: Tensor, past: Tensor) -> Tensor:
        seen = torch.cat([past, x], dim=1)
        each = range(past.shape[1], seen.shape[1])
        return torch.stack([convolution.step(seen[:, t], filter, seen[:, :t]) for t in each], dim=1)

    def native_short(x: Tensor, filter: Tensor, past: Tensor) -> Tensor:
        seen = torch.cat([past, x], dim=1)
        return convolution.slide(seen, filter)[:, past.shape[1] :] if time == 1 else convolution.short(x, filter, past)

    for one, other in zip(both(torch.float32, native_short), both(torch.float64, by_single_steps), strict=True):
        close(one, other)


@NEEDS_COMPILER
def test_long_filters_are_convolved_by_a_fourier_transform(calls: list[str]) -> None:
    for time, taps, kernels in ((80, 32, ["convolution_forward"]), (64, 100, ["convolution_forward"]), (256, 256, [])):
        x, filter = torch.randn(2, time, 5), torch.randn(taps, 5)
        calls.clear()
        close(convolution.long(x, filter), convolution.long(x.double(), filter.double()))
        assert calls == kernels


@NEEDS_COMPILER
def test_the_short_convolution_reads_parts_of_wider_arrays_and_half_precision(calls: list[str]) -> None:
    wide, filter = torch.randn(2, 9, 24), torch.randn(4, 8)
    for dtype in (torch.float32, torch.bfloat16):
        _, x, _ = wide.to(dtype).split(8, dim=-1)
        found = convolution.short(x, filter, backend="native")
        assert found.dtype == dtype
        close(found, convolution.short(x.double(), filter.double()), rtol=1e-5 if dtype == torch.float32 else 1e-2)
        close(convolution.short(x.mT.contiguous().mT, filter), found)
    assert set(calls) == {"convolution_forward"}
    with pytest.raises(ValueError, match="cannot compute this convolution: it computes in float32"):
        convolution.short(wide.double(), torch.randn(4, 24).double(), backend="native")


@NEEDS_COMPILER
def test_one_rate_for_all_channels_may_be_broadcast() -> None:
    a, x, state = scan_inputs((2, 9, 5))
    close(scan(a[..., :1], x, state[:1], backend="native")[0], scan(a[..., :1], x, state[:1], backend="torch")[0])


def selective_inputs(batch: int, time: int, channels: int, modes: int, dtype: torch.dtype) -> list[Tensor]:
    dt, u = torch.rand(batch, time, channels), torch.randn(batch, time, channels)
    both = torch.randn(batch, time, 2 * modes + 1)  # B and C are parts of something larger
    given = [dt, u, -torch.rand(channels, modes) * 5, both[..., 1 : modes + 1], both[..., modes + 1 :]]
    return [x.to(dtype).requires_grad_() for x in (*given, torch.randn(batch, channels, modes))]


@NEEDS_COMPILER
@pytest.mark.parametrize("axis", [0, 1, 2])  # batch, time, heads
@pytest.mark.parametrize("kind", ["gla", "mamba2", "kda", "erasing"])
def test_parts_of_a_recurrence_may_be_1_long_where_they_are_alike(kind: str, axis: int) -> None:
    whole, state = drive(kind, 1.0).map(Tensor.float), torch.randn(2, 3, 8, 5)
    given = whole.map(lambda x: x if x is whole.v else x.narrow(axis, 0, 1))
    state = state[:1] if axis == 0 else state[:, :1] if axis == 2 else state

    def repeated(given: Drive, state: Tensor) -> tuple[Tensor, Tensor]:
        return _native.run(given.map(lambda x: x.expand(*whole.v.shape[:3], -1)), state.expand(2, 3, -1, -1))

    found, wanted = (graded(way, given, state, torch.float32) for way in (_native.run, repeated))
    for one, other in zip(found, wanted, strict=True):
        close(one, other)


@NEEDS_COMPILER
def test_parts_of_a_selective_scan_may_be_1_long_where_they_are_alike() -> None:
    given = [x.detach() for x in selective_inputs(3, 20, 5, 4, torch.float32)]
    narrowed = {0: [(2, 1), (0, 1)], 2: [(0, 1), (1, 1)], 3: [(0, 1)], 4: [(1, 1)], 5: [(0, 1), (1, 1)]}
    for place, (axis, size) in ((place, cut) for place, cuts in narrowed.items() for cut in cuts):
        found = []
        for repeat in (False, True):
            parts = [x.clone() for x in given]
            parts[place] = parts[place].narrow(axis, 0, size)
            leaves = [x.requires_grad_() for x in parts]
            shaped = [x.expand(y.shape) for x, y in zip(leaves, given, strict=True)] if repeat else leaves
            y, last = _native.selective_scan(*shaped, False)
            found.append([y, last, *torch.autograd.grad(y.square().sum() + last.sum(), leaves)])
        for one, other in zip(*found, strict=True):
            close(one, other)


@NEEDS_COMPILER
def test_parts_that_do_not_go_together_are_refused_by_name() -> None:
    given, state = drive("kda", 1.0).map(Tensor.float), torch.randn(2, 3, 8, 5)
    assert given.g is not None
    w, b = given.rewrite or pytest.fail("the drive rewrites nothing")
    bad = {
        "q": given._replace(q=given.q[:, :40]),
        "k": given._replace(k=given.k[..., :7]),
        "v": given._replace(v=given.v[..., :4]),
        "g": given._replace(g=given.g[..., :3]),
        "w": given._replace(rewrite=(w[:, :, :2], b)),
        "b": given._replace(rewrite=(w, b[..., :1])),
        "the state": given.map(lambda x: torch.cat([x, x])),
    }
    for name, drive_ in bad.items():
        with pytest.raises(ValueError, match=rf"^{name} has the shape \(.*must have \("):
            _native.run(drive_, state)
    dt, u, a, b, c, h = (x.detach() for x in selective_inputs(2, 9, 5, 3, torch.float32))
    for name, parts in {
        "dt": (dt[..., :2], u, a, b, c, h),
        "A": (dt, u, a[:2], b, c, h),
        "B": (dt, u, a, b[..., :1], c, h),
        "C": (dt, u, a, b, c[:, :8], h),
        "the state": (dt, u, a, b, c, h[:, :2]),
    }.items():
        with pytest.raises(ValueError, match=rf"^{name} has the shape \(.*must have \("):
            _native.selective_scan(*parts, False)


def test_a_compiler_that_is_there_builds_the_library() -> None:
    try:
        _build.compiler()
    except _build.Unavailable as fault:
        pytest.skip(str(fault))
    assert not isinstance(found := _build.library(), str), found


@NEEDS_COMPILER
@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize(("channels", "modes"), [(5, 1), (16, 4), (33, 7), (64, 16), (20, 31)])
def test_the_selective_scan_agrees_with_the_scan(channels: int, modes: int, time: int) -> None:
    given = selective_inputs(2, time, channels, modes, torch.float32)
    some = torch.randint(time, (2, 3))
    for asked, rates, negative in ((None, True, False), (some, True, False), (None, False, False), (some, True, True)):
        found = []
        for dtype, how in ((torch.float32, "native"), (torch.float64, "torch")):
            parts = [x.detach().to(dtype).requires_grad_() for i, x in enumerate(given) if rates or i != 2]
            split = parts if rates else (*parts[:2], None, *parts[2:])
            y, last = selective_scan(*split, asked, negative=negative, backend=how)
            found.append([y, last, *torch.autograd.grad(y.square().sum() + last.sum(), parts)])
        for one, other in zip(*found, strict=True):
            close(one, other)


@NEEDS_COMPILER
def test_strong_decay_of_the_selective_scan_is_exact() -> None:
    given = selective_inputs(2, 33, 7, 5, torch.float32)
    for strength in (50.0, 1e4):
        parts = [given[0].detach() * 0 + 1, given[1], given[2].detach() * 0 - strength, *given[3:]]
        y, last = selective_scan(*parts, backend="native")
        wanted, end = selective_scan(*(x.double() for x in parts), backend="torch")
        close(y, wanted)
        close(last, end)


@NEEDS_COMPILER
@pytest.mark.parametrize(("batch", "time"), [(2, 0), (0, 5), (0, 0)])
def test_nothing_comes_of_nothing(batch: int, time: int) -> None:
    given = drive("kda", 1.0, time=max(time, 1)).map(lambda x: x[:batch, :time].float().requires_grad_())
    state = torch.randn(batch, 3, 8, 5, requires_grad=True)
    y, last = _native.run(given, state)
    assert y.shape == (batch, time, 3, 5)
    grads = torch.autograd.grad(y.sum() + last.sum(), [*leaves_of(given), state])
    assert all(g.isfinite().all() for g in grads)
    if time == 0:
        assert torch.equal(run(given, state)[1], state)
        assert torch.equal(last, state)
        parts = selective_inputs(batch, time, 5, 3, torch.float32)
        assert torch.equal(selective_scan(*parts)[1], parts[-1])
        a, x, h = scan_inputs((batch, time, 5))
        assert torch.equal(scan(a, x, h)[1], h)


@NEEDS_COMPILER
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_float32_and_returned_as_it_came(kind: str) -> None:
    half = drive(kind, 1.0).map(Tensor.bfloat16)
    y, state = run(half, torch.zeros(2, 3, 8, 5, dtype=torch.bfloat16), backend="native")
    wanted, whole = run(half.map(Tensor.float), torch.zeros(2, 3, 8, 5), backend="native")
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(y, wanted.bfloat16())
    assert torch.equal(state, whole)
    parts = [x.detach().half() for x in selective_inputs(2, 9, 5, 3, torch.float32)]
    y, last = selective_scan(*parts, backend="native")
    assert (y.dtype, last.dtype) == (torch.float16, torch.float32)
    assert torch.equal(last, selective_scan(*(x.float() for x in parts), backend="native")[1])


@NEEDS_COMPILER
@pytest.mark.parametrize("kind", KINDS)
def test_cutting_and_carrying_on_changes_nothing(kind: str) -> None:
    given = drive(kind, 1.0).map(lambda x: x.float().requires_grad_())
    state = torch.randn(2, 3, 8, 5, requires_grad=True)

    def pieces(given: Drive, state: Tensor) -> tuple[Tensor, Tensor]:
        parts = []
        for start, end in ((0, 2), (2, 33), (33, 41)):
            piece = given.map(lambda x, start=start, end=end: x[:, start:end])
            y, state = run(piece, state, backend="native")
            parts.append(y)
        return torch.cat(parts, dim=1), state

    whole = graded(native, given, state, torch.float32)
    for one, other in zip(graded(pieces, given, state, torch.float32), whole, strict=True):
        close(one, other, rtol=1e-6)


@NEEDS_COMPILER
@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_unwanted_gradients_change_no_digit(kind: str) -> None:
    given, state = drive(kind, 1.0, time=300).map(Tensor.float), torch.randn(2, 3, 8, 5)
    given = given.map(lambda x: x.expand(-1, -1, -1, x.shape[-1]).repeat(8, 1, 1, 1))
    state = state.repeat(8, 1, 1, 1)
    alone = graded(native, given, state, torch.float32)
    torch.set_num_threads(3)
    try:
        together = graded(native, given, state, torch.float32)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    with torch.no_grad():
        assert torch.equal(run(given, state, backend="native")[0], alone[0])


# Mixers


def users() -> list[Spec]:
    """The mixers that drive the recurrence or a scan."""
    engines = re.compile(r"FastWeight|TimeMix|recurrence import.*\brun\b|ops\.scan import|ShortConv")
    found = [name for name in names("mixers") if engines.search(inspect.getsource(load("mixers", name)))]
    return [spec for name in found for spec in variants("mixers", name)]


@NEEDS_COMPILER
@pytest.mark.parametrize("checked", users(), ids=str)
def test_mixers_are_as_near_to_float64_as_with_torch(checked: Spec, calls: list[str]) -> None:
    """Outputs, states after a cut, and all gradients."""
    found: dict[str, list[Tensor]] = {}
    where = torch.tensor([[0, 5, 36], [1, 20, 36]])
    for how, dtype in (("native", torch.float32), ("torch", torch.float32), ("exact", torch.float64)):
        backend.use("torch" if how == "exact" else how)
        mixer = build_perturbed(checked, dtype=torch.float32).to(dtype)
        x = random_inputs(2, 37, dtype=torch.float32).to(dtype).requires_grad_()
        calls.clear()
        y = mixer.parallel(x, where)
        head, state = mixer(x[:, :20])
        tail, _ = mixer(x[:, 20:], state)
        whole = torch.cat([head, tail], dim=1)
        leaves = [x, *mixer.parameters()]
        grads = torch.autograd.grad(y.square().sum() + whole.square().sum(), leaves)
        found[how] = [y, whole, *grads]
        assert bool(calls) == (how == "native" and checked.name not in ("lru", "s5"))  # those are complex
    for one, other, exact in zip(*found.values(), strict=True):
        size = exact.norm() + 1e-12
        error, usual = (one.double() - exact).norm() / size, (other.double() - exact).norm() / size
        assert error < max(2e-5, 4 * usual.item())  # rebased divides by what may be small


class _Parallel(nn.Module):
    def __init__(self, mixer: Any) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        return self.mixer.parallel(x, where)


@NEEDS_COMPILER
@pytest.mark.parametrize("name", ["mamba", "longhorn", "kda", "rwkv7", "gla", "mamba2", "rg_lru", "base_conv"])
@pytest.mark.parametrize("inside", [True, False])
def test_weights_may_be_stacked(name: str, inside: bool, calls: list[str]) -> None:
    """Gradients taken under vmap, as the laws do, and of what vmap gives, as training does."""
    (checked, *_) = variants("mixers", name)
    mixers = [_Parallel(build_perturbed(checked, seed=seed, dtype=torch.float32)) for seed in range(3)]
    x, where = random_inputs(2, 37, dtype=torch.float32), torch.tensor([[5, 36], [0, 20]])
    weights, buffers = stack_module_state(mixers)  # pyright: ignore[reportArgumentType]

    def loss(weights: Any, buffers: Any, x: Tensor) -> Tensor:
        return functional_call(mixers[0], (weights, buffers), (x, where)).square().mean()

    if inside:
        found = vmap(grad(loss), in_dims=(0, 0, None))(weights, buffers, x)
    else:
        weights = {key: w.detach().requires_grad_() for key, w in weights.items()}
        total = vmap(loss, in_dims=(0, 0, None))(weights, buffers, x).sum()
        found = dict(zip(weights, torch.autograd.grad(total, list(weights.values())), strict=True))
    own = [call.partition("_")[2] for call in calls if not call.startswith(("convolution", "norm"))]
    assert own == ([] if name == "base_conv" else ["forward", "backward"])
    convolved = {"base_conv": 1, "mamba": 1, "longhorn": 1, "rg_lru": 1, "mamba2": 3, "kda": 3}.get(
        name, 0
    )  # streams that a kernel makes
    assert calls.count("convolution_forward") == calls.count("convolution_backward") == convolved
    assert calls.count("norm_forward") == calls.count("norm_backward")
    for i, mixer in enumerate(mixers):
        mixer(x, where).square().mean().backward()
        for key, weight in mixer.named_parameters():
            assert weight.grad is not None
            close(found[key][i], weight.grad)


@NEEDS_COMPILER
def test_jacobians_of_one_sequence_are_those_of_torch(calls: list[str]) -> None:
    """There vmap repeats what is saved for the gradient, and copies nothing."""
    for name in ("min_gru", "mamba", "longhorn", "gla", "gated_delta", "kda", "rwkv7"):
        mixer = build_perturbed(next(iter(variants("mixers", name))), dtype=torch.float32)
        x, found = random_inputs(1, 40, dtype=torch.float32), []
        for how in ("native", "torch"):
            backend.use(how)
            found.append(jacrev(lambda x, mixer=mixer: mixer(x)[0][0, -1])(x))
        close(*found)
    assert set(calls) == {f"{engine}_{way}" for engine in ENGINES for way in ("forward", "backward")}


@NEEDS_COMPILER
def test_stacked_training_is_native_and_sees_what_training_alone_sees(calls: list[str]) -> None:
    recipes = members("kda(heads=1)")
    seen: dict[int, list[Any]] = {}
    for place, look in train_together(recipes):
        seen.setdefault(place, []).append(look)
    assert len(calls) >= 2 * SMALL["steps"]
    for place, recipe in enumerate(recipes):
        alone = [x for x in train(recipe, recipe.build()) if isinstance(x, tuple)]
        looks = [x for x in seen[place] if isinstance(x, tuple)]
        for one, other in zip(looks, alone, strict=True):
            torch.testing.assert_close(one.loss, other.loss, rtol=1e-3, atol=1e-3)  # type: ignore[union-attr]


# Where it cannot


@NEEDS_COMPILER
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, in forward mode
def test_other_transforms_and_second_derivatives_are_left_to_torch(calls: list[str]) -> None:
    a, x, state = scan_inputs((2, 9, 5))

    def total(x: Tensor) -> Tensor:
        return scan(a, x, state)[0].square().sum()

    def slope(x: Tensor) -> Tensor:
        return grad(total)(x).square().sum()

    given, h = drive("kda", 1.0).map(Tensor.float), torch.zeros(2, 3, 8, 5)
    jvp(lambda v: run(given._replace(v=v), h)[0], (given.v,), (given.v,))
    assert calls == []
    once = grad(total)(x)
    assert calls == ["scan_forward", "scan_backward"]
    calls.clear()
    _, exact = torch.autograd.functional.hvp(
        lambda x: scan(a, x, state, backend="torch")[0].square().sum(), x, 2 * once
    )
    close(grad(slope)(x), exact)
    assert calls == []


@NEEDS_COMPILER
def test_a_gradient_of_a_gradient_is_refused_in_plain_words() -> None:
    a, x, state = scan_inputs((2, 9, 5))
    x.requires_grad_()
    (once,) = torch.autograd.grad(scan(a, x, state, backend="native")[0].square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only: bestiary.ops.backend.use"):
        once.sum().backward()


@NEEDS_COMPILER
def test_what_it_cannot_compute_is_refused_by_name_and_left_to_torch_by_auto(calls: list[str]) -> None:
    given, state = drive("gla", 1.0), torch.randn(2, 3, 8, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="cannot compute this recurrence: it computes in float32, not torch.f"):
        run(given, state, backend="native")
    complex_ = torch.randn(2, 9, 5, dtype=torch.complex64)
    with pytest.raises(ValueError, match="cannot compute this scan: .* not torch.complex64"):
        scan(complex_, complex_, complex_[:, 0], backend="native")
    with pytest.raises(ValueError, match="on a CPU, not on meta"):
        run(given.map(lambda x: x.float().to("meta")), state.float().to("meta"), backend="native")
    backend.use("native")
    run(given, state)
    scan(complex_, complex_, complex_[:, 0])
    run(given.map(lambda x: x.float().to("meta")), state.float().to("meta"))
    assert calls == []
    run(given.map(Tensor.float), state.float())
    assert calls == ["recurrence_forward"]


@NEEDS_COMPILER
def test_large_states_without_erasing_are_left_to_products_of_matrices(calls: list[str]) -> None:
    for kind, key, value, wanted in (
        ("mamba2", 128, 64, True),
        ("mamba2", 128, 128, False),
        ("linear", 128, 128, False),
        ("gla", 128, 128, True),
        ("gated delta", 128, 128, True),
    ):
        calls.clear()
        run(wider(drive(kind, 1.0), key, value), torch.zeros(2, 3, key, value))
        assert bool(calls) == wanted, kind


@NEEDS_COMPILER
def test_the_way_of_a_scan_that_is_asked_for_is_taken(calls: list[str]) -> None:
    for way in ("loop", "tree"):
        scan(*scan_inputs((2, 9, 5)), way=way)
    assert calls == []


@NEEDS_COMPILER
def test_torch_asked_for_is_torch_to_the_last_digit(calls: list[str]) -> None:
    given, state = drive("kda", 1.0).map(Tensor.float), torch.randn(2, 3, 8, 5)
    wanted = recurrence.chunks(given, state, 32)
    backend.use("torch")
    assert all(torch.equal(one, other) for one, other in zip(run(given, state), wanted, strict=True))
    assert calls == []


# The library


ENGINES = ("recurrence", "selective", "scan", "convolution", "norm")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a source that compiles at once, whose library no later test may find loaded."""
    names = [f"{name}_{way}" for name in ENGINES for way in ("forward", "backward", "kept")]
    source = tmp_path / "native.cpp"
    source.write_text("\n".join(f'extern "C" int {name}(void*) {{ return 7; }}' for name in names))
    monkeypatch.setattr(_build, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _build.library.cache_clear()
    yield _build.folder()
    _build.library.cache_clear()


def found() -> Any:
    _build.library.cache_clear()
    library = _build.library()
    assert not isinstance(library, str), library
    assert library.scan_forward(None) == 7
    return library


@NEEDS_COMPILER
def test_the_library_is_compiled_once_and_said_so(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="bestiary.ops._build"):
        found()
        found()
    assert [r.getMessage().partition(" with ")[0] for r in caplog.records] == ["compiling the native backend"]
    assert len(list(cache.iterdir())) == 1  # nothing left of the compiling


@NEEDS_COMPILER
def test_another_source_is_another_library(cache: Path) -> None:
    found()
    _build.SOURCE.write_text(_build.SOURCE.read_text() + "// changed\n")
    found()
    assert len(list(cache.glob("*.so"))) == 2


@NEEDS_COMPILER
@pytest.mark.parametrize("honest", [True, False])
def test_a_library_that_is_damaged_is_compiled_again(honest: bool, cache: Path) -> None:
    """One cut short, which would crash the process, and one that is what its name says but no library."""
    found()
    (path,) = cache.glob("*.so")
    whole = path.read_bytes()
    path.unlink()
    other = b"no library" if honest else whole[:3000]
    name = f"{path.stem.partition('-')[0]}-{_build.digest_of_bytes(other)}.so" if honest else path.name
    path.with_name(name).write_bytes(other)
    found()
    (path,) = cache.glob("*.so")
    assert path.read_bytes()[:4] == whole[:4]
    assert len(path.read_bytes()) > 3000


PROCESS = """
import sys; from pathlib import Path
from bestiary.ops import _build
_build.SOURCE = Path(sys.argv[1])
sys.exit(_build.library().scan_forward(None) != 7)
"""


@NEEDS_COMPILER
def test_processes_may_compile_at_the_same_time(cache: Path) -> None:
    call = [sys.executable, "-c", PROCESS, str(_build.SOURCE)]
    started = [subprocess.Popen(call) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert not list(cache.glob("compiling-*"))


def test_without_a_compiler_torch_computes_and_the_reason_is_told(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    backend.log_backend.cache_clear()
    given, state = drive("kda", 1.0).map(Tensor.float), torch.randn(2, 3, 8, 5)
    with caplog.at_level(logging.INFO, logger="bestiary.ops"):
        y, _ = run(given, state)
        run(given, state)
    assert torch.equal(y, recurrence.chunks(given, state, 32)[0])
    assert [record.getMessage() for record in caplog.records] == [
        "no native backend: no C++ compiler (g++, clang++, c++) is on the PATH",
        "the recurrence on cpu is computed by torch",
    ]
    with pytest.raises(ValueError, match=r"'native' cannot compute this recurrence: no C\+\+ compiler"):
        run(given, state, backend="native")
    with pytest.raises(ValueError, match=r"backend 'native' is not there: no C\+\+ compiler"):
        backend.use("native")
    assert not cache.exists()


@NEEDS_COMPILER
def test_a_compiler_that_fails_or_a_cache_that_cannot_be_is_a_reason(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _build.SOURCE.write_text("int main( {")
    assert "does not compile native.cpp: " in str(_build.library())
    assert "does not compile native.cpp: " in str(_build.library())
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("no native backend, and every process tries again")
    _build.library.cache_clear()
    monkeypatch.setenv("CXX", "/no/such/compiler -x")
    assert "the compiler of CXX, '/no/such/compiler', is not there" in str(_build.library())
    _build.library.cache_clear()
    monkeypatch.delenv("CXX")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "NotADirectoryError" in str(_build.library()) or "FileExistsError" in str(_build.library())
    assert not list(cache.glob("*"))


# Processes and memory

FORKED = """
import multiprocessing, sys
import torch
from bestiary.ops.recurrence import run
from bestiary.ops.drive import Drive

torch.set_num_threads(2)
given, ones = Drive(*(torch.randn(16, 300, 2, 16, requires_grad=True) for _ in range(3))), torch.ones(16, 300, 2, 16)

def compute(line=None):  # without operations of torch large enough for its OpenMP, which hangs in a forked process
    y, _ = run(given, torch.zeros(16, 2, 16, 16), backend="native")
    total = float(torch.autograd.grad(y, given.q, ones)[0].numpy().sum())
    return total if line is None else line.send(total)

wanted = compute()
ours, theirs = multiprocessing.Pipe()
workers = [multiprocessing.get_context("fork").Process(target=compute, args=(theirs,)) for _ in range(3)]
for worker in workers: worker.start()
found = [ours.recv() for _ in workers if ours.poll(30)]
for worker in workers: worker.kill()
sys.exit(found != 3 * [wanted])
"""


@NEEDS_COMPILER
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes are not forked here")
def test_workers_may_be_forked_between_calls() -> None:
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], check=False).returncode == 0


NARROWER = ("-mno-avx512f", "-mno-avx512f -mno-avx2 -mno-fma -mno-avx")  # 8 and 4 lanes


@pytest.mark.slow
@pytest.mark.timeout(1800)
@NEEDS_COMPILER
@pytest.mark.parametrize("flags", NARROWER)
def test_narrower_processors_compute_the_same(flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_build, "PROCESSOR", (("-march=native", *flags.split()),))
    _build.library.cache_clear()
    if isinstance(_build.library(), str):
        pytest.skip(f"the compiler knows no {flags}")
    for time, key, value in SHAPES:
        for kind in KINDS:
            test_the_recurrence_agrees_with_steps_in_value_and_gradient(kind, time, key, value)
        for channels, modes in ((5, 1), (33, 7), (20, 31)):
            test_the_selective_scan_agrees_with_the_scan(channels, modes, time)
        test_the_scan_agrees_with_steps_in_value_and_gradient((67,), time)
        test_the_short_convolution_agrees_with_steps(time, 67, 4, 1)
    test_what_is_not_a_number_stays_so()
    test_strong_decay_agrees_with_steps("kda", 1e4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@NEEDS_COMPILER
@pytest.mark.parametrize("flags", ["", NARROWER[-1]])
def test_no_byte_is_touched_or_kept_that_is_not_its_own(flags: str, tmp_path: Path) -> None:
    """Odd shapes in arrays of exactly their size, under the sanitizers of addresses, leaks and undefined behaviour."""
    sanitizer = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g", "-march=native", "-pthread"]
    (tmp_path / "empty.cpp").write_text("int main() { return 0; }")
    for source in (tmp_path / "empty.cpp", HERE / "native_shapes.cpp"):
        program = tmp_path / source.stem
        place = ["-I", str(_build.SOURCE.parent), "-std=c++14"]
        call = [*_build.compiler(), *sanitizer, *flags.split(), *place, str(source), "-o", str(program)]
        built = subprocess.run(call, capture_output=True, text=True, check=False)
        if built.returncode and source.stem == "empty":
            pytest.skip("there are no sanitizers here")
        assert built.returncode == 0, built.stderr
        done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
        if "LeakSanitizer has encountered a fatal error" in done.stderr:  # it may not trace in some containers
            env = {"ASAN_OPTIONS": "detect_leaks=0"}
            done = subprocess.run([str(program)], capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stderr
