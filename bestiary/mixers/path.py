"""PaTH attention (Yang, Shen, Wen, Tan, Mishra, Ren, Panda & Kim, 2025): positions are products of reflections.

    w_t = unit(SiLU(short convolution(W_up W_low x_t))),   b_t = 2 sigmoid(u x_t + c),   H_t = I - b_t w_t w_t^T
    y_i = W_o sum_j softmax_j(q_i^T H_i H_{i-1} ... H_{j+1} k_j / sqrt(key)) v_j

The transported keys H_i ... H_{j+1} k_j are the columns of the matrix S_i = H_i S_{i-1} + k_i e_i^T, a delta rule with
one-hot values that forgets nothing, so its engine gives every row q_i^T S_i of logits in chunks, and S_i, with the
values, is all that decoding needs. W_low has rank 32. Weights are drawn N(0, 0.02), biases are zero.
Departs from the paper: nothing known. Its variant with forget gates (PaTH-FoX) is left out.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import (
    Chosen,
    Features,
    Mixer,
    ShortConv,
    State,
    Where,
    check_rank,
    head_width,
    linear,
    normalize,
    take,
)
from bestiary.mixers._softmax import Positions, causal_mask, merge_heads, split_heads
from bestiary.ops.drive import Drive
from bestiary.ops.recurrence import run
from bestiary.spec import Positive


class PaTH(Mixer):
    """y_i = sum_j softmax_j(q_i^T H_i ... H_{j+1} k_j / sqrt(key)) v_j, H_t = I - b_t w_t w_t^T."""

    family: ClassVar = "softmax"
    variants: ClassVar = ("heads=4, rank=8, conv=1",)

    class Memory(NamedTuple):
        """The last inputs of the convolution, transported keys and values."""

        conv: State
        keys: Float[Tensor, "batch heads key past"]  # as of now
        v: Float[Tensor, "batch heads past key"]

    def __init__(self, dim: int, *, heads: Positive = 2, rank: Positive | None = None, conv: Positive = 3) -> None:
        super().__init__()
        self.heads, self.head, rank = (
            heads,
            head_width(dim, heads),
            check_rank(dim, min(32, dim) if rank is None else rank),
        )
        if rank > dim:
            raise ValueError(f"a rank of {rank} is above the width of {dim}")
        self.q, self.k, self.v, self.out = (linear(dim, dim) for _ in range(4))
        self.low, self.up, self.conv = linear(dim, rank), linear(rank, dim), ShortConv(dim, conv)
        nn.init.normal_(self.conv.filter, std=0.02)
        self.beta = linear(dim, heads, bias=True)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        scores, after = self.scores(x, self.initial_state(x) if state is None else state)
        end = after.v.shape[2]
        return self.attend(scores, torch.arange(end - x.shape[1], end, device=x.device), after.v), after

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        scores, after = self.scores(x, self.initial_state(x))
        places = torch.arange(x.shape[1], device=x.device) if where is None else where
        return self.attend(take(scores, where), places, after.v)

    def initial_state(self, x: Features) -> Memory:
        """The state before the first token."""
        return self.Memory(
            None, x.new_zeros(len(x), self.heads, self.head, 0), x.new_zeros(len(x), self.heads, 0, self.head)
        )

    def scores(self, x: Features, state: Memory) -> tuple[Float[Tensor, "batch time heads keys"], Memory]:
        """Products of every query with all transported keys, and the memory after the last input."""
        w, conv = self.conv(self.up(self.low(x)), state.conv)
        q, k, w = (z.unflatten(-1, (self.heads, -1)) for z in (self.q(x), self.k(x), F.silu(w)))
        w, beta = normalize(w), 2 * self.beta(x).sigmoid().unsqueeze(-1)
        before, time = state.v.shape[2], x.shape[1]
        place = torch.eye(before + time, dtype=x.dtype, device=x.device)[before:].unsqueeze(1)
        drive = Drive(q, k, place.expand(len(x), time, self.heads, -1), erase=(-beta * w, w))
        scores, keys = run(drive, F.pad(state.keys, (0, time)))
        return scores, self.Memory(conv, keys, torch.cat([state.v, split_heads(self.v(x), self.heads)], dim=2))

    def attend(self, scores: Float[Tensor, "batch asked heads keys"], where: Positions, v: Tensor) -> Chosen:
        """The output from the logits: the values, weighed by their masked softmax."""
        scores = scores.transpose(1, 2) * self.head**-0.5
        return self.out(merge_heads(scores.masked_fill(~causal_mask(where, v.shape[2]), -torch.inf).softmax(-1) @ v))
