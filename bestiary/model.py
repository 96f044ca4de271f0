"""A residual stack of mixers between an embedding and its transpose."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.mixers._composition import token_kwargs
from bestiary.mixers._mixer import Chosen, Features, Mixer, State, Where, linear, take
from bestiary.mixers._start import output_std
from bestiary.ops.precision import upcast
from bestiary.ops.readout import cross_entropy
from bestiary.spec import Pattern, Spec, nearest, read_specs
from bestiary.tasks._task import SILENT, Batch, Tokens

Channel = Literal["mlp", "swiglu", "tanh_mlp", "zoology23", "none", "copy"]
SEGMENT = 2**14  # tokens

# torch lists what a device context applies to at its first use. transformers replaces torch.linspace while it loads a
# model; a first use inside that would leave the real one out, and no state could be measured afterwards.
with torch.device("meta"):
    torch.empty(0)


class Model(nn.Module):
    """Layer i mixes time with `pattern[i % len(pattern)]`, then channels as `channel` says; the head is tied.

    The pattern is text ("base_conv, attention"), specs or classes, or a list of those.

    `channel="mlp"` is a GELU network four times as wide, `"tanh_mlp"` one with tanh, `"swiglu"` the gated one of Llama,
    and `"none"` leaves it out.
    `"zoology23"` is `"tanh_mlp"` as the code drew it that made Figure 2 of Zoology (HazyResearch/zoology, d9429b3): its
    second map N(0, 0.02 / sqrt(2 depth)), where all other maps of these networks are drawn N(0, 0.02).
    `"copy"` adds the normalised stream to itself after each mixer, which is what the Identity state mixer of the
    original code amounts to.
    `positions` learned position vectors are added to the embeddings (0: none); `dropout` acts on their sum. Embeddings
    are drawn N(0, 0.02). A layer norm precedes each part and the head, as in GPT-2. With `features`, the input is real
    vectors of that width, and the embedding serves as the head alone. With `bottleneck`, that many positions are all
    answered from the output at the last position.
    """

    def __init__(
        self,
        vocab: int,
        *,
        dim: int,
        depth: int,
        pattern: Pattern,
        channel: Channel = "mlp",
        positions: int = 0,
        dropout: float = 0.0,
        features: int = 0,
        bottleneck: int = 0,
    ) -> None:
        super().__init__()
        specs = read_specs("mixers", pattern)
        if 0 < depth < len(specs):
            raise ValueError(f"{len(specs)} mixers do not fit into {depth} layers: give depth={len(specs)} or more")
        self.embed = embedding(vocab, dim)
        self.read = linear(features, dim) if features else None
        self.decoder = Decoder(dim, bottleneck) if bottleneck else None
        self.positions = embedding(positions, dim) if positions else None
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(dim, specs[i % len(specs)], channel, depth) for i in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, tokens: Tokens, state: "ModelState | None" = None
    ) -> tuple[Float[Tensor, "batch time vocab"], "ModelState"]:
        """Logits at every position, and the state after the last token. Obeys the law of the mixers."""
        time, past = (0, [None] * len(self.layers)) if state is None else state
        x, known = self.embed_tokens(tokens, time), self.mixer_tokens(tokens)
        states = []
        for layer, before in zip(self.layers, past, strict=True):
            x, after = layer(x, before, known)
            states.append(after)
        return self.norm(x) @ self.embed.weight.T, ModelState(time + tokens.shape[1], states)

    def parallel(self, tokens: Tokens, where: Where | None = None) -> Float[Tensor, "batch _ vocab"]:
        """Logits of whole sequences at the positions `where`, or at all positions."""
        return self.hidden(tokens, where) @ self.embed.weight.T

    def hidden(self, tokens: Tokens, where: Where | None = None) -> Chosen:
        """What the head reads at the positions `where` of whole sequences; the last layer is computed only there."""
        x, known = self.embed_tokens(tokens, 0), self.mixer_tokens(tokens)
        asked = where if self.decoder is None else torch.full_like(tokens[:, :1], tokens.shape[1] - 1)
        for i, layer in enumerate(self.layers, start=1):
            x = cast(Layer, layer).parallel(x, asked if i == len(self.layers) else None, known)
        x = self.norm(x)
        return x if self.decoder is None or x.shape[1] == 0 else take(self.decoder(x), where)

    def read_out(
        self, hidden: Float[Tensor, "answers dim"], targets: Int[Tensor, " answers"], *, dtype: Any = None
    ) -> tuple[Tensor, Tensor]:
        """The summed loss in nats, and how many answers are right; negative targets count for nothing.

        Products are computed in `dtype`, by default that of the weights.
        """
        return cross_entropy(upcast(hidden), self.embed.weight, targets, dtype=dtype)

    def answer(self, batch: Batch) -> tuple[Float[Tensor, "answers vocab"], Int[Tensor, " answers"]]:
        """Logits and targets of all questions, row by row.

        Sequences longer than SEGMENT tokens are read in segments, so that memory does not grow with their length.
        """
        where = batch.question_positions()
        read = (
            self.parallel if batch.targets.shape[1] <= SEGMENT or self.decoder is not None else self.answer_in_segments
        )
        logits, targets = read(batch.tokens, where), batch.targets.gather(1, where)
        asked = targets != SILENT
        return logits[asked], targets[asked]

    def answer_in_segments(self, tokens: Tokens, where: Where) -> Float[Tensor, "batch asked vocab"]:
        """The logits of `parallel`, computed by passing the state from segment to segment."""
        state, logits = None, self.embed.weight.new_zeros(*where.shape, len(self.embed.weight))
        for start in range(0, tokens.shape[1], SEGMENT):
            found, state = self(tokens[:, start : start + SEGMENT], state)
            inside = (where >= start) & (where < start + found.shape[1])
            here = take(found, (where - start).clamp(0, found.shape[1] - 1))
            logits = torch.where(inside.unsqueeze(-1), here, logits)
        return logits

    def mixer_tokens(self, tokens: Tokens) -> Tokens | None:
        """The tokens as mixers may read them: None where the input is real vectors."""
        return tokens if self.read is None else None

    def embed_tokens(self, tokens: Tokens, time: int) -> Features:
        """Embeddings of tokens that start at position `time`. Raises ValueError beyond the learned positions."""
        x = self.embed(tokens) if self.read is None else self.read(tokens)
        if self.positions is not None:
            end = time + tokens.shape[1]
            if end > self.positions.num_embeddings:
                raise ValueError(f"the model has {self.positions.num_embeddings} positions, the input needs {end}")
            x = x + self.positions.weight[time:end]
        return self.dropout(x)


class Decoder(nn.Module):
    """Many outputs from one: adds a code of each position, and two layers read the sum (MAD, section 3.1)."""

    def __init__(self, dim: int, positions: int) -> None:
        super().__init__()
        self.positions, self.layers = positions, nn.Sequential(mlp(dim), nn.LayerNorm(dim))

    def forward(self, x: Chosen) -> Features:
        """(batch, 1, dim) to (batch, positions, dim)."""
        dim = x.shape[-1]
        rate = 10000.0 ** (-torch.arange(0, dim, 2, device=x.device, dtype=x.dtype) / dim)
        angle = torch.arange(self.positions, device=x.device, dtype=x.dtype).unsqueeze(1) * rate
        code = torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :dim]
        return self.layers(x + code)


class ModelState(NamedTuple):
    """What a model must remember of what it read: how many tokens, and the state of each layer."""

    time: int
    layers: list[State]


class Layer(nn.Module):
    """Mix along time, then along channels; each part reads the normalised stream and adds to it."""

    def __init__(self, dim: int, mixer: Spec, channel: Channel, depth: int) -> None:
        super().__init__()
        self.mixer: Mixer = mixer.build(dim)
        self.before_mixer = nn.LayerNorm(dim)
        self.before_channel = None if channel == "none" else nn.LayerNorm(dim)
        self.channel = channel_mixer(dim, channel, depth)

    def forward(self, x: Features, state: State, tokens: Tokens | None = None) -> tuple[Features, State]:
        y, state = self.mixer(self.before_mixer(x), state, **token_kwargs(self.mixer, tokens))
        return self.mix_channels(x + y), state

    def parallel(self, x: Features, where: Where | None = None, tokens: Tokens | None = None) -> Chosen:
        """Outputs of a whole sequence at the positions `where`, or at all, without the state that follows."""
        mixed = self.mixer.parallel(self.before_mixer(x), where, **token_kwargs(self.mixer, tokens))
        return self.mix_channels(take(x, where) + mixed)

    def mix_channels(self, x: Chosen) -> Chosen:
        """The stream after the channel mixer."""
        return x if self.before_channel is None else x + self.channel(self.before_channel(x))


def channel_mixer(dim: int, channel: Channel, depth: int) -> nn.Module:
    """What mixes channels in each layer of a model of this depth."""
    match channel:
        case "mlp":
            return mlp(dim)
        case "tanh_mlp":
            return mlp(dim, nn.Tanh)
        case "zoology23":
            return mlp(dim, nn.Tanh, std=output_std(depth))
        case "swiglu":
            return SwiGLU(dim)
        case "none" | "copy":
            return nn.Identity()
    raise ValueError(f"there is no channel mixer {channel!r} {nearest(str(channel), get_args(Channel))}")


def mlp(dim: int, activation: Callable[[], nn.Module] = nn.GELU, *, std: float = 0.02) -> nn.Module:
    """A network four times as wide; its second map is drawn N(0, std)."""
    return nn.Sequential(linear(dim, 4 * dim, bias=True), activation(), linear(4 * dim, dim, bias=True, std=std))


class SwiGLU(nn.Module):
    """W_o (silu(W_g x) * W_u x), 8/3 times as wide, rounded up to a multiple of 8 (Shazeer, 2020; as in Llama)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = 8 * math.ceil(dim / 3)
        self.gate_up, self.out = linear(dim, 2 * self.inner), linear(self.inner, dim)

    def forward(self, x: Chosen) -> Chosen:
        gate, up = self.gate_up(x).split(self.inner, dim=-1)
        return self.out(F.silu(gate) * up)


def embedding(count: int, dim: int) -> nn.Embedding:
    """A table drawn N(0, 0.02)."""
    made = nn.Embedding(count, dim)
    nn.init.normal_(made.weight, std=0.02)
    return made


class Memory(NamedTuple):
    """The size of a state: real numbers (a complex one is two) and bytes."""

    numbers: int
    bytes: int


def memory(build: Callable[[], nn.Module], *, time: int, dim: int | None = None) -> Memory:
    """The most that must be kept of one sequence of up to `time` tokens to produce the next: measured, not derived.

    Runs the model (or, given its width `dim`, the mixer) on the meta device, where tensors have shapes only: to the
    end, and to where a mixer says that its state is larger than there (`Mixer.largest_state`); in place of a long
    sequence to a shorter one after which a mixer says that its state is as large (`Mixer.equal_state`).
    """
    with torch.device("meta"):
        model = build()
    lengths = {time, *(part.largest_state(time) for part in model.modules() if isinstance(part, Mixer))}
    return max(_memory_of_equal_state(model, length, dim) for length in lengths)


def _memory_of_equal_state(model: nn.Module, time: int, dim: int | None) -> Memory:
    """`memory_after`, measured on as short a sequence as each mixer allows."""
    if not isinstance(model, Model):
        return memory_after(model, model.equal_state(time) if isinstance(model, Mixer) else time, dim)
    states = []
    with torch.device("meta"):
        given = torch.zeros(1, time, dtype=torch.long) if dim is None else torch.zeros(1, time, dim)
        x, tokens = model.embed_tokens(given, 0), model.mixer_tokens(given)
        for layer in cast(Iterable[Layer], model.layers):
            length = layer.mixer.equal_state(time)
            known = None if tokens is None else tokens[:, :length]
            states.append(layer.mixer(x[:, :length], None, **token_kwargs(layer.mixer, known))[1])
    return measure_state(states)


def memory_after(model: nn.Module, time: int, dim: int | None = None) -> Memory:
    """The size of the state of one sequence after exactly `time` tokens, of a model (or a mixer) on the meta device."""
    with torch.device("meta"):
        given = torch.zeros(1, time, dtype=torch.long) if dim is None else torch.zeros(1, time, dim)
        found = model(given)
    if not isinstance(found, tuple) or len(found) != 2:
        raise ValueError(f"{type(model).__name__} returns {type(found).__name__}, where (output, state) is expected")
    return measure_state(found[1])


def measure_state(state: Any) -> Memory:
    """The size of all tensors in a state. Raises ValueError if something else is in it than positions and gaps."""
    leaves = list(state_leaves(state))
    if strange := [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor | int | None)]:
        raise ValueError(
            f"a state is made of tensors, positions and None in tuples or lists; this one holds {strange[0]}"
        )
    kept = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    numbers = sum(leaf.numel() * (2 if leaf.is_complex() else 1) for leaf in kept)
    return Memory(numbers, sum(leaf.numel() * leaf.element_size() for leaf in kept))


def state_leaves(state: Any) -> Iterable[Any]:
    """Tensors, positions and gaps of a state, in order."""
    if isinstance(state, tuple | list):
        for part in state:
            yield from state_leaves(part)
    else:
        yield state
