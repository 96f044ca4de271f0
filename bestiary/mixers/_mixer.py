"""The contract that every sequence mixer obeys, and the parts that they share."""

import math
from abc import abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bestiary.ops import convolution
from bestiary.ops.drive import Drive, Matrix
from bestiary.ops.positions import Where, take
from bestiary.ops.recurrence import run

Features = Float[Tensor, "batch time dim"]
Chosen = Float[Tensor, "batch _ dim"]  # at chosen positions, or at all
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
    its own initial weights and nobody draws them again.
    """

    family: ClassVar[Family | None] = None  # where a table of mixers lists it
    variants: ClassVar[tuple[str, ...]] = ()  # further options under which the laws are checked: "window=8"
    reads_tokens: bool = False  # whether it also takes `tokens=`, those that x stands for, which a model then passes

    @abstractmethod
    def forward(self, x: Features, state: State = None) -> tuple[Features, State]:
        """Mix along time. `state=None` is the start of a sequence."""

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        """Outputs of a whole sequence at the positions `where`, or at all, without the state that follows.

        What training needs. The same numbers as `forward`; overridden where they come with less work.
        """
        return take(self(x)[0], where)


class FastWeight(Mixer):
    """A mixer whose memory is one key-by-value matrix per head: a way to drive and read the recurrence."""

    class Memory(NamedTuple):
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
        return (y if self.bias is None else y + self.bias), convolution.recent(x, past, len(self.filter))


def linear(width: int, out: int, *, bias: bool = False, std: float = 0.02) -> nn.Linear:
    """A linear map drawn as in GPT-2: weights N(0, std), bias zero."""
    made = nn.Linear(width, out, bias=bias)
    nn.init.normal_(made.weight, std=std)
    if bias:
        nn.init.zeros_(made.bias)
    return made


def undecayed(weight: Tensor) -> nn.Parameter:
    """A parameter that is no matrix in spirit, such as rates per channel: weight decay leaves it alone."""
    made = nn.Parameter(weight)
    made.undecayed = True  # pyright: ignore[reportAttributeAccessIssue]
    return made


def heads_of(dim: int, heads: int) -> int:
    """The width of one head."""
    if dim % heads:
        raise ValueError(f"{heads} heads do not divide a width of {dim}")
    return dim // heads


def rank_of(dim: int, rank: int) -> int:
    """The rank of a map through fewer channels than it comes from."""
    if rank > dim:
        raise ValueError(f"a rank of {rank} is above the width of {dim}")
    return rank


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def step_sizes(shape: tuple[int, ...], *, low: float = 1e-3, high: float = 0.1) -> Tensor:
    """Inverse softplus of step sizes drawn log-uniformly from low to high (Gu & Dao, 2023, section 3.6)."""
    sizes = torch.exp(torch.empty(shape).uniform_(math.log(low), math.log(high))).clamp(min=1e-4)
    return sizes + torch.log(-torch.expm1(-sizes))
