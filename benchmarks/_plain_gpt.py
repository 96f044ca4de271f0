"""The Llama recipe in plain PyTorch, as short as it is fast: what our training on text is timed against."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Rotary attention and SwiGLU, each behind a norm and beside the stream."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        inner = 8 * -(-dim // 3)
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.gate_up, self.down = nn.Linear(dim, 2 * inner, bias=False), nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, time, dim = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(turned(q, cos, sin), turned(k, cos, sin), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, time, dim))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class GPT(nn.Module):
    """The mean loss of a batch of tokens and targets."""

    def __init__(self, vocab: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed, self.norm, self.width = nn.Embedding(vocab, dim), nn.LayerNorm(dim), dim // heads
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        rate = 10_000 ** (-torch.arange(self.width // 2, device=tokens.device) / (self.width // 2))
        angle = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(1) * rate
        x, cos, sin = self.embed(tokens), angle.cos(), angle.sin()
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.cross_entropy((self.norm(x) @ self.embed.weight.T).flatten(0, 1), targets.flatten())
