"""Working a stack, a context-free task (Delétang et al., 2022, section 4)."""

from functools import cache
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.tasks._strings import StringBatch, Strings


class StackManipulation(Strings):
    """Carry out pushes and pops, and say what is on the stack.

        tokens   0 1 1 pop push0 pop pop ? ? ?
        targets  . . . .   .     .   .   0 $

    A string begins with a stack of bits, from the bottom, tokens 0 and 1, one at least; actions follow, one at least:
    token 2 takes the top off (nothing if the stack is empty), tokens 3 and 4 put a 0 or a 1 on it. Where the actions
    begin is uniform, and so are bits and actions. The length of all this is uniform from `least` to `length`. Blanks
    pad the row, token 5; at them the stack is read from the top, and at the next its end, "$", which is token 2.

    Facets: `length` of the string, `actions`, how many there are, and `place` of the answer from 0. Departs from the
    paper in that lengths are mixed in a batch, which is the same distribution.
    """

    shortest: ClassVar = 2
    blank = 5

    def max_answers(self, size: int) -> int:
        return size + 1

    def count_strings(self, size: int) -> int:
        return sum(2**bits * 3 ** (size - bits) for bits in range(1, size))

    def expected_counts(self, size: int) -> list[float]:
        height = mean_heights(self.longest)[size]
        return [height / 2, height / 2, 1.0]

    def draw_strings(self, sizes: Int[Tensor, " rows"], rng: torch.Generator) -> StringBatch:
        share = torch.rand(len(sizes), generator=rng, device=rng.device, dtype=torch.float64)
        bits = 1 + (share * (sizes - 1)).long()
        place = torch.arange(self.longest, device=rng.device)
        actions = 2 + self.uniform_symbols(len(sizes), 3, rng)
        symbols = torch.where(place < bits.unsqueeze(1), self.uniform_symbols(len(sizes), 2, rng), actions)
        stack = torch.zeros(len(sizes), self.longest + 1, dtype=torch.long, device=rng.device)
        height = torch.zeros_like(sizes)
        for time, symbol in enumerate(symbols.unbind(1)):
            stack.scatter_(1, height.unsqueeze(1), (symbol - 3 * (symbol > 2)).unsqueeze(1))
            moved = torch.where(symbol == 2, (height - 1).clamp(min=0), height + 1)
            height = torch.where(time < sizes, moved, height)
        order = torch.arange(self.longest + 1, device=rng.device)
        answers = stack.gather(1, (height.unsqueeze(1) - 1 - order).clamp(min=0))
        answers.scatter_(1, height.unsqueeze(1), 2)
        return StringBatch(symbols, sizes, answers, height + 1, {"actions": sizes - bits})

    def solve_string(self, string: list[int]) -> list[int]:
        stack: list[int] = []
        for symbol in string:
            if symbol != 2:
                stack.append({0: 0, 1: 1, 3: 0, 4: 1}[symbol])
            elif stack:
                stack.pop()
        return [*reversed(stack), 2]


@cache
def mean_heights(longest: int) -> list[float]:
    """The mean height of the stack in the end, for strings of length 0 to `longest`."""
    after = [np.arange(longest + 1.0)]  # the height after no action, by the height before
    for _ in range(longest - 1):
        before = after[-1]
        after.append((np.concatenate([before[:1], before[:-2]]) + 2 * before[1:]) / 3)
    means = [float(np.mean([after[size - bits][bits] for bits in range(1, size)])) for size in range(2, longest + 1)]
    return [0.0, 1.0, *means]
