"""Softmax attention of queries over the keys at or before their position.

    y_i = sum_j softmax_j(q_i . k_j / sqrt(key)) v_j        over 0 <= i - j < window, and over j < sinks

`attend` is the one definition. It takes positions explicitly, so that queries may follow a past or be at chosen
positions only. `masked_attention` takes a mask instead. `sliding_window` is for whole sequences and a window, in a time
linear in the length. Up to `FUSED` keys all of them multiply matrices, which is as fast. Beyond that PyTorch's fused
kernel saves the memory of the scores, except under `torch.func.vmap`, where it would run one model at a time. The
numbers are the same.
"""

import math

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from bestiary.ops.backend import under_transform

Heads = Float[Tensor, "batch heads time key"]

FUSED = 128


def attend(
    q: Float[Tensor, "batch heads asked key"],
    k: Float[Tensor, "batch shared time key"],
    v: Float[Tensor, "batch _ time value"],
    where: Int[Tensor, " asked"] | Int[Tensor, "batch asked"] | None,
    *,
    at: Int[Tensor, " time"] | None = None,
    window: int | None = None,
    sinks: int = 0,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads asked value"]:
    """Attend from queries at the positions `where` to keys at the positions `at` (0, 1, ... if not given).

    `where=None` means the last positions: one query alone, or one for each key, then needs no mask. Groups of heads may
    share keys and values.
    """
    last = where is None and window is None
    if last and q.shape[2] == 1:
        return attend_once(q, k, v, dropout=dropout)
    k, v = (share(x, q.shape[1]) for x in (k, v))
    if last and q.shape[2] == k.shape[2] > FUSED and not under_transform():
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
    where = torch.arange(k.shape[2] - q.shape[2], k.shape[2], device=q.device) if where is None else where
    at = torch.arange(k.shape[2], device=k.device) if at is None else at
    age = where.unsqueeze(-1) - at
    visible = (age >= 0) if window is None else (age >= 0) & ((age < window) | (at < sinks))
    visible = visible.unsqueeze(1) if where.ndim == 2 else visible
    return masked_attention(q, k, v, visible, dropout=dropout)


def attend_once(
    q: Float[Tensor, "batch heads 1 key"],
    k: Float[Tensor, "batch shared time key"],
    v: Float[Tensor, "batch _ time value"],
    *,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads 1 value"]:
    """Attend from one query of each head to all keys, which are read once for all heads that share them."""
    if q.dtype.itemsize < 4:  # whose kernel sums in float32
        return F.scaled_dot_product_attention(q, share(k, q.shape[1]), share(v, q.shape[1]), dropout_p=dropout)
    q = (q * (1 / math.sqrt(q.shape[-1]))).unflatten(1, (k.shape[1], -1)).squeeze(3)
    weights = F.dropout((q @ k.mT).softmax(-1), dropout).flatten(1, 2)
    return (weights.unflatten(1, (v.shape[1], -1)) @ v).flatten(1, 2).unsqueeze(2)


def share(x: Shaped[Tensor, "batch shared time width"], heads: int) -> Shaped[Tensor, "batch heads time width"]:
    """Keys or values for every head, where groups of heads share them."""
    if x.shape[1] == 1:
        return x.expand(-1, heads, -1, -1)
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def sliding_window(
    q: Heads,
    k: Heads,
    v: Float[Tensor, "batch heads time value"],
    *,
    window: int,
    sinks: int = 0,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads time value"]:
    """`attend` from every position: blocks of `window` queries see the sinks, the block before and their own."""
    heads, time = q.shape[1:3]
    if time == 0:
        return v.clone()
    count, first = -(-time // window), min(sinks, time)

    def blocks(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, count * window - time)).unflatten(2, (count, window))

    def near(x: Tensor) -> Tensor:
        own, start = blocks(x), x[:, :, None, :first].expand(-1, -1, count, -1, -1)
        return torch.cat([start, F.pad(own, (0, 0, 0, 0, 1, 0))[:, :, :-1], own], dim=3).flatten(1, 2)

    begin = torch.arange(count, device=q.device).mul(window)[:, None, None]
    now, at = (
        begin + torch.arange(window, device=q.device)[:, None],
        begin + torch.arange(-window, window, device=q.device),
    )
    band = (at >= 0) & (at <= now) & (at > now - window)
    far = torch.arange(first, device=q.device) <= now - window  # sinks that the band has left behind
    seen = torch.cat([far, band], dim=2).repeat(heads, 1, 1).unsqueeze(0)
    y = masked_attention(blocks(q).flatten(1, 2), near(k), near(v), seen, dropout=dropout)
    return y.unflatten(1, (heads, count)).flatten(2, 3)[:, :, :time]


def masked_attention(
    q: Float[Tensor, "batch heads asked key"],
    k: Float[Tensor, "batch heads time key"],
    v: Float[Tensor, "batch heads time value"],
    seen: Bool[Tensor, "*rows asked time"],
    bias: Float[Tensor, "batch _ asked time"] | None = None,
    *,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads asked value"]:
    """Softmax of q . k / sqrt(key) + bias over the keys that are `seen`, at least one for every query."""
    if k.shape[2] > FUSED and bias is None and not under_transform():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.mT
    scores = scores if bias is None else scores + bias
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).to(v.dtype)
    return F.dropout(weights, dropout) @ v


def rotate(
    x: Float[Tensor, "batch heads time key"], where: Int[Tensor, " time"] | Int[Tensor, "batch time"]
) -> Float[Tensor, "batch heads time key"]:
    """Rotary position embedding (Su et al., 2021): turn each pair of channels by position / 10,000^(2i / key)."""
    half = x.shape[-1] // 2
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32  # half precision cannot count beyond 256
    rate = 10_000 ** -(torch.arange(half, device=x.device, dtype=exact) / half)
    angle = where.to(exact).unsqueeze(-1) * rate
    angle = angle.unsqueeze(1) if where.ndim == 2 else angle
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x.split(half, dim=-1)
    turned = first * cos - second * sin, first * sin + second * cos
    return torch.cat(turned, dim=-1)
