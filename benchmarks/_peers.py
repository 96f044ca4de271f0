"""Layers of transformers and torch that compute what layers of ours do, at the same sizes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import transformers as hf
from torch import Tensor, nn


class Peer(NamedTuple):
    """A layer of somebody else's, and ours as text; it is called with keywords, or with the input three times."""

    ours: str
    layer: nn.Module
    keywords: dict[str, Any] = {}
    times: int = 1

    def call(self, x: Tensor) -> Tensor:
        y = self.layer(*[x] * self.times, **self.keywords)
        return y[0] if isinstance(y, tuple) else y


def peers(dim: int, time: int) -> Iterator[Peer]:
    """Peers of this width, for sequences of this length."""
    yield from attention_peers(dim, time)
    yield from linear_peers(dim)
    yield from recurrent_peers(dim, time)


def attention_peers(dim: int, time: int) -> Iterator[Peer]:
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = hf.LlamaConfig(hidden_size=dim, **heads, attn_implementation="sdpa")
    angles = LlamaRotaryEmbedding(config)(torch.zeros(1, time, dim), torch.arange(time).unsqueeze(0))
    given = {"position_embeddings": angles, "attention_mask": None}
    yield Peer("attention(heads=2)", LlamaAttention(config, layer_idx=0), given)
    mask = nn.Transformer.generate_square_subsequent_mask(time)
    given = {"attn_mask": mask, "is_causal": True, "need_weights": False}
    several = nn.MultiheadAttention(dim, 2, batch_first=True, bias=False)
    yield Peer("attention(heads=2, rotary=False)", several, given, times=3)


def linear_peers(dim: int) -> Iterator[Peer]:
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet
    from transformers.models.xlstm.modeling_xlstm import xLSTMLayer

    layers = {"num_hidden_layers": 1, "layer_types": ["linear_attention"]}
    config = hf.MiniMaxConfig(hidden_size=dim, num_attention_heads=2, **layers)
    given = {"position_embeddings": None, "attention_mask": None}
    yield Peer("lightning(heads=2, layer=0, layers=1)", MiniMaxLightningAttention(config, 0), given)
    xlstm = hf.xLSTMConfig(hidden_size=dim, num_heads=2, num_hidden_layers=1, autocast_kernel_dtype="float32")
    yield Peer("mlstm(heads=2)", xLSTMLayer(xlstm))
    heads = {"linear_num_value_heads": 2, "linear_num_key_heads": 2}
    widths = {"linear_key_head_dim": 3 * dim // 8, "linear_value_head_dim": 3 * dim // 4}
    yield Peer("gated_delta", Qwen3NextGatedDeltaNet(hf.Qwen3NextConfig(hidden_size=dim, **heads, **widths), 0))


def recurrent_peers(dim: int, time: int) -> Iterator[Peer]:
    from transformers.models.mamba.modeling_mamba import MambaMixer
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock
    from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention

    heads = {"num_heads": dim // 32, "head_dim": 64, "n_groups": 1}
    yield Peer("mamba2", Mamba2Mixer(hf.Mamba2Config(hidden_size=dim, expand=2, **heads), 0))
    gemma = hf.RecurrentGemmaConfig(hidden_size=dim, lru_width=dim, num_attention_heads=4)
    given = {"position_ids": torch.arange(time).unsqueeze(0), "attention_mask": None, "use_cache": False}
    yield Peer("rg_lru(heads=4)", RecurrentGemmaRecurrentBlock(gemma, 0), given)
    yield Peer("rwkv4", RwkvSelfAttention(hf.RwkvConfig(hidden_size=dim, num_hidden_layers=1), layer_id=0))
    yield Peer("lstm", nn.LSTM(dim, dim, batch_first=True))
    yield Peer("mamba", MambaMixer(hf.MambaConfig(hidden_size=dim), 0))
