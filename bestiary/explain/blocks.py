"""A model taken apart: an embedding, blocks that pass a stream on and keep a state, and a head."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, cast, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from bestiary.constructions._construction import Stack
from bestiary.constructions.softmax_attention import Attending
from bestiary.mixers._mixer import Features, Mixer, State
from bestiary.model import Layer, Model
from bestiary.tasks._task import Tokens

Block = Callable[[Features, State, Tokens], tuple[Features, State]]


class Blocks(NamedTuple):
    """The parts of a model, which together give what the model gives."""

    embed: Callable[[Tokens], Features]
    blocks: Sequence[Block]
    head: Callable[[Tensor], Tensor]
    mixers: Sequence[nn.Module]  # the mixer of each block
    streams: Callable[..., list[Features]] | None = None  # of a model whose blocks are not run by themselves

    def stream(self, tokens: Tokens) -> list[Features]:
        """What each block reads, and at the end what the head reads, at every position."""
        if self.streams is not None:
            return self.streams(tokens)
        found = [self.embed(tokens)]
        for block in self.blocks:
            found.append(block(found[-1], None, tokens)[0])
        return found

    def finish(self, x: Features, layer: int, tokens: Tokens) -> Features:
        """What the head reads if the blocks from `layer` on read x."""
        if self.streams is not None:
            return self.streams(tokens, layer, x)[-1]
        for block in self.blocks[layer:]:
            x, _ = block(x, None, tokens)
        return x

    def logits(self, tokens: Tokens) -> Float[Tensor, "batch time vocab"]:
        """The logits of whole sequences."""
        return self.head(self.stream(tokens)[-1])


@runtime_checkable
class TakesItselfApart(Protocol):
    """A model that knows its parts."""

    def as_blocks(self) -> Blocks:
        """The parts."""
        ...


def take_apart(model: nn.Module) -> Blocks:
    """The parts of a model that is trained here, or of a construction of layers. Raises ValueError for others."""
    if isinstance(model, Attending):
        return take_apart(model.model)
    if isinstance(model, TakesItselfApart):
        return model.as_blocks()
    if isinstance(model, Model):
        if model.decoder is not None:
            raise ValueError("a model that answers from its last position alone has no answer at each position")
        layers = [cast(Layer, layer) for layer in model.layers]

        def embed(tokens: Tokens) -> Features:
            return model.embed_tokens(tokens, 0)

        def head(x: Tensor) -> Tensor:
            return model.norm(x) @ model.embed.weight.T

        return Blocks(embed, layers, head, [layer.mixer for layer in layers])
    if isinstance(model, Stack) and model.stride == 1:
        parts = list(model.layers)
        return Blocks(lambda tokens: model.embed(tokens, 0), [block_of(part) for part in parts], model.head, parts)
    raise ValueError(f"{type(model).__name__} is no stack of layers that can be taken apart")


def block_of(part: nn.Module) -> Block:
    """A layer of a construction as a block; one that is no mixer looks at each position alone."""

    def block(x: Features, state: State, tokens: Tokens) -> tuple[Features, State]:
        del tokens
        return part(x, state) if isinstance(part, Mixer) else (part(x), None)

    return block
