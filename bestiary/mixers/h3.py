"""H3, "hungry hungry hippos" (Fu, Dao et al., 2023): two state-space models with products between them.

    q, k, v = W x,    k = shift(k) + D_k * k,    per head S = diagonal(k v^T) + D * k v^T,    y = W_o (q S)

`shift` remembers the last `state` keys and learns one weight for each; `diagonal` is S4D, n = state / 2 complex
modes h_t = a h_{t-1} + b u_t read as 2 Re(c h_t), a and b from A, B and a step size by the bilinear rule.
A_n = -1/2 + i pi n ("diag-lin"), B = 1, C complex N(0, 1), step sizes log-uniform in (0.001, 0.1), shift weights as
a Conv1d, D and D_k N(0, 1), all as in the authors' code. Linear maps, by `init`:

    "paper"      PyTorch's draw, as in the authors' code
    "zoology23"  N(0, 0.02), W_o too, biases zero; the shift's input vector b is trained from e_1, so that tap t is
                 sum_n b_n c_{n+t}: the code that made Figure 2 of Zoology (HazyResearch/zoology, 174d6cc,
                 12 November 2023)

Departs from the authors' code: by default the shift's input vector is e_1, as in the paper, and not trained; S4D's
parameters have no learning rate of their own; W_o reads channels head by head, where the code has all heads' first
channels before their second.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.mixers._diagonal import Diagonal, Inputs, Modes
from bestiary.mixers._mixer import Chosen, Features, Mixer, Past, ShortConv, Where, head_width, take
from bestiary.mixers._start import draw_normal
from bestiary.ops import convolution
from bestiary.spec import Positive


class H3(Mixer):
    """y = W_o (q (S4D(shift(k) v^T)))."""

    family: ClassVar = "state space"
    variants: ClassVar = ("state=8, head=2", "state=8, init='zoology23'")
    later_options: ClassVar = ("init",)

    class Memory(NamedTuple):
        """The last keys, and the modes of the state-space model."""

        keys: Float[Tensor, "batch past dim"]
        modes: Modes

    def __init__(
        self,
        dim: int,
        *,
        state: Positive = 64,
        head: Positive = 1,
        init: Literal["paper", "zoology23"] = "paper",
    ) -> None:
        super().__init__()
        if state % 2:
            raise ValueError(f"h3(state={state}): modes come in conjugate pairs, so the state must be even")
        self.head = head
        heads = head_width(dim, head)
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))
        shift = _TrainedShift if init == "zoology23" else ShortConv
        self.shift, self.shift_skip = shift(dim, state), nn.Parameter(torch.randn(dim))
        self.diagonal, self.skip = Diagonal(heads, state // 2), nn.Parameter(torch.randn(heads))
        if init == "zoology23":
            draw_normal(self)

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        keys, modes = (None, None) if state is None else state
        products, keys = self.products(x, keys)
        y = self.diagonal(products, modes) + self.skip.unsqueeze(-1) * products
        return self.read(y, x), self.Memory(keys, self.diagonal.final_modes(products, modes))

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        products, _ = self.products(x, None)
        y = take(self.diagonal(products, None) + self.skip.unsqueeze(-1) * products, where)
        return self.read(y, take(x, where))

    def products(self, x: Features, keys: Past | None) -> tuple[Inputs, Past]:
        """k v^T at each position, one matrix per head, and the keys that the shift still needs."""
        k = self.k(x)
        shifted, kept = self.shift(k, keys)
        k, v = ((z.unflatten(-1, (-1, self.head))) for z in (shifted + self.shift_skip * k, self.v(x)))
        return (k.unsqueeze(-1) * v.unsqueeze(-2)).flatten(-2), kept

    def read(self, y: Inputs, x: Features) -> Features:
        """Each head's matrix read by its query."""
        q = self.q(x).unflatten(-1, (-1, 1, self.head))
        return self.out((q @ y.unflatten(-1, (self.head, self.head))).flatten(2))


class _TrainedShift(ShortConv):
    """The shift register with a trained input vector b, e_1 at first: tap t is sum_n b_n c_{n+t}."""

    without_decay: ClassVar = ("b",)

    def __init__(self, dim: int, taps: int) -> None:
        super().__init__(dim, taps)
        self.b = nn.Parameter(torch.eye(taps, 1).repeat(1, dim))

    def forward(self, x: Features, past: Past | None) -> tuple[Features, Past]:
        taps = convolution.long(self.filter.flip(0).unsqueeze(0), self.b).squeeze(0).flip(0)
        return convolution.short(x, taps, past), convolution.recent_inputs(x, past, len(taps))
