"""Test-time training in mini-batches, whatever the inner network (Sun et al., 2024)."""

from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, Past, ShortConv, State, Where, head_width, linear, take
from bestiary.mixers._test_time import Chunked, Network, Weights, minus_product, split_aligned
from bestiary.ops.attention import rotate
from bestiary.ops.precision import no_autocast, upcast_type
from bestiary.spec import Positive

CONV = 4  # taps


class TTT(Chunked):
    """W_t = W - pace_i sum_{j<=t} eta_j gradient(W; k_j, v_j) over the mini-batch of t, in which it is the i-th."""

    hidden: ClassVar[tuple[int, ...]]  # the width of each hidden layer, in widths of a head
    speed: ClassVar[float]  # eta = speed / width sigmoid(w x)

    class Memory(NamedTuple):
        """The state after the inputs read so far."""

        past: State  # of the convolutions
        weights: Weights  # at the start of the mini-batch
        learned: Weights  # the sum of its gradients so far, () at its start
        time: int

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        minibatch: Positive = 16,
        backbone: Literal["mamba", "transformer"] = "mamba",
    ) -> None:
        super().__init__()
        width = head_width(dim, heads)
        if width % 2:
            raise ValueError(f"rotary positions need an even head width, {dim} / {heads} is odd")
        self.heads, self.chunk, self.conv, self.mamba = heads, minibatch, CONV, backbone == "mamba"
        self.network = Network(heads, (width, *(width * times for times in self.hidden), width))
        self.q, self.v, self.out = linear(dim, dim), linear(dim, dim), linear(dim, dim)
        self.eta = linear(dim, heads, bias=True)
        self.pace = nn.Parameter(torch.zeros(minibatch))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        if self.mamba:
            self.conv_q, self.conv_k = ShortConv(dim, CONV, bias=True), ShortConv(dim, CONV, bias=True)
            self.gate = linear(dim, dim)
        else:
            self.k = linear(dim, dim)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        y, after = self.read_tokens(x, self.initial_state(x) if state is None else state)
        return self.read(y, x), after

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.read(take(self.read_tokens(x, self.initial_state(x))[0], where), take(x, where))

    def initial_state(self, x: Features) -> Memory:
        return self.Memory(None, self.network.initial(len(x)), (), 0)

    def read_tokens(self, x: Features, state: Memory) -> tuple[Features, Memory]:
        """The answers f(q_t; W_t), mini-batch by mini-batch, bounded by absolute positions."""
        past, weights, learned, time = state
        streams, past = self.streams(x, past, time)
        pace = 1 / torch.arange(1, self.chunk + 1, device=x.device, dtype=upcast_type(x))
        pace, parts = (pace + self.pace).clamp(min=0).unsqueeze(-1), []
        with no_autocast(x):  # what is learnt is a sum over time
            for now in split_aligned(streams, self.chunk, time):
                place = time % self.chunk
                end = place + now[0].shape[2]
                last = end == self.chunk
                y, weights, learned = self.read_minibatch(now, weights, learned, pace[place:end], last=last)
                parts.append(y)
                time += end - place
        y = torch.cat(parts, dim=2).transpose(1, 2).flatten(2).to(x.dtype)
        return y, self.Memory(past, weights, learned, time)

    def streams(self, x: Features, past: Past | None, time: int) -> tuple[list[Tensor], State]:
        """q, k, v and eta by heads, queries and keys turned by their place in the mini-batch."""
        q = self.q(x)
        if self.mamba:
            (q, after), (k, _) = self.conv_q(q, past), self.conv_k(q, past)
        else:
            k, after = self.k(x), None
        q, k, v = (z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in (q, k, self.v(x)))
        where = torch.arange(time, time + x.shape[1], device=x.device) % self.chunk
        eta = self.speed / q.shape[-1] * self.eta(x).sigmoid()
        return [rotate(q, where), rotate(k, where), v, eta.mT.unsqueeze(-1)], after

    def read_minibatch(
        self, streams: list[Tensor], weights: Weights, learned: Weights, pace: Tensor, *, last: bool
    ) -> tuple[Float[Tensor, "batch heads time width"], Weights, Weights]:
        """Tokens of one mini-batch, at their paces; whether the last of it is among them."""
        q, k, v, eta = streams
        entered, slopes = self.network.gradients(k, v, weights)
        slopes = [eta * slope for slope in slopes]

        def layer(i: int, x: Tensor) -> Tensor:
            before = x @ weights[i] - pace * (x @ learned[i]) if learned else x @ weights[i]
            return minus_product(before, pace * (x @ entered[i].mT).tril(), slopes[i])

        y = self.network.apply_layers(q, [lambda x, i=i: layer(i, x) for i in range(len(weights))])
        parts = list(zip(entered, slopes, strict=True))
        if not last:
            new = tuple(x.mT @ slope for x, slope in parts)
            return y, weights, tuple(s + more for s, more in zip(learned, new, strict=True)) if learned else new
        kept = tuple(w - pace[-1] * s for w, s in zip(weights, learned, strict=True)) if learned else weights
        after = (minus_product(w, pace[-1] * x.mT, slope) for w, (x, slope) in zip(kept, parts, strict=True))
        return y, tuple(after), ()

    def read(self, y: Chosen, x: Chosen) -> Chosen:
        y = self.norm(y)
        return self.out(F.gelu(self.gate(x), approximate="tanh") * y if self.mamba else y)
