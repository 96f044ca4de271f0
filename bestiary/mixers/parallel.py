"""Mixers side by side within a layer, such as attention beside a state-space model (Dong et al., 2024, Hymba).

    y = m_1(x) + ... + m_n(x)

Weights are those that each mixer draws.
Departs from the paper: a plain sum of the parts' outputs, each behind its own output map, where Hymba averages normed
heads with learned scales before one output map.
"""

from typing import Any, ClassVar, cast

from bestiary.mixers._composition import Composition, token_kwargs
from bestiary.mixers._mixer import Chosen, Features, Mixer, Where
from bestiary.spec import Mixers
from bestiary.tasks._task import Tokens


class Parallel(Composition):
    """y = m_1(x) + ... + m_n(x); the state is that of every part."""

    variants: ClassVar = ("mixers='attention(window=5), long_conv'",)

    def __init__(self, dim: int, *, mixers: Mixers = "attention(window=64), mamba") -> None:  # pyright: ignore[reportArgumentType]
        super().__init__(dim, mixers)

    def forward(
        self, x: Features, state: tuple[Any, ...] | None = None, *, tokens: Tokens | None = None
    ) -> tuple[Features, tuple[Any, ...]]:
        outputs, after = self.run_parts(x, state, tokens)
        return sum(outputs), after  # pyright: ignore[reportReturnType]

    def parallel(self, x: Features, where: Where | None = None, *, tokens: Tokens | None = None) -> Chosen:
        parts = cast(list[Mixer], self.parts)
        return sum(part.parallel(x, where, **token_kwargs(part, tokens)) for part in parts)  # pyright: ignore[reportReturnType]
