"""Each state-space model is the recurrence of its paper, written out plainly, and what Hugging Face computes."""

import math
from typing import Any

import pytest
import torch
from mixer_helpers import BATCH, DIM, TIME, assert_close, assert_same, build_mixer, inputs
from torch import Tensor
from torch.nn import functional as F

from bestiary.spec import parse


def convolved(x: Tensor, conv: Any) -> Tensor:
    """y_t = sum_i filter_i x_{t-i} + bias."""
    y = conv.bias.expand_as(x).clone()
    for t in range(x.shape[1]):
        for i in range(min(t + 1, len(conv.filter))):
            y[:, t] += conv.filter[i] * x[:, t - i]
    return y


def weight_of(conv: Any) -> Tensor:
    """The filter as a Conv1d has it: channel by channel, oldest tap first."""
    return conv.filter.flip(0).T.unsqueeze(1)


def test_mamba2() -> None:
    mixer, x = build_mixer("mamba2(state=8, head=32, conv=3)"), inputs()
    inner, b, c = F.silu(convolved(mixer.into(x), mixer.conv)).split([2 * DIM, 8, 8], dim=-1)
    inner, dt, rate = inner.unflatten(-1, (4, 32)), F.softplus(mixer.dt(x)), mixer.rate.exp()
    state, y = torch.zeros(BATCH, 4, 8, 32, dtype=torch.float64), torch.zeros_like(inner)
    for t in range(TIME):
        for h in range(4):
            write = dt[:, t, h, None, None] * b[:, t].unsqueeze(2) * inner[:, t, h].unsqueeze(1)
            state[:, h] = torch.exp(-dt[:, t, h] * rate[h])[:, None, None] * state[:, h] + write
            y[:, t, h] = (c[:, t].unsqueeze(2) * state[:, h]).sum(1) + mixer.skip[h] * inner[:, t, h]
    y = y.flatten(2) * F.silu(mixer.gate(x))
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    assert_same(mixer(x)[0], mixer.out(y))


@pytest.mark.parametrize("rotation", ["selective", "fixed", "none"])
def test_mamba3_turns_and_integrates_by_the_trapezoidal_rule(rotation: str) -> None:
    heads, key, value, angles = 4, 8, 32, 3
    turning = f"angles={angles}, " if rotation != "none" else ""
    mixer, x = build_mixer(f"mamba3(state={key}, head={value}, {turning}rotation={rotation!r})"), inputs()
    v = mixer.value(x).unflatten(-1, (heads, value))
    turns = angles if rotation == "selective" else 0
    b, c, dt, a, lam, turn = mixer.into(x).split([key, key, heads, heads, heads, turns], dim=-1)
    b, c = (z / (z.square().mean(-1, keepdim=True) + 1e-5).sqrt() for z in (b, c))
    k, q = (b * mixer.norm_k.weight).unsqueeze(2) + mixer.bias_k, (c * mixer.norm_q.weight).unsqueeze(2) + mixer.bias_q
    dt, lam, a = F.softplus(dt + mixer.dt), lam.sigmoid(), F.softplus(a)
    state, y = torch.zeros(BATCH, heads, key, value, dtype=torch.float64), torch.zeros_like(v)
    before = torch.zeros_like(state)  # the last k v^T
    for t in range(TIME):
        for h in range(heads):
            for i in range(BATCH):
                turned = torch.eye(key, dtype=torch.float64)
                for j in range(0 if rotation == "none" else angles):
                    fixed = torch.tensor(-(10_000 ** (-j / angles)), dtype=torch.float64)
                    by = fixed if rotation == "fixed" else -math.pi * dt[i, t, h] * turn[i, t, j].tanh()
                    turned[2 * j : 2 * j + 2, 2 * j : 2 * j + 2] = torch.stack(
                        [torch.stack([by.cos(), -by.sin()]), torch.stack([by.sin(), by.cos()])]
                    )
                alpha, now = torch.exp(-dt[i, t, h] * a[i, t, h]), torch.outer(k[i, t, h], v[i, t, h])
                old = state[i, h] + (1 - lam[i, t, h]) * dt[i, t, h] * before[i, h]
                state[i, h] = alpha * turned @ old + lam[i, t, h] * dt[i, t, h] * now
                before[i, h] = now
                y[i, t, h] = q[i, t, h] @ state[i, h] + mixer.skip[h] * v[i, t, h]
    assert_same(mixer(x)[0], mixer.out(y.flatten(2) * F.silu(mixer.gate(x))))


@pytest.mark.parametrize("spectrum", ["lin", "inv"])
def test_s4d(spectrum: str) -> None:
    mixer, x = build_mixer(f"s4d(state=8, spectrum={spectrum!r})"), inputs()
    system = mixer.diagonal
    a = torch.complex(-system.decay.exp(), system.turn) * system.log_dt.exp().unsqueeze(1)
    step, enter = (1 + a / 2) / (1 - a / 2), torch.complex(*system.b) * system.log_dt.exp().unsqueeze(1) / (1 - a / 2)
    state, y = torch.zeros(BATCH, DIM, 4, dtype=torch.complex128), torch.zeros_like(x)
    for t in range(TIME):
        state = step * state + enter * x[:, t].unsqueeze(-1)
        y[:, t] = 2 * (torch.complex(*system.c) * state).sum(-1).real + mixer.skip * x[:, t]
    first, second = mixer.out(F.gelu(y)).chunk(2, dim=-1)
    assert_same(mixer(x)[0], first * second.sigmoid())


def test_lru() -> None:
    mixer, x = build_mixer("lru(state=10, low=0.5, high=0.99)"), inputs()
    a = torch.exp(-mixer.nu.exp()) * torch.exp(1j * mixer.theta.exp())
    b, c = torch.complex(*mixer.b.weight.chunk(2)), torch.complex(*mixer.c.weight.chunk(2, dim=1)).conj()
    h, y = torch.zeros(BATCH, 10, dtype=torch.complex128), torch.zeros_like(x)
    for t in range(TIME):
        h = a * h + mixer.gamma.exp() * (x[:, t].to(h.dtype) @ b.T)
        y[:, t] = (h @ c.T).real + mixer.skip * x[:, t]
    first, second = mixer.out(F.gelu(y)).chunk(2, dim=-1)
    assert_same(mixer(x)[0], first * second.sigmoid())


def test_pd_ssm() -> None:
    mixer, x = build_mixer("pd_ssm(state=6, matrices=3)"), inputs()
    weights, (re, im) = (x @ mixer.choose.weight.T).softmax(-1), mixer.into
    modulus, turn = mixer.modulus(x).sigmoid(), mixer.turn(x).sigmoid()
    h, y = torch.zeros(BATCH, 6, dtype=torch.complex128), torch.zeros(BATCH, TIME, 12, dtype=torch.float64)
    h[:, 0] = 1
    for t in range(TIME):
        turned = torch.polar(modulus[:, t], 2 * math.pi * turn[:, t]) * h
        h = torch.complex(x[:, t] @ re.T, x[:, t] @ im.T)
        for b in range(BATCH):
            mixed = sum(weights[b, t, k] * mixer.places[k] for k in range(3))
            for n in range(6):
                h[b, mixed[:, n].argmax()] += turned[b, n]
        y[:, t] = torch.cat([h.real, h.imag], dim=-1)
    assert_same(mixer(x)[0], mixer.out(y) + mixer.skip * x)


def test_pd_ssm_passes_the_gradient_of_its_choice_to_the_softmax_of_each_column() -> None:
    mixer, x = build_mixer("pd_ssm(state=4, matrices=2)"), inputs(3)
    pull = torch.randn(BATCH, 3, 4, 4, dtype=torch.float64)
    mixed = torch.einsum("btk,kmn->btmn", mixer.choose(x).softmax(-1), mixer.places)
    for weight in (mixer.places, mixer.choose.weight):
        (wanted,) = torch.autograd.grad((mixed.softmax(2) * pull).sum(), weight, retain_graph=True)
        assert_same(torch.autograd.grad((mixer.transitions(x) * pull).sum(), weight)[0], wanted)


def test_pd_ssm_follows_an_automaton_for_ever() -> None:
    """Column n of P says where state n goes: here permutations of five states, and a reset."""
    table = torch.tensor([[1, 2, 3, 4, 0], [1, 0, 2, 3, 4], [3, 3, 3, 3, 3]])
    mixer, word = parse("mixers", "pd_ssm(state=5, matrices=3)")[0].build(3), torch.randint(3, (1, 500))
    with torch.no_grad():
        mixer.places.copy_(F.one_hot(table, 5).mT)
        mixer.choose.weight.copy_(100 * torch.eye(3))
        mixer.into.zero_()
        for part, bias in ((mixer.modulus, 40.0), (mixer.turn, -40.0)):  # D = 1
            part[2].weight.zero_()
            part[2].bias.fill_(bias)
        states = mixer.states(F.one_hot(word, 3).float(), None)[..., 0]
    state, wanted = 0, []
    for letter in word[0].tolist():
        state = int(table[letter, state])
        wanted.append(state)
    assert states.argmax(-1)[0].tolist() == wanted
    torch.testing.assert_close(states.sum(-1), torch.ones(1, 500))


def test_s5() -> None:
    mixer, x = build_mixer("s5(state=12, blocks=3)"), inputs()
    poles, dt = torch.complex(-mixer.decay.exp(), mixer.turn), mixer.log_dt.exp()
    b, c = torch.complex(*mixer.b.weight.chunk(2)), torch.complex(*mixer.c.weight.chunk(2, dim=1)).conj()
    h, y = torch.zeros(BATCH, 6, dtype=torch.complex128), torch.zeros_like(x)
    for t in range(TIME):
        h = torch.exp(poles * dt) * h + (torch.exp(poles * dt) - 1) / poles * (x[:, t].to(h.dtype) @ b.T)
        y[:, t] = 2 * (h @ c.T).real + mixer.skip * x[:, t]
    y = F.gelu(y)
    assert_same(mixer(x)[0], y * mixer.out(y).sigmoid())


def test_longhorn_solves_an_online_regression_in_each_step() -> None:
    mixer, x = build_mixer("longhorn(state=4, conv=3)"), inputs()
    inner = F.silu(convolved(mixer.into(x), mixer.conv))
    low, k, q = mixer.low(inner).split([DIM // 16, 4, 4], dim=-1)
    beta = mixer.beta(low).sigmoid()
    h, y = torch.zeros(BATCH, 2 * DIM, 4, dtype=torch.float64), torch.zeros_like(inner)
    for t in range(TIME):
        for i in range(BATCH):
            key, rate = k[i, t], beta[i, t]
            exact = torch.linalg.inv(torch.eye(4, dtype=h.dtype) + rate[:, None, None] * torch.outer(key, key))
            target = (rate * inner[i, t]).unsqueeze(-1) * key
            h[i] = torch.diagonal(exact, dim1=1, dim2=2) * h[i] + (exact @ target.unsqueeze(-1)).squeeze(-1)
            y[i, t] = h[i] @ q[i, t] + mixer.skip * inner[i, t]
    assert_same(mixer(x)[0], mixer.out(y * F.silu(mixer.gate(x))))


def test_initial_weights_of_state_space_models_are_the_papers() -> None:
    mamba2, mamba3, s4d, lru, s5 = (
        parse("mixers", text)[0].build(256)
        for text in ("mamba2", "mamba3", "s4d(spectrum='inv')", "lru(low=0.5, high=0.9)", "s5(state=32, blocks=2)")
    )
    for dt in (F.softplus(mamba2.dt.bias), F.softplus(mamba3.dt), s4d.diagonal.log_dt.exp(), s5.log_dt.exp()):
        assert dt.min() >= 0.99e-3
        assert dt.max() <= 0.101
    assert mamba2.rate.exp().min() >= 1
    assert mamba2.rate.exp().max() <= 16
    assert (mamba3.bias_k == 1).all()
    torch.testing.assert_close(s4d.diagonal.turn[0, :2], torch.tensor([64 * 63, 64 * (64 / 3 - 1)]) / math.pi)
    modulus = torch.exp(-lru.nu.exp())
    assert modulus.min() > 0.499
    assert modulus.max() < 0.901
    torch.testing.assert_close(lru.gamma.exp(), (1 - modulus**2).sqrt())
    assert lru.b.weight.std().item() == pytest.approx((2 * 256) ** -0.5, rel=0.05)
    order = torch.arange(16, dtype=torch.float64)
    legs = -torch.sqrt(torch.outer(2 * order + 1, 2 * order + 1)).tril(-1) - torch.diag(order + 1)
    values = torch.linalg.eigvals(legs + torch.outer((order + 0.5).sqrt(), (order + 0.5).sqrt()))
    torch.testing.assert_close(values.real, torch.full_like(values.real, -0.5))
    halves = values.imag[values.imag < 0].sort().values.float()
    torch.testing.assert_close(s5.turn, torch.cat([halves, halves]))
    assert s5.b.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert s5.c.weight.std().item() == pytest.approx(32**-0.5, rel=0.05)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mamba2(head=48)", "heads of width 48"),
        ("mamba3(head=48)", "heads of width 48"),
        ("mamba3(state=8, angles=5)", "5 angles turn 10 keys"),
        ("s4d(state=7)", "conjugate pairs"),
    ],
)
def test_widths_that_do_not_fit_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^[^\n]*{said}[^\n]*$"):
        build_mixer(text)


@pytest.mark.hf
def test_mamba_is_hugging_faces() -> None:
    pytest.importorskip("transformers")
    from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer

    mixer, x = build_mixer("mamba(state=4, conv=3, rank=5)").float(), inputs().float()
    options = {"state_size": 4, "conv_kernel": 3, "time_step_rank": 5, "num_hidden_layers": 1}
    other = MambaMixer(MambaConfig(hidden_size=DIM, **options), layer_idx=0).eval()
    weights = {
        "in_proj.weight": torch.cat([mixer.into.weight, mixer.gate.weight]),
        "conv1d.weight": weight_of(mixer.conv),
        "conv1d.bias": mixer.conv.bias,
        "x_proj.weight": mixer.low.weight,
        "dt_proj.weight": mixer.dt.weight,
        "dt_proj.bias": mixer.dt.bias,
        "A_log": mixer.rate,
        "D": mixer.skip,
        "out_proj.weight": mixer.out.weight,
    }
    other.load_state_dict(weights)
    assert_close(mixer(x)[0], other(x))


@pytest.mark.hf
def test_mamba2_is_hugging_faces() -> None:
    pytest.importorskip("transformers")
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Config, Mamba2Mixer

    mixer, x = build_mixer("mamba2(state=8, head=32, conv=3)").float(), inputs().float()
    options = {"num_heads": 4, "head_dim": 32, "state_size": 8, "n_groups": 1, "conv_kernel": 3, "chunk_size": 8}
    other = Mamba2Mixer(Mamba2Config(hidden_size=DIM, num_hidden_layers=1, **options), layer_idx=0).eval()
    weights = {
        "in_proj.weight": torch.cat([mixer.gate.weight, mixer.into.weight, mixer.dt.weight]),
        "conv1d.weight": weight_of(mixer.conv),
        "conv1d.bias": mixer.conv.bias,
        "dt_bias": mixer.dt.bias,
        "A_log": mixer.rate,
        "D": mixer.skip,
        "norm.weight": mixer.norm.weight,
        "out_proj.weight": mixer.out.weight,
    }
    other.load_state_dict(weights)
    assert_close(mixer(x)[0], other(x))
