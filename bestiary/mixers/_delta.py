"""Parts that the mixers of the delta rule share: what they write and read, how they forget, how they answer."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, Past, ShortConv, linear, step_sizes
from bestiary.mixers._norm import RMSNorm

Heads = Float[Tensor, "batch _ heads value"]


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)).

    torch.compile is shown another formula: it takes the gradient of torch's own for contiguous where it is not, and
    what follows in the backward fails with "view size is not compatible" (torch 2.13, the backend aot_eager).
    """
    return -F.logsigmoid(-x) if torch.compiler.is_compiling() else F.softplus(x)


class Streams(nn.Module):
    """SiLU(short convolution(W x)), cut into streams of so many channels for each head."""

    def __init__(self, dim: int, heads: int, widths: Sequence[int], conv: int) -> None:
        super().__init__()
        self.heads, self.widths = heads, [heads * width for width in widths]
        self.project = linear(dim, sum(self.widths))
        self.conv = ShortConv(sum(self.widths), conv)

    def forward(self, x: Features, past: Past | None) -> tuple[list[Tensor], Past]:
        mixed, after = self.conv(self.project(x), past)
        return [z.unflatten(-1, (self.heads, -1)) for z in F.silu(mixed).split(self.widths, dim=-1)], after


class Decay(nn.Module):
    """log alpha = -A softplus(W x + dt): one A per head, one dt per head or per channel.

    A is drawn uniformly from (low, 16), dt log-uniformly from (0.001, 0.1) as a step size.
    """

    def __init__(self, heads: int, width: int, project: nn.Module, *, low: float) -> None:
        super().__init__()
        self.project = project
        self.rate = nn.Parameter(torch.empty(heads).uniform_(low, 16).log())
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
        activation: Callable[[Tensor], Tensor] = torch.sigmoid,
    ) -> None:
        super().__init__()
        self.norm = RMSNorm(value, eps=1e-5)
        self.gate, self.activation = gate, activation
        self.out = linear(heads * value, dim)

    def forward(self, y: Heads, x: Chosen) -> Chosen:
        y = self.norm(y).flatten(2)
        return self.out(y if self.gate is None else y * self.activation(self.gate(x)))


def low_rank(dim: int, rank: int, out: int) -> nn.Sequential:
    """A linear map through `rank` channels."""
    return nn.Sequential(linear(dim, rank), linear(rank, out))
