"""PaTH attention (Yang, Shen, Wen, Tan, Mishra, Ren, Panda & Kim, 2025): positions are products of reflections.

    w_t = unit(SiLU(short convolution(W_up W_low x_t))),   b_t = 2 sigmoid(u x_t + c),   H_t = I - b_t w_t w_t^T
    y_i = W_o sum_j softmax_j(q_i^T H_i H_{i-1} ... H_{j+1} k_j / sqrt(key)) v_j

The transported keys H_i ... H_{j+1} k_j are computed in blocks of tokens (see `bestiary.ops.transport`). Kept are they
and the values, and the product of the reflections since keys were last moved: the query is turned back to them instead,
so decoding reads them once and writes them once in 64 tokens. W_low has rank 32. Weights are drawn N(0, 0.02), biases
are zero.
Departs from the paper: nothing known. Its variant with forget gates (PaTH-FoX) is left out.
"""

from typing import ClassVar, NamedTuple

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
    take,
)
from bestiary.mixers._softmax import merge_heads, split_heads
from bestiary.ops import transport
from bestiary.ops.growth import append
from bestiary.ops.norm import normalize
from bestiary.spec import Positive


class PaTH(Mixer):
    """y_i = sum_j softmax_j(q_i^T H_i ... H_{j+1} k_j / sqrt(key)) v_j, H_t = I - b_t w_t w_t^T."""

    family: ClassVar = "softmax"
    variants: ClassVar = ("heads=4, rank=8, conv=1",)

    class Memory(NamedTuple):
        """The last inputs of the convolution, transported keys and values."""

        conv: State
        keys: transport.Keys
        v: Float[Tensor, "batch heads past key"]

    def __init__(self, dim: int, *, heads: Positive = 2, rank: Positive | None = None, conv: Positive = 3) -> None:
        super().__init__()
        self.heads, self.head, rank = (
            heads,
            head_width(dim, heads),
            check_rank(dim, min(32, dim) if rank is None else rank),
        )
        self.q, self.k, self.v, self.out = (linear(dim, dim) for _ in range(4))
        self.low, self.up, self.conv = linear(dim, rank), linear(rank, dim), ShortConv(dim, conv)
        nn.init.normal_(self.conv.filter, std=0.02)
        self.beta = linear(dim, heads, bias=True)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        conv, keys, v = self.initial_state(x) if state is None else state
        (q, k, new, w, beta), conv = self.parts(x, conv)
        v = append(v, new)
        if x.shape[1] == 1:
            logits, keys = transport.step(q, k, w, beta, keys)
            y = (logits * self.head**-0.5).softmax(-1).to(v.dtype) @ v
        else:
            y, keys = transport.attend(q, k, v, w, beta, keys)
        return self.out(merge_heads(y)), self.Memory(conv, keys, v)

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        if x.shape[1] > transport.BLOCK:
            return take(self(x)[0], where)
        q, k, v, w, beta = self.parts(x, None)[0]
        logits = take(transport.block_logits(q, k, w, beta).transpose(1, 2), where).transpose(1, 2)
        return self.out(merge_heads(logits.softmax(-1) @ v))

    def initial_state(self, x: Features) -> Memory:
        """The state before the first token."""
        return self.Memory(
            None, transport.no_keys(x, self.heads, self.head), x.new_zeros(len(x), self.heads, 0, self.head)
        )

    def parts(self, x: Features, conv: State) -> tuple[tuple[Tensor, ...], State]:
        """Queries, keys, values, the normals of the reflections and their strengths; what the convolution keeps."""
        w, conv = self.conv(self.up(self.low(x)), conv)
        w = normalize(split_heads(F.silu(w), self.heads))
        q, k, v = (split_heads(z(x), self.heads) for z in (self.q, self.k, self.v))
        return (q, k, v, w, 2 * split_heads(self.beta(x), self.heads).sigmoid()), conv
