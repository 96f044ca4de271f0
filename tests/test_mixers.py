"""Each mixer is the thing its paper describes: its formula written out plainly, in float64, with its own weights."""

import math

import pytest
import torch
from mixer_helpers import BATCH, DIM, TIME, assert_same, build_mixer, convolve_plainly, inputs, split_heads, unit
from torch import nn
from torch.nn import functional as F

from bestiary.mixers import multi_head_hyena
from bestiary.spec import parse


def test_attention_is_pytorchs_own() -> None:
    mixer, x = build_mixer("attention(heads=4, rotary=False)"), inputs()
    other = nn.MultiheadAttention(DIM, 4, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        other.in_proj_weight.copy_(torch.cat([mixer.q.weight, mixer.k.weight, mixer.v.weight]))
        other.out_proj.weight.copy_(mixer.out.weight)
    future = torch.ones(TIME, TIME, dtype=torch.bool).triu(1)
    assert_same(mixer(x)[0], other(x, x, x, attn_mask=future, need_weights=False)[0])


@pytest.mark.parametrize("options", ["kv_heads=2", "kv_heads=1, window=6", "window=4, sinks=2", "window=1, sinks=1"])
def test_attention_shares_keys_and_sees_the_window_and_the_sinks(options: str) -> None:
    mixer, x = build_mixer(f"attention(heads=4, rotary=False, {options})"), inputs()
    q, k, v = (part(x).unflatten(-1, (-1, DIM // 4)) for part in (mixer.q, mixer.k, mixer.v))
    y = torch.zeros(BATCH, TIME, 4, DIM // 4, dtype=torch.float64)
    for i in range(TIME):
        seen = [j for j in range(i + 1) if mixer.window is None or i - j < mixer.window or j < mixer.sinks]
        for head in range(4):
            group = head * mixer.kv_heads // 4
            weights = (k[:, seen, group] @ q[:, i, head].unsqueeze(-1) / math.sqrt(DIM // 4)).softmax(1)
            y[:, i, head] = (weights * v[:, seen, group]).sum(1)
    assert_same(mixer(x)[0], y.flatten(2) @ mixer.out.weight.T)


@pytest.mark.parametrize("filter", ["short", "explicit", "implicit"])
def test_base_conv(filter: str) -> None:
    mixer, x = build_mixer(f"base_conv(filter={filter!r}, taps=9)"), inputs()
    if filter == "short":
        mixed = convolve_plainly(x, mixer.filter.filter) + mixer.filter.bias
    elif filter == "explicit":
        mixed = convolve_plainly(x, mixer.filter.weight) + x
    else:
        time = torch.arange(9, dtype=torch.float64)
        angle = 1e-4 * 2 * math.pi * time / 9
        features = torch.stack([time / 8, angle.cos(), -angle.sin()], dim=1)
        assert_same(mixer.filter.positions, features.float().double())
        mixed = convolve_plainly(x, mixer.filter.network(mixer.filter.positions)) + x
    assert_same(mixer(x)[0], (x @ mixer.project.weight.T + mixer.project.bias) * mixed + x)


def test_an_implicit_filter_of_base_conv_needs_a_length() -> None:
    (found,) = parse("mixers", "base_conv(filter='implicit')")
    with pytest.raises(ValueError, match="needs taps, the longest sequence"):
        found.build(DIM)


def test_long_conv() -> None:
    mixer, x = build_mixer("long_conv(taps=9, squash=0.05)"), inputs()
    taps = torch.where(mixer.weight > 0, 1.0, -1.0) * (mixer.weight.abs() - 0.05).clamp(min=0)
    first, second = (F.gelu(convolve_plainly(x, taps) + mixer.skip * x) @ mixer.out.weight.T + mixer.out.bias).chunk(
        2, -1
    )
    assert_same(mixer(x)[0], first * second.sigmoid())


def test_hyena() -> None:
    mixer, x = build_mixer("hyena(taps=16, features=5)"), inputs()
    x1, x2, v = (convolve_plainly(mixer.project(x), mixer.short.filter) + mixer.short.bias).chunk(3, dim=-1)
    time = torch.arange(16, dtype=torch.float64)
    angles = [2 * math.pi * time / 16 * band for band in (1e-4, 1.0)]
    z = torch.stack([time / 15, *(a.cos() for a in angles), *(-a.sin() for a in angles)], dim=1).float().double()
    for layer in mixer.filter.hidden:
        z = torch.sin(mixer.filter.frequency * layer(z))
    rates = torch.linspace(math.log(100) / 1.5, math.log(100) / 0.3, DIM, dtype=torch.float64)
    taps = mixer.filter.last(z) * torch.exp(-(time / 15).unsqueeze(1) * rates)
    gated = x1 * v
    y = mixer.out(x2 * (convolve_plainly(gated, taps) + mixer.skip * gated))
    torch.testing.assert_close(mixer(x)[0], y, rtol=1e-5, atol=1e-5)  # its window is kept in float32


def test_multi_head_hyena() -> None:
    mixer, x = build_mixer("multi_head_hyena(heads=4, taps=16)"), inputs()
    q, k, v = (convolve_plainly(mixer.project(x), mixer.short.filter) + mixer.short.bias).chunk(3, dim=-1)
    q, k, v, taps = *(split_heads(z, 4) for z in (q, k, v)), mixer.filter(16)
    y = torch.zeros_like(v)
    for t in range(TIME):
        state = mixer.skip[:, None, None] * k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        for i in range(min(t + 1, 16)):
            state = state + taps[i, :, None, None] * k[:, t - i].unsqueeze(-1) * v[:, t - i].unsqueeze(-2)
        y[:, t] = (q[:, t].unsqueeze(-2) @ state).squeeze(-2)
    assert_same(mixer(x)[0], mixer.out(y.flatten(2)))


@pytest.mark.parametrize(("new", "time"), [(23, 23), (5, 23), (300, 300), (290, 310)])
def test_multi_head_hyena_convolves_products_or_adds_up_scores(new: int, time: int) -> None:
    q, k, v = (torch.randn(BATCH, n, 3, 4, dtype=torch.float64) for n in (new, time, time))
    taps = torch.randn(time, 3, dtype=torch.float64)
    assert_same(multi_head_hyena.convolve(q, k, v, taps), multi_head_hyena.score(q, k, v, taps))
    mixer, x = build_mixer("multi_head_hyena(taps=40)"), inputs(300)  # more than are scored
    head, state = mixer(x[:, :200])
    assert_same(torch.cat([head, mixer(x[:, 200:], state)[0]], dim=1), mixer(x)[0])


def test_h3() -> None:
    head, modes = 2, 4
    mixer, x = build_mixer(f"h3(state={2 * modes}, head={head})"), inputs()
    q, k, v = mixer.q(x), mixer.k(x), mixer.v(x)
    k = convolve_plainly(k, mixer.shift.filter) + mixer.shift_skip * k
    system = mixer.diagonal
    a = torch.complex(-system.decay.exp(), system.turn) * system.log_dt.exp().unsqueeze(1)
    step, enter = (1 + a / 2) / (1 - a / 2), torch.complex(*system.b) * system.log_dt.exp().unsqueeze(1) / (1 - a / 2)
    y = torch.zeros_like(x).unflatten(-1, (-1, head))
    for h in range(DIM // head):
        part = slice(h * head, (h + 1) * head)
        state = torch.zeros(BATCH, head, head, modes, dtype=torch.complex128)
        for t in range(TIME):
            product = k[:, t, part].unsqueeze(2) * v[:, t, part].unsqueeze(1)  # key by value
            state = step[h] * state + enter[h] * product.unsqueeze(-1)
            read = 2 * (state * torch.complex(*system.c)[h]).sum(-1).real + mixer.skip[h] * product
            y[:, t, h] = (q[:, t, part].unsqueeze(2) * read).sum(1)
    assert_same(mixer(x)[0], mixer.out(y.flatten(2)))


def test_based() -> None:
    mixer, x = build_mixer("based(heads=2, features=8)"), inputs()
    q, k, v = (z.unflatten(-1, (2, -1)).transpose(1, 2) for z in (mixer.q(x), mixer.k(x), mixer.v(x)))
    s = q @ k.mT / math.sqrt(8)
    weights = (1 + s + s**2 / 2).tril()
    y = weights @ v / weights.sum(-1, keepdim=True)
    assert_same(mixer(x)[0], mixer.out(y.transpose(1, 2).flatten(2)))


def test_rwkv4() -> None:
    mixer, x = build_mixer("rwkv4(layer=1, layers=3)"), inputs()
    before = F.pad(x, (0, 0, 1, -1))
    r, k, v = (m(mu * x + (1 - mu) * before) for m, mu in zip((mixer.r, mixer.k, mixer.v), mixer.mix, strict=True))
    w, y = mixer.decay.exp(), torch.zeros_like(x)
    for t in range(TIME):
        top, bottom = (mixer.bonus + k[:, t]).exp() * v[:, t], (mixer.bonus + k[:, t]).exp()
        for i in range(t):
            weight = (-(t - 1 - i) * w + k[:, i]).exp()
            top, bottom = top + weight * v[:, i], bottom + weight
        y[:, t] = top / bottom
    assert_same(mixer(x)[0], mixer.out(r.sigmoid() * y))


def test_mamba() -> None:
    assert_mamba("")


@pytest.mark.parametrize("options", [", negative=True", ", gate=False, skip=0.0"])
def test_mamba_with_negative_eigenvalues_or_no_gate(options: str) -> None:
    assert_mamba(options)


def assert_mamba(options: str) -> None:
    mixer, x = build_mixer(f"mamba(state=4, conv=3{options})"), inputs()
    inner = F.silu(convolve_plainly(mixer.into(x), mixer.conv.filter) + mixer.conv.bias)
    low, b, c = (inner @ mixer.low.weight.T).split([DIM // 16, 4, 4], dim=-1)
    dt, a = F.softplus(mixer.dt(low)), -mixer.rate.exp()
    h, y = torch.zeros(BATCH, 2 * DIM, 4, dtype=torch.float64), torch.zeros_like(inner)
    for t in range(TIME):
        enter = dt[:, t].unsqueeze(2) * b[:, t].unsqueeze(1) * inner[:, t].unsqueeze(2)
        kept = torch.exp(dt[:, t].unsqueeze(2) * a)
        h = (2 * kept - 1 if "negative" in options else kept) * h + enter
        y[:, t] = (h * c[:, t].unsqueeze(1)).sum(-1) + mixer.skip * inner[:, t]
    assert_same(mixer(x)[0], mixer.out(y if "gate" in options else y * F.silu(mixer.gate(x))))


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_the_skip_starts_as_asked(name: str) -> None:
    for text, skip in ((name, 1), (f"{name}(skip=0.0)", 0)):
        assert (parse("mixers", text)[0].build(DIM).skip == skip).all()


def test_gated_delta() -> None:
    mixer, x = build_mixer("gated_delta(heads=2, key=8, value=6)"), inputs()
    mixed = F.silu(convolve_plainly(mixer.qkv(x), mixer.conv.filter))
    q, k, v = (z.unflatten(-1, (2, -1)) for z in mixed.split([16, 16, 12], dim=-1))
    q, k = unit(q) / 8**0.5, unit(k)
    alpha, beta = (-mixer.rate.exp() * F.softplus(mixer.decay(x) + mixer.dt)).exp(), mixer.beta(x).sigmoid()
    state, y = torch.zeros(BATCH, 2, 8, 6, dtype=torch.float64), torch.zeros_like(v)
    for t in range(TIME):
        key, one = k[:, t].unsqueeze(-1), torch.eye(8, dtype=torch.float64)
        write = beta[:, t, :, None, None]
        state = alpha[:, t, :, None, None] * (one - write * key @ key.mT) @ state + write * key @ v[:, t].unsqueeze(-2)
        y[:, t] = (q[:, t].unsqueeze(-2) @ state).squeeze(-2)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    assert_same(mixer(x)[0], mixer.out(y.flatten(2) * F.silu(mixer.gate(x))))


def test_initial_weights_are_the_papers() -> None:
    torch.manual_seed(0)
    mamba, rwkv, delta, h3 = (parse("mixers", text)[0].build(DIM) for text in ("mamba", "rwkv4", "gated_delta", "h3"))
    torch.testing.assert_close(mamba.rate.exp(), torch.arange(1.0, 17).expand(2 * DIM, 16))
    assert (mamba.skip == 1).all()
    for dt in (F.softplus(mamba.dt.bias), F.softplus(delta.dt), h3.diagonal.log_dt.exp()):
        assert dt.min() >= 0.99e-3
        assert dt.max() <= 0.101
    assert not rwkv.k.weight.any()
    assert not rwkv.out.weight.any()
    torch.testing.assert_close(rwkv.v.weight @ rwkv.v.weight.T, torch.eye(DIM), atol=1e-5, rtol=0)
    torch.testing.assert_close(rwkv.decay[[0, -1]], torch.tensor([-5.0, 3.0]))
    assert delta.rate.exp().max() <= 16
    torch.testing.assert_close(h3.diagonal.turn[0], math.pi * torch.arange(32.0))
    assert (h3.diagonal.decay.exp() == 0.5).all()


@pytest.mark.parametrize("name", ["attention", "based", "base_conv"])
def test_linear_maps_of_the_papers_code_start_small(name: str) -> None:
    mixer = parse("mixers", name)[0].build(256)
    for part in mixer.modules():
        if isinstance(part, nn.Linear):
            assert part.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_rwkv4_keeps_sums_that_would_overflow() -> None:
    mixer = build_mixer("rwkv4").float()
    with torch.no_grad():
        mixer.k.weight.mul_(1e3)
    y, _ = mixer(100 * inputs().float())
    assert y.isfinite().all()
