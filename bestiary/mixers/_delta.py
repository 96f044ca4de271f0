"""Parts that the mixers of the delta rule share: what they write and read, how they forget, how they answer."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, Past, step_sizes
from bestiary.mixers._norm import RMSNorm
from bestiary.mixers._start import NORMAL, Start
from bestiary.ops.norm import Activation, normalize

Heads = Float[Tensor, "batch _ heads value"]


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)).

    torch.compile is shown another formula: it takes the gradient of torch's own for contiguous where it is not, and
    what follows in the backward fails with "view size is not compatible" (torch 2.13, the backend aot_eager).
    """
    return -F.logsigmoid(-x) if torch.compiler.is_compiling() else F.softplus(x)


class Streams(nn.Module):
    """SiLU(short convolution(W x)), cut into streams of so many channels for each head.

    Each stream is drawn as a map of its own, or as `maps` of them.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        widths: Sequence[int],
        conv: int,
        start: Start = NORMAL,
        maps: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.widths = heads, [heads * width for width in widths]
        self.project = nn.Linear(dim, sum(self.widths), bias=False)
        for part, count in zip(self.project.weight.data.split(self.widths), maps or [1] * len(widths), strict=True):
            start.fill(part, len(part) // count)
        self.conv = start.conv(sum(self.widths), conv)

    def forward(self, x: Features, past: Past | None) -> tuple[list[Tensor], Past]:
        parts, after = self.conv.streams(self.project(x), past, self.widths)
        return [z.unflatten(-1, (self.heads, -1)) for z in parts], after


class Decay(nn.Module):
    """log alpha = -A softplus(W x + dt): one A per head, one dt per head or per channel.

    A is drawn as `start` says, dt log-uniformly from (0.001, 0.1) as a step size.
    """

    def __init__(self, heads: int, width: int, project: nn.Module, start: Start) -> None:
        super().__init__()
        self.project = project
        self.rate = start.rate(heads)
        self.dt = nn.Parameter(step_sizes((heads * width,)))

    def forward(self, x: Features) -> Float[Tensor, "batch time heads width"]:
        steps = softplus(self.project(x) + self.dt).unflatten(-1, (len(self.rate), -1))
        return -self.rate.exp().unsqueeze(-1) * steps


class GatedOutput(nn.Module):
    """W_o (RMSNorm(y) * activation(gate(x))), each head normalised by itself; or without a gate."""

    def __init__(
        self,
        dim: int,
        heads: int,
        value: int,
        gate: nn.Module | None = None,
        activation: Activation = "sigmoid",
        start: Start = NORMAL,
    ) -> None:
        super().__init__()
        self.norm = RMSNorm(value, eps=1e-5)
        self.gate, self.activation = gate, activation
        self.out = start.linear(heads * value, dim)

    def forward(self, y: Heads, x: Chosen) -> Chosen:
        gate = None if self.gate is None else self.gate(x).unflatten(-1, y.shape[-2:])
        return self.out(self.norm(y, gate, self.activation).flatten(2))


def low_rank(dim: int, rank: int, out: int, start: Start, *, bias: bool = False) -> nn.Sequential:
    """A linear map through `rank` channels. Its bias is zero in weights stored before it had one."""
    made = nn.Sequential(start.linear(dim, rank), start.linear(rank, out, bias=bias))
    if bias:
        made[1].register_load_state_dict_pre_hook(add_missing_bias)
    return made


def add_missing_bias(_module: nn.Module, stored: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Add a bias of zero to stored weights that have none."""
    weight = stored.get(f"{prefix}weight")
    if weight is not None and f"{prefix}bias" not in stored:
        stored[f"{prefix}bias"] = weight.new_zeros(len(weight))


def unit_queries(q: Float[Tensor, "batch time heads key"]) -> Float[Tensor, "batch time heads key"]:
    """q of length 1 / sqrt(key), as the authors' kernels have it. The norm of the output does not undo the scale while
    what is read is small: its epsilon is 1e-5, and at the start what is read is near 0.01."""
    return normalize(q) * q.shape[-1] ** -0.5
