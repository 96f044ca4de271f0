"""A spectrum of decays over the heads that widens with the position: PoST (arXiv 2604.07658)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Features


class TaperedRates(nn.Module):
    """A_h t^(-a_h), the factor of the log-decay of head h at position t (from 1). Head 0 is the slowest.

        log A_h = log A_0 + sum_{0<i<=h} softplus(d_i),   m = mean_i softplus(d_i)
        a_h = (H - 1 - h) / (H - 1) + (log A_h - log A_0 - h m) / log(length),   at least 0 and at most 1

    So head 0 forgets within a constant times what was read (as Mamba-2 starts, `length` times), head H - 1 within a
    constant number of tokens, and those between lie evenly in between at every position, beyond the length that is
    trained on too. log A_0 and d are trained. Factors and starts equal those of the authors' functions, run, to 2e-15
    (SiLifen/PoST, 1be117b, 10 April 2026).
    """

    def __init__(self, first: float, last: float, heads: int, length: int) -> None:
        """log A rises evenly from `first` to `last` at the start. Raises ValueError for one head or a length of 1."""
        super().__init__()
        if heads < 2 or length < 2:
            raise ValueError(f"a taper needs 2 heads and a length of 2 or more, not {heads} and {length}")
        self.length = length
        self.first = nn.Parameter(torch.full((1,), float(first)))
        step = (last - first) / (heads - 1)
        self.steps = nn.Parameter(torch.full((heads - 1,), math.log(math.expm1(step) + 1e-6)))

    def forward(self, x: Features, read: int) -> Float[Tensor, "time heads"]:
        """The factors at the positions of x, before which `read` tokens came."""
        steps = F.softplus(self.steps)
        risen = F.pad(steps.cumsum(0), (1, 0))
        places = torch.arange(len(risen), device=x.device, dtype=risen.dtype)
        bent = (risen - places * steps.mean()) / math.log(self.length)
        fading = (1 - places / len(steps) + bent).clamp(0, 1)
        now = torch.arange(read + 1, read + 1 + x.shape[1], device=x.device, dtype=risen.dtype)
        return (self.first + risen - fading * now.log().unsqueeze(-1)).exp()
