"""The contract that every sequence mixer obeys, and the parts that they share."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bestiary.ops import convolution
from bestiary.ops.drive import Drive, Matrix
from bestiary.ops.growth import without_waste
from bestiary.ops.positions import Where, take
from bestiary.ops.recurrence import run

Features = Float[Tensor, "batch time dim"]
Chosen = Float[Tensor, "batch _ dim"]  # at chosen positions, or at all of them
Past = Float[Tensor, "batch _ channels"]  # what a convolution has read and still needs
Family = Literal[
    "softmax",
    "sparse",
    "linear",
    "gated linear",
    "delta",
    "state space",
    "recurrent",
    "convolution",
    "test time",
    "composition",
]
State = Any  # a tree (tuples) of tensors, which count as memory, and ints such as positions, which do not


class Mixer(nn.Module):
    """A causal map on sequences that carries its own memory.

    The one law: cutting a sequence anywhere and passing the state across the cut changes nothing.

        whole, _ = mixer(x)
        head, state = mixer(x[:, :n])
        tail, _ = mixer(x[:, n:], state)
        assert torch.cat([head, tail], 1) == whole

    A subclass takes the width `dim` first and its options by keyword, each with a type and a default. It draws
    its own initial weights and nobody draws them again. An input of length 0 gives an empty output and leaves the state
    as it is; that is done here, so that `forward` and `parallel` of a subclass are given at least one position.
    """

    family: ClassVar[Family | None] = None  # where a table of mixers lists it
    variants: ClassVar[tuple[str, ...]] = ()  # other options under which the laws are checked too: "window=8"
    without_decay: ClassVar[tuple[str, ...]] = ()  # parameters with two axes or more that weight decay is to spare
    later_options: ClassVar[tuple[str, ...]] = ()  # left out of keys while at their defaults
    reads_tokens: bool = False  # whether a model is to pass it, as `tokens=`, the tokens that x stands for

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let `forward` and `parallel` pass over inputs of length 0, and states keep nothing alive but themselves."""
        super().__init_subclass__(**kwargs)
        for name in {"forward", "parallel"} & set(cls.__dict__):
            setattr(cls, name, _guard(name, cls.__dict__[name]))

    @abstractmethod
    def forward(self, x: Features, state: State = None) -> tuple[Features, State]:
        """Mix along time. `state=None` is the start of a sequence."""

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        """Outputs of a whole sequence at the positions `where`, or at all, without the state that follows.

        This is what training needs. Overridden where the same numbers as those of `forward` take less work.
        """
        return take(self(x)[0], where)

    def largest_state(self, time: int) -> int:
        """The length, at most `time`, after which the state is largest; `time` unless the state also shrinks."""
        return time

    def equal_state(self, time: int) -> int:
        """A length, at most `time` and short if a mixer knows one, after which the state is as large as after it."""
        return time

    def empty_output(self, x: Tensor) -> Tensor:
        """The output for an input of length 0."""
        return x.clone()


def _guard(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` or `parallel`, but for an input of length 0 an empty output, and with `forward` the same state.

    After another input the state of `forward` keeps no larger tensors alive.
    """

    @wraps(method)
    def guarded(self: Mixer, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.shape[1]:
            given = method(self, x, *args, **kwargs)
            return without_waste(given) if name == "forward" else given
        if name == "forward":
            return self.empty_output(x), args[0] if args else kwargs.get("state")
        return take(self.empty_output(x), args[0] if args else kwargs.get("where"))

    return guarded


class FastWeight(Mixer):
    """A mixer whose memory is one key-by-value matrix per head: it says how the recurrence is driven and read."""

    class Memory(NamedTuple):
        """The state after the inputs read so far."""

        local: State  # of convolutions and shifts before the recurrence
        matrix: Matrix

    shape: tuple[int, int, int]  # heads, key, value

    @abstractmethod
    def drive(self, x: Features, local: State) -> tuple[Drive, State]:
        """What the recurrence consumes."""

    @abstractmethod
    def read(self, y: Float[Tensor, "batch time heads value"], x: Features) -> Features:
        """The output from what was read out of memory, and the input at the same positions."""

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        local, matrix = (None, x.new_zeros(len(x), *self.shape)) if state is None else state
        drive, local = self.drive(x, local)
        y, matrix = run(drive, matrix)
        return self.read(y, x), self.Memory(local, matrix)

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        y, _ = run(self.drive(x, None)[0], x.new_zeros(len(x), *self.shape))
        return self.read(take(y, where), take(x, where))


class ShortConv(nn.Module):
    """A causal convolution of a few taps per channel, drawn as PyTorch draws a Conv1d."""

    def __init__(self, dim: int, taps: int, *, bias: bool = False) -> None:
        super().__init__()
        bound = 1 / math.sqrt(taps)
        self.filter = nn.Parameter(torch.empty(taps, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Features, past: Past | None) -> tuple[Features, Past]:
        y = convolution.short(x, self.filter, past)
        return (y if self.bias is None else y + self.bias), convolution.recent_inputs(x, past, len(self.filter))

    def streams(
        self, x: Features, past: Past | None, widths: Sequence[int]
    ) -> tuple[tuple[Float[Tensor, "batch time _"], ...], Past]:
        """SiLU of the same in parts so wide, such as q, k and v, and what is to be kept."""
        parts = convolution.streams(x, self.filter, self.bias, past, widths)
        return parts, convolution.recent_inputs(x, past, len(self.filter))


def linear(width: int, out: int, *, bias: bool = False, std: float = 0.02) -> nn.Linear:
    """A linear map drawn as in GPT-2: weights N(0, std), bias zero."""
    made = nn.Linear(width, out, bias=bias)
    nn.init.normal_(made.weight, std=std)
    if bias:
        nn.init.zeros_(made.bias)
    return made


def decayed_names(model: nn.Module) -> set[str]:
    """The names of the parameters that weight decay acts on: all with two axes or more, but for `without_decay`.

    A module of any kind may have that class attribute: names of its own parameters that have two axes or more but are
    no matrices, such as rates per channel. It belongs to the class, so that copies of a model decay alike.
    """
    spared = {
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules()
        for name in getattr(module, "without_decay", ())
    }
    return {name for name, weight in model.named_parameters() if weight.ndim >= 2} - spared


def head_width(dim: int, heads: int) -> int:
    """The width of one head. Raises ValueError if heads do not divide the width."""
    if dim % heads:
        raise ValueError(f"{heads} heads do not divide a width of {dim}")
    return dim // heads


def check_rank(dim: int, rank: int) -> int:
    """The rank, once it is known to be at most the width. Raises ValueError."""
    if rank > dim:
        raise ValueError(f"a rank of {rank} is above the width of {dim}")
    return rank


def step_sizes(shape: tuple[int, ...], *, low: float = 1e-3, high: float = 0.1) -> Tensor:
    """Inverse softplus of step sizes drawn log-uniformly from low to high (Gu & Dao, 2023, section 3.6)."""
    sizes = torch.exp(torch.empty(shape).uniform_(math.log(low), math.log(high))).clamp(min=1e-4)
    return sizes + torch.log(-torch.expm1(-sizes))
