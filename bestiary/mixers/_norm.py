"""A norm that mixers share."""

from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """PyTorch's, in the precision of its weights: autocast leaves the norm alone, and no kernel takes two types."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))
