"""Backends: the same numbers whoever computes them, and a clear word when one asked for is not there."""

import logging
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_recurrence import KINDS, by_steps, drive
from torch import Tensor
from torch.func import vmap

from bestiary.ops import backend
from bestiary.ops._fla import run as run_fla
from bestiary.ops.drive import Drive
from bestiary.ops.recurrence import run
from bestiary.ops.scan import scan


def kernel(q: Tensor, k: Tensor, v: Tensor, *low: Tensor, scale: float, initial_state: Tensor) -> tuple[Tensor, Tensor]:
    """What the package documents: S_t = exp(gk) S + beta (alpha^T S) + k v^T, o_t = scale q^T S_t; in float64."""
    alpha, beta, decay = low
    state, outputs = initial_state.to(q.dtype), []
    for t in range(q.shape[1]):
        heard = torch.einsum("bhk,bhkv->bhv", alpha[:, t], state)
        state = decay[:, t].exp().unsqueeze(-1) * state + torch.einsum("bhk,bhv->bhkv", beta[:, t], heard)
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        outputs.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, dim=1), state


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for the package with the signatures of its kernels; the list names those that were called."""
    called: list[str] = []

    def answer(name: str, given: tuple[Tensor, ...], how: dict[str, object], *low: Tensor) -> tuple[Tensor, Tensor]:
        called.append(name)
        assert how.pop("output_final_state") is True
        return kernel(*given, *low, **how)  # pyright: ignore[reportArgumentType]

    def dplr(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, gk: Tensor, **how: object) -> object:
        return answer("dplr", (q, k, v), how, a, b, gk)

    def gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, **how: object) -> object:
        return answer("gla", (q, k, v), how, 0 * k, 0 * k, g)

    def simple(q: Tensor, k: Tensor, v: Tensor, *, g: Tensor, **how: object) -> object:
        assert g.shape == k.shape[:-1]
        return answer("simple", (q, k, v), how, 0 * k, 0 * k, g.unsqueeze(-1).expand_as(k))

    for name, (function, stand_in) in {
        "generalized_delta_rule": ("chunk_dplr_delta_rule", dplr),
        "gla": ("chunk_gla", gla),
        "simple_gla": ("chunk_simple_gla", simple),
    }.items():
        module = ModuleType(f"fla.ops.{name}")
        setattr(module, function, stand_in)
        monkeypatch.setitem(sys.modules, f"fla.ops.{name}", module)
    return called


@pytest.mark.parametrize("kind", KINDS)
def test_the_package_is_fed_what_its_kernels_expect(kind: str, package: list[str]) -> None:
    given, state = drive(kind, 1.0), torch.randn(2, 3, 8, 5, dtype=torch.float64)
    found, wanted = run_fla(given, state), by_steps(given, state)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)  # the state is handed over in float32
    least = {"gla": "gla"} | dict.fromkeys(("linear", "retnet", "mamba2", "shared"), "simple")
    assert package == [least.get(kind, "dplr")]


COMPILED = """
import sys; sys.path.insert(0, {tests!r})
import torch
from test_recurrence import by_steps, drive
from bestiary.ops.recurrence import run
from bestiary.ops.scan import scan

for kind in ("retnet", "kda"):
    given = drive(kind, 1.0, time=7).map(lambda x: x.float().detach().requires_grad_())
    wanted, state, outcomes = [given.q, given.k, given.v, given.g], torch.randn(2, 3, 8, 5), []
    for y, last in (run(given, state, chunk=4, backend="compiled"), by_steps(given, state)):
        outcomes.append([y, last, *torch.autograd.grad(y.square().sum() + last.sum(), wanted)])
    for one, other in zip(*outcomes):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
a, x, state = torch.rand(2, 20, 5), torch.randn(2, 20, 5), torch.randn(2, 5)
torch.testing.assert_close(scan(a, x, state, backend="compiled")[0], scan(a, x, state, way="loop")[0])
"""


@pytest.mark.slow
def test_compiled_code_computes_what_steps_compute() -> None:
    """In a process of its own: run-time checks of shapes and torch.compile do not go together."""
    code = COMPILED.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    given, state = drive("gla", 1.0).map(Tensor.float), torch.randn(2, 3, 8, 5)
    monkeypatch.setattr(backend, "has_fla", lambda: False)
    with pytest.raises(ValueError, match="needs flash-linear-attention: pip install"):
        run(given, state, backend="fla")
    with pytest.raises(ValueError, match="needs flash-linear-attention"):
        backend.use("fla")
    monkeypatch.setattr(backend, "has_fla", lambda: True)
    with pytest.raises(ValueError, match="needs a CUDA device"):
        run(given, state, backend="fla")
    with pytest.raises(ValueError, match="the scan has no backend 'fla' among"):
        scan(torch.rand(2, 3, 4), torch.rand(2, 3, 4), torch.rand(2, 4), backend="fla")
    with pytest.raises(ValueError, match="no backend 'cuda' among"):
        backend.use("cuda")


def test_auto_is_what_was_set_and_is_announced_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend, "_set", ["auto"])
    backend.log_backend.cache_clear()
    monkeypatch.setattr(backend._native, "library", lambda: "there is no compiler")
    x = torch.zeros(1)
    with caplog.at_level(logging.INFO, logger="bestiary.ops.backend"):
        assert [backend.choose("recurrence", "auto", x) for _ in range(3)] == ["torch"] * 3
        backend.use("compiled")
        assert [backend.choose("recurrence", "auto", x) for _ in range(3)] == ["compiled"] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "the recurrence on cpu is computed by torch",
        "the recurrence on cpu is computed by compiled",
    ]
    assert backend.choose("recurrence", "torch", x) == "torch"
    assert backend.choose("recurrence", "auto", x.double()) == "torch"
    seen: list[str] = []
    vmap(lambda x: (seen.append(backend.choose("recurrence", "auto", x)), x)[1])(x)
    assert seen == ["torch"]
    monkeypatch.setattr(backend, "_set", ["fla"])  # as where a CUDA device is
    assert backend.choose("recurrence", "auto", x) == "torch"


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_engines_refuse_integers(dtype: torch.dtype) -> None:
    given = Drive(*(torch.zeros(1, 3, 1, 2, dtype=dtype) for _ in range(3)))
    with pytest.raises(Exception, match="real numbers|float|Float"):
        run(given, torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="real or complex"):
        scan(torch.zeros(1, 3, 2, dtype=dtype), torch.zeros(1, 3, 2, dtype=dtype), torch.zeros(1, 2))


def test_a_chunk_has_a_position() -> None:
    with pytest.raises(ValueError, match="chunk=0: a chunk has at least one position"):
        run(drive("gla", 1.0), torch.zeros(2, 3, 8, 5, dtype=torch.float64), chunk=0)


def test_engines_in_use_are_watched() -> None:
    with backend.record_engines() as engines:
        run(drive("gla", 1.0), torch.zeros(2, 3, 8, 5, dtype=torch.float64))
    assert engines == {"recurrence"}
