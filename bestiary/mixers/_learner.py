"""Mixers whose memory is a network that learns chunk by chunk, from gradients at its weights before the chunk."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bestiary.mixers._delta import GatedOutput, Heads
from bestiary.mixers._mixer import Chosen, Features, State, Where, take
from bestiary.mixers._test_time import Chunked, Network, Weights
from bestiary.ops.precision import no_autocast


class Learner(Chunked):
    """y_t = f(q_t; M_t), gradients taken at M before the chunk of t; chunks are bounded by absolute positions."""

    class Memory(NamedTuple):
        """The state after the inputs read so far."""

        past: State  # of the convolution, and of what else spans chunks
        weights: Weights  # M
        momentum: Weights  # () without
        anchor: Weights  # M before the chunk, () at its start, where it is M
        time: int

    network: Network
    answer: GatedOutput

    @abstractmethod
    def plan(self, x: Features, past: State, time: int) -> tuple[Iterator[list[Tensor]], State]:
        """What `read_chunk` is given of each chunk, and what spans chunks after the last."""

    @abstractmethod
    def read_chunk(
        self, streams: list[Tensor], weights: Weights, momentum: Weights, anchor: Weights
    ) -> tuple[Tensor, Weights, Weights]:
        """The answers in one chunk (batch heads time value), and M and its momentum after the last token."""

    def first_momentum(self, weights: Weights) -> Weights:
        """The momentum before the first token, none unless overridden."""
        return ()

    def forward(self, x: Features, state: Memory | None = None) -> tuple[Features, Memory]:
        y, after = self.read_tokens(x, self.initial_state(x) if state is None else state)
        return self.answer(y, x), after

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return self.answer(take(self.read_tokens(x, self.initial_state(x))[0], where), take(x, where))

    def initial_state(self, x: Features) -> Memory:
        """The state before the first token."""
        weights = self.network.initial(len(x))
        return self.Memory(None, weights, self.first_momentum(weights), (), 0)

    def read_tokens(self, x: Features, state: Memory) -> tuple[Heads, Memory]:
        """The answers f(q_t; M_t), chunk by chunk."""
        past, weights, momentum, anchor, time = state
        chunks, past = self.plan(x, past, time)
        parts = []
        with no_autocast(x):  # what is learnt is a sum over time
            for now in chunks:
                anchor = anchor or weights
                y, weights, momentum = self.read_chunk(now, weights, momentum, anchor)
                parts.append(y)
                time += y.shape[2]
                anchor = anchor if time % self.chunk else ()
        y = torch.cat(parts, dim=2).transpose(1, 2).to(x.dtype)
        return y, self.Memory(past, weights, momentum, anchor, time)
