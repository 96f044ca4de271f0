"""Delta rules of 2026 are what their papers write: plain recurrences in float64, on the same weights."""

from typing import Any

import pytest
import torch
from mixer_helpers import BATCH, DIM, TIME, assert_same, build_mixer, convolve_plainly, inputs, outer, rms, unit
from torch import Tensor
from torch.nn import functional as F

from bestiary.spec import parse


def streams(mixer: Any, x: Tensor, widths: list[int], heads: int) -> list[Tensor]:
    """SiLU(short convolution(W x)), by heads."""
    mixed = F.silu(convolve_plainly(x @ mixer.streams.project.weight.T, mixer.streams.conv.filter))
    return [z.unflatten(-1, (heads, -1)) for z in mixed.split([heads * width for width in widths], dim=-1)]


def read(x: Tensor, state: Tensor) -> Tensor:
    """state^T x."""
    return torch.einsum("bhk,bhkv->bhv", x, state)


def each(x: Tensor, t: int) -> Tensor:
    """A number for each head at time t, ready to multiply matrices."""
    return x[:, t, :, None, None]


@pytest.mark.parametrize("most", [1, 2])
def test_q_delta_reads_its_error_by_key_and_query(most: int) -> None:
    mixer, x = build_mixer(f"q_delta(key=8, value=6, negative={most == 2})"), inputs()
    q, k, v = streams(mixer, x, [8, 8, 6], heads=2)
    q, k, beta, share = unit(q), unit(k), most * mixer.beta(x).sigmoid(), most * (mixer.share(x) - 0.9).sigmoid()
    alpha = torch.exp(-mixer.decay.rate.exp() * F.softplus(mixer.decay.project(x) + mixer.decay.dt))
    state, y = torch.zeros(BATCH, 2, 8, 6, dtype=torch.float64), torch.zeros_like(v)
    for t in range(TIME):
        state = each(alpha, t) * state
        error = v[:, t] - read(k[:, t], state) - share[:, t].unsqueeze(-1) * read(q[:, t], state)
        state = state + each(beta, t) * outer(k[:, t], error)
        y[:, t] = read(q[:, t], state) / 8**0.5
    assert_same(mixer(x)[0], mixer.answer.out(rms(y, mixer.answer.norm.weight) * F.silu(mixer.answer.gate(x))))


@pytest.mark.parametrize(
    ("text", "std", "taps", "fastest"),
    [
        ("q_delta", 0.02, 0.02, 16),
        ("q_delta(init='short')", 1 / 8, 1 / 12**0.5, 1),
        ("mdn", 0.02, 0.02, 16),
        ("mdn(init='short')", 1 / 8, 1 / 12**0.5, 1),
    ],
)
def test_weights_start_as_the_option_says(text: str, std: float, taps: float, fastest: float) -> None:
    torch.manual_seed(0)
    mixer = parse("mixers", text)[0].build(DIM)
    for weight in (mixer.streams.project.weight, mixer.answer.gate.weight):
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert mixer.streams.conv.filter.std().item() == pytest.approx(taps, rel=0.1)
    built = [parse("mixers", text)[0].build(DIM) for _ in range(8)]
    for part in ("decay", "moving") if hasattr(mixer, "moving") else ("decay",):
        rates = torch.stack([getattr(one, part).rate.exp() for one in built])
        assert 0.5 * fastest <= rates.max() <= fastest


def momentum_plainly(mixer: Any, x: Tensor) -> Tensor:
    """The output of MDN, token by token."""
    q, k, v = streams(mixer, x, [8, 8, 6], heads=2)
    q, k = unit(q - mixer.correction.exp()[:, None] * k) / 8**0.5, unit(k)
    eta = torch.tanh(x @ mixer.eta.weight.T / x.shape[-1] ** 0.5) + 1
    theta = torch.arctan(eta * mixer.factor.exp())
    alpha, mu = (
        torch.exp(-part.rate.exp() * F.softplus(part.project(x) + part.dt)) for part in (mixer.decay, mixer.moving)
    )
    alpha, mu = alpha * torch.cos(theta) ** 2, mu.clamp(min=torch.e**-2)
    beta = torch.sin(theta) ** 2 * mixer.beta(x).sigmoid()
    y = torch.zeros_like(v)
    state = momentum = torch.zeros(BATCH, 2, 8, 6, dtype=x.dtype)
    for t in range(x.shape[1]):
        error = v[:, t] - alpha[:, t].unsqueeze(-1) * read(k[:, t], state)
        momentum = each(mu, t) * momentum + each(eta, t) * outer(k[:, t], error)
        state = each(alpha, t) * state + each(beta, t) * momentum
        y[:, t] = read(q[:, t], state)
    return mixer.answer.out(rms(y, mixer.answer.norm.weight) * mixer.answer.gate(x).sigmoid())


@pytest.mark.parametrize("time", [1, 5, 70])
def test_mdn_is_gradient_descent_with_momentum(time: int) -> None:
    mixer, x = build_mixer("mdn(key=8, value=6)"), inputs(time)
    assert_same(mixer(x)[0], momentum_plainly(mixer, x))


def test_the_gradient_of_mdn_is_that_of_its_recurrence() -> None:
    mixer, x = build_mixer("mdn(key=8, value=6)"), inputs(40).requires_grad_()
    parts = [x, *mixer.parameters()]
    for one, other in zip(
        torch.autograd.grad(mixer(x)[0].square().sum(), parts),
        torch.autograd.grad(momentum_plainly(mixer, x).square().sum(), parts),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("time", [1, 5, 70])
def test_vla_writes_along_the_preconditioned_key(time: int) -> None:
    mixer, x = build_mixer("vla(heads=4)"), inputs(time)
    raw = mixer.k(x)
    u = (raw @ mixer.u.weight.T).unflatten(-1, (4, 16))
    q, k, v = (z.unflatten(-1, (4, 16)) for z in (F.elu(mixer.q(x)) + 1, F.elu(raw) + 1, mixer.v(x)))
    inverse = torch.eye(16, dtype=torch.float64).expand(BATCH, 4, 16, 16) / 0.1
    state, keys, y = torch.zeros(BATCH, 4, 16, 16, dtype=torch.float64), torch.zeros_like(k[:, 0]), torch.zeros_like(v)
    for t in range(time):
        now = unit(u[:, t]) / 4
        shrunk = read(now, inverse)
        inverse = inverse - outer(shrunk, shrunk) / (1 + (now * shrunk).sum(-1))[..., None, None]
        key, keys = unit(k[:, t]), keys + k[:, t]
        along = read(key, inverse)
        along = along / along.norm(dim=-1, keepdim=True)
        state = state + outer(along, v[:, t] - read(key, state))
        y[:, t] = read(q[:, t], state) / (keys * q[:, t]).sum(-1, keepdim=True)
    y = y.flatten(2)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert_same(mixer(x)[0], mixer.out(y * mixer.norm.weight + mixer.norm.bias))


def preconditioned(part: Any, k: Tensor, x: Tensor) -> Tensor:
    """Each key as its preconditioner scales it, token by token."""
    keep = torch.exp(-part.decay.rate.exp() * F.softplus(x @ part.decay.project.weight.T + part.decay.dt))
    rate, curvature, scaled = (x @ part.rate.weight.T).sigmoid(), torch.zeros_like(k[:, 0]), torch.zeros_like(k)
    for t in range(k.shape[1]):
        curvature = keep[:, t].unsqueeze(-1) * curvature + rate[:, t].unsqueeze(-1) * k[:, t] ** 2
        r = torch.log(curvature + 1e-6) - part.center.unsqueeze(-1)
        scaled[:, t] = k[:, t] * 1.5 ** (-r / (1 + r.abs()))
    return scaled


@pytest.mark.parametrize("name", ["precond_gated_delta", "precond_kda"])
def test_preconditioned_delta_rules_write_along_the_scaled_key(name: str) -> None:
    mixer, x = build_mixer(f"{name}(key=8, value=6)"), inputs()
    if name == "precond_kda":
        q, k, v = streams(mixer, x, [8, 8, 6], heads=2)
        rate, dt, project, answer = mixer.decay.rate.unsqueeze(-1), mixer.decay.dt, mixer.decay.project, mixer.answer
        gate = answer.gate(x).sigmoid()
    else:
        mixed = F.silu(convolve_plainly(x @ mixer.qkv.weight.T, mixer.conv.filter))
        q, k, v = (z.unflatten(-1, (2, -1)) for z in mixed.split([16, 16, 12], dim=-1))
        rate, dt, project, answer, gate = mixer.rate.unsqueeze(-1), mixer.dt, mixer.decay, mixer, F.silu(mixer.gate(x))
    alpha = torch.exp(-rate.exp() * F.softplus(project(x) + dt).unflatten(-1, (2, -1)))  # by keys, or the same for all
    q, k, beta = unit(q) / 8**0.5, unit(k), mixer.beta(x).sigmoid()
    scaled = preconditioned(mixer.precondition, k, x)
    state, y = torch.zeros(BATCH, 2, 8, 6, dtype=torch.float64), torch.zeros_like(v)
    for t in range(TIME):
        state = alpha[:, t].unsqueeze(-1) * state
        state = state + each(beta, t) * outer(scaled[:, t], v[:, t] - read(k[:, t], state))
        y[:, t] = read(q[:, t], state)
    assert_same(mixer(x)[0], answer.out(rms(y, answer.norm.weight) * gate))


def test_a_key_channel_that_is_written_often_is_written_less() -> None:
    mixer, x = build_mixer("precond_gated_delta(heads=1, key=8, value=6)"), inputs().mul(0)
    k = torch.zeros(BATCH, TIME, 1, 8, dtype=torch.float64)
    k[..., 0], k[:, -1, :, 1] = 1, 1
    scaled, _ = mixer.precondition(k, x, None)
    assert (scaled[:, -1, 0, 0] < scaled[:, -1, 0, 1]).all()
    assert (scaled[..., 0].diff(dim=1) <= 0).all()
    assert ((scaled[:, -1, 0, :2] > 1 / 1.5) & (scaled[:, -1, 0, :2] < 1.5)).all()


def test_preconditioners_start_as_their_authors_say() -> None:
    for text, fastest in (("precond_gated_delta", 16), ("precond_gated_delta(init='short')", 1), ("precond_kda", 16)):
        parts = [parse("mixers", text)[0].build(DIM).precondition for _ in range(8)]
        assert 0.5 * fastest <= max(part.decay.rate.exp().max() for part in parts) <= fastest
        assert all((part.center == -0.2).all() for part in parts)
        std = 1 / 8 if fastest == 1 else 0.02
        assert torch.stack([part.rate.weight for part in parts]).std().item() == pytest.approx(std, rel=0.1)
        if text == "precond_kda":
            assert min(part.decay.rate.exp().min() for part in parts) >= 1
