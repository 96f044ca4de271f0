"""Mixers side by side, weighed by the input, as a highway network weighs its paths (Srivastava et al., 2015).

    y_t = sum_i softmax_i(W x_t) m_i(x)_t        one weight for each mixer and position

W is drawn as PyTorch draws it; the mixers draw their own weights.
Departs from the paper: one weight for each mixer, where a highway has one for each channel, and any number of paths.
"""

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bestiary.mixers._composition import Composition, token_kwargs
from bestiary.mixers._mixer import Chosen, Features, Mixer, Where, take
from bestiary.spec import Mixers
from bestiary.tasks._task import Tokens


class GatedSum(Composition):
    """y_t = sum_i softmax_i(W x_t) m_i(x)_t; the state is that of every part."""

    variants: ClassVar = ("mixers='short_conv, long_conv, rwkv4'",)

    def __init__(self, dim: int, *, mixers: Mixers = "attention(window=64), mamba") -> None:  # pyright: ignore[reportArgumentType]
        super().__init__(dim, mixers)
        self.gate = nn.Linear(dim, len(self.parts))

    def forward(
        self, x: Features, state: tuple[Any, ...] | None = None, *, tokens: Tokens | None = None
    ) -> tuple[Features, tuple[Any, ...]]:
        outputs, after = self.run_parts(x, state, tokens)
        return self.weigh(x, outputs), after

    def parallel(self, x: Features, where: Where | None = None, *, tokens: Tokens | None = None) -> Chosen:
        parts = cast(list[Mixer], self.parts)
        return self.weigh(
            take(x, where), tuple(part.parallel(x, where, **token_kwargs(part, tokens)) for part in parts)
        )

    def weigh(self, x: Chosen, outputs: tuple[Tensor, ...]) -> Chosen:
        """The weighted sum of the outputs of all parts."""
        return (torch.stack(outputs, dim=-1) @ self.gate(x).softmax(-1).unsqueeze(-1)).squeeze(-1)
