"""Recurrent networks and short convolutions: the formulas of their papers, PyTorch's LSTM, Hugging Face's RG-LRU."""

import pytest
import torch
from mixer_helpers import BATCH, DIM, TIME, assert_close, assert_same, build_mixer, convolve_plainly, inputs
from torch import nn
from torch.nn import functional as F

from bestiary.spec import parse


def test_rg_lru() -> None:
    mixer, x = build_mixer("rg_lru(width=36, heads=3, conv=3)"), inputs()
    inner = convolve_plainly(mixer.into(x), mixer.conv.filter) + mixer.conv.bias
    h, y = torch.zeros(BATCH, 36, dtype=torch.float64), torch.zeros_like(inner)
    for t in range(TIME):
        blocks = [inner[:, t, 12 * j : 12 * j + 12] @ mixer.gates[j] + mixer.bias[j] for j in range(3)]
        r = torch.cat([block[:, :12] for block in blocks], dim=-1).sigmoid()
        i = torch.cat([block[:, 12:] for block in blocks], dim=-1).sigmoid()
        a = torch.sigmoid(-mixer.rate) ** (8 * r)
        h = a * h + (1 - a**2).sqrt() * i * inner[:, t]
        y[:, t] = h
    assert_same(mixer(x)[0], mixer.out(y * F.gelu(mixer.gate(x), approximate="tanh")))


def test_m2rnn() -> None:
    mixer, x = build_mixer("m2rnn(heads=3, key=6, value=5, conv=3)"), inputs()
    q, k, v = F.silu(convolve_plainly(mixer.qkv(x), mixer.conv.filter)).split([6, 6, 15], dim=-1)
    v, y = v.unflatten(-1, (3, 5)), []
    f = torch.exp(-mixer.decay.rate.exp() * F.softplus(mixer.decay.project(x) + mixer.decay.dt))
    state = torch.zeros(BATCH, 3, 6, 5, dtype=torch.float64)
    for t in range(TIME):
        new = torch.tanh(state @ mixer.again + k[:, t, None, :, None] * v[:, t, :, None, :])
        state = f[:, t, :, None, None] * state + (1 - f[:, t, :, None, None]) * new
        y.append(torch.einsum("bk,bhkv->bhv", q[:, t], state) + mixer.skip * v[:, t])
    y = torch.stack(y, dim=1).flatten(2) * F.silu(mixer.gate(x))
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    assert_same(mixer(x)[0], mixer.out(y))


@pytest.mark.parametrize("expand", [1, 2])
def test_min_gru(expand: int) -> None:
    mixer, x = build_mixer(f"min_gru(expand={expand})"), inputs()
    h, y = torch.zeros(BATCH, expand * DIM, dtype=torch.float64), []
    for t in range(TIME):
        z = mixer.z(x[:, t]).sigmoid()
        c = mixer.c(x[:, t])
        h = (1 - z) * h + z * torch.where(c >= 0, c + 0.5, c.sigmoid())
        y.append(h)
    assert_same(mixer(x)[0], mixer.out(torch.stack(y, dim=1)))


@pytest.mark.parametrize("expand", [1, 2])
def test_min_lstm(expand: int) -> None:
    mixer, x = build_mixer(f"min_lstm(expand={expand})"), inputs()
    h, y = torch.zeros(BATCH, expand * DIM, dtype=torch.float64), []
    for t in range(TIME):
        f, i, c = mixer.f(x[:, t]).sigmoid(), mixer.i(x[:, t]).sigmoid(), mixer.c(x[:, t])
        h = f / (f + i) * h + i / (f + i) * torch.where(c >= 0, c + 0.5, c.sigmoid())
        y.append(h)
    assert_same(mixer(x)[0], mixer.out(torch.stack(y, dim=1)))


def test_lstm() -> None:
    mixer, x = build_mixer("lstm"), inputs()
    h, c = torch.zeros(2, BATCH, DIM, dtype=torch.float64)
    y = torch.zeros_like(x)
    for t in range(TIME):
        i, f, g, o = (x[:, t] @ mixer.into.weight.T + mixer.into.bias + h @ mixer.again.weight.T).split(DIM, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        y[:, t] = h
    assert_same(mixer(x)[0], y)


def test_lstm_is_pytorchs_own() -> None:
    mixer, x = build_mixer("lstm"), inputs()
    other = nn.LSTM(DIM, DIM, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        other.weight_ih_l0.copy_(mixer.into.weight)
        other.weight_hh_l0.copy_(mixer.again.weight)
        other.bias_ih_l0.copy_(mixer.into.bias)
        other.bias_hh_l0.zero_()
    found, state = mixer(x)
    wanted, (h, c) = other(x)
    assert_same(found, wanted)
    assert_same(state.h, h[0])
    assert_same(state.c, c[0])


@pytest.mark.parametrize("begun", [False, True])
def test_the_fused_lstm_is_the_loop_in_outputs_states_and_gradients(
    begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixer, drawn, fused, found = build_mixer("lstm"), inputs(), [], []
    monkeypatch.setattr(torch._VF, "lstm", lambda *given, run=torch._VF.lstm: fused.append(1) or run(*given))
    for able in (True, False):
        if not able:
            monkeypatch.setattr(mixer, "can_fuse", lambda *_: False)
        x = drawn.clone().requires_grad_()
        state = [torch.full((BATCH, DIM), size, dtype=torch.float64, requires_grad=True) for size in (0.3, -0.7)]
        mixer.zero_grad()
        y, (h, c) = mixer(x, mixer.Memory(*state) if begun else None)
        assert len(fused) == 1
        (y.sin().sum() + h.exp().sum() + c.cos().sum()).backward()
        given = [x, *(state if begun else []), *mixer.parameters()]
        found.append([y.detach(), h.detach(), c.detach(), *(leaf.grad for leaf in given)])
    for one, other in zip(*found, strict=True):
        assert_same(one, other)


def test_the_lstm_is_fused_only_where_that_can_be_differentiated_and_transformed() -> None:
    mixer, x = build_mixer("lstm"), inputs()
    assert mixer.can_fuse(x)
    assert not mixer.can_fuse(x.float())
    assert not mixer.can_fuse(x.to("meta"))
    assert not mixer.can_fuse(x[:0])
    seen = []
    torch.func.vmap(lambda one: (seen.append(mixer.can_fuse(one)), one)[1])(x[None])
    with torch.autocast("cpu", torch.bfloat16):
        seen.append(mixer.can_fuse(x))
    assert seen == [False, False]


def test_slstm() -> None:
    heads, width = 4, 16
    mixer, x = build_mixer("slstm(heads=4, conv=3)"), inputs()
    mixed = F.silu(convolve_plainly(x, mixer.conv.filter) + mixer.conv.bias).unflatten(-1, (heads, width))
    plain, y = x.unflatten(-1, (heads, width)), torch.zeros(BATCH, TIME, heads, width, dtype=torch.float64)
    for j in range(heads):
        h, c, n = torch.zeros(3, BATCH, width, dtype=torch.float64)
        for t in range(TIME):
            again = h @ mixer.again[j] + mixer.bias[j]
            i, f = (mixed[:, t, j] @ mixer.mixed[j] + again[:, : 2 * width]).chunk(2, dim=-1)
            z, o = (plain[:, t, j] @ mixer.plain[j] + again[:, 2 * width :]).chunk(2, dim=-1)
            c, n = f.sigmoid() * c + i.exp() * z.tanh(), f.sigmoid() * n + i.exp()
            h = o.sigmoid() * c / n
            y[:, t, j] = h
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    assert_same(mixer(x)[0], y.flatten(2) * mixer.norm)


def test_slstm_keeps_sums_that_would_overflow() -> None:
    mixer = build_mixer("slstm").float()
    with torch.no_grad():
        mixer.mixed.mul_(1e3)
    y, _ = mixer(100 * inputs().float())
    assert y.isfinite().all()


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_short_conv(residual: bool, activation: str) -> None:
    mixer, x = build_mixer(f"short_conv(taps=3, residual={residual}, activation={activation!r})"), inputs()
    y = convolve_plainly(x, mixer.conv.filter)
    y = y * y.sigmoid() if activation == "silu" else y
    assert_same(mixer(x)[0], x + y if residual else y)


def test_token_shift() -> None:
    mixer, x = build_mixer("token_shift"), inputs()
    y = torch.zeros_like(x)
    for t in range(TIME):
        before = x[:, t - 1] if t else torch.zeros_like(x[:, 0])
        y[:, t] = (mixer.mix * x[:, t] + (1 - mixer.mix) * before) @ mixer.out.weight.T
    assert_same(mixer(x)[0], y)


def test_initial_weights_of_recurrent_networks_are_the_papers() -> None:
    rg_lru, slstm, canon = (parse("mixers", text)[0].build(256) for text in ("rg_lru", "slstm", "short_conv"))
    modulus = torch.exp(-F.softplus(rg_lru.rate))
    assert modulus.min() > 0.899
    assert modulus.max() < 0.9991
    assert rg_lru.conv.filter.std().item() == pytest.approx(0.05, rel=0.1)
    assert rg_lru.gates.std().item() == pytest.approx(256**-0.5, rel=0.05)
    assert slstm.mixed.std().item() == pytest.approx((0.4 / 256) ** 0.5, rel=0.05)
    i, f, z, o = slstm.bias.chunk(4, dim=-1)
    assert not torch.stack([i, z, o]).any()
    torch.testing.assert_close(f[:, [0, -1]], torch.tensor([5.0, -7.0]).expand(4, 2))
    torch.testing.assert_close(f[1, 9].item(), 5 - 12 * (9 / 63) ** 0.3, rtol=1e-5, atol=0)
    assert canon.conv.filter.std().item() == pytest.approx(0.288, rel=0.05)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slstm(heads=64)", "norm over one channel"),
        ("slstm(heads=7)", "7 heads do not divide"),
        ("rg_lru(heads=7)", "7 heads do not divide"),
        ("lru(low=0.9, high=0.5)", "radii rise"),
    ],
)
def test_options_that_make_no_network_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^[^\n]*{said}[^\n]*$"):
        build_mixer(text)


@pytest.mark.hf
def test_rg_lru_is_hugging_faces_after_its_first_position() -> None:
    pytest.importorskip("transformers")
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import (
        RecurrentGemmaConfig,
        RecurrentGemmaRecurrentBlock,
    )

    mixer, x = build_mixer("rg_lru(heads=4, conv=3)").float(), inputs().float()
    config = RecurrentGemmaConfig(hidden_size=DIM, lru_width=DIM, num_attention_heads=4, conv1d_width=3)
    other = RecurrentGemmaRecurrentBlock(config, 0).eval()
    r, i = mixer.gates.chunk(2, dim=-1)
    r_bias, i_bias = mixer.bias.chunk(2, dim=-1)
    weights = {
        "linear_x.weight": mixer.into.weight,
        "linear_x.bias": mixer.into.bias,
        "linear_y.weight": mixer.gate.weight,
        "linear_y.bias": mixer.gate.bias,
        "conv_1d.weight": mixer.conv.filter.flip(0).T.unsqueeze(1),
        "conv_1d.bias": mixer.conv.bias,
        "rg_lru.recurrent_param": mixer.rate,
        "rg_lru.input_gate_weight": i,
        "rg_lru.input_gate_bias": i_bias,
        "rg_lru.recurrent_gate_weight": r,
        "rg_lru.recurrent_gate_bias": r_bias,
        "linear_out.weight": mixer.out.weight,
        "linear_out.bias": mixer.out.bias,
    }
    other.load_state_dict(weights)
    positions = torch.arange(1, TIME + 1).expand(BATCH, -1)  # position 0 would be a reset, which enters otherwise
    with torch.no_grad():
        assert_close(mixer(x)[0], other(x, positions, None, use_cache=False)[0])


@pytest.mark.hf
def test_rwkv4_is_hugging_faces() -> None:
    pytest.importorskip("transformers")
    from transformers.models.rwkv.modeling_rwkv import RwkvConfig, RwkvSelfAttention

    mixer, x = build_mixer("rwkv4(layer=1, layers=3)").float(), inputs().float()
    other = RwkvSelfAttention(RwkvConfig(hidden_size=DIM, num_hidden_layers=1), layer_id=0).eval()
    mix_r, mix_k, mix_v = (mix.reshape(1, 1, -1) for mix in mixer.mix)
    weights = {
        "time_decay": mixer.decay,
        "time_first": mixer.bonus,
        "time_mix_receptance": mix_r,
        "time_mix_key": mix_k,
        "time_mix_value": mix_v,
        "receptance.weight": mixer.r.weight,
        "key.weight": mixer.k.weight,
        "value.weight": mixer.v.weight,
        "output.weight": mixer.out.weight,
    }
    other.load_state_dict(weights)
    with torch.no_grad():
        assert_close(mixer(x)[0], other(x)[0])
