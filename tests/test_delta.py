"""Each mixer of the delta rule is its paper's recurrence, written out plainly, in float64, with its own weights."""

import math
import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from mixer_helpers import BATCH, DIM, TIME, assert_same, build_mixer, inputs, outer, rms, unit
from torch import Tensor
from torch.nn import functional as F

from bestiary.spec import parse


def streams(mixer: Any, x: Tensor, widths: list[int], heads: int) -> list[Tensor]:
    """SiLU(short convolution(W x)) by heads."""
    u = x @ mixer.streams.project.weight.T
    filter, y = mixer.streams.conv.filter, torch.zeros_like(u)
    for t in range(TIME):
        for i in range(min(t + 1, len(filter))):
            y[:, t] += filter[i] * u[:, t - i]
    return [z.unflatten(-1, (heads, -1)) for z in (y * torch.sigmoid(y)).split([heads * w for w in widths], dim=-1)]


def forgetting(decay: Any, x: Tensor) -> Tensor:
    """alpha by heads and channels."""
    step = F.softplus(decay.project(x) + decay.dt).unflatten(-1, (len(decay.rate), -1))
    return torch.exp(-decay.rate.exp().unsqueeze(-1) * step)


@pytest.mark.parametrize("negative", [False, True])
def test_delta_net(negative: bool) -> None:
    mixer, x = build_mixer(f"delta_net(heads=4, negative={negative})"), inputs()
    q, k, v = streams(mixer, x, [16, 16, 16], heads=4)
    q, k, beta = unit(q) / 4, unit(k), (2 if negative else 1) * mixer.beta(x).sigmoid()
    state, y = torch.zeros(BATCH, 4, 16, 16, dtype=torch.float64), torch.zeros_like(v)
    for t in range(TIME):
        miss = v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], state)
        state = state + beta[:, t, :, None, None] * outer(k[:, t], miss)
        y[:, t] = torch.einsum("bhk,bhkv->bhv", q[:, t], state)
    assert_same(mixer(x)[0], mixer.answer.out(rms(y, mixer.answer.norm.weight)))


@pytest.mark.parametrize(
    "options", ["forget=False", "forget=True", "forget=True, decay='channel', negative=False, init='short'"]
)
def test_delta_product(options: str) -> None:
    mixer, x = build_mixer(f"delta_product(key=8, value=6, steps=3, {options})"), inputs()
    q, k, v = streams(mixer, x, [8, 24, 18], heads=2)
    q, k, v = unit(q) / 8**0.5, unit(k.unflatten(-1, (3, 8))), v.unflatten(-1, (3, 6))
    beta = (1 if "negative" in options else 2) * mixer.beta(x).sigmoid().unflatten(-1, (2, 3))
    state, y = torch.zeros(BATCH, 2, 8, 6, dtype=torch.float64), torch.zeros(BATCH, TIME, 2, 6, dtype=torch.float64)
    for t in range(TIME):
        if "forget=True" in options:
            state = forgetting(mixer.decay, x)[:, t].unsqueeze(-1) * state
        for i in range(3):
            key, one = k[:, t, :, i].unsqueeze(-1), torch.eye(8, dtype=torch.float64)
            step = beta[:, t, :, i, None, None]
            state = (one - step * key @ key.mT) @ state + step * key @ v[:, t, :, i].unsqueeze(-2)
        y[:, t] = torch.einsum("bhk,bhkv->bhv", q[:, t], state)
    assert_same(mixer(x)[0], mixer.answer.out(rms(y, mixer.answer.norm.weight) * F.silu(mixer.answer.gate(x))))


def test_one_step_of_delta_product_is_gated_delta() -> None:
    product, gated, x = build_mixer("delta_product(steps=1, forget=True)"), build_mixer("gated_delta"), inputs()
    with torch.no_grad():
        for here, there in (
            (product.streams.project.weight, gated.qkv.weight),
            (product.streams.conv.filter, gated.conv.filter),
            (product.beta.weight, gated.beta.weight),
            (product.decay.project.weight, gated.decay.weight),
            (product.decay.rate, gated.rate),
            (product.decay.dt, gated.dt),
            (product.answer.norm.weight, gated.norm.weight),
            (product.answer.gate.weight, gated.gate.weight),
            (product.answer.out.weight, gated.out.weight),
        ):
            here.copy_(there)
        product.beta.weight.zero_()
        gated.beta.weight.zero_()  # beta = 2 sigmoid(0) = 1, which sigmoid(40) is in float64
        gated.beta.bias.fill_(40.0)
    assert_same(product(x)[0], gated(x)[0])


def test_kda() -> None:
    mixer, x = build_mixer("kda(key=8, value=6)"), inputs()
    q, k, v = streams(mixer, x, [8, 8, 6], heads=2)
    q, k, beta, alpha = unit(q) / 8**0.5, unit(k), mixer.beta(x).sigmoid(), forgetting(mixer.decay, x)
    state, y = torch.zeros(BATCH, 2, 8, 6, dtype=torch.float64), torch.zeros_like(v)
    for t in range(TIME):
        key, step, one = k[:, t].unsqueeze(-1), beta[:, t, :, None, None], torch.eye(8, dtype=torch.float64)
        decayed = torch.diag_embed(alpha[:, t]) @ state
        state = (one - step * key @ key.mT) @ decayed + step * key @ v[:, t].unsqueeze(-2)
        y[:, t] = torch.einsum("bhk,bhkv->bhv", q[:, t], state)
    assert_same(mixer(x)[0], mixer.answer.out(rms(y, mixer.answer.norm.weight) * mixer.answer.gate(x).sigmoid()))


def test_gdn2() -> None:
    mixer, x = build_mixer("gdn2(key=8, value=6)"), inputs()
    q, k, v = streams(mixer, x, [8, 8, 6], heads=2)
    q, k, alpha = unit(q) / 8**0.5, unit(k), forgetting(mixer.decay, x)
    b, w = (x @ gate.weight.T for gate in (mixer.erase, mixer.write))
    b, w = b.sigmoid().unflatten(-1, (2, 8)), w.sigmoid().unflatten(-1, (2, 6))
    state, y = torch.zeros(BATCH, 2, 8, 6, dtype=torch.float64), torch.zeros_like(v)
    for t in range(TIME):
        shrink = torch.eye(8, dtype=torch.float64) - outer(k[:, t], b[:, t] * k[:, t])
        state = shrink @ torch.diag_embed(alpha[:, t]) @ state + outer(k[:, t], w[:, t] * v[:, t])
        y[:, t] = torch.einsum("bhk,bhkv->bhv", q[:, t], state)
    assert_same(mixer(x)[0], mixer.answer.out(rms(y, mixer.answer.norm.weight) * mixer.answer.gate(x).sigmoid()))


def test_comba() -> None:
    mixer, x = build_mixer("comba(key=8, value=6)"), inputs()
    q, k, v = streams(mixer, x, [8, 8, 6], heads=2)
    q, k, beta, alpha = unit(q), unit(k), mixer.beta(x).sigmoid(), forgetting(mixer.decay, x)
    b, d = mixer.feedback.sigmoid()[:, None, None], mixer.correction[:, None]
    state, y = torch.zeros(BATCH, 2, 8, 6, dtype=torch.float64), torch.zeros_like(v)
    for t in range(TIME):
        key, step, one = k[:, t].unsqueeze(-1), beta[:, t, :, None, None], torch.eye(8, dtype=torch.float64)
        shrink = alpha[:, t].unsqueeze(-1) * one - b * step * key @ key.mT
        state = shrink @ state + step * key @ v[:, t].unsqueeze(-2)
        y[:, t] = torch.einsum("bhk,bhkv->bhv", q[:, t] - d * k[:, t], state) / 8**0.5
    assert_same(mixer(x)[0], mixer.answer.out(rms(y, mixer.answer.norm.weight) * mixer.answer.gate(x).sigmoid()))


def test_rwkv7() -> None:
    mixer, x = build_mixer("rwkv7(heads=4, layer=1, layers=3)"), inputs()
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
    for_r, for_w, for_k, for_v, for_a, for_g = ((1 - mu) * x + mu * before for mu in mixer.mix)
    r, k, v = for_r @ mixer.r.weight.T, for_k @ mixer.k.weight.T, for_v @ mixer.v.weight.T
    w = torch.tanh(for_w @ mixer.decay[0].weight.T) @ mixer.decay[2].weight.T + mixer.decay[2].bias
    w = torch.exp(-torch.exp(-F.softplus(-w) - 0.5))
    a = (for_a @ mixer.rate[0].weight.T @ mixer.rate[2].weight.T + mixer.rate[2].bias).sigmoid()
    gate = (for_g @ mixer.gate[0].weight.T).sigmoid() @ mixer.gate[2].weight.T
    kappa = unit((k * mixer.remove).unflatten(-1, (4, 16)))
    k = k * (1 + (a - 1) * mixer.replace)
    r, w, k, v, a = (z.unflatten(-1, (4, 16)) for z in (r, w, k, v, a))
    state, y = torch.zeros(BATCH, 4, 16, 16, dtype=torch.float64), torch.zeros_like(v)  # values by keys
    for t in range(TIME):
        transition = torch.diag_embed(w[:, t]) - outer(kappa[:, t], a[:, t] * kappa[:, t])
        state = state @ transition + outer(v[:, t], k[:, t])
        y[:, t] = torch.einsum("bhvk,bhk->bhv", state, r[:, t])
    normed = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 64e-5).sqrt()
    normed = normed.flatten(2) * mixer.norm.weight + mixer.norm.bias
    bonus = ((r * mixer.bonus * k).sum(-1, keepdim=True) * v).flatten(2)
    assert_same(mixer(x)[0], mixer.out(gate * (normed + bonus)))


@pytest.mark.parametrize(("cache", "chunk"), [(4, 3), (2, 5)])
def test_hola(cache: int, chunk: int) -> None:
    """All tokens are remembered with the sizes of their writes, and those to read are chosen anew for each query."""
    mixer, x = build_mixer(f"hola(heads=4, cache={cache}, chunk={chunk})"), inputs()
    q, k, v = streams(mixer, x, [16, 16, 16], heads=4)
    beta, alpha, y = mixer.beta(x).sigmoid(), forgetting(mixer.decay, x), torch.zeros_like(v)
    sharp_q, sharp_k = (
        z / (z.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        for z, norm in ((q, mixer.norm_q), (k, mixer.norm_k))
    )
    q, k = unit(q) / 4, unit(k)
    for b in range(BATCH):
        for h in range(4):
            state, sizes = torch.zeros(16, 16, dtype=torch.float64), []
            for t in range(TIME):
                state = alpha[b, t, h] * state
                miss = v[b, t, h] - k[b, t, h] @ state
                state = state + beta[b, t, h] * outer(k[b, t, h], miss)
                sizes.append((beta[b, t, h] * miss.norm()).item())
                begin = t - t % chunk
                seen = sorted(range(begin), key=lambda j: -sizes[j])[:cache] + list(range(begin, t + 1))
                logits = sharp_k[b, seen, h] @ sharp_q[b, t, h] / 4
                weights = torch.cat([mixer.sink[h : h + 1], logits]).softmax(0)[1:]
                y[b, t, h] = q[b, t, h] @ state + mixer.mix[h].sigmoid() * (weights @ v[b, seen, h])
    gated = rms(y, mixer.answer.norm.weight) * F.silu(mixer.answer.gate(x))
    assert_same(mixer(x)[0], mixer.answer.out(gated))


def test_hola_keeps_the_tokens_that_wrote_most() -> None:
    mixer, x = build_mixer("hola(heads=4, cache=3, chunk=4)"), inputs()
    (_, after), (_, every) = mixer(x[:, :20]), build_mixer("hola(heads=4, cache=99, chunk=4)")(x[:, :20])
    sizes = every.cache.size.view(torch.float64).squeeze(-1)
    assert sizes.shape == (BATCH, 4, 20)
    assert_same(after.cache.size.view(torch.float64).squeeze(-1), sizes.sort(descending=True).values[..., :3])


@pytest.mark.parametrize("time", [1, 5, TIME])
def test_gated_oja(time: int) -> None:
    mixer, x = build_mixer("gated_oja(key=8, value=6)"), inputs()
    q, k, v = streams(mixer, x, [8, 8, 6], heads=2)
    q, k, v, beta, alpha = unit(q) / 8**0.5, unit(k), unit(v), mixer.beta(x).sigmoid(), forgetting(mixer.decay, x)
    state, y = torch.zeros(BATCH, 2, 8, 6, dtype=torch.float64), torch.zeros_like(v)
    for t in range(TIME):
        state = state * alpha[:, t].unsqueeze(-2)
        miss = k[:, t] - torch.einsum("bhkv,bhv->bhk", state, v[:, t])
        state = state + beta[:, t, :, None, None] * outer(miss, v[:, t])
        y[:, t] = torch.einsum("bhk,bhkv->bhv", q[:, t], state)
    wanted = mixer.answer.out(rms(y, mixer.answer.norm.weight) * mixer.answer.gate(x).sigmoid())
    assert_same(mixer(x[:, :time])[0], wanted[:, :time])


def sums(mixer: Any, x: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """H_t + Lambda, G_t and q_t of a Mesa layer at every t."""
    width = DIM // heads
    q, k = (unit(z) for z in streams(mixer, x, [width, width], heads))
    v = mixer.value(x).unflatten(-1, (heads, width))
    gamma, beta = mixer.gamma(x).sigmoid()[..., None, None], mixer.beta(x).sigmoid()[..., None, None]
    ridge = torch.diag_embed((0.25 + F.softplus(mixer.ridge)).unflatten(0, (heads, width)))
    h = g = torch.zeros(BATCH, heads, width, width, dtype=torch.float64)
    hs, gs = [], []
    for t in range(TIME):
        h = gamma[:, t] * h + beta[:, t] * outer(k[:, t], k[:, t])
        g = gamma[:, t] * g + beta[:, t] * outer(k[:, t], v[:, t])
        hs.append(h + ridge)
        gs.append(g)
    return torch.stack(hs, dim=1), torch.stack(gs, dim=1), q


def test_mesa_net_solves_least_squares() -> None:
    mixer, x = build_mixer("mesa_net(heads=8, steps=12)"), inputs()
    h, g, q = sums(mixer, x, heads=8)
    y = torch.einsum("bthkv,bthk->bthv", g, torch.linalg.solve(h, q))
    assert_same(mixer(x)[0], mixer.answer.out(rms(y, mixer.answer.norm.weight)))


def test_mesa_net_takes_as_many_steps_of_conjugate_gradients_as_asked() -> None:
    mixer, x = build_mixer("mesa_net(heads=2, steps=3)"), inputs()
    h, g, q = sums(mixer, x, heads=2)
    p = residual = q
    solved = torch.zeros_like(q)
    for _ in range(3):
        ahead = (h @ p.unsqueeze(-1)).squeeze(-1)
        pace = (residual**2).sum(-1, keepdim=True) / (p * ahead).sum(-1, keepdim=True)
        solved, left = solved + pace * p, residual - pace * ahead
        p = left + (left**2).sum(-1, keepdim=True) / (residual**2).sum(-1, keepdim=True) * p
        residual = left
    y = torch.einsum("bthkv,bthk->bthv", g, solved)
    assert_same(mixer(x)[0], mixer.answer.out(rms(y, mixer.answer.norm.weight)))


def test_the_gradient_of_mesa_net_is_that_of_least_squares() -> None:
    mixer, x = build_mixer("mesa_net(heads=8, steps=12)"), inputs().requires_grad_()
    h, g, q = sums(mixer, x, heads=8)
    y = torch.einsum("bthkv,bthk->bthv", g, torch.linalg.solve(h, q))
    wanted = mixer.answer.out(rms(y, mixer.answer.norm.weight))
    parts = [x, mixer.ridge, mixer.gamma.weight, mixer.beta.weight, mixer.streams.project.weight]
    for one, other in zip(
        torch.autograd.grad(mixer(x)[0].square().sum(), parts),
        torch.autograd.grad(wanted.square().sum(), parts),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


def test_rwkv7_starts_as_its_authors_say() -> None:
    mixer = parse("mixers", "rwkv7(layer=2, layers=5)")[0].build(DIM)
    for part in (mixer.out, mixer.decay[0], mixer.rate[0], mixer.gate[0]):
        assert not part.weight.any()
    assert mixer.k.weight.abs().max() <= 0.05 / DIM**0.5
    n, width = 7, DIM // 2
    zigzag = (n % width - (width - 1) / 2) / ((width - 1) / 2)
    bent, ramp = zigzag * abs(zigzag), n / (DIM - 1)
    decay = -6 + 6 * ramp ** (1 + (2 / 4) ** 0.3) + 0.5 + 2.5 * bent
    assert mixer.decay[2].bias[n].item() == pytest.approx(decay, abs=1e-5)
    assert mixer.rate[2].bias[n].item() == pytest.approx(-0.19 + 0.3 * bent + 0.4 * (ramp - 0.5), abs=1e-5)
    assert mixer.mix[1, n].item() == pytest.approx(1 - (n / DIM) ** (0.9 * (1 - 2 / 5)), abs=1e-5)
    assert mixer.norm.weight[0].item() == pytest.approx((3 / 5) ** 0.7)


PYTORCH, XAVIER, FLA, SHORT = 1 / 192**0.5, 2**-2.5 / 64**0.5, 0.02, 1 / 8  # of maps from 64 to 64, by their law
TAPS = 1 / 12**0.5  # of four, as PyTorch draws them
STARTS = {  # the standard deviation of a map from 64 to 64, of the taps of a convolution, and the largest rate
    "gated_delta(heads=1, key=64, value=64)": (PYTORCH, TAPS, 16),
    "gated_delta(heads=1, key=64, value=64, init='fla2024')": (XAVIER, TAPS, 16),
    "gated_delta(heads=1, key=64, value=64, init='fla')": (FLA, 0.02, 16),
    "gated_delta(heads=1, key=64, value=64, init='short')": (SHORT, TAPS, 1),
    "delta_net(heads=1)": (XAVIER, TAPS, None),
    "delta_net(heads=1, init='fla')": (FLA, 0.02, None),
    "delta_product(heads=1, key=64, value=64, forget=True)": (XAVIER, TAPS, 16),
    "delta_product(heads=1, key=64, value=64, forget=True, init='fla')": (FLA, 0.02, 16),
    "comba(heads=1, key=64, value=64)": (0.006, 0.006, 16),
    "comba(heads=1, key=64, value=64, init='fla')": (FLA, 0.02, 16),
    "kda(heads=1)": (FLA, 0.02, 16),
    "gated_oja(heads=1)": (FLA, 0.02, 16),
    "hola(heads=1)": (FLA, 0.02, 16),
    "hola(heads=1, init='short')": (SHORT, TAPS, 1),
    "gdn2(heads=1)": (XAVIER, TAPS, 16),
    "gdn2(heads=1, init='fla')": (FLA, 0.02, 16),
}


@pytest.mark.parametrize("text", STARTS)
def test_weights_start_as_the_option_says(text: str) -> None:
    std, taps, fastest = STARTS[text]
    torch.manual_seed(0)
    mixers = [parse("mixers", text)[0].build(DIM) for _ in range(8)]
    found = {
        name: torch.stack([dict(m.named_parameters())[name] for m in mixers])
        for name, _ in mixers[0].named_parameters()
    }
    project, filter = ("qkv", "conv") if "qkv.weight" in found else ("streams.project", "streams.conv")
    assert found[f"{project}.weight"].std().item() == pytest.approx(std, rel=0.03)
    assert found[f"{filter}.filter"].std().item() == pytest.approx(taps, rel=0.1)
    for name, weight in found.items():
        if name.endswith("rate"):
            assert weight.exp().max() <= fastest
            assert weight.exp().max() >= 0.5 * fastest
        if name.endswith("bias"):
            assert not weight.any()
        if (
            name.endswith(("out.weight", "gate.weight", "gate.1.weight"))
            and "comba(heads=1, key=64, value=64)" not in text
        ):
            assert weight.std().item() == pytest.approx(std, rel=0.05)


def test_weights_of_kda_stored_without_a_bias_are_read() -> None:
    mixer = pickle.loads(pickle.dumps(deepcopy(build_mixer("kda"))))
    stored = mixer.state_dict()
    del stored["answer.gate.1.bias"]
    assert mixer.answer.gate[1].bias.any()
    mixer.load_state_dict(stored)
    assert not mixer.answer.gate[1].bias.any()


def test_the_output_map_of_comba_starts_as_pytorchs() -> None:
    weight = parse("mixers", "comba")[0].build(DIM).answer.out.weight
    assert weight.std().item() == pytest.approx(1 / (3 * weight.shape[1]) ** 0.5, rel=0.05)


def test_initial_rates_are_the_papers() -> None:
    for name, low in (("kda", 1), ("gdn2", 1), ("gated_oja", 1), ("comba", 0), ("delta_product(forget=True)", 0)):
        decay = parse("mixers", name)[0].build(DIM).decay
        assert low <= decay.rate.exp().min()
        assert decay.rate.exp().max() <= 16
        assert F.softplus(decay.dt).min() >= 0.99e-3
        assert F.softplus(decay.dt).max() <= 0.101
    ridge = parse("mixers", "mesa_net")[0].build(DIM).ridge
    torch.testing.assert_close(0.25 + F.softplus(ridge), torch.ones(DIM))
    assert math.isclose(0.25 + math.log1p(math.exp(ridge[0].item())), 1, rel_tol=1e-6)
