"""What RWKV-5 and RWKV-6 share: all but how each token is mixed with the one before, and the decay."""

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._mixer import Chosen, Features, Mixer, Where, head_width, take
from bestiary.mixers._norm import check_normed
from bestiary.ops.drive import Drive, Key, Matrix, Value
from bestiary.ops.recurrence import read, run

Parts = Float[Tensor, "parts batch time dim"]


class TimeMix(Mixer):
    """y_t = W_o (norm(r_t^T (S_{t-1} + (u * k_t) v_t^T)) * SiLU(gate)),   S_t = Diag(w_t) S_{t-1} + k_t v_t^T.

    Initial values are those of the authors' code for layer `layer` of `layers`.
    """

    family: ClassVar = "gated linear"

    class Memory(NamedTuple):
        """The last input, and S."""

        last: Float[Tensor, "batch dim"]  # the previous input, for the token shift
        matrix: Matrix

    def __init__(self, dim: int, heads: int | None, layer: int, layers: int) -> None:
        super().__init__()
        if not 0 <= layer < layers:
            raise ValueError(f"layer={layer}: there are layers 0 to {layers - 1}")
        self.heads = max(1, dim // 64) if heads is None else heads
        check_normed(head_width(dim, self.heads), f"heads={self.heads}")
        depth, place = layer / max(1, layers - 1), torch.arange(dim) / max(1, dim - 1)
        self.decay = nn.Parameter(-6 + 5 * place ** (0.7 + 1.3 * depth))
        self.bonus = nn.Parameter(depth * (1 - place) + 0.1 * ((torch.arange(dim) + 1) % 3 - 1))
        self.r, self.k, self.v, self.gate, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(5))
        for part, gain in ((self.r, 1.0), (self.k, 0.1), (self.v, 1.0), (self.gate, 0.1)):
            nn.init.orthogonal_(part.weight, gain=gain)
        nn.init.zeros_(self.out.weight)
        self.scale = nn.Parameter(torch.full((dim,), ((1 + layer) / layers) ** 0.7))
        self.shift = nn.Parameter(torch.zeros(dim))

    @abstractmethod
    def mix_previous(self, x: Features, before: Features) -> tuple[Parts, Features]:
        """What r, k, v and the gate are computed from, and the logarithm of the rate of decay."""

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        last, matrix = self.initial_state(x) if state is None else state
        y, gate, matrix = self.average(x, last, matrix)
        return self.read(y, gate), self.Memory(x[:, -1], matrix)

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        y, gate, _ = self.average(x, *self.initial_state(x))
        return self.read(take(y, where), take(gate, where))

    def initial_state(self, x: Features) -> Memory:
        width = x.shape[-1] // self.heads
        return self.Memory(torch.zeros_like(x[:, 0]), x.new_zeros(len(x), self.heads, width, width))

    def average(self, x: Features, last: Float[Tensor, "batch dim"], matrix: Matrix) -> tuple[Value, Features, Matrix]:
        """What is read, the input of the gate, and the memory after the last input."""
        (r, k, v, gate), rate = self.mix_previous(x, torch.cat([last.unsqueeze(1), x[:, :-1]], dim=1))
        r, k, v, g = (z.unflatten(-1, (self.heads, -1)) for z in (self.r(r), self.k(k), self.v(v), -rate.exp()))
        y, matrix = wkv(r, k, v, g, self.bonus.unflatten(0, (self.heads, -1)), matrix)
        return y, gate, matrix

    def read(self, y: Float[Tensor, "batch _ heads value"], gate: Chosen) -> Chosen:
        y = F.layer_norm(y, y.shape[-1:], eps=64e-5).flatten(2) * self.scale + self.shift
        return self.out(y * F.silu(self.gate(gate)))


def wkv(r: Key, k: Key, v: Value, g: Key, bonus: Float[Tensor, "heads key"], state: Matrix) -> tuple[Value, Matrix]:
    """Read each state before the token enters, and the token by itself; r_{t+1} reads what the engine has after t."""
    ahead = torch.cat([r[:, 1:], torch.zeros_like(r[:, :1])], dim=1)
    after, last = run(Drive(ahead, k, v, g), state)
    before = torch.cat([read(r[:, 0].to(state.dtype), state).unsqueeze(1).to(r.dtype), after[:, :-1]], dim=1)
    return before + (r * bonus * k).sum(-1, keepdim=True) * v, last
