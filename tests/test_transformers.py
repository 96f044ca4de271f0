"""A second opinion: mixers with the weights of a Hugging Face model give its outputs, and some its gradients.

Others stand beside the tests of their family, marked `hf` like these.
"""

import pytest
import torch
from mixer_helpers import DIM, TIME, build_mixer, inputs
from torch import Tensor, nn


def gradients(module: nn.Module, y: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
    module.zero_grad()
    return torch.autograd.grad((y * y.detach().cos()).sum(), weights)


@pytest.mark.hf
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_and_its_gradients_are_those_of_llama(kv_heads: int) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    mixer, x = build_mixer(f"attention(heads=4, kv_heads={kv_heads})").float(), inputs().float()
    shape = {"hidden_size": DIM, "num_attention_heads": 4, "num_key_value_heads": kv_heads}
    config = transformers.LlamaConfig(**shape, attn_implementation="eager")
    other = LlamaAttention(config, layer_idx=0)
    pairs = [(other.q_proj, mixer.q), (other.k_proj, mixer.k), (other.v_proj, mixer.v), (other.o_proj, mixer.out)]
    with torch.no_grad():
        for here, there in pairs:
            here.weight.copy_(there.weight)
    angles = LlamaRotaryEmbedding(config)(x, torch.arange(TIME).unsqueeze(0))
    mask = torch.full((1, 1, TIME, TIME), -torch.inf).triu(1)
    wanted, _ = other(x, attention_mask=mask, position_embeddings=angles)
    found = mixer(x)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    ours, theirs = [there.weight for _, there in pairs], [here.weight for here, _ in pairs]
    for one, two in zip(gradients(mixer, found, ours), gradients(other, wanted, theirs), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


@pytest.mark.hf
def test_a_sliding_window_is_that_of_mistral() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.masking_utils import create_sliding_window_causal_mask
    from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRotaryEmbedding

    mixer, x = build_mixer("attention(heads=4, kv_heads=2, window=5)").float(), inputs().float()
    shape = {"hidden_size": DIM, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": DIM // 4}
    config = transformers.MistralConfig(**shape, sliding_window=5, attn_implementation="eager")
    other, where = MistralAttention(config, layer_idx=0), torch.arange(TIME).unsqueeze(0)
    with torch.no_grad():
        for here, there in zip(
            (other.q_proj, other.k_proj, other.v_proj, other.o_proj),
            (mixer.q, mixer.k, mixer.v, mixer.out),
            strict=True,
        ):
            here.weight.copy_(there.weight)
        mask = create_sliding_window_causal_mask(config, x, None, past_key_values=None, position_ids=where)
        wanted, _ = other(x, attention_mask=mask, position_embeddings=MistralRotaryEmbedding(config)(x, where))
    torch.testing.assert_close(mixer(x)[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.hf
def test_the_short_convolution_is_that_of_lfm2() -> None:
    """Its two gates are held at one: the weights that make them zero, their biases one."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

    mixer, x = build_mixer("short_conv(taps=3, residual=False)").float(), inputs().float()
    shape = {"hidden_size": DIM, "num_hidden_layers": 1, "conv_L_cache": 3, "conv_bias": True}
    other = Lfm2ShortConv(transformers.Lfm2Config(**shape, layer_types=["conv"]), 0)
    one, zero = torch.eye(DIM), torch.zeros(DIM, DIM)
    with torch.no_grad():
        other.in_proj.weight.copy_(torch.cat([zero, zero, one]))
        other.in_proj.bias.copy_(torch.cat([torch.ones(2 * DIM), torch.zeros(DIM)]))
        other.conv.weight.copy_(mixer.conv.filter.flip(0).T.unsqueeze(1))
        other.conv.bias.zero_()
        other.out_proj.weight.copy_(one)
        other.out_proj.bias.zero_()
        wanted = other(x)
    torch.testing.assert_close(mixer(x)[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.hf
def test_gated_delta_with_negative_eigenvalues_and_its_gradients_are_those_of_olmo_hybrid() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet

    mixer, x = build_mixer("gated_delta(heads=2, key=8, value=6, negative=True)").float(), inputs().float()
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    widths = {"linear_key_head_dim": 8, "linear_value_head_dim": 6, "linear_allow_neg_eigval": True}
    shape = {"hidden_size": DIM, "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    other = OlmoHybridGatedDeltaNet(transformers.OlmoHybridConfig(**shape, **heads, **widths), 0)
    pairs = [
        (other.a_proj.weight, mixer.decay.weight),
        (other.b_proj.weight, mixer.beta.weight),
        (other.g_proj.weight, mixer.gate.weight),
        (other.o_proj.weight, mixer.out.weight),
        (other.A_log, mixer.rate),
        (other.dt_bias, mixer.dt),
    ]
    with torch.no_grad():
        mixer.beta.bias.zero_()
        q, k, v = mixer.qkv.weight.split([16, 16, 12])
        for here, there in [*pairs, (other.q_proj.weight, q), (other.k_proj.weight, k), (other.v_proj.weight, v)]:
            here.copy_(there)
        other.conv1d.weight.copy_(mixer.conv.filter.flip(0).T.unsqueeze(1))
        other.o_norm.weight.copy_(mixer.norm.weight)
        other.o_norm.variance_epsilon = 1e-5
    found, wanted = mixer(x)[0], other(x)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    ours, theirs = [there for _, there in pairs], [here for here, _ in pairs]
    for one, two in zip(gradients(mixer, found, ours), gradients(other, wanted, theirs), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-3)


@pytest.mark.hf
def test_gated_delta_is_that_of_qwen3_next() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    mixer, x = build_mixer("gated_delta(heads=2, key=8, value=6)").float(), inputs().float()
    config = transformers.Qwen3NextConfig(
        hidden_size=DIM,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=6,
        linear_conv_kernel_dim=4,
        rms_norm_eps=1e-5,
    )
    other = Qwen3NextGatedDeltaNet(config, 0)
    with torch.no_grad():
        q, k, v = (z.unflatten(0, (2, -1)) for z in mixer.qkv.weight.split([16, 16, 12]))
        gate = mixer.gate.weight.unflatten(0, (2, -1))
        other.in_proj_qkvz.weight.copy_(torch.cat([q, k, v, gate], dim=1).flatten(0, 1))
        other.in_proj_ba.weight.copy_(torch.stack([mixer.beta.weight, mixer.decay.weight], dim=1).flatten(0, 1))
        mixer.beta.bias.zero_()
        other.conv1d.weight.copy_(mixer.conv.filter.flip(0).T.unsqueeze(1))
        for here, there in (
            (other.dt_bias, mixer.dt),
            (other.A_log, mixer.rate),
            (other.norm.weight, mixer.norm.weight),
            (other.out_proj.weight, mixer.out.weight),
        ):
            here.copy_(there)
    torch.testing.assert_close(mixer(x)[0], other(x), rtol=1e-3, atol=1e-4)


@pytest.mark.hf
def test_kda_is_that_of_kimi_linear() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

    mixer, x = build_mixer("kda(heads=2, key=8)").float(), inputs().float()
    config = transformers.KimiLinearConfig(
        hidden_size=DIM,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_heads=2,
        linear_head_dim=8,
        linear_conv_kernel_dim=4,
        rms_norm_eps=1e-5,
    )
    other = KimiLinearDeltaAttention(config, 0)
    with torch.no_grad():
        q, k, v = mixer.streams.project.weight.chunk(3)
        mixer.answer.gate[1].bias.zero_()  # the released model has none
        for here, there in (
            (other.q_proj.weight, q),
            (other.k_proj.weight, k),
            (other.v_proj.weight, v),
            (other.conv1d.weight, mixer.streams.conv.filter.flip(0).T.unsqueeze(1)),
            (other.forget_gate.f_a_proj.weight, mixer.decay.project[0].weight),
            (other.forget_gate.f_b_proj.weight, mixer.decay.project[1].weight),
            (other.forget_gate.dt_bias, mixer.decay.dt),
            (other.forget_gate.A_log, mixer.decay.rate.reshape(1, 1, 2, 1)),
            (other.b_proj.weight, mixer.beta.weight),
            (other.g_a_proj.weight, mixer.answer.gate[0].weight),
            (other.g_b_proj.weight, mixer.answer.gate[1].weight),
            (other.o_norm.weight, mixer.answer.norm.weight),
            (other.o_proj.weight, mixer.answer.out.weight),
        ):
            here.copy_(there)
    torch.testing.assert_close(mixer(x)[0], other(x), rtol=1e-3, atol=1e-4)
