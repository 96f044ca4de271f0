"""A norm that mixers share."""

import torch
from torch import Tensor, nn

from bestiary.ops import norm


class RMSNorm(nn.RMSNorm):
    """PyTorch's, in the precision of its weights: autocast leaves the norm alone, and no kernel takes two types."""

    def forward(self, x: Tensor, gate: Tensor | None = None, activation: norm.Activation = "silu") -> Tensor:
        """The norm of x, times an activation of a gate that is shaped alike, if there is one."""
        epsilon = torch.finfo(self.weight.dtype).eps if self.eps is None else self.eps
        return norm.rms(x.to(self.weight.dtype), self.weight, gate, activation=activation, epsilon=epsilon)
