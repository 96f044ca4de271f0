"""Helpers for tests of mixers: a mixer with perturbed weights, inputs, closeness, and plain loops to compare with."""

import math
from typing import Any

import torch
from torch import Tensor

from bestiary.laws.mixers import build_perturbed
from bestiary.spec import parse

BATCH, TIME, DIM = 2, 23, 64


def build_mixer(text: str) -> Any:
    (found,) = parse("mixers", text)
    return build_perturbed(found)


def inputs(time: int = TIME) -> Tensor:
    return torch.randn(BATCH, time, DIM, dtype=torch.float64)


def assert_same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


def assert_close(found: Tensor, wanted: Tensor) -> None:
    """Of float32 against another implementation."""
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def convolve_plainly(x: Tensor, filter: Tensor) -> Tensor:
    """y_t = sum_i filter_i x_{t-i}."""
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        for i in range(min(t + 1, len(filter))):
            y[:, t] += filter[i] * x[:, t - i]
    return y


def split_heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1))  # batch, time, heads, width


def rotate_plainly(x: Tensor) -> Tensor:
    """Rotary positions: channel c and its partner half a head away turn by time / 10,000^(c / half)."""
    y, half = torch.empty_like(x), x.shape[-1] // 2
    for t in range(x.shape[1]):
        for c in range(half):
            angle, one, two = t * 10_000 ** (-c / half), x[:, t, ..., c], x[:, t, ..., c + half]
            y[:, t, ..., c] = one * math.cos(angle) - two * math.sin(angle)
            y[:, t, ..., c + half] = one * math.sin(angle) + two * math.cos(angle)
    return y


def outer(x: Tensor, y: Tensor) -> Tensor:
    return x.unsqueeze(-1) * y.unsqueeze(-2)


def rms(y: Tensor, weight: Tensor) -> Tensor:
    """The norm of each head, and all heads side by side."""
    return (y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight).flatten(2)


def unit(x: Tensor) -> Tensor:
    """x / sqrt(|x|^2 + 1e-6), as flash-linear-attention and transformers have unit vectors."""
    return x / ((x * x).sum(-1, keepdim=True) + 1e-6) ** 0.5
