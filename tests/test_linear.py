"""Linear and gated linear attention are what their papers write: plain recurrences in float64, on the same weights.

Where Hugging Face transformers has the mixer, it gives the same output with the same weights.
"""

import math
from typing import Any

import pytest
import torch
from mixer_helpers import BATCH, DIM, TIME, assert_same, build_mixer, convolve_plainly, inputs, rotate_plainly, unit
from torch import Tensor
from torch.nn import functional as F

from bestiary.laws import MIXER_LAWS
from bestiary.spec import parse


def split(heads: int, *parts: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.unflatten(-1, (heads, -1)) for part in parts)


def outer(k: Tensor, v: Tensor) -> Tensor:
    return k.unsqueeze(-1) * v.unsqueeze(-2)


def decayed(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """q_t^T S_t with S_t = Diag(keep_t) S_{t-1} + k_t v_t^T, each (batch, time, heads, width)."""
    state, y = torch.zeros(BATCH, *k.shape[2:], v.shape[-1], dtype=q.dtype), torch.zeros_like(v)
    for t in range(q.shape[1]):
        state = keep[:, t].unsqueeze(-1) * state + outer(k[:, t], v[:, t])
        y[:, t] = torch.einsum("bhk,bhkv->bhv", q[:, t], state)
    return y


def rms(y: Tensor, eps: float) -> Tensor:
    return y / (y.square().mean(-1, keepdim=True) + eps).sqrt()


def centred(y: Tensor, eps: float) -> Tensor:
    y = y - y.mean(-1, keepdim=True)
    return y / (y.square().mean(-1, keepdim=True) + eps).sqrt()


def cosine(mixer: Any, q: Tensor, k: Tensor) -> Tensor:
    time = torch.arange(TIME, dtype=torch.float64)
    return (q.relu() @ k.relu().mT) * torch.cos(math.pi / 2 * (time.unsqueeze(1) - time) / mixer.horizon)


def kernel(mixer: Any, q: Tensor, k: Tensor) -> Tensor:
    """FAVOR+: the mean over random w of e^{w.(q + k) - (|q|^2 + |k|^2) / 2}."""
    q, k = q.unsqueeze(-2) / q.shape[-1] ** 0.25, k.unsqueeze(-3) / k.shape[-1] ** 0.25
    lengths = (q.square().sum(-1) + k.square().sum(-1)) / 2
    return ((q + k) @ mixer.directions.T - lengths.unsqueeze(-1)).exp().mean(-1)


def polynomial(mixer: Any, q: Tensor, k: Tensor) -> Tensor:
    q, k = ((x @ mixer.inner.weight.T) ** 2 + x**2 @ mixer.outer.weight.T for x in (q, k))
    return q @ k.mT / 2


WEIGHTS = {
    "elu": lambda _, q, k: (F.elu(q) + 1) @ (F.elu(k) + 1).mT,
    "relu": lambda _, q, k: q.relu() @ k.relu().mT,
    "square": lambda _, q, k: q**2 @ (k**2).mT,
    "identity": lambda _, q, k: q @ k.mT,
    "cosformer": cosine,
    "performer": kernel,
    "polynomial": polynomial,
}


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("feature", WEIGHTS)
def test_linear_attention_weighs_by_its_feature_map(feature: str, normalise: bool) -> None:
    own = {"cosformer": "horizon=40", "performer": "samples=20"}.get(feature, "")
    options = f"feature={feature!r}, heads=2, features=8, normalise={normalise}, {own}"
    mixer, x = build_mixer(f"linear_attention({options})"), inputs()
    q, k, v = (z.transpose(1, 2) for z in split(2, mixer.q(x), mixer.k(x), mixer.v(x)))
    weights = WEIGHTS[feature](mixer, q, k).tril()
    y = weights @ v
    y = y / (weights.sum(-1, keepdim=True) + 1e-12) if normalise else y
    assert_same(mixer(x)[0], mixer.out(y.transpose(1, 2).flatten(2)))


def test_performers_features_estimate_softmax() -> None:
    mixer = build_mixer("linear_attention(feature='performer', heads=2, features=8, samples=20000)")
    q, k = (torch.randn(1, 1, 2, 8, dtype=torch.float64) for _ in range(2))
    found = (mixer.phi(q, 0) * mixer.phi(k, 0)).sum(-1)
    torch.testing.assert_close(found, ((q * k).sum(-1) / math.sqrt(8)).exp(), rtol=0.1, atol=0)


def test_cosformer_refuses_to_read_beyond_its_horizon() -> None:
    mixer, x = build_mixer("linear_attention(feature='cosformer', horizon=30)"), inputs()
    _, state = mixer(x)
    mixer(x[:, :7], state)
    with pytest.raises(ValueError, match="horizon is 30 positions, the input needs 31"):
        mixer(x[:, :8], state)


@pytest.mark.parametrize("left_out", ["", "norm", "shift", "norm shift", "scale shift", "norm scale shift"])
def test_rebased_squares_a_learnt_similarity(left_out: str) -> None:
    options = "".join(f", {part}=False" for part in left_out.split())
    mixer, x = build_mixer(f"rebased(heads=2, features=8{options})"), inputs()
    q, k = mixer.q(x), mixer.k(x)
    if "norm" not in left_out:
        q, k = centred(q, 1e-5), centred(k, 1e-5)
    if "scale" not in left_out:
        q, k = q * mixer.norm_q.weight, k * mixer.norm_k.weight
    if "shift" not in left_out:
        q, k = q + mixer.norm_q.bias, k + mixer.norm_k.bias
    q, k, v = (z.transpose(1, 2) for z in split(2, q, k, mixer.v(x)))
    weights = ((q @ k.mT) ** 2 / 8).tril()
    y = weights @ v / (weights.sum(-1, keepdim=True) + 1e-12)
    assert_same(mixer(x)[0], mixer.out(y.transpose(1, 2).flatten(2)))


def test_retnet_rotates_and_forgets() -> None:
    mixer, x = build_mixer("retnet(heads=4)"), inputs()
    q, k, v = split(4, mixer.q(x), mixer.k(x) / math.sqrt(16), mixer.v(x))
    angle = 10_000 ** -(torch.arange(8, dtype=torch.float64) / 8)
    q, k = (torch.complex(z[..., :8], z[..., 8:]) for z in (q, k))
    y = torch.zeros_like(v)
    for t in range(TIME):
        for s in range(t + 1):
            turn = torch.exp(1j * angle * (t - s))
            score = (q[:, t] * turn * k[:, s].conj()).sum(-1).real
            gamma = 1 - 2.0 ** (-5 - torch.arange(4, dtype=torch.float64))
            y[:, t] += (gamma ** (t - s) * score).unsqueeze(-1) * v[:, s]
    assert_same(mixer(x)[0], mixer.out(rms(y, 1e-6).flatten(2) * F.silu(mixer.gate(x))))


def test_lightning_forgets_at_alibis_slopes() -> None:
    mixer, x = build_mixer("lightning(heads=4, layer=1, layers=3)"), inputs()
    q, k, v = split(4, *(F.silu(m(x)) for m in (mixer.q, mixer.k, mixer.v)))
    slopes = torch.tensor([2**-2, 2**-4, 2**-6, 2**-8], dtype=torch.float64) * (1 - 1 / (2 + 1e-5) + 1e-5)
    y = decayed(q, k, v, torch.exp(-slopes).unsqueeze(-1).expand_as(k)).flatten(2)
    assert_same(mixer(x)[0], mixer.out(rms(y, 1e-6) * mixer.norm.weight * mixer.gate(x).sigmoid()))


@pytest.mark.hf
@pytest.mark.parametrize("layer", [0, 2])
def test_lightning_is_that_of_transformers_minimax(layer: int) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    heads = 4
    layers = {"num_hidden_layers": 3, "layer_types": ["linear_attention"] * 3}
    config = transformers.MiniMaxConfig(hidden_size=DIM, num_attention_heads=heads, block_size=8, **layers)
    mixer, x = build_mixer(f"lightning(heads={heads}, layer={layer}, layers=3)").float(), inputs().float()
    other = MiniMaxLightningAttention(config, layer).eval()
    with torch.no_grad():
        parts = [m.weight.unflatten(0, (heads, -1)) for m in (mixer.q, mixer.k, mixer.v)]
        other.qkv_proj.weight.copy_(torch.cat(parts, dim=1).flatten(0, 1))
        other.norm.weight.copy_(mixer.norm.weight)
        other.output_gate.weight.copy_(mixer.gate.weight)
        other.out_proj.weight.copy_(mixer.out.weight)
        wanted, _ = other(x, position_embeddings=None, attention_mask=None)
    torch.testing.assert_close(mixer(x)[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rotary", [False, True])
def test_gla_decays_each_key_channel_by_the_token(rotary: bool) -> None:
    mixer, x = build_mixer(f"gla(heads=2, key=12, rank=5, rotary={rotary})"), inputs()
    alpha = (x @ mixer.low.weight.T @ mixer.decay.weight.T + mixer.decay.bias).sigmoid() ** (1 / 16)
    q, k, v, alpha = split(2, mixer.q(x) / math.sqrt(12), mixer.k(x), mixer.v(x), alpha)
    q, k = (rotate_plainly(q), rotate_plainly(k)) if rotary else (q, k)
    y = rms(decayed(q, k, v, alpha), 1e-5) * mixer.norm.weight
    assert_same(mixer(x)[0], mixer.out(y.flatten(2) * F.silu(mixer.gate(x))))


@pytest.mark.parametrize(
    "options", ["turns=7", "turns=7, phase_gate=True, init='short'", "rotation='fixed'", "rotation='none'"]
)
def test_selective_rope_turns_queries_and_keys_by_sums_of_angles(options: str) -> None:
    mixer, x = build_mixer(f"selective_rope(heads=2, key=12, rank=5, {options})"), inputs()
    alpha = (x @ mixer.low.weight.T @ mixer.decay.weight.T + mixer.decay.bias).sigmoid() ** (1 / 16)
    q, k, v, alpha = split(2, mixer.q(x) / math.sqrt(12), mixer.k(x), mixer.v(x), alpha)
    phi = torch.full((BATCH, TIME, 2, 6), 0.0 if mixer.rotation == "none" else 1.0, dtype=torch.float64)
    if mixer.rotation == "selective":
        u = unit(x.unflatten(-1, (2, -1))).flatten(2)
        phi = convolve_plainly(u @ mixer.down.weight.T @ mixer.up.weight.T, mixer.conv.filter).unflatten(-1, (2, 6))
        if mixer.phase_gate is not None:
            phi = phi * (u @ mixer.phase_gate.weight.T + mixer.phase_gate.bias).sigmoid().unsqueeze(-1)
    turns, turned = torch.zeros(BATCH, 2, 6, dtype=torch.float64), [torch.zeros_like(q), torch.zeros_like(k)]
    for t in range(TIME):
        turns = turns + phi[:, t] * torch.tensor([500_000 ** (-2 * i / 12) for i in range(6)], dtype=torch.float64)
        for there, here in zip(turned, (q, k), strict=True):
            spun = torch.complex(here[:, t, :, :6], here[:, t, :, 6:]) * torch.exp(1j * turns)
            there[:, t] = torch.cat([spun.real, spun.imag], dim=-1)
    y = rms(decayed(*turned, v, alpha), 1e-5) * mixer.norm.weight
    assert_same(mixer(x)[0], mixer.out(y.flatten(2) * F.silu(mixer.gate(x))))


def test_selective_rope_starts_as_the_option_says() -> None:
    for init, maps, taps in (("paper", 0.02, 0.02), ("short", 128**-0.5, 12**-0.5)):
        mixer = parse("mixers", f"selective_rope(init={init!r})")[0].build(128)
        assert mixer.down.weight.std().item() == pytest.approx(maps, rel=0.05)
        assert mixer.conv.filter.std().item() == pytest.approx(taps, rel=0.15)
        assert mixer.q.weight.std().item() == pytest.approx(maps, rel=0.05)


@pytest.mark.parametrize(
    ("init", "keys", "values"),
    [
        ("paper", 2**-2.5 * (2 / 192) ** 0.5, 0.02),
        ("fla2024", 2**-2.5 * (2 / 192) ** 0.5, 2**-2.5 / 128**0.5),
        ("fla", 0.02, 0.02),
    ],
)
def test_gla_starts_as_the_option_says(init: str, keys: float, values: float) -> None:
    mixer = parse("mixers", f"gla(init={init!r})")[0].build(128)
    for part, std in ((mixer.q, keys), (mixer.k, keys), *((m, values) for m in (mixer.v, mixer.gate, mixer.out))):
        assert part.weight.std().item() == pytest.approx(std, rel=0.05)
    assert not mixer.decay.bias.any()


def test_rodimus_forgets_and_lets_in_by_one_gate_at_a_temperature() -> None:
    mixer, x = build_mixer("rodimus(memory=6, rank=5)"), inputs()
    u = x @ mixer.up.weight.T
    h = F.silu(convolve_plainly(u, mixer.conv.filter) + mixer.conv.bias)
    (q, k), (gate, temperature) = (part(h).split(6, dim=-1) for part in (mixer.qk, mixer.select))
    gate, tau = torch.log(1 + gate.exp()), temperature.sigmoid()
    v = (u @ mixer.low.weight.T @ mixer.share.weight.T + mixer.share.bias).sigmoid() * u
    q, k, v, keep = split(1, q / 6**0.5, unit(k) * gate**tau, v, torch.exp(-gate * tau))
    y = (decayed(q, k, v, keep).flatten(2) + mixer.skip * h) * F.silu(x @ mixer.gate.weight.T)
    assert_same(mixer(x)[0], mixer.out(rms(y, 1e-5) * mixer.norm.weight))


def test_rodimus_starts_as_its_authors_code() -> None:
    mixer = parse("mixers", "rodimus")[0].build(128)
    for part, std in (
        (mixer.up, 0.02),
        (mixer.qk, 2**-2.5 * (2 / 384) ** 0.5),
        (mixer.low, 2**-2.5 * (2 / 272) ** 0.5),
    ):
        assert part.weight.std().item() == pytest.approx(std, rel=0.05)
    gate, temperature = mixer.select.bias.split(64)
    assert 0.99e-3 <= F.softplus(gate).min() <= F.softplus(gate).max() <= 0.101
    assert 1 / 16 <= temperature.sigmoid().min() <= temperature.sigmoid().max() <= 0.9
    assert (mixer.skip == 1).all()


@pytest.mark.parametrize("lower", [0.0, 0.6])
def test_hgrn2_writes_what_it_forgets(lower: float) -> None:
    mixer, x = build_mixer(f"hgrn2(heads=2, lower={lower})"), inputs()
    forget = lower + (1 - lower) * mixer.f(x).sigmoid()
    q, forget, i = split(2, F.silu(mixer.q(x)), forget, mixer.i(x))
    assert_same(mixer(x)[0], mixer.out(rms(decayed(q, 1 - forget, i, forget).flatten(2), 1e-6)))


def test_mlstm_is_its_recurrence_with_the_maximum_taken_out() -> None:
    mixer, x = build_mixer("mlstm(heads=2, key=8)"), 5 * inputs()
    q, k, v = split(2, mixer.q(x) / math.sqrt(8), mixer.k(x), mixer.v(x))
    i, f = (15 * torch.tanh(m(x) / 15) for m in (mixer.i, mixer.f))
    c, n, m = (torch.zeros(BATCH, 2, *shape, dtype=torch.float64) for shape in ((8, 32), (8,), ()))
    h = torch.zeros_like(v)
    for t in range(TIME):
        peak = torch.maximum(F.logsigmoid(f[:, t]) + m, i[:, t])
        keep, enter = (F.logsigmoid(f[:, t]) + m - peak).exp(), (i[:, t] - peak).exp()
        c = keep[..., None, None] * c + enter[..., None, None] * outer(k[:, t], v[:, t])
        n, m = keep[..., None] * n + enter[..., None] * k[:, t], peak
        least = torch.maximum((n * q[:, t]).sum(-1).abs(), (-m).exp()) + 1e-6
        h[:, t] = torch.einsum("bhk,bhkv->bhv", q[:, t], c) / least.unsqueeze(-1)
    y = centred(h, 1e-6).flatten(2) * mixer.scale * mixer.gate(x).sigmoid()
    assert_same(mixer(x)[0], mixer.out(y))


def test_mlstm_divides_by_one_at_least() -> None:
    """Without the maximum, and nearly without the 1e-6 and the norm's epsilon, the same as with it."""
    mixer, x = build_mixer("mlstm(heads=1, key=8)"), inputs()
    q, k, v = mixer.q(x) / math.sqrt(8), mixer.k(x), mixer.v(x)
    i, f = (15 * torch.tanh(m(x).squeeze(-1) / 15) for m in (mixer.i, mixer.f))
    total = F.logsigmoid(f).cumsum(1)
    past = torch.ones(TIME, TIME, dtype=torch.bool).tril()
    weights = (q @ k.mT) * (total.unsqueeze(-1) - (total - i).unsqueeze(-2)).masked_fill(~past, -torch.inf).exp()
    h = weights @ v / weights.sum(-1, keepdim=True).abs().clamp(min=1)
    y = mixer.out(centred(h, 0) * mixer.scale * mixer.gate(x).sigmoid())
    torch.testing.assert_close(mixer(x)[0], y, rtol=1e-3, atol=1e-3)


@pytest.mark.hf
def test_mlstm_is_that_of_transformers_xlstm() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.xlstm import modeling_xlstm

    if modeling_xlstm.external_xlstm:
        pytest.skip("transformers hands over to the xlstm package")
    config = transformers.xLSTMConfig(
        hidden_size=DIM, num_heads=2, num_hidden_layers=1, chunk_size=16, autocast_kernel_dtype="float32"
    )
    mixer, x = build_mixer("mlstm(heads=2)").float(), inputs().float()
    other = modeling_xlstm.xLSTMLayer(config).eval()
    names = {"q": "q", "k": "k", "v": "v", "ogate_preact": "gate", "igate_preact": "i", "fgate_preact": "f"}
    with torch.no_grad():
        for theirs, ours in {**names, "out_proj": "out"}.items():
            getattr(other, theirs).load_state_dict(getattr(mixer, ours).state_dict())
        other.multihead_norm.weight.copy_(mixer.scale)
        wanted, _ = other(x)
    torch.testing.assert_close(mixer(x)[0], wanted, rtol=1e-4, atol=1e-4)


def shifted(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, -1))


def wkv(mixer: Any, r: Tensor, k: Tensor, v: Tensor, w: Tensor, gate: Tensor) -> Tensor:
    """The recurrence of RWKV-5 and 6 with its output, (batch, time, dim) in and out."""
    heads = mixer.heads
    r, k, v, w = split(heads, r, k, v, w)
    bonus = mixer.bonus.reshape(heads, -1, 1)
    state, y = torch.zeros(BATCH, heads, k.shape[-1], v.shape[-1], dtype=torch.float64), torch.zeros_like(v)
    for t in range(TIME):
        new = outer(k[:, t], v[:, t])
        y[:, t] = torch.einsum("bhk,bhkv->bhv", r[:, t], state + bonus * new)
        state = w[:, t].unsqueeze(-1) * state + new
    y = centred(y / 8, 1e-5).flatten(2) * mixer.scale + mixer.shift
    return mixer.out(y * F.silu(gate))


@pytest.mark.parametrize("taps", [2, 1])
def test_two_mamba_weighs_by_squared_scores_that_decay(taps: int) -> None:
    mixer, x = build_mixer(f"two_mamba(heads=2, conv={taps})"), inputs()
    mixed = convolve_plainly(x @ mixer.qkv.weight.T, mixer.conv.filter) + mixer.conv.bias
    q, k, v = split(2, *mixed.chunk(3, dim=-1))
    keep, y = torch.sigmoid(-mixer.decay(x)), torch.zeros_like(v)  # e^-softplus
    for t in range(TIME):
        total = torch.zeros(BATCH, 2, 1, dtype=x.dtype)
        for s in range(t + 1):
            weight = (q[:, t] * k[:, s]).sum(-1, keepdim=True) ** 2 / 32 * keep[:, s + 1 : t + 1].prod(1).unsqueeze(-1)
            y[:, t], total = y[:, t] + weight * v[:, s], total + weight
        y[:, t] /= total + 1e-6
    assert_same(mixer(x)[0], mixer.out(y.flatten(2)))


def test_rwkv5_reads_the_state_before_the_token_and_the_token_with_a_bonus() -> None:
    mixer, x = build_mixer("rwkv5(heads=2, layer=1, layers=3)"), inputs()
    r, k, v, gate = (
        (mu * x + (1 - mu) * shifted(x)) @ m.weight.T
        for m, mu in zip((mixer.r, mixer.k, mixer.v, mixer.gate), mixer.mix, strict=True)
    )
    assert_same(mixer(x)[0], wkv(mixer, r, k, v, (-mixer.decay.exp()).exp().expand_as(x), gate))


def test_rwkv6_shifts_and_decays_by_the_token() -> None:
    mixer, x = build_mixer("rwkv6(heads=2, layer=1, layers=3, mix_rank=4, decay_rank=6)"), inputs()
    gap = shifted(x) - x
    low = torch.tanh((x + gap * mixer.first) @ mixer.mix_low.weight.T).chunk(5, dim=-1)
    parts = [x + gap * (mixer.mix[i] + low[i] @ mixer.mix_high[i]) for i in range(5)]
    r, k, v, gate = (
        part @ m.weight.T for m, part in zip((mixer.r, mixer.k, mixer.v, mixer.gate), parts[:4], strict=True)
    )
    rate = mixer.decay + torch.tanh(parts[4] @ mixer.decay_low.weight.T) @ mixer.decay_high.weight.T
    assert_same(mixer(x)[0], wkv(mixer, r, k, v, (-rate.exp()).exp(), gate))


def test_gsa_reads_values_by_a_softmax_over_slots() -> None:
    mixer, x = build_mixer("gsa(heads=2, slots=5)"), inputs()
    q, k, v = split(2, *(F.silu(m(x)) for m in (mixer.q, mixer.k, mixer.v)))
    (alpha,) = split(2, mixer.forget(x).sigmoid() ** (1 / 8))
    keys, values, y = torch.zeros(BATCH, 2, 5, 32).double(), torch.zeros(BATCH, 2, 5, 32).double(), torch.zeros_like(v)
    for t in range(TIME):
        keep, enter = alpha[:, t].unsqueeze(-1), 1 - alpha[:, t]
        keys, values = keep * keys + outer(enter, k[:, t]), keep * values + outer(enter, v[:, t])
        weights = torch.einsum("bhmk,bhk->bhm", keys, q[:, t]).softmax(-1)
        y[:, t] = torch.einsum("bhm,bhmv->bhv", weights, values)
    assert_same(mixer(x)[0], mixer.out(rms(F.silu(y).flatten(2), 1e-5) * mixer.norm.weight))


@pytest.mark.parametrize(("init", "std"), [("paper", 2**-2.5 / 128**0.5), ("fla", 0.02)])
def test_gsa_starts_as_the_option_says(init: str, std: float) -> None:
    mixer = parse("mixers", f"gsa(init={init!r})")[0].build(128)
    for part in (mixer.q, mixer.k, mixer.v, mixer.forget, mixer.out):
        assert part.weight.std().item() == pytest.approx(std, rel=0.05)


def test_gsa_starts_as_the_papers_code_unless_told_otherwise() -> None:
    assert parse("mixers", "gsa") == parse("mixers", "gsa(init='paper')")


def level(t: int, s: int) -> int:
    """Which block of a Fenwick tree over the positions before t holds s: the bits of t, lowest first; 0 is t itself."""
    end = t
    while end > s:
        length = end & -end
        if s >= end - length:
            return length.bit_length()
        end -= length
    return 0


@pytest.mark.parametrize("time", [TIME, 300])
def test_log_linear_weighs_each_level_of_a_fenwick_tree(time: int) -> None:
    mixer, x = build_mixer("log_linear(heads=2, state=6, expand=1, conv=3, levels=5)"), inputs(time)
    mixed = mixer.into(x)
    mixed = sum(mixer.conv.filter[i] * F.pad(mixed, (0, 0, i, -i)) for i in range(3)) + mixer.conv.bias
    inner, b, c = F.silu(mixed).split([DIM, 6, 6], dim=-1)
    dt = F.softplus(mixer.dt(x) + mixer.step)
    total = (-mixer.rate.exp() * dt).cumsum(1)
    strength = F.softplus(mixer.strength * mixer.levels(x).unflatten(-1, (2, 5)))
    levels = torch.tensor([[min(level(t, s), 4) if s <= t else 0 for s in range(time)] for t in range(time)])
    weights = strength.transpose(1, 2).gather(-1, levels.expand(BATCH, 2, -1, -1))
    decay = (total.mT.unsqueeze(-1) - total.mT.unsqueeze(-2)).tril().exp().tril()
    (v,) = split(2, inner)
    y = (weights * decay * (c @ b.mT).unsqueeze(1)) @ (dt.unsqueeze(-1) * v).transpose(1, 2)
    y = (y.transpose(1, 2) + mixer.skip.unsqueeze(-1) * v).flatten(2) * F.silu(mixer.gate(x))
    assert_same(mixer(x)[0], mixer.out(rms(y, 1e-5) * mixer.norm.weight))


@pytest.mark.parametrize("time", [4096, 4100])  # one piece, and what is read of it afterwards
def test_log_linear_is_as_exact_after_many_tokens(time: int) -> None:
    torch.manual_seed(0)
    mixer, x = build_mixer("log_linear(heads=1, state=4, expand=1, conv=1)"), torch.randn(1, time, DIM).double()
    mixer.rate.data.fill_(math.log(40))
    mixer.skip.data.zero_()
    with torch.no_grad():
        wanted = mixer(x)[0][:, -4:]
        found = mixer.float()(x.float())[0][:, -4:]
    assert (found - wanted).norm() < 2e-6 * wanted.norm()


@pytest.mark.parametrize("time", [1, 2, 23, 70, 150])
def test_log_linear_delta_lets_every_later_token_rewrite_each_level(time: int) -> None:
    mixer, x = build_mixer("log_linear_delta(heads=2, key=6, value=5, levels=5)"), inputs(time)
    mixed = F.silu(convolve_plainly(mixer.rule.qkv(x), mixer.rule.conv.filter))
    q, k, v = (z.unflatten(-1, (2, -1)) for z in mixed.split([12, 12, 10], dim=-1))
    q, k, beta = unit(q), unit(k), mixer.rule.beta(x).sigmoid()
    alpha = torch.exp(-mixer.rule.rate.exp() * F.softplus(mixer.rule.decay(x) + mixer.rule.dt))
    strength = F.softplus(mixer.strength * mixer.levels(x).unflatten(-1, (2, 5)))
    one, y = torch.eye(6, dtype=torch.float64), torch.zeros_like(v)
    written = torch.zeros(BATCH, time, 2, 6, 5, dtype=torch.float64)  # what is left of each write
    for t in range(time):
        rule = alpha[:, t, :, None, None] * (one - beta[:, t, :, None, None] * outer(k[:, t], k[:, t]))
        written = rule.unsqueeze(1) @ written
        written[:, t] = outer(beta[:, t].unsqueeze(-1) * k[:, t], v[:, t])
        for s in range(t + 1):
            found = torch.einsum("bhk,bhkv->bhv", q[:, t], written[:, s])
            y[:, t] += strength[:, t, :, min(level(t, s), 4)].unsqueeze(-1) * found
    y = rms(y, 1e-5) * mixer.rule.norm.weight
    assert_same(mixer(x)[0], mixer.rule.out(y.flatten(2) * F.silu(mixer.rule.gate(x))))


@pytest.mark.parametrize("name", ["log_linear(heads=2, state=6)", "log_linear_delta(heads=2, key=6)"])
def test_log_linear_keeps_one_matrix_for_each_bit_of_the_time(name: str) -> None:
    mixer, state = build_mixer(name), None
    for time in range(1, 40):
        _, state = mixer(inputs(1), state)
        assert state.time == time
        assert len(state.blocks) == time.bit_count()


@pytest.mark.parametrize("conv", [6, 16])
@pytest.mark.parametrize("name", ["log_linear(state=4, heads=1, expand=1", "log_linear_delta(heads=1, key=4, value=4"])
def test_log_linear_is_largest_where_its_convolution_counts_too(name: str, conv: int) -> None:
    MIXER_LAWS["largest state"](parse("mixers", f"{name}, conv={conv})")[0])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lightning(layer=3, layers=3)", "layers 0 to 2"),
        ("rwkv5(layer=-1)", "layers 0 to 11"),
        ("rwkv6(mix_rank=65)", "rank of 65"),
        ("gla(rank=65)", "rank of 65"),
        ("selective_rope(turns=65)", "rank of 65"),
        ("selective_rope(key=3)", "even width of keys"),
        ("rodimus(rank=65)", "rank of 65"),
        ("hgrn2(lower=1.0)", "lower bound"),
        ("retnet(heads=64)", "even head width"),
        ("rebased(features=1)", "norm over one channel"),
        ("log_linear(heads=3)", "3 heads do not divide"),
        ("gsa(heads=3)", "3 heads do not divide"),
        ("attention(dropout=1.5)", "a share"),
        ("attention(dropout=-1.0)", "a share"),
    ],
)
def test_options_that_cannot_be_are_refused(text: str, said: str) -> None:
    (found,) = parse("mixers", text)
    with pytest.raises(ValueError, match=said):
        found.build(DIM)


@pytest.mark.parametrize(
    "text",
    [
        "attention(layers=7)",
        "hyena(layers=9)",
        "linear_attention(horizon=5)",
        "linear_attention(samples=5, feature='cosformer')",
        "mamba3(rotation='none', angles=3)",
        "selective_rope(rotation='fixed', phase_gate=True)",
        "selective_rope(rotation='fixed', conv=9)",
        "selective_rope(rotation='none', turns=3)",
        "selected(seed=5)",
        "selected(ramp=5)",
        "selected(select='repeat', share=0.9)",
        "selected(share=0.9)",
    ],
)
def test_options_without_an_effect_are_refused_in_one_line(text: str) -> None:
    (found,) = parse("mixers", text)
    with pytest.raises(ValueError, match=r"^[^\n]+(changes? nothing|they are of)[^\n]+$"):
        found.build(DIM)


def test_a_mamba_of_one_key_turns_nothing() -> None:
    assert build_mixer("mamba3(state=1, rotation='none')")(inputs())[0].isfinite().all()
    assert build_mixer("mamba3(state=1)").angles == 0
    with pytest.raises(ValueError, match="1 angles turn 2 keys"):
        build_mixer("mamba3(state=1, angles=1)")


NAMES = (
    "linear_attention",
    "linear_attention(feature='cosformer')",
    "linear_attention(feature='performer')",
    "rebased",
    "retnet",
    "lightning",
    "gla",
    "selective_rope",
    "rodimus",
    "hgrn2",
    "mlstm",
    "rwkv5",
    "rwkv6",
    "gsa",
    "log_linear",
)


@pytest.mark.parametrize("dim", [8, 16, 128])
@pytest.mark.parametrize("name", NAMES)
def test_defaults_work_at_any_usual_width(name: str, dim: int) -> None:
    mixer = parse("mixers", name)[0].build(dim)
    y, _ = mixer(torch.randn(1, 5, dim))
    assert y.shape == (1, 5, dim)
    assert y.isfinite().all()


def test_initial_values_are_those_of_the_authors_code() -> None:
    mlstm, rwkv5, rwkv6, log_linear = (
        parse("mixers", text)[0].build(128) for text in ("mlstm", "rwkv5", "rwkv6(layer=11)", "log_linear")
    )
    torch.testing.assert_close(mlstm.f.bias, torch.tensor([3.0, 6.0]))
    assert not mlstm.f.weight.any()
    assert mlstm.q.weight.std().item() == pytest.approx(math.sqrt(2 / 5 / 128), rel=0.05)
    torch.testing.assert_close(rwkv5.decay[[0, -1]], torch.tensor([-6.0, -1.0]))
    torch.testing.assert_close(rwkv5.k.weight @ rwkv5.k.weight.T, 0.01 * torch.eye(128), atol=1e-5, rtol=0)
    torch.testing.assert_close(rwkv5.scale, torch.full((128,), (1 / 12) ** 0.7))
    torch.testing.assert_close(rwkv6.bonus[[0, -1]], torch.tensor([1.0, 0.1 * (128 % 3 - 1)]))
    assert not rwkv6.mix_low.weight.any()
    assert not rwkv6.out.weight.any()
    torch.testing.assert_close(log_linear.rate.exp(), torch.arange(1.0, 5))
    assert 0.99e-3 <= F.softplus(log_linear.step).min() <= F.softplus(log_linear.step).max() <= 0.101
