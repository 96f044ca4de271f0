"""Memory that is a small network for each head, which learns while the sequence is read (test-time training).

The network maps keys to values as f(x) = x + LayerNorm(layer ... GELU layer(x)); a layer is one matrix, whose last
row is the bias. From a key k and a value v it learns by the gradient of |f(k) - v|^2 / 2. Gradients of a mini-batch
are all taken at the same weights and a linear layer's is the product of what entered it and of the slope of the
loss at what left it, so the weights after each token need not be written out to be used.

At an output without variance, such as that of a zero key at the start, LayerNorm has a slope of 1 / sqrt(EPS), and what
is learnt there one of 1 / EPS, which multiplies from mini-batch to mini-batch. So no gradient passes through what is
learnt where the variance is below EPS; values are those of the formula.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Mixer
from bestiary.ops.precision import upcast

Weights = tuple[Tensor, ...]  # of each layer: batch heads width+1 out

EPS = 1e-6


class Chunked(Mixer):
    """A mixer that learns chunk by chunk, and keeps most while a chunk is under way."""

    chunk: int  # tokens
    conv: int  # taps of its convolution

    def largest_state(self, time: int) -> int:
        return time if time % self.chunk or self.chunk == 1 else time - 1

    def equal_state(self, time: int) -> int:
        return repeat_length(time, settled=self.conv, period=self.chunk)


class Network(nn.Module):
    """f, with weights that start as N(0, 0.02), biases zero, and its slow parts: the norm's scale and shift."""

    without_decay: ClassVar = ("scale", "shift")

    def __init__(self, heads: int, widths: Sequence[int]) -> None:
        super().__init__()
        drawn = (0.02 * torch.randn(heads, width, out) for width, out in pairwise(widths))
        self.start = nn.ParameterList(F.pad(weight, (0, 0, 0, 1)) for weight in drawn)
        self.scale = nn.Parameter(torch.ones(heads, 1, widths[-1]))
        self.shift = nn.Parameter(torch.zeros(heads, 1, widths[-1]))

    def initial(self, batch: int) -> Weights:
        """The start weights, for each sequence of a batch."""
        return tuple(upcast(weight).expand(batch, *weight.shape) for weight in self.start)

    def expand(self, x: Tensor) -> Tensor:
        """What the first layer is given of a key or query: all of it, unless a subclass adds features."""
        return x

    def gradients(
        self, k: Tensor, v: Tensor, weights: Weights, slope_of: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What enters each layer, and the gradient of the loss with respect to what leaves it.

        `slope_of` gives the slope of another loss, from f(k) - v.
        """
        entered: list[Tensor] = []
        left: list[Tensor] = []
        for weight in weights:
            entered.append(append_one(F.gelu(left[-1], approximate="tanh") if left else self.expand(k)))
            left.append(entered[-1] @ weight)
        normed, last = self.normalize(left[-1]), left[-1]
        miss = normed * self.scale + self.shift + k - v
        miss = (miss if slope_of is None else slope_of(miss)) * self.scale
        away = miss - miss.mean(-1, keepdim=True) - normed * (miss * normed).mean(-1, keepdim=True)
        variance = last.var(-1, correction=0, keepdim=True) if len(last) else last[..., :1]  # torch warns of no rows
        slope = away / (variance + EPS).sqrt()
        slopes = [torch.where(variance < EPS, slope.detach(), slope)]  # the slope of a slope is 1 / EPS there
        for weight, before in zip(weights[:0:-1], left[-2::-1], strict=True):
            passed = slopes[0] @ weight[..., :-1, :].mT
            slopes.insert(0, torch.ops.aten.gelu_backward(passed, before, approximate="tanh"))
        return entered, slopes

    def apply_layers(self, q: Tensor, layers: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        """f(q), given the map of each layer."""
        x = layers[0](append_one(self.expand(q)))
        for layer in layers[1:]:
            x = layer(append_one(F.gelu(x, approximate="tanh")))
        return q + self.normalize(x) * self.scale + self.shift

    def normalize(self, x: Tensor) -> Tensor:
        """The layer norm without scale and shift."""
        return F.layer_norm(x, x.shape[-1:], eps=EPS)


def repeat_length(time: int, *, settled: int, period: int) -> int:
    """The shortest length from `settled` on that differs from `time` by multiples of `period`; `time` if it is less."""
    return time if time <= settled else settled + (time - settled) % period


def split_aligned(streams: Sequence[Tensor], size: int, time: int) -> Iterator[list[Tensor]]:
    """The streams (axis 2 is time) chunk by chunk; chunks begin at multiples of `size` and time has come so far."""
    return (now for group in group_aligned(streams, size, time) for now in unbind_chunks(group))


def group_aligned(streams: Sequence[Tensor], size: int, time: int) -> Iterator[list[Tensor]]:
    """The streams in at most three groups of chunks of one length: the rest of a chunk, whole chunks, a begun one.

    Axis 2 is time; in a group it is which chunk, and axis 3 is time within it. Half precision becomes float32, as what
    is learnt from chunks is a sum over time. What does not depend on the chunk before
    can be computed for a group at once. Split, not sliced: the gradient of a slice is as large as the whole.
    """
    length = streams[0].shape[2]
    first = min(length, -time % size)
    rest = (length - first) % size
    parts = zip(*(upcast(z).split([first, length - first - rest, rest], dim=2) for z in streams), strict=True)
    for chunk, group in zip((first, size, rest), parts, strict=True):
        if group[0].shape[2]:
            yield [z.unflatten(2, (-1, chunk)) for z in group]


def unbind_chunks(group: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The chunks of a group one by one."""
    return map(list, zip(*(z.unbind(2) for z in group), strict=True))


def minus_product(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """x - left @ right, with batch and heads before the last two axes, without the product apart."""
    flat = (z.flatten(0, 1) for z in (x, left, right))
    return torch.baddbmm(*flat, alpha=-1).unflatten(0, x.shape[:2])


def append_one(x: Tensor) -> Tensor:
    """For the bias."""
    return F.pad(x, (0, 1), value=1.0)


def decay_matrix(log: Tensor) -> Tensor:
    """The product of the rates from after j up to i, at (i, j) for j <= i; zero elsewhere."""
    total = log.cumsum(-2)
    past = torch.ones(log.shape[-2], log.shape[-2], dtype=torch.bool, device=log.device).tril()
    return (total - total.mT).masked_fill(~past, -torch.inf).exp()
