"""A mixer of one's own with a matrix for a memory: linear attention that forgets, at a rate that the input sets."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers import FastWeight, Features, ShortConv, State, normalize
from bestiary.ops.drive import Drive
from bestiary.spec import Positive


class Fading(FastWeight):
    """S_t = a_t S_{t-1} + k_t v_t^T,  y_t = W_o S_t^T q_t,  with one a_t in (0, 1) per head."""

    variants = ("heads=1, taps=2",)

    def __init__(self, dim: int, *, heads: Positive = 2, taps: Positive = 4) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide a width of {dim}")
        self.shape = (heads, dim // heads, dim // heads)  # heads, key, value
        self.conv = ShortConv(dim, taps)
        self.project, self.gate = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, heads)
        self.out = nn.Linear(dim, dim, bias=False)

    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        x, local = self.conv(x, local)
        q, k, v = self.project(x).unflatten(-1, (3 * self.shape[0], -1)).chunk(3, dim=2)
        decay = F.logsigmoid(self.gate(x) + 3).unsqueeze(-1)  # begins near 0.95 a token
        return Drive(normalize(q), normalize(k), v, decay), local

    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        return self.out(y.flatten(2))
