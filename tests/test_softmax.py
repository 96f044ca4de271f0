"""Softmax attentions and their kin, each by its formula, written out plainly, or as Hugging Face has it."""

import importlib
import math

import pytest
import torch
from mixer_helpers import (
    BATCH,
    DIM,
    TIME,
    assert_same,
    build_mixer,
    convolve_plainly,
    inputs,
    rotate_plainly,
    split_heads,
    unit,
)
from torch import Tensor
from torch.nn import functional as F


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize("options", ["heads=2", "heads=4, latent=12, queries=20"])
def test_latent_attention(options: str) -> None:
    mixer, x = build_mixer(f"latent_attention({options})"), inputs()
    count, head, rotary = mixer.heads, DIM // mixer.heads, DIM // mixer.heads // 2
    queried = rms(x @ mixer.low[0].weight.T, mixer.low[1].weight, 1e-6) if "queries" in options else x
    q, p = split_heads(mixer.q(queried), count).split([head, rotary], dim=-1)
    k, v = split_heads(mixer.up(rms(mixer.down(x), mixer.norm.weight, 1e-6)), count).split([head, head], dim=-1)
    p, r, y = rotate_plainly(p), rotate_plainly(mixer.turn(x)), torch.zeros_like(v)
    for i in range(TIME):
        logits = [((q[:, i] * k[:, j]).sum(-1) + (p[:, i] * r[:, j, None]).sum(-1)) for j in range(i + 1)]
        weights = (torch.stack(logits, -1) / math.sqrt(head + rotary)).softmax(-1)
        y[:, i] = sum(weights[..., j, None] * v[:, j] for j in range(i + 1))
    assert_same(mixer(x)[0], mixer.out(y.flatten(2)))


def test_a_latent_and_a_rotary_key_are_all_that_is_kept() -> None:
    _, state = build_mixer("latent_attention(heads=4, latent=12)")(inputs())
    assert [tuple(kept.shape) for kept in state] == [(BATCH, TIME, 12), (BATCH, TIME, 8)]


@pytest.mark.hf
@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3"])
def test_latent_attention_is_hugging_faces(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model, title = importlib.import_module(f"transformers.models.{name}.modeling_{name}"), f"DeepseekV{name[-1]}"
    config = getattr(transformers, f"{title}Config")(
        hidden_size=DIM,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=20,
        kv_lora_rank=12,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        attn_implementation="eager",
    )
    mixer, x = build_mixer("latent_attention(heads=4, latent=12, queries=20)").float(), inputs().float()
    other = getattr(model, f"{title}Attention")(config, layer_idx=0)

    def interleaved(rows: Tensor) -> Tensor:
        """Rotated channels lie beside their partners there."""
        return rows.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)

    with torch.no_grad():
        parts = [part.split([16, 8]) for part in mixer.q.weight.unflatten(0, (4, 24))]
        other.q_b_proj.weight.copy_(torch.cat([torch.cat([plain, interleaved(turn)]) for plain, turn in parts]))
        other.q_a_proj.weight.copy_(mixer.low[0].weight)
        other.q_a_layernorm.weight.copy_(mixer.low[1].weight)
        other.kv_a_proj_with_mqa.weight.copy_(torch.cat([mixer.down.weight, interleaved(mixer.turn.weight)]))
        other.kv_a_layernorm.weight.copy_(mixer.norm.weight)
        other.kv_b_proj.weight.copy_(mixer.up.weight)
        other.o_proj.weight.copy_(mixer.out.weight)
        angles = getattr(model, f"{title}RotaryEmbedding")(config)(x, torch.arange(TIME).unsqueeze(0))
        mask = torch.full((1, 1, TIME, TIME), -torch.inf).triu(1)
        wanted, _ = other(x, attention_mask=mask, position_embeddings=angles)
        torch.testing.assert_close(mixer(x)[0], wanted, rtol=1e-4, atol=1e-5)


def test_forgetting_attention() -> None:
    mixer, x = build_mixer("forgetting_attention(heads=2)"), inputs()
    q, k, v = (split_heads(z, 2) for z in (mixer.q(x), mixer.k(x), mixer.v(x)))
    f, y = mixer.gate(x).sigmoid(), torch.zeros_like(v)
    for i in range(TIME):
        top, bottom = 0, 0
        for j in range(i + 1):
            weight = ((q[:, i] * k[:, j]).sum(-1) / math.sqrt(32)).exp() * f[:, j + 1 : i + 1].prod(1)
            top, bottom = top + weight.unsqueeze(-1) * v[:, j], bottom + weight.unsqueeze(-1)
        y[:, i] = top / bottom
    assert_same(mixer(x)[0], mixer.out(y.flatten(2)))


def test_forgetting_attention_is_as_exact_after_many_tokens() -> None:
    mixer, x = build_mixer("forgetting_attention(heads=2)"), inputs(16_384)[:1]
    last = torch.tensor([[16_382, 16_383]])
    wanted = mixer.parallel(x, last)
    found = mixer.float().parallel(x.float(), last)
    assert ((found - wanted).norm() / wanted.norm()).item() < 3e-6


def test_stick_breaking() -> None:
    mixer, x = build_mixer("stick_breaking(heads=2)"), inputs()
    q, k, v = (split_heads(z, 2) for z in (mixer.q(x), mixer.k(x), mixer.v(x)))
    y = torch.zeros_like(v)
    for i in range(TIME):
        left = torch.ones(BATCH, 2, 1, dtype=torch.float64)
        for j in reversed(range(i)):
            share = ((q[:, i] * k[:, j]).sum(-1, keepdim=True) / math.sqrt(32)).sigmoid()
            y[:, i] += left * share * v[:, j]
            left = left * (1 - share)
        y[:, i] += left * mixer.rest[:, 0]
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    assert_same(mixer(x)[0], mixer.out(y.flatten(2) * mixer.norm.weight + mixer.norm.bias))


@pytest.mark.parametrize("options", ["heads=2, rank=8", "heads=4, conv=1"])
def test_path(options: str) -> None:
    mixer, x = build_mixer(f"path({options})"), inputs()
    count, head, taps = mixer.heads, DIM // mixer.heads, mixer.conv.filter
    low, mixed = x @ mixer.low.weight.T @ mixer.up.weight.T, torch.zeros_like(x)
    for t in range(TIME):
        mixed[:, t] = sum(taps[i] * low[:, t - i] for i in range(min(t + 1, len(taps))))
    w = split_heads(F.silu(mixed), count)
    w, beta = unit(w), 2 * mixer.beta(x).sigmoid()
    q, k, v = (split_heads(z, count) for z in (mixer.q(x), mixer.k(x), mixer.v(x)))
    one, y = torch.eye(head, dtype=torch.float64), torch.zeros_like(v)
    reflect = one - beta[..., None, None] * w.unsqueeze(-1) * w.unsqueeze(-2)
    for i in range(TIME):
        product, logits = one, []
        for j in reversed(range(i + 1)):
            logits.insert(0, (q[:, i].unsqueeze(-2) @ product @ k[:, j].unsqueeze(-1)).flatten(2))
            product = product @ reflect[:, j]
        weights = (torch.cat(logits, -1) / math.sqrt(head)).softmax(-1)
        y[:, i] = sum(weights[..., j, None] * v[:, j] for j in range(i + 1))
    assert_same(mixer(x)[0], mixer.out(y.flatten(2)))


@pytest.mark.parametrize("options", ["heads=1", "heads=4, layer=3"])
def test_differential_attention(options: str) -> None:
    mixer, x = build_mixer(f"differential({options})"), inputs()
    count, start = mixer.heads, 0.8 - 0.6 * math.exp(-0.9) if "layer" in options else 0.2
    q, k = (rotate_plainly(split_heads(z, 2 * count)).unflatten(2, (count, 2)) for z in (mixer.q(x), mixer.k(x)))
    v = split_heads(mixer.v(x), count)
    (a, b), (c, d) = mixer.balance
    minus, y = (a @ b).exp() - (c @ d).exp() + start, torch.zeros_like(v)
    for i in range(TIME):
        logits = [(q[:, i] * k[:, j]).sum(-1) / math.sqrt(q.shape[-1]) for j in range(i + 1)]
        one, two = torch.stack(logits, -1).softmax(-1).unbind(2)
        y[:, i] = sum((one - minus * two)[..., j, None] * v[:, j] for j in range(i + 1))
    assert_same(mixer(x)[0], mixer.out(((1 - start) * rms(y, mixer.norm.weight, 1e-5)).flatten(2)))


@pytest.mark.hf
def test_differential_attention_is_hugging_faces() -> None:
    transformers = pytest.importorskip("transformers")
    model = importlib.import_module("transformers.models.diffllama.modeling_diffllama")
    config = transformers.DiffLlamaConfig(hidden_size=DIM, num_attention_heads=8, attn_implementation="eager")
    mixer, x = build_mixer("differential(heads=4, layer=3)").float(), inputs().float()
    other = model.DiffLlamaAttention(config, layer_idx=3)
    with torch.no_grad():
        mixer.norm.weight.fill_(1)  # its norm has no weights
        for name in "qkv":  # its pairs of heads lie half of the heads apart
            rows = getattr(mixer, name).weight.unflatten(0, (4, 2, 8)).transpose(0, 1).flatten(0, 2)
            getattr(other, f"{name}_proj").weight.copy_(rows)
        other.o_proj.weight.copy_(mixer.out.weight)
        for name, weight in zip(("q1", "k1", "q2", "k2"), mixer.balance.flatten(0, 1), strict=True):
            getattr(other, f"lambda_{name}").copy_(weight)
        angles = model.DiffLlamaRotaryEmbedding(config)(x, torch.arange(TIME).unsqueeze(0))
        mask = torch.full((1, 1, TIME, TIME), -torch.inf).triu(1)
        torch.testing.assert_close(mixer(x)[0], other(x, angles, mask)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("taps", [(3, 0, 0), (0, 2, 0), (0, 0, 4), (2, 3, 4)])
@pytest.mark.parametrize("rotary", [False, True])
def test_conv_attention_mixes_what_it_is_asked_to_with_the_last_few(taps: tuple[int, int, int], rotary: bool) -> None:
    options = ", ".join(f"{name}={count}" for name, count in zip("qkv", taps, strict=True))
    mixer, x = build_mixer(f"conv_attention(heads=4, {options}, rotary={rotary})"), inputs()
    streams = []
    for name, count in zip("qkv", taps, strict=True):
        y = getattr(mixer, name)(x)
        y = split_heads(convolve_plainly(y, mixer.convs[name].filter) if count else y, 4)
        streams.append((rotate_plainly(y) if rotary and name != "v" else y).transpose(1, 2))
    q, k, v = streams
    scores = (q @ k.mT / 4).masked_fill(torch.ones(TIME, TIME, dtype=torch.bool).triu(1), -math.inf)
    assert_same(mixer(x)[0], mixer.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))
