"""Modules that are no mixers, as mixers: one that rereads its input, and one that carries a state of its own."""

from typing import Any

import torch
from torch import nn

from bestiary.mixers._mixer import Chosen, Features, Mixer, State, Where, take


class Rereading(Mixer):
    """A module without a state as a mixer: its state is all the inputs so far, which it rereads for each new one.

    A whole sequence is still one call. A subclass says in `read` how the module is called, if not as `module(x)`:

        class MyAttention(Rereading):
            def __init__(self, dim, *, heads: int = 4):
                super().__init__(nn.MultiheadAttention(dim, heads, batch_first=True))

            def read(self, x):
                later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
                return self.module(x, x, x, attn_mask=later)[0]

    The state grows by `dim` numbers a token, and a decoded token costs as much as the whole sequence so far.
    """

    module: Any  # what is called, if there is one

    def __init__(self, module: nn.Module | None = None) -> None:
        super().__init__()
        self.module = module

    def read(self, x: Features) -> Any:
        """The outputs of a whole sequence, from its start."""
        if self.module is None:
            raise NotImplementedError(f"{type(self).__name__} has neither a module nor `read(self, x)`")
        return self.module(x)

    def forward(self, x: Features, state: State = None) -> tuple[Features, State]:
        inputs = x if state is None else torch.cat([state, x], dim=1)
        if x.is_meta or not len(x):  # sizes are known, and many modules can do neither
            return x.clone(), inputs
        return self.read(inputs)[:, inputs.shape[1] - x.shape[1] :], inputs

    def parallel(self, x: Features, where: Where | None = None) -> Chosen:
        return take(self.read(x) if len(x) else x, where)


class Carrying(Mixer):
    """A module that takes and returns a state, `forward(x, state=None) -> (y, state)`, but is no subclass of Mixer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Features, state: State = None) -> Any:
        return self.module(x) if state is None else self.module(x, state)
