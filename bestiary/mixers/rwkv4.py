"""RWKV-4 time mixing (Peng et al., 2023, section 3 and appendix on initialisation).

    r, k, v = W (mu * x_t + (1 - mu) * x_{t-1}),  one mu each
    wkv_t = (sum_{i<t} e^{-(t-1-i) w + k_i} v_i + e^{u + k_t} v_t) / (the same without v),   w = exp(decay)
    y_t = W_o (sigmoid(r_t) * wkv_t)

Sums are kept relative to the running maximum m of their exponents, so nothing overflows. Initialisation as in the
paper for layer `layer` of `layers`: decay -5 + 8 (c / (d - 1))^(0.7 + 1.3 l), u = log 0.3 + 0.5 (0, 1, -1, ...),
mu powers of c / d. Linear maps, by `init`:

    "paper"      W_k, W_r, W_o zero, W_v orthogonal
    "zoology23"  PyTorch's draw: the code that made Figure 2 of Zoology (HazyResearch/zoology, d9429b3, 27 October
                 2023), of 2 `layers`, whose own draw does not reach into this mixer, a ScriptModule

Departs from the paper: nothing known. Its channel mixing is not part of a sequence mixer.
"""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._mixer import Chosen, Features, Mixer, Where, take
from bestiary.ops.precision import upcast
from bestiary.ops.scan import scan
from bestiary.spec import Positive

Channels = Float[Tensor, "batch dim"]


class RWKV4(Mixer):
    """y_t = W_o (sigmoid(r_t) * wkv_t), wkv a decaying softmax average with a bonus for the present."""

    family: ClassVar = "gated linear"
    variants: ClassVar = ("layer=3, layers=4", "init='zoology23', layer=1, layers=2")
    later_options: ClassVar = ("init",)
    without_decay: ClassVar = ("mix",)

    class Memory(NamedTuple):
        """The last input, and the decayed sums."""

        last: Channels  # the previous input, for the token shift
        top: Channels  # sums over the past, times e^-m
        bottom: Channels
        m: Channels

    def __init__(
        self, dim: int, *, layer: int = 0, layers: Positive = 12, init: Literal["paper", "zoology23"] = "paper"
    ) -> None:
        super().__init__()
        if not 0 <= layer < layers:
            raise ValueError(f"rwkv4(layer={layer}): there are layers 0 to {layers - 1}")
        depth, rest, channel = layer / max(1, layers - 1), 1 - layer / layers, torch.arange(dim) / dim
        self.mix = nn.Parameter(torch.stack([channel ** (0.5 * rest), channel**rest, channel**rest + 0.3 * depth]))
        self.decay = nn.Parameter(-5 + 8 * (torch.arange(dim) / max(1, dim - 1)) ** (0.7 + 1.3 * depth))
        self.bonus = nn.Parameter(math.log(0.3) + 0.5 * ((torch.arange(dim) + 1) % 3 - 1))
        self.r, self.k, self.v, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        if init == "paper":
            for still in (self.r, self.k, self.out):
                nn.init.zeros_(still.weight)
            nn.init.orthogonal_(self.v.weight)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        mixed, r, after = self.average(x, self.initial_state(x) if state is None else state)
        return self.out(r.sigmoid() * mixed), after

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        mixed, r, _ = self.average(x, self.initial_state(x))
        return self.out(take(r, where).sigmoid() * take(mixed, where))

    def initial_state(self, x: Features) -> Memory:
        """The memory before any input: sums of nothing, relative to a maximum that anything exceeds."""
        zero = torch.zeros_like(upcast(x[:, 0]))
        return self.Memory(torch.zeros_like(x[:, 0]), zero, zero, torch.full_like(zero, -1e30))

    def average(self, x: Features, state: Memory) -> tuple[Features, Features, Memory]:
        """wkv, r, and the memory after the last input."""
        last, top, bottom, m = state
        previous = shift_right(last, x)
        for_r, for_k, for_v = (interpolate(previous, x, mu) for mu in self.mix)
        r, k, v = self.r(for_r), upcast(self.k(for_k)), upcast(self.v(for_v))
        tops, bottoms, ms = self.sums(k, v, state)
        mixed = blend(shift_right(top, tops), shift_right(bottom, bottoms), shift_right(m, ms), self.bonus + k, v)
        return mixed.to(x.dtype), r, self.Memory(x[:, -1], tops[:, -1], bottoms[:, -1], ms[:, -1])

    def sums(self, k: Features, v: Features, state: Memory) -> tuple[Features, Features, Features]:
        """The decayed sums after each position, times e^-m, and m itself, where m_t = max(m_{t-1} - w, k_t)."""
        time = torch.arange(1, k.shape[1] + 1, device=k.device, dtype=k.dtype).unsqueeze(1)
        w = self.decay.exp()
        ms = torch.cat([state.m.unsqueeze(1), k + time * w], dim=1).cummax(1).values[:, 1:] - time * w
        kept = torch.exp(shift_right(state.m, ms) - w - ms)
        new = torch.exp(k - ms)
        tops, _ = scan(kept, new * v, state.top)
        bottoms, _ = scan(kept, new, state.bottom)
        return tops, bottoms, ms


def shift_right(first: Channels, x: Features) -> Features:
    """Each position's predecessor, `first` being that of the first."""
    return torch.cat([first.unsqueeze(1), x[:, :-1]], dim=1)


def interpolate(previous: Features, x: Features, mu: Float[Tensor, " dim"]) -> Features:
    """mu * x + (1 - mu) * previous, in the type of mu, as autocast may give inputs another."""
    return torch.lerp(previous.to(mu.dtype), x.to(mu.dtype), mu)


def blend(top: Features, bottom: Features, m: Features, k: Features, v: Features) -> Features:
    """The average of what is kept, as top e^m / bottom e^m, and of v with weight e^k."""
    peak = torch.maximum(m, k)
    old, new = torch.exp(m - peak), torch.exp(k - peak)
    return (old * top + new * v) / (old * bottom + new)
