"""What every construction is: weights that are written down, and a size that is counted."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bestiary.mixers._mixer import Mixer, State
from bestiary.model import measure_state
from bestiary.tasks._task import SILENT, Batch

TokenRows = Int[Tensor, "batch time"]
Stream = Float[Tensor, "batch rows dim"]


class Construction(nn.Module):
    """A model that nobody trained: `construction(tokens) -> (logits, state)`, under the law of the mixers.

    Those that need the whole sequence at once (`causal = False`) refuse a state and return None for one. One that
    reads triplets (`stride = 3`) takes key, value and query of each row as three tokens, and has one output for each
    row, the answer to its query.
    """

    causal: bool = True
    stride: int = 1

    @abstractmethod
    def hidden(self, tokens: TokenRows, state: State = None) -> tuple[Stream, State]:
        """What the head reads at every position, and the state after the last."""

    @abstractmethod
    def head(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocab"]:
        """Logits from what the last layer wrote."""

    def forward(self, tokens: TokenRows, state: State = None) -> tuple[Float[Tensor, "batch rows vocab"], State]:
        x, state = self.hidden(tokens, state)
        return self.head(x), state

    def answer(self, batch: Batch) -> tuple[Float[Tensor, "answers vocab"], Int[Tensor, " answers"]]:
        """Logits and targets where something is asked, row by row, as of `bestiary.Model`."""
        targets = batch.targets[:, self.stride - 1 :: self.stride]
        asked = targets != SILENT
        return self.head(self.hidden(batch.tokens)[0][asked]), targets[asked]


class Stack(Construction):
    """An embedding, layers one after another without norms or residuals, and a linear head.

    `embed(tokens, time)` embeds tokens of which the first stands at position `time`; `answers` (vocab, dim) are the
    vectors against which the head holds the output.
    """

    class State(NamedTuple):
        """How many rows were read, and the state of each layer."""

        time: int
        layers: tuple[State, ...]

    answers: Tensor

    def __init__(self, embed: nn.Module, layers: Sequence[nn.Module], answers: Float[Tensor, "vocab dim"]) -> None:
        super().__init__()
        self.embed, self.layers = embed, nn.ModuleList(layers)
        self.stride = 3 if isinstance(embed, Triplets) else 1
        self.register_buffer("answers", answers)

    def hidden(self, tokens: TokenRows, state: State | None = None) -> tuple[Stream, State]:
        time, past = (0, (None,) * len(self.layers)) if state is None else state
        x, after = self.embed(tokens, time), []
        for layer, before in zip(self.layers, past, strict=True):
            x, kept = layer(x, before) if isinstance(layer, Mixer) else (layer(x), None)
            after.append(kept)
        return x, self.State(time + x.shape[1], tuple(after))

    def head(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocab"]:
        return x @ self.answers.T


class Embedding(nn.Module):
    """One row of a table for each token."""

    table: Tensor

    def __init__(self, table: Float[Tensor, "vocab dim"]) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, tokens: Int[Tensor, "batch time"], time: int) -> Stream:
        del time
        return self.table[tokens]


class Triplets(nn.Module):
    """Each row the codes of its key, value and query side by side, and a one."""

    table: Tensor

    def __init__(self, table: Float[Tensor, "vocab width"]) -> None:
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, tokens: TokenRows, time: int) -> Stream:
        del time
        if tokens.shape[1] % 3:
            raise ValueError(f"{tokens.shape[1]} tokens are not triplets of key, value and query")
        codes = self.table[tokens].unflatten(1, (-1, 3)).flatten(2)
        return torch.cat([codes, torch.ones_like(codes[..., :1])], dim=-1)


class Size(NamedTuple):
    """What a construction costs, counted from the thing itself."""

    layers: int  # mixers that x passes
    width: int  # the widest input or output of one
    parameters: int  # weights of the layers that are not zero; embedding and head are left out
    state: int | None  # numbers kept of one sequence, None if it is needed as a whole


@torch.no_grad()
def measure_size(made: Construction, tokens: TokenRows) -> Size:
    """The size of a construction as it reads `tokens`, of which the first sequence is taken."""
    widths: list[int] = []

    def look(_: nn.Module, given: Any, result: Any) -> None:
        widths.extend((given[0].shape[-1], result[0].shape[-1]))

    _, state = made.hidden(tokens[:1])
    layers = list(outer_mixers(made))
    hooks = [layer.register_forward_hook(look) for layer in layers]
    made.hidden(tokens[:1])
    for hook in hooks:
        hook.remove()
    written = sum(int(weight.count_nonzero()) for layer in layers for weight in weights(layer))
    return Size(len(layers), max(widths), written, measure_state(state).numbers if made.causal else None)


def outer_mixers(made: nn.Module) -> Iterator[Mixer]:
    """The mixers that are not part of another."""
    for part in made.children():
        if isinstance(part, Mixer):
            yield part
        else:
            yield from outer_mixers(part)


def weights(made: nn.Module) -> Iterator[Tensor]:
    """Every real number that a layer is made of."""
    for weight in [*made.parameters(), *made.buffers()]:
        if weight.is_floating_point():
            yield weight.coalesce().values() if weight.is_sparse else weight


@torch.no_grad()
def score(made: Construction, batch: Batch) -> tuple[int, int]:
    """How many answers are right, of how many."""
    logits, targets = made.answer(batch)
    return int((logits.argmax(-1) == targets).sum()), len(targets)


def code_width(vocab: int) -> int:
    """The fewest signs that tell `vocab` tokens apart."""
    return max(1, (vocab - 1).bit_length())


def signs(vocab: int, width: int) -> Float[Tensor, "vocab width"]:
    """The first `width` binary digits of each token, the highest first; with too few, neighbours are alike."""
    full = code_width(vocab)
    digits = torch.arange(full - 1, full - 1 - width, -1)
    return (torch.arange(vocab).unsqueeze(1) >> digits & 1).double() * 2 - 1
