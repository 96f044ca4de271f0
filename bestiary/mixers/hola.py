"""HOLA, hippocampal linear attention (Cui, 2026): gated DeltaNet, and a cache of the tokens that surprised it most.

    S_t = alpha_t S_{t-1} + beta_t k_t e_t^T,   e_t = v_t - alpha_t S_{t-1}^T k_t
    V_t = the `cache` tokens before the block of t with the largest beta |e|, and the block's own tokens up to t
    c_t = sum_{j in V_t} p_j v_j,   p = softmax(sink, RMSNorm(q_t) . RMSNorm(k_j) / sqrt(width)),  the sink's value zero
    y_t = S_t^T q_t + sigmoid(lambda) c_t,   output = W_o (RMSNorm(y) * SiLU(W_g x))

beta |e| is the size of what a token writes into S (section 3.3): a token is kept exactly if S could not foretell it.
Each head keeps its own. Blocks of `chunk` tokens are bounded by absolute positions. The norms of the cache, with their
weights, are apart from the unit q and k that S is given (section 3.4). One sink and one lambda per head; lambda starts
at -4 (appendix A). All else is as in gated DeltaNet, with keys and values as wide as a head (section 4.1).
Choosing passes no gradient; sizes stand in the state as the integers of their bits, which are ordered as they are.
Initialisation by `init`, as in our gated DeltaNet: "fla" N(0, 0.02), "short" N(0, 1 / sqrt(inputs)) and slow decay.
Departs from the paper: `cache` and `chunk` are 32 and 16 instead of 64 and 256, for shorter sequences. The paper says
neither that each head keeps its own tokens nor how the sink enters; that sink starts at 0, that the sum of both reads
is what is normalised and gated, and the initialisation of linear maps are ours too.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bestiary.mixers._delta import Decay, GatedOutput, Heads, Streams, unit_queries
from bestiary.mixers._mixer import Chosen, Features, Mixer, State, Where, head_width, take
from bestiary.mixers._norm import RMSNorm
from bestiary.mixers._start import FLA, SHORT
from bestiary.mixers._test_time import repeat_length, split_aligned
from bestiary.ops.drive import Drive, Key, Matrix
from bestiary.ops.norm import normalize
from bestiary.ops.precision import no_autocast, upcast
from bestiary.ops.recurrence import run
from bestiary.spec import Positive

STARTS = {"fla": FLA, "short": SHORT}


class Tokens(NamedTuple):
    """Tokens that are kept exactly, by heads."""

    k: Float[Tensor, "batch heads kept width"]
    v: Float[Tensor, "batch heads kept width"]
    size: Int[Tensor, "batch heads kept 1"]  # the bits of beta |e|


class HOLA(Mixer):
    """y_t = S_t^T q_t + sigmoid(lambda) attention to tokens with the largest beta |e|, S by the gated delta rule."""

    family: ClassVar = "delta"
    variants: ClassVar = ("heads=1, conv=1, cache=5, chunk=3, init='short'",)

    class Memory(NamedTuple):
        """The state after the inputs read so far."""

        local: State  # of the convolution
        matrix: Matrix  # S
        cache: Tokens
        block: Tokens  # of the block under way

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        conv: Positive = 4,
        cache: Positive = 32,
        chunk: Positive = 16,
        init: Literal["fla", "short"] = "fla",
    ) -> None:
        super().__init__()
        width, start = head_width(dim, heads), STARTS[init]
        self.shape, self.conv, self.most, self.chunk = (heads, width, width), conv, cache, chunk
        self.streams = Streams(dim, heads, (width, width, width), conv, start)
        self.beta, self.decay = start.linear(dim, heads), Decay(heads, 1, start.linear(dim, heads), start)
        self.norm_q, self.norm_k = RMSNorm(width, eps=1e-6), RMSNorm(width, eps=1e-6)
        self.sink, self.mix = nn.Parameter(torch.zeros(heads)), nn.Parameter(torch.full((heads,), -4.0))
        self.answer = GatedOutput(dim, heads, width, start.linear(dim, dim), "silu", start)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        y, after = self.recall(x, self.initial_state(x) if state is None else state)
        return self.answer(y, x), after

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.answer(take(self.recall(x, self.initial_state(x))[0], where), take(x, where))

    def kept(self, time: int) -> int:
        """How many tokens are in the cache and the block after `time`."""
        return min(self.most, time - time % self.chunk) + time % self.chunk

    def largest_state(self, time: int) -> int:
        return max(time, max(1, time - time % self.chunk - 1), key=self.kept)  # or before the last block ended

    def equal_state(self, time: int) -> int:
        full = -(-self.most // self.chunk) * self.chunk
        return repeat_length(time, settled=max(self.conv, full), period=self.chunk)

    def initial_state(self, x: Features) -> Memory:
        """The state before the first token."""
        heads, _, width = self.shape
        empty = x.new_zeros(len(x), heads, 0, width)
        tokens = Tokens(empty, empty, size_bits(empty))
        return self.Memory(None, x.new_zeros(len(x), *self.shape), tokens, tokens)

    def recall(self, x: Features, state: Memory) -> tuple[Heads, Memory]:
        """What is read of S and of the tokens kept, and the state after the last input."""
        (q, k, v), local = self.streams(x, state.local)
        unit_k, beta, g = normalize(k), self.beta(x).sigmoid().unsqueeze(-1), self.decay(x)
        reads = g.exp() * unit_k
        drive = Drive(unit_queries(q), unit_k, beta * v, g, rewrite=(-beta, reads))
        y, matrix = run(drive, state.matrix)
        size = size_bits(beta * (v - read_before(drive.map(torch.detach), reads.detach(), state.matrix.detach())))
        streams = [z.transpose(1, 2) for z in (self.norm_q(q), self.norm_k(k), v, size)]
        cache, block, parts = state.cache, state.block, []
        for now, *tokens in split_aligned(streams, self.chunk, block.k.shape[2]):
            block = Tokens(*(torch.cat(z, dim=2) for z in zip(block, tokens, strict=True)))
            parts.append(self.attend(now, cache, block))
            if block.k.shape[2] == self.chunk:
                cache, block = self.keep_largest(cache, block), Tokens(*(z[:, :, :0] for z in block))
        read = torch.cat(parts, dim=2).transpose(1, 2)
        return y + self.mix.sigmoid().unsqueeze(-1) * read, self.Memory(local, matrix, cache, block)

    def attend(self, q: Tensor, cache: Tokens, block: Tokens) -> Float[Tensor, "batch heads time width"]:
        """What the last queries of a block read of the cache, of the block up to each of them, and of the sink."""
        k, v = (torch.cat(z, dim=2) for z in zip(cache[:2], block[:2], strict=True))
        logits = (q * q.shape[-1] ** -0.5) @ k.mT
        later = torch.ones(logits.shape[2:], dtype=torch.bool, device=q.device).triu(k.shape[2] - q.shape[2] + 1)
        sink = self.sink[:, None, None].expand(*logits.shape[:3], 1)
        logits = torch.cat([sink, logits.masked_fill(later, -torch.inf)], dim=-1)
        return upcast(logits).softmax(-1)[..., 1:].to(v.dtype) @ v

    def keep_largest(self, cache: Tokens, block: Tokens) -> Tokens:
        """The tokens of both that stay in the cache."""
        both = Tokens(*(torch.cat(z, dim=2) for z in zip(cache, block, strict=True)))
        if both.k.shape[2] <= self.most:
            return both
        places = both.size.topk(self.most, dim=2).indices
        return Tokens(*(z.gather(2, places.expand(-1, -1, -1, z.shape[-1])) for z in both))


def read_before(drive: Drive, reads: Key, matrix: Matrix) -> Heads:
    """What `reads` read of the memory before each token, from a second pass in which the next token's ones ask."""
    with no_autocast(reads):  # as precise as those that follow, or what is kept depends on where a sequence is cut
        first = torch.einsum("bthk,bhkv->bthv", upcast(reads[:, :1]), upcast(matrix)).to(reads.dtype)
    rest, _ = run(drive._replace(q=reads.roll(-1, dims=1)), matrix)
    return torch.cat([first, rest[:, :-1]], dim=1)


def size_bits(x: Tensor) -> Int[Tensor, "*rows 1"]:
    """The length of vectors as the integers of their bits, which keep the order of numbers that are not negative."""
    length = torch.linalg.vector_norm(upcast(x.detach()), dim=-1, keepdim=True)
    return length.view(torch.int64 if length.dtype == torch.float64 else torch.int32)
