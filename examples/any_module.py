"""Modules that are not Bestiary's, as mixers: a GRU, multi-head attention, and an attention layer of transformers.

./lab check examples/any_module.py:GRU
./lab train --layers examples/any_module.py:MultiHead dim=32
"""

import torch
from torch import nn

from bestiary import Rereading


class GRU(nn.GRU):
    """PyTorch's, unchanged: its hidden state, its second argument and its second result, is the state of the mixer."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, batch_first=True)


class MultiHead(Rereading):
    """PyTorch's attention, which has no state: all inputs so far are kept, and read again for each new one."""

    def __init__(self, dim: int, *, heads: int = 4) -> None:
        super().__init__(nn.MultiheadAttention(dim, heads, batch_first=True))

    def read(self, x: torch.Tensor) -> torch.Tensor:
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        return self.module(x, x, x, attn_mask=later, need_weights=False)[0]


class Llama(Rereading):
    """The attention of Llama in transformers, with its rotary positions."""

    def __init__(self, dim: int, *, heads: int = 4) -> None:
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

        config = LlamaConfig(hidden_size=dim, num_attention_heads=heads, attn_implementation="sdpa")  # pyright: ignore
        super().__init__(LlamaAttention(config, layer_idx=0))
        self.rotary = LlamaRotaryEmbedding(config)

    def read(self, x: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
        return self.module(x, self.rotary(x, positions), None)[0]
