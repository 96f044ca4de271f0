"""Mixers one after another within a layer, such as a short convolution before anything (Allen-Zhu, 2025, Canon).

    y = m_n(... m_2(m_1(x)))

`serial("short_conv, based")` gives a mixer a short convolution. Weights are those that each mixer draws.
Departs from the source: no residual, norm or gate around the parts; a part that wants one brings it.
"""

from typing import Any, ClassVar, cast

from bestiary.mixers._composition import Composition, token_kwargs
from bestiary.mixers._mixer import Chosen, Features, Mixer, Where
from bestiary.spec import Mixers
from bestiary.tasks._task import Tokens


class Serial(Composition):
    """y = m_n(... m_2(m_1(x))); the state is that of every part."""

    variants: ClassVar = ("mixers='attention(window=5), long_conv'",)

    def __init__(self, dim: int, *, mixers: Mixers = "short_conv, based") -> None:  # pyright: ignore[reportArgumentType]
        super().__init__(dim, mixers)

    def forward(
        self, x: Features, state: tuple[Any, ...] | None = None, *, tokens: Tokens | None = None
    ) -> tuple[Features, tuple[Any, ...]]:
        after = []
        for part, before in zip(self.parts, state or [None] * len(self.parts), strict=True):
            x, kept = part(x, before, **token_kwargs(part, tokens))
            after.append(kept)
        return x, tuple(after)

    def parallel(self, x: Features, where: Where | None = None, *, tokens: Tokens | None = None) -> Chosen:
        *first, last = cast(list[Mixer], list(self.parts))
        for part in first:
            x = part.parallel(x, **token_kwargs(part, tokens))
        return last.parallel(x, where, **token_kwargs(last, tokens))
