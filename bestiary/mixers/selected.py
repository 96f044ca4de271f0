"""Input-dependent sparse attention (Zoology, Arora et al., 2023, section 5): only selected positions attend at all.

    y_i = f_i W_o sum_{j<=i} softmax_j(q_i . k_j / sqrt(key)) v_j,   f_i = 0 where nothing is looked up

select="learned": f_i = g_i where g_i > 1/2, else 0, g_i = sigmoid(w . x_i). With `open`, ours, f_i is 0 or 1, and a
share of the positions attends that falls to `share` as training goes on: see `Router`.
select="random":  f_i = 1 for a share of the positions, drawn from a seed and the position alone.
select="repeat":  f_i = 1 where the token at i occurred before ("programmatic" in the paper). A model says which tokens
its features stand for; where none does, features are compared bit by bit.
select="learned_repeat", ours: as "learned", among the positions whose token occurred before.
`most` is the paper's k, by another rule: only the first `most` positions that are selected so attend.
Queries, scores and outputs are computed at selected positions alone, so T positions cost O(T most), or O(share T^2).
Gradient of the router: with `most` that of f_i = g_i where i attends, and none elsewhere; without, that of f_i = g_i
everywhere, for which every position is computed where gradients are recorded. Without `most` every position is
computed under torch.func.vmap, too, whatever selects.
`penalty` adds penalty max(0, mean_i g_i - most / T) to the loss in training, so that the router becomes sparse (in the
paper's code 1e-3, with sqrt(T) for `most`, which holds here where there is none). Weights are drawn N(0, 0.02).
Departs from the paper: its router keeps the k best scores of a sequence, which looks ahead; a threshold and a count do
not, but a router that is not sparse spends them early. In training its code weighs every position by g; here what is
selected is always the same as outside training. No noise is added. Positions are rotary unless switched off, no biases.
"""

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from bestiary.mixers._mixer import Chosen, Features, State, Where, take
from bestiary.mixers._router import LEARNED, Router, check_selection
from bestiary.mixers._softmax import (
    MultiHeadAttention,
    Positions,
    find_repeats,
    fingerprints,
    hash_numbers,
    merge_heads,
    unless_last,
)
from bestiary.ops.attention import attend
from bestiary.ops.backend import shows_numbers
from bestiary.ops.growth import append
from bestiary.spec import Positive
from bestiary.tasks._task import Tokens


class Selected(MultiHeadAttention):
    """y_i = f_i sum_j softmax_j(q_i . k_j / sqrt(key)) v_j, where f_i selects the positions that attend."""

    family: ClassVar = "sparse"
    variants: ClassVar = (
        'select="random", heads=1, rotary=False, seed=3',
        'select="random", share=0.5, most=24',
        "share=0.5, open=2, ramp=2",
    )
    later_options: ClassVar = ("open", "ramp")
    reads_tokens = True

    class Marked(NamedTuple):
        """Keys and values of all positions so far, and what later selections need."""

        k: Float[Tensor, "batch heads past key"]
        v: Float[Tensor, "batch heads past key"]
        marks: Shaped[Tensor, "batch past marks"]  # what later selections need: tokens, or whether the router said yes

    def __init__(
        self,
        dim: int,
        *,
        select: Literal["learned", "random", "repeat", "learned_repeat"] = "learned",
        heads: Positive = 2,
        share: float = 0.25,
        seed: int = 0,
        rotary: bool = True,
        most: Positive | None = None,
        penalty: float = 0.0,
        open: int = 0,
        ramp: Positive = 400,
    ) -> None:
        super().__init__(dim, heads, rotary=rotary)
        check_selection(select, share=share, most=most, penalty=penalty, open=open, seed=seed, ramp=ramp)
        self.select, self.share, self.seed, self.most = select, share, seed, most
        how: Any = {"share": share, "most": most, "penalty": penalty, "open": open, "ramp": ramp}
        self.router = Router(dim, **how) if select in LEARNED else None

    def forward(self, x: Features, state: State = None, *, tokens: Tokens | None = None) -> tuple[Features, State]:
        kept = self.update_cache(x, state, tokens)
        end = kept.k.shape[2]
        return self.attend(x, torch.arange(end - x.shape[1], end, device=x.device), kept), kept

    def parallel(self, x: Features, where: Where | None = None, *, tokens: Tokens | None = None) -> Chosen:
        if where is not None and self.most is not None and where.shape[1] > self.most:
            return take(self.parallel(x, tokens=tokens), where)
        places, kept = torch.arange(x.shape[1], device=x.device), self.update_cache(x, None, tokens)
        y = self.attend(take(x, where), places if where is None else where, kept)
        if self.router is None or not self.training:
            return y
        return self.router.after_training_pass(y, x, self.candidates(x, places, kept))

    def update_cache(self, x: Features, state: State, tokens: Tokens | None = None) -> Any:
        mark = self.selection_marks(x, tokens)
        k, v = super().update_cache(x, state and self.Memory(state.k, state.v))
        return self.Marked(k, v, append(state.marks, mark) if state else mark)

    def selection_marks(self, x: Features, tokens: Tokens | None) -> Shaped[Tensor, "batch time marks"]:
        """What selections of later positions need to know of these."""
        if self.select in ("repeat", "learned_repeat"):
            return (fingerprints(x) if tokens is None else tokens).unsqueeze(-1)
        return self.router(x) > 0 if self.router is not None and self.most is not None else x.new_zeros(*x.shape[:2], 0)

    def attend(self, x: Chosen, where: Positions, kept: Any) -> Chosen:
        on = self.attends(x, where, kept)
        may = on if self.router is None else self.candidates(x, where, kept)
        count = self.computed_count(on)
        if count == x.shape[1]:
            return self.gate_factor(x, on, may) * self.attention_output(x, where, kept)
        few = on.to(x.dtype).topk(count, dim=1).indices  # those that attend, and in some rows others
        places = where[few] if where.ndim == 1 else where.gather(1, few)
        factor = self.gate_factor(take(x, few), on.gather(1, few), may.gather(1, few))
        y = factor * self.attention_output(take(x, few), places, kept)
        return y.new_zeros(x.shape).scatter(1, few.unsqueeze(-1).expand(y.shape), y)

    def attention_output(self, x: Chosen, where: Positions, kept: Any) -> Chosen:
        """The output at the positions `where` if they attend."""
        return self.out(merge_heads(attend(self.queries(x, where), kept.k, kept.v, unless_last(where))))

    def attends(self, x: Chosen, where: Positions, kept: Any) -> Bool[Tensor, "batch asked"]:
        """Whether the positions `where` attend."""
        may = self.candidates(x, where, kept)
        return may if self.router is None or self.most is not None else may & self.router.selects(x)

    def candidates(self, x: Chosen, where: Positions, kept: Any) -> Bool[Tensor, "batch asked"]:
        """Whether the positions `where` may attend: all those among which a router selects by itself."""
        if self.most is None and self.select == "learned":
            return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if self.select == "random":
            at = where if self.most is None else torch.arange(kept.k.shape[2], device=x.device)
            on = (hash_numbers(self.seed, at) < self.share * 2**32).expand(len(x), -1)
            if self.most is None:
                return on
        else:
            mark = kept.marks.squeeze(-1)
            if self.most is None and x.shape[1] == where.ndim == 1:  # the newest token
                return (mark[:, :-1] == mark[:, -1:]).any(1, keepdim=True)
            on = mark if self.select == "learned" else find_repeats(mark)
        on = on if self.most is None else on & (on.cumsum(1) <= self.most)
        return on[:, where] if where.ndim == 1 else on.gather(1, where)

    def computed_count(self, on: Bool[Tensor, "batch asked"]) -> int:
        """For how many of the asked positions of each row an output is computed: at least those that attend."""
        asked = on.shape[1]
        if self.router is not None and self.most is None and torch.is_grad_enabled():
            return asked
        if not shows_numbers(on):
            return asked if self.most is None else min(self.most, asked)
        return int(on.sum(1).max()) if on.numel() else asked

    def gate_factor(self, x: Chosen, on: Tensor, may: Tensor) -> Float[Tensor, "batch asked 1"]:
        """f of the inputs x, of which those `on` attend, and all that `may` teach the router."""
        return on.unsqueeze(-1).to(x.dtype) if self.router is None else self.router.factor(x, on, may)
