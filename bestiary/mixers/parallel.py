"""Mixers side by side within a layer, such as attention beside a state-space model (Dong et al., 2024, Hymba).

    y = m_1(x) + ... + m_n(x)

Weights are those that each mixer draws.
Departs from the paper: a plain sum of the parts' outputs, each behind its own output map, where Hymba averages normed
heads with learned scales before one output map.
"""

from typing import Any, ClassVar, cast

from torch import nn

from bestiary.mixers._mixer import Chosen, Features, Mixer, Where
from bestiary.spec import Mixers


class Parallel(Mixer):
    """y = m_1(x) + ... + m_n(x); the state is that of every part."""

    family: ClassVar = "composition"
    variants: ClassVar = ("mixers='attention(window=5), long_conv'",)

    def __init__(self, dim: int, *, mixers: Mixers = "attention(window=64), mamba") -> None:  # pyright: ignore[reportArgumentType]
        super().__init__()
        self.parts = nn.ModuleList(part.build(dim) for part in mixers)

    def forward(self, x: Features, state: tuple[Any, ...] | None = None) -> tuple[Features, tuple[Any, ...]]:
        before = state or [None] * len(self.parts)
        outputs, after = zip(*(part(x, kept) for part, kept in zip(self.parts, before, strict=True)), strict=True)
        return sum(outputs), after  # pyright: ignore[reportReturnType]

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return sum(part.parallel(x, where) for part in cast(list[Mixer], self.parts))  # pyright: ignore[reportReturnType]
