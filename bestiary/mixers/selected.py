"""Input-dependent sparse attention (Zoology, Arora et al., 2023, section 5): only selected positions attend at all.

    y_i = f_i W_o sum_{j<=i} softmax_j(q_i . k_j / sqrt(key)) v_j,   f_i = 0 where nothing is looked up

select="learned": f_i = g_i where g_i > 1/2, else 0, g_i = sigmoid(w . x_i); the gradient is that of f_i = g_i.
select="random":  f_i = 1 for a share of the positions, drawn from a seed and the position alone.
select="repeat":  f_i = 1 where x_i equals an earlier x_j, bit by bit. It keeps the inputs, from which it makes keys and
values again, and nothing else. Weights are drawn N(0, 0.02).
Departs from the paper: its router keeps the k best scores of a sequence, which looks ahead; a threshold does not. In
training its code weighs every position, here the same are selected always. No loss keeps the router sparse. "Repeat"
(programmatic there) compares token identities in the paper; a mixer has features, equal for equal tokens in a first
layer without learned positions. Positions are rotary unless switched off, no biases.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from bestiary.mixers._mixer import Chosen, Features, State, linear
from bestiary.mixers._softmax import Heads, Places, drawn, joined, merged, past
from bestiary.ops.attention import masked
from bestiary.spec import Positive


class Selected(Heads):
    """y_i = f_i sum_j softmax_j(q_i . k_j / sqrt(key)) v_j, where f_i selects the positions that attend."""

    family: ClassVar = "sparse"
    variants: ClassVar = ('select="random", heads=1, rotary=False, seed=3',)

    class Inputs(NamedTuple):
        x: Float[Tensor, "batch past dim"]

    def __init__(
        self,
        dim: int,
        *,
        select: Literal["learned", "random", "repeat"] = "learned",
        heads: Positive = 2,
        share: float = 0.25,
        seed: int = 0,
        rotary: bool = True,
    ) -> None:
        super().__init__(dim, heads, rotary=rotary)
        if not 0 < share <= 1:
            raise ValueError(f"a share of {share} is not above 0 and at most 1")
        self.select, self.share, self.seed = select, share, seed
        self.router = linear(dim, 1) if select == "learned" else None

    def keep(self, x: Features, state: State) -> Any:
        return joined(state, self.Inputs(x)) if self.select == "repeat" else super().keep(x, state)

    def answer(self, x: Chosen, where: Places, kept: Any) -> Chosen:
        k, v = super().keep(kept.x, None) if self.select == "repeat" else kept
        seen = past(where, k.shape[2])
        return self.factor(x, where, kept) * self.out(merged(masked(self.queries(x, where), k, v, seen)))

    def factor(self, x: Chosen, where: Places, kept: Any) -> Float[Tensor, "*batch asked 1"]:
        """f at the positions `where`."""
        if self.router is not None:
            gate = self.router(x).sigmoid()
            return torch.where(gate > 0.5, gate, gate - gate.detach())
        if self.select == "random":
            return (drawn(self.seed, where) < self.share * 2**32).to(x.dtype).unsqueeze(-1)
        return repeats(kept.x, x, where).to(x.dtype).unsqueeze(-1)


def repeats(
    x: Float[Tensor, "batch time dim"], now: Float[Tensor, "batch asked dim"], where: Places
) -> Bool[Tensor, "batch asked"]:
    """Whether each input `now`, at a position `where`, occurred before it among x."""
    same = prints(now).unsqueeze(-1) == prints(x).unsqueeze(-2)
    before = torch.arange(x.shape[1], device=x.device) < where.unsqueeze(-1)
    return (same & before).any(-1)


def prints(x: Float[Tensor, "batch time dim"]) -> Shaped[Tensor, "batch time"]:
    """A number for each vector, the same for the same bits; integers add up alike in any order."""
    bits = (x.detach() + 0.0).contiguous().view(torch.int16).long()
    return (bits * (2 * drawn(0, torch.arange(bits.shape[-1], device=x.device)) + 1)).sum(-1)
