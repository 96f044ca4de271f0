"""A mixer made of mixers, and how tokens are passed to those that read them."""

from typing import Any, ClassVar, cast

from torch import Tensor, nn

from bestiary.mixers._mixer import Features, Mixer
from bestiary.spec import Mixers
from bestiary.tasks._task import Tokens


class Composition(Mixer):
    """A mixer made of parts, whose state is that of every part; one that reads tokens makes the whole read them."""

    family: ClassVar = "composition"

    def __init__(self, dim: int, mixers: Mixers) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part.build(dim) for part in mixers)
        self.reads_tokens = any(part.reads_tokens for part in cast(list[Mixer], self.parts))

    def run_parts(
        self, x: Features, state: tuple[Any, ...] | None, tokens: Tokens | None
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """The outputs and the states of all parts, given the same input."""
        before = state or [None] * len(self.parts)
        both = (part(x, kept, **token_kwargs(part, tokens)) for part, kept in zip(self.parts, before, strict=True))
        outputs, after = zip(*both, strict=True)
        return outputs, after


def token_kwargs(mixer: nn.Module, tokens: Tokens | None) -> dict[str, Tokens]:
    """Keyword arguments of a mixer: the tokens, if there are any and it reads them."""
    return {"tokens": tokens} if tokens is not None and cast(Mixer, mixer).reads_tokens else {}
