"""A norm that mixers share, and what norms cannot be given."""

from torch import Tensor, nn

from bestiary.ops.norm import Activation, rms


class RMSNorm(nn.RMSNorm):
    """PyTorch's, in the precision of its weights: autocast leaves the norm alone, and no kernel takes two types."""

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__(width, eps=eps)

    def forward(self, x: Tensor, gate: Tensor | None = None, activation: Activation = "silu") -> Tensor:
        """The norm of x, times an activation of a gate that is shaped alike, if there is one."""
        return rms(x.to(self.weight.dtype), self.weight, gate, activation=activation, epsilon=self.eps or 0.0)


def check_normed(width: int, given: str) -> int:
    """The width of what a norm subtracts the mean of. Raises ValueError for one channel, of which nothing is left."""
    if width == 1:
        raise ValueError(f"{given}: a norm over one channel leaves nothing of it, as it subtracts the mean")
    return width
