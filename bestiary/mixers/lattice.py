"""Lattice (Karami, Pascanu & Mirrokni, 2025): slots of unit length, turned only by what is orthogonal to them.

    s_it = unit(s*_i + sum_j beta_j k_ij (I - s*_i s*_i^T) h_j),   h_j = v_j - sum_i k_ij s*_i,   y_t = sum_i q_it s_it
    q, k, v = SiLU(short convolution(W x)),  unit q and k, a channel for each slot,  beta = sigmoid(w x + c)
    output = W_o (RMSNorm(y) * sigmoid(W_g x))

Slots decode: a value is to be the sum of the slots with the key as weights. Each token takes a step down the gradient
of |v - S k|^2 / 2 with respect to slots that are normalised, for unit slots a step on the sphere: no gate
forgets, turning does. s* are the slots before the chunk of t and j runs over its tokens up to t, as in the paper's
chunk-wise form; chunk=1 is the recurrence. Chunks are bounded by absolute positions. The length of each slot at each
token follows from products of the h_j, so no slot is written out but at the end of a chunk.
The rule is taken from restatements of the paper, whose text could not be compared.
Departs from the paper: of its forms, decoding alone, and without a gate that forgets. In a chunk slots are made unit
for what is read, exactly, and in the state at its end. The layer around the rule is ours: short convolutions, unit
keys and the gated output as in other mixers here; linear maps are N(0, 0.02), biases zero, and slots start from learnt
directions, random at first. `slots` defaults to the width of a head.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._delta import GatedOutput, Heads, Streams
from bestiary.mixers._mixer import Chosen, Features, State, Where, head_width, linear, take
from bestiary.mixers._test_time import Chunked, split_aligned
from bestiary.ops.norm import normalize
from bestiary.ops.precision import no_autocast, upcast
from bestiary.spec import Positive

Slots = Float[Tensor, "batch heads slots value"]


class Lattice(Chunked):
    """s_i = unit(s_i + beta k_i (I - s_i s_i^T) (v - S k)), y = S q."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, slots=5, conv=1, chunk=3",)
    without_decay: ClassVar = ("start",)

    class Memory(NamedTuple):
        """The state after the inputs read so far."""

        past: State  # of the convolution
        anchor: Slots  # before the chunk
        turned: tuple[Tensor, ...]  # what the chunk has added to each slot so far, () at its start
        time: int

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        slots: Positive | None = None,
        conv: Positive = 4,
        chunk: Positive = 16,
    ) -> None:
        super().__init__()
        width = head_width(dim, heads)
        if width == 1:
            raise ValueError(f"heads={heads}: a slot of one channel has nowhere to turn")
        slots = width if slots is None else slots
        self.conv, self.chunk = conv, chunk
        self.streams, self.beta = Streams(dim, heads, (slots, slots, width), conv), linear(dim, heads, bias=True)
        self.start = nn.Parameter(torch.randn(heads, slots, width) * width**-0.5)
        self.answer = GatedOutput(dim, heads, width, linear(dim, dim))

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        y, after = self.read_tokens(x, self.initial_state(x) if state is None else state)
        return self.answer(y, x), after

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.answer(take(self.read_tokens(x, self.initial_state(x))[0], where), take(x, where))

    def initial_state(self, x: Features) -> Memory:
        """The state before the first token."""
        return self.Memory(None, unit(upcast(self.start)).expand(len(x), *self.start.shape), (), 0)

    def read_tokens(self, x: Features, state: Memory) -> tuple[Heads, Memory]:
        """The answers, chunk by chunk."""
        past, anchor, turned, time = state
        (q, k, v), past = self.streams(x, past)
        beta = self.beta(x).sigmoid().unsqueeze(-1)
        streams = [z.transpose(1, 2) for z in (normalize(q), normalize(k), v, beta)]
        parts = []
        with no_autocast(x):  # what is learnt is a sum over time
            for now in split_aligned(streams, self.chunk, time):
                y, added = read_chunk(now, anchor, turned[0] if turned else torch.zeros_like(anchor))
                parts.append(y)
                time += y.shape[2]
                turned = (added,) if time % self.chunk else ()
                anchor = anchor if turned else unit(anchor + added)
        y = torch.cat(parts, dim=2).transpose(1, 2).to(x.dtype)
        return y, self.Memory(past, anchor, turned, time)


def read_chunk(streams: list[Tensor], slots: Slots, turned: Slots) -> tuple[Tensor, Slots]:
    """The answers of tokens of one chunk (batch heads time value), and what the chunk has added to each slot by then.

    `turned` is what it had added before them, orthogonal to each slot. With g_ij = beta_j k_ij, token j adds to slot i
    g_ij (h_j - (s_i . h_j) s_i), so |s_i|^2 grows by the square of the sum, which products of the h_j give.
    """
    q, k, v, beta = streams
    h, g = v - k @ slots, (beta * k).mT
    along = (g * (slots @ h.mT)).cumsum(-1).mT  # batch heads time slots: how far each slot would go along itself
    met = (g * (turned @ h.mT)).cumsum(-1).mT  # the product of what is added with `turned`
    pairs = h @ h.mT
    pairs = pairs.tril() + pairs.tril(-1)  # each pair of tokens when the later comes
    grown = (g * (g @ pairs.mT)).cumsum(-1).mT - along.square() + 2 * met + turned.square().sum(-1).unsqueeze(-2)
    weight = q * torch.rsqrt(1 + grown.clamp(min=0))
    y = weight @ turned + (weight * (1 - along)) @ slots + (weight @ g).tril() @ h
    return y, turned + g @ h - along[..., -1:, :].mT * slots


def unit(x: Tensor) -> Tensor:
    """x / |x|, without an epsilon: slots are as long as 1 when they come here."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True))
