"""LSTM (Hochreiter & Schmidhuber, 1997; with forget gates: Gers et al., 2000): the classical gated recurrence.

    i, f, o = sigmoid(W x_t + U h_{t-1} + b),   g = tanh(the same with weights of its own)
    c_t = f * c_{t-1} + i * g,   h_t = o * tanh(c_t),   h_0 = c_0 = 0

A loop over time: nothing else is known for it. On a CPU it is PyTorch's fused one, whatever the backend; under
transforms of torch.func, under autocast, compiled and on other devices it is a loop over small operations. Weights are
drawn as PyTorch's LSTM draws them, uniform within 1 / sqrt(dim).
Departs from the paper: forget gates, and full gradients through time, as everywhere today. From PyTorch's LSTM: one
bias where it adds two.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._mixer import Features, Mixer
from bestiary.ops.backend import under_transform


class LSTM(Mixer):
    """c_t = f * c_{t-1} + i * g, h_t = o * tanh(c_t), all gates functions of x_t and h_{t-1}."""

    family: ClassVar = "recurrent"

    class Memory(NamedTuple):
        """Hidden state and cell."""

        h: Float[Tensor, "batch dim"]
        c: Float[Tensor, "batch dim"]

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.into, self.again = nn.Linear(dim, 4 * dim), nn.Linear(dim, 4 * dim, bias=False)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        h, c = (torch.zeros_like(x[:, 0]),) * 2 if state is None else state
        if x.shape[1] > 1 and self.can_fuse(x, h, c):
            weights = (self.into.weight, self.again.weight, self.into.bias, torch.zeros_like(self.into.bias))
            y, h, c = torch._VF.lstm(x, (h[None], c[None]), weights, True, 1, 0.0, True, False, True)  # pyright: ignore
            return y, self.Memory(h.squeeze(0), c.squeeze(0))
        outputs = []
        for now in self.into(x).unbind(1):
            i, f, g, o = (now + self.again(h)).chunk(4, dim=-1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, dim=1), self.Memory(h, c)

    def can_fuse(self, *given: Tensor) -> bool:
        """Whether PyTorch's fused LSTM computes this: plain tensors on a CPU, of the type of the weights."""
        plain = all(type(x) is Tensor and x.is_cpu and x.dtype == self.again.weight.dtype for x in given)
        special = torch.compiler.is_compiling() or under_transform() or torch.is_autocast_enabled("cpu")
        return plain and given[0].numel() > 0 and not special

    def equal_state(self, time: int) -> int:
        return min(time, 1)
