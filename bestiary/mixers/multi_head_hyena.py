"""Multi-head Hyena (Massaroli et al., 2023, "Laughing Hyena Distillery", section 4): it convolves outer products.

    q, k, v = short convolution(W x),   S_t = sum_i h_i k_{t-i} v_{t-i}^T + D k_t v_t^T,   y = W_o S^T q,   in each head

One filter h and one D for each head, so that a head compares its keys with its queries, as attention does, and weighs
what it finds by its age. The filter is Hyena's: a network of sines of the position, and a window exp(-delta t) whose
rates run from log(100) / 1.5 to log(100) / 0.3 across heads. MAD (Poli et al., 2024) calls it MH-Hyena.
Of up to SCORED new positions the same sum is computed from scores, h_{t-s} (q_t . k_s), and of more by Fourier
transforms of the outer products. The state holds the last keys and values, not their products.
Initialisation as in the code of MAD (athms/mad-lab, 0f49a45), PyTorch's draw, D N(0, 1), the sines' frequency 1.
Equal to that code to 2e-7 in float32, with copied weights.

Departs from the paper: the number of heads is MAD's at width 128 and the network as wide as Hyena's (MAD: 2), features
of the position are fixed and beyond `taps` the filter is zero, as in `hyena`; MAD draws a quarter of q, k, v and
repeats it four times, here all of them are drawn. The distillation into a recurrence is not done.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._filter import SineFilter
from bestiary.mixers._mixer import Chosen, Features, Mixer, Past, ShortConv, Where, head_width, take
from bestiary.ops import convolution
from bestiary.spec import Positive

SCORED = 256  # as many new positions, at most, are computed from scores, which is faster up to there


class MultiHeadHyena(Mixer):
    """y = W_o S^T q with S = (h + D) convolved with k v^T, one long filter h for each head."""

    family: ClassVar = "convolution"
    variants: ClassVar = ("heads=2, taps=20, features=5, short=1",)

    class Memory(NamedTuple):
        """The inputs that the short convolution still needs, and the keys and values that the long one does."""

        local: Past
        k: Past
        v: Past

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 8,
        taps: Positive = 1024,
        features: Positive = 3,
        width: Positive = 64,
        short: Positive = 3,
    ) -> None:
        super().__init__()
        self.heads, self.taps = heads, taps
        head_width(dim, heads)
        self.project, self.short = nn.Linear(dim, 3 * dim), ShortConv(3 * dim, short, bias=True)
        self.filter, self.skip = SineFilter(heads, taps, features, width, 1.0), nn.Parameter(torch.randn(heads))
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        y, after = self.recall(x, state)
        return self.out(y), after

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.out(take(self.recall(x, None)[0], where))

    def recall(self, x: Features, state: Memory | None) -> tuple[Features, Memory]:
        """S^T q at every position, and the state after the last."""
        local, *past = (None, None, None) if state is None else state
        mixed, local = self.short(self.project(x), local)
        q, *new = mixed.chunk(3, dim=-1)
        k, v = (z if old is None else torch.cat([old, z], dim=1) for z, old in zip(new, past, strict=True))
        filter = F.pad(self.filter(k.shape[1]), (0, 0, 0, max(0, k.shape[1] - self.taps)))
        filter = torch.cat([filter[:1] + self.skip, filter[1:]]).to(x.dtype)
        kept = [convolution.recent_inputs(z, None, self.taps) for z in (k, v)]
        q, k, v = (z.unflatten(-1, (self.heads, -1)) for z in (q, k, v))
        y = (score if x.shape[1] <= SCORED else convolve)(q, k, v, filter).flatten(2)
        return y, self.Memory(local, *kept)


Heads = Float[Tensor, "batch _ heads width"]  # queries at the last positions, keys and values at all
Taps = Float[Tensor, "time heads"]


def score(q: Heads, k: Heads, v: Heads, filter: Taps) -> Heads:
    """sum_s filter_{t-s} (q_t . k_s) v_s by one matrix of ages."""
    rows = F.pad(filter.mT.flip(-1), (0, q.shape[1] - 1)).unfold(-1, len(filter), 1).flip(-2)
    q, k, v = (z.transpose(1, 2) for z in (q, k, v))
    return ((q @ k.mT * rows) @ v).transpose(1, 2)


def convolve(q: Heads, k: Heads, v: Heads, filter: Taps) -> Heads:
    """The same from the convolved outer products of keys and values."""
    products = k.unsqueeze(-1) * v.unsqueeze(-2)
    each = filter.repeat_interleave(k.shape[-1] * v.shape[-1], dim=1)
    mixed = convolution.long(products.flatten(2), each)[:, -q.shape[1] :].unflatten(-1, products.shape[2:])
    return (q.unsqueeze(-2) @ mixed).squeeze(-2)
