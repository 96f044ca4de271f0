"""Chunks compute what steps compute: outputs, states, gradients, and range."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bestiary.ops.drive import Drive
from bestiary.ops.recurrence import run, step

BATCH, TIME, HEADS, KEY, VALUE = 2, 41, 3, 8, 5
KINDS = ("linear", "retnet", "gla", "mamba2", "shared", "delta", "gated delta", "kda", "erasing", "rwkv7")


def drive(kind: str, strength: float, *, time: int = TIME) -> Drive:
    """What each mixer of the family feeds the recurrence, its decay of the given strength."""

    def draw(width: int) -> Tensor:
        return torch.randn(BATCH, time, HEADS, width, dtype=torch.float64)

    q, k, v, beta = draw(KEY), F.normalize(draw(KEY), dim=-1), draw(VALUE), draw(1).sigmoid()
    head, channel = -strength * draw(1).abs(), -strength * draw(KEY).abs()
    kappa, eta = F.normalize(draw(KEY), dim=-1), draw(KEY).sigmoid()
    return {
        "linear": Drive(q, k, v),
        "retnet": Drive(q, k, v, head[:1, :1].expand_as(head)),
        "gla": Drive(q, k, v, channel),
        "mamba2": Drive(q, k, v, head),
        "shared": Drive(q[:, :, :1], k[:, :, :1], v, head),
        "shared gla": Drive(q[:, :, :1], k[:, :, :1], v, channel),
        "delta": Drive(q, k, beta * v, rewrite=(-beta, k)),
        "gated delta": Drive(q, k, beta * v, head, rewrite=(-beta, head.exp() * k)),
        "kda": Drive(q, k, beta * v, channel, rewrite=(-beta, channel.exp() * k)),
        "erasing": Drive(q, k, beta * v, head, (-beta * k, head.exp() * k)),
        "rwkv7": Drive(q, k, v, channel, (-kappa * eta, kappa)),
    }[kind]


def by_steps(given: Drive, state: Tensor) -> tuple[Tensor, Tensor]:
    outputs = []
    for t in range(given.q.shape[1]):
        y, state = step(given.map(lambda x, t=t: x[:, t : t + 1]), state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def leaves_of(given: Drive) -> list[Tensor]:
    found: list[Tensor] = []
    given.map(lambda x: (found.append(x), x)[1])
    return found


@pytest.mark.parametrize("chunk", [7, 16, 64])
@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("kind", [*KINDS, "shared gla"])
def test_chunks_agree_with_steps(kind: str, strength: float, chunk: int) -> None:
    given, state = drive(kind, strength), torch.randn(BATCH, HEADS, KEY, VALUE, dtype=torch.float64)
    for found, wanted in zip(run(given, state, chunk=chunk), by_steps(given, state), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [*KINDS, "shared gla"])
def test_gradients_of_chunks_agree_with_those_of_steps(kind: str) -> None:
    given = drive(kind, 30.0, time=21).map(lambda x: x.detach().clone().requires_grad_())
    state = torch.randn(BATCH, HEADS, KEY, VALUE, dtype=torch.float64)
    ways = (lambda: run(given, state, chunk=8), lambda: by_steps(given, state))
    one, two = (torch.autograd.grad(sum(x.square().sum() for x in way()), leaves_of(given)) for way in ways)
    for found, wanted in zip(one, two, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_strong_decay_stays_finite_in_float32(kind: str) -> None:
    given = drive(kind, 30.0, time=130).map(lambda x: x.float().requires_grad_())
    y, state = run(given, torch.zeros(BATCH, HEADS, KEY, VALUE))
    grads = torch.autograd.grad(y.sum() + state.sum(), leaves_of(given))
    assert all(found.isfinite().all() for found in (y, state, *grads))


def test_the_delta_rule_replaces_what_a_key_stores() -> None:
    key = F.normalize(torch.randn(1, 1, 1, KEY, dtype=torch.float64), dim=-1)
    old, new = torch.randn(2, 1, 1, 1, VALUE, dtype=torch.float64)
    _, state = step(Drive(key, key, old), torch.zeros(1, 1, KEY, VALUE, dtype=torch.float64))
    y, _ = step(Drive(key, key, new, None, (-key, key)), state)
    torch.testing.assert_close(y, new)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time", [1, 41])
def test_half_precision_is_computed_in_float32_and_returned_as_it_came(kind: str, time: int) -> None:
    half = drive(kind, 1.0, time=time).map(Tensor.bfloat16)
    y, state = run(half, torch.zeros(BATCH, HEADS, KEY, VALUE, dtype=torch.bfloat16))
    wanted, whole = run(half.map(Tensor.float), torch.zeros(BATCH, HEADS, KEY, VALUE))
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y, wanted.bfloat16())
    torch.testing.assert_close(state, whole)


@pytest.mark.parametrize("time", [1, 37])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_rounds_nothing_of_a_recurrence(kind: str, time: int) -> None:
    given, state = drive(kind, 1.0, time=time).map(Tensor.float), torch.randn(2, 3, 8, 5)
    wanted = run(given, state, backend="torch")
    with torch.autocast("cpu", torch.bfloat16):
        found = run(given, state, backend="torch")
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_taking_back_where_it_writes_is_erasing_with_a_multiple_of_the_key() -> None:
    rewriting = drive("gated delta", 1.0)
    w, b = rewriting.rewrite or pytest.fail("the drive rewrites nothing")
    erasing = rewriting._replace(rewrite=None, erase=(w * rewriting.k, b))
    state = torch.randn(BATCH, HEADS, KEY, VALUE, dtype=torch.float64)
    for found, wanted in zip(run(rewriting, state), run(erasing, state), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch", [2, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_no_positions_are_no_output_and_the_same_state(kind: str, batch: int) -> None:
    given, state = drive(kind, 1.0).map(lambda x: x[:batch]), torch.randn(batch, HEADS, KEY, VALUE)
    y, after = run(given.map(lambda x: x[:, :0]), state)
    assert y.shape == (batch, 0, HEADS, VALUE)
    assert torch.equal(after, state)
    y, after = run(given, state.double())
    assert y.shape == (batch, TIME, HEADS, VALUE)
    assert after.shape == state.shape
