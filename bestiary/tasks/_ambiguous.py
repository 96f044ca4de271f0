"""Random ambiguous grammars: automata in which a symbol has several hidden states."""

from functools import cache

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.tasks._task import stream

TRIES = 2000  # grammars drawn at most


@cache
def ambiguous_grammar(symbols: int, depth: int, seed: int) -> Int[Tensor, "states symbols"]:
    """The state after each state and symbol, or -1. Raises ValueError if hardly any grammar can end everywhere."""
    rng = stream("selective_grammar", symbols, depth, seed)
    states = 1 + symbols * depth
    first = 1 + depth * torch.arange(symbols, device="cpu")
    for _ in range(TRIES):
        which = first + torch.randint(depth, (states, symbols), generator=rng, device="cpu")
        lottery = torch.rand(states, 1 + symbols, generator=rng, device="cpu")
        onward = torch.cat([torch.zeros_like(which[:, :1]), which], dim=1).masked_fill(lottery > 0.4, -1)
        onward[:, 0].masked_fill_(lottery[:, 0] > 0.4 / depth, -1)
        starts = torch.randperm(symbols, generator=rng, device="cpu")[:4]
        onward[0] = -1
        onward[0, 1 + starts] = which[0, starts]
        ends = first.new_zeros(states).bool()
        ends[0] = True
        reached = 0
        while reached < (reached := int(ends.sum())):  # what leads to a state that reaches "#" reaches it
            ends |= (ends[onward.clamp(min=0)] & (onward >= 0)).any(1)
        if ends.all():
            return onward
    raise ValueError(
        f"selective_grammar(symbols={symbols}): with depth={depth} hardly any grammar ends; more symbols do"
    )
