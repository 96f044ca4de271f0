"""Gated slot attention (Zhang et al., 2024): softmax attention over a few slots that tokens share and leave.

    K_t = K_{t-1} Diag(alpha_t) + k_t (1 - alpha_t)^T,   V_t = Diag(alpha_t) V_{t-1} + (1 - alpha_t) v_t^T
    y_t = W_o RMSNorm(SiLU(V_t^T softmax(K_t^T q_t))),   alpha_t = sigmoid(W_a x_t)^(1/8),  one per slot
    q, k, v = SiLU(W x);  the norm over all heads together

There are as many slots as a head has channels unless said otherwise. Linear maps, by `init`:

    "paper"  Xavier with gain 2^-2.5: flash-linear-attention, the authors' library, from 7178623, 31 May 2024, to
             4 March 2025
    "fla"    N(0, 0.02): the same library since dc861e3, 24 June 2025; from 4 March (d30c083) W_o was PyTorch's draw
             over sqrt(2 layers)

Departs from the paper: nothing known; the SiLU before the norm is in the authors' code alone.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, Mixer, Where, head_width, take
from bestiary.mixers._norm import RMSNorm
from bestiary.mixers._start import FLA, XAVIER
from bestiary.ops.drive import Drive, Key, Matrix, Value
from bestiary.ops.precision import upcast, without_autocast
from bestiary.ops.recurrence import chunk_states, decayed_sum, run, split_chunks
from bestiary.spec import Positive

Slots = Float[Tensor, "batch time heads slots"]

STARTS = {"paper": XAVIER, "fla": FLA}


class GSA(Mixer):
    """Slots hold decaying sums of keys and of values; a query reads the values of the slots whose keys it meets."""

    family: ClassVar = "gated linear"
    variants: ClassVar = ("heads=4, slots=5, init='fla'",)

    class Memory(NamedTuple):
        """Keys and values of the slots."""

        keys: Float[Tensor, "batch heads key slots"]
        values: Float[Tensor, "batch heads slots value"]

    def __init__(
        self,
        dim: int,
        *,
        heads: Positive = 2,
        slots: Positive | None = None,
        init: Literal["paper", "fla"] = "paper",
    ) -> None:
        super().__init__()
        width, start = head_width(dim, heads), STARTS[init]
        self.heads, self.slots = heads, width if slots is None else slots
        self.q, self.k, self.v, self.out = (start.linear(dim, dim) for _ in range(4))
        self.forget, self.norm = start.linear(dim, heads * self.slots), RMSNorm(dim, eps=1e-5)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        y, state = self.recall(x, self.initial_state(x) if state is None else state)
        return self.read(y), state

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.read(take(self.recall(x, self.initial_state(x))[0], where))

    def initial_state(self, x: Features) -> Memory:
        """The state before the first token."""
        width = x.shape[-1] // self.heads
        shapes = (width, self.slots), (self.slots, width)
        return self.Memory(*(x.new_zeros(len(x), self.heads, *shape) for shape in shapes))

    def recall(self, x: Features, state: Memory) -> tuple[Value, Memory]:
        """What every query reads, and the slots after the last input."""
        q, k, v = (F.silu(project(x)).unflatten(-1, (self.heads, -1)) for project in (self.q, self.k, self.v))
        g = F.logsigmoid(self.forget(x).unflatten(-1, (self.heads, -1))) / 8
        write = -torch.expm1(g)
        scores, keys = slot_scores(q, k, write, g, state.keys)
        y, values = run(Drive(scores.softmax(-1), write, v, g), state.values)
        return y, self.Memory(keys, values)

    def read(self, y: Float[Tensor, "batch _ heads value"]) -> Chosen:
        """The output from what was read out of memory."""
        return self.out(self.norm(F.silu(y.flatten(2))))


@without_autocast
def slot_scores(q: Key, k: Key, s: Slots, g: Slots, state: Matrix, *, chunk: int = 64) -> tuple[Slots, Matrix]:
    """y_t = S_t^T q_t where S_t = S_{t-1} Diag(e^g_t) + k_t s_t^T: the engine's recurrence with a decay per value.

    Half precision is computed in float32, in which the state stays; y has the type of q.
    """
    time, given = q.shape[1], q.dtype
    q, k, s, g, state = (upcast(z) for z in (q, k, s, g, state))
    q, k, s, g = (split_chunks(z, 2 ** (min(chunk, time) - 1).bit_length()) for z in (q, k, s, g))
    total = g.cumsum(-2)
    end = total[..., -1:, :]
    states, state = chunk_states(end.exp(), k.mT @ (s * (end - total).exp()), state)
    y = decayed_sum(q @ k.mT, s, total) + (q @ states) * total.exp()
    return y.flatten(2, 3)[:, :, :time].transpose(1, 2).to(given), state
