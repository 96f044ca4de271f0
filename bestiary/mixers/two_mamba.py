"""2Mamba (Mongaras & Larson, 2026, "2Mamba2Furious"): Mamba-2 reduced to its decay, with scores squared.

    y_t = sum_{s<=t} w_ts v_s / sum_{s<=t} w_ts,   w_ts = e^{g_{s+1} + ... + g_t} (q_t . k_s)^2 / key,   output = W_o y
    q, k, v = short convolution(W x),   g_t = -softplus(W_g x_t), one for each head

The square is a product of features: (q . k)^2 = phi(q) . phi(k), where phi(x) holds every product of two channels
once, so that the state has key (key + 1) / 2 by value + 1 numbers for each head, the last column being the sum of
weights. Within a chunk scores are squared as they are, which is exact where they are small; phi reads and writes what
goes from chunk to chunk.
No positions, no gate, no norm, no activation. Heads have 64 channels in the authors' models. Initialisation
as in the authors' code (7ad98b5): maps N(0, 0.02), the convolution PyTorch's, of two taps and with a bias.
Equal to that code without its kernels to 9e-6 in float32, once it adds 1e-6 to the sum of weights too.

Departs from the paper: that 1e-6; the authors divide by the bare sum, and give a sum of 0 another meaning. It counts
where no key is near the query: in one comparison the first of 60 positions differed by 2e-3, the rest by up to 4e-4.
Its variant with the exponential of scores, which has no state of fixed size, is not built.
"""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bestiary.mixers._delta import softplus
from bestiary.mixers._mixer import Chosen, Features, Mixer, Past, ShortConv, Where, head_width, linear, take
from bestiary.ops.drive import Matrix, Value
from bestiary.ops.precision import no_autocast, upcast
from bestiary.ops.recurrence import chunk_states, read_decayed, split_chunks, sum_writes
from bestiary.spec import Positive

CHUNK = 64


class TwoMamba(Mixer):
    """S_t = e^g_t S_{t-1} + phi(k_t) [v_t, 1]^T with phi(q) . phi(k) = (q . k)^2, divided by its last column."""

    family: ClassVar = "gated linear"
    variants: ClassVar = ("heads=8, conv=1",)

    class Memory(NamedTuple):
        """The last inputs of the convolution, and S."""

        conv: Past
        matrix: Matrix

    pairs: Tensor  # which channels each feature multiplies

    def __init__(self, dim: int, *, heads: Positive = 4, conv: Positive = 2) -> None:
        super().__init__()
        width = head_width(dim, heads)
        self.shape = heads, width * (width + 1) // 2, width + 1
        self.qkv, self.conv = linear(dim, 3 * dim), ShortConv(3 * dim, conv, bias=True)
        self.decay, self.out = linear(dim, heads), linear(dim, dim)
        self.register_buffer("pairs", torch.triu_indices(width, width), persistent=False)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        conv, matrix = (None, upcast(x.new_zeros(len(x), *self.shape))) if state is None else state
        parts, conv = self.parts(x, conv)
        with no_autocast(x):
            y, matrix = self.recur(parts, matrix)
        return self.read(y[:, : x.shape[1]]), self.Memory(conv, matrix)

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        parts, _ = self.parts(x, None)
        with no_autocast(x):
            if x.shape[1] <= CHUNK:
                y = within(*parts).squeeze(2).transpose(1, 2)
            else:
                y, _ = self.recur(parts, upcast(x.new_zeros(len(x), *self.shape)))
        return self.read(take(y[:, : x.shape[1]], where))

    def parts(self, x: Features, conv: Past | None) -> tuple[list[Tensor], Past]:
        """q / sqrt(key), k, [v, 1] and the sums of g, in chunks, and what the convolution needs."""
        mixed, kept = self.conv(self.qkv(x), conv)
        q, k, v = (z.unflatten(-1, (self.shape[0], -1)) for z in mixed.chunk(3, dim=-1))
        given = q * q.shape[-1] ** -0.5, k, F.pad(v, (0, 1), value=1.0), -softplus(self.decay(x)).unsqueeze(-1)
        size = 2 ** (min(CHUNK, x.shape[1]) - 1).bit_length()
        q, k, v, g = (split_chunks(upcast(z), size) for z in given)
        return [q, k, v, g.cumsum(-2)], kept

    def recur(self, parts: list[Tensor], state: Matrix) -> tuple[Value, Matrix]:
        """The sums of values and weights at every position of whole chunks, and the last S."""
        q, k, v, total = parts
        written = sum_writes(self.products(k), v, total)
        states, state = chunk_states(total[..., -1:, :].exp(), written, state)
        y = within(*parts) + read_decayed(self.products(q), states, total)
        return y.flatten(2, 3).transpose(1, 2), state

    def read(self, y: Float[Tensor, "batch _ heads value"]) -> Chosen:
        """The output from the sums of values and of weights."""
        return self.out((y[..., :-1] / (y[..., -1:] + 1e-6)).flatten(2).to(self.out.weight.dtype))

    def products(self, x: Tensor) -> Tensor:
        """phi(x): every product of two channels once, so that phi(q) . phi(k) is (q . k)^2."""
        first, second = self.pairs
        return x[..., first] * x[..., second] * torch.where(first == second, 1.0, 2.0).to(x.dtype).sqrt()


def within(q: Tensor, k: Tensor, v: Tensor, total: Tensor) -> Tensor:
    """sum_s e^{total_t - total_s} (q_t . k_s)^2 v_s over the positions of a chunk up to t."""
    past = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).tril()
    decay = (total - total.mT).masked_fill(~past, -torch.inf).exp()  # masked before exp, or gradients are NaN
    return ((q @ k.mT).square() * decay) @ v
