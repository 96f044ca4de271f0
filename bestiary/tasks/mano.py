"""Mano, manipulating knowledge: arithmetic in prefix notation without steps in between (Allen-Zhu, 2025, part 4.1)."""

import math
from functools import cache
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._count import from_bits
from bestiary.tasks._reasoning import Sizes
from bestiary.tasks._task import SILENT, Batch, Task


class Mano(Task):
    """Read an expression of sums, differences and products modulo a prime, then give its value at once.

        tokens   BOS <3> - * 5 2 + 7 4 <3>=
        targets   .   .  . . . . . . .  22      (5 * 2 - (7 + 4) modulo 23)

    Tokens 0 to modulus - 1 are numbers, modulus is the filling after a short expression, and then come pairs of
    synonyms, of which each use draws one: BOS, +, -, *, the head <n> of n operations for n in 1 to `operations`, and
    the sign <n>= after them. The expression is drawn from the top: of n > 0 operations one is at the root, a number
    uniform in 0 to n - 1 of the others go to its left, and the rest to its right; signs and numbers are uniform.

    `sizes="mixed"` draws n in 1 to `operations`, as the paper trains; "largest" takes `operations`, as it tests.

    Facets: `operations` (n) and `depth` (of operations within each other).

    Departs from the paper: each row holds one question, since rows are independent here, and not a window of many.
    The default is shorter, for a laptop; its own lengths are presets.
    """

    family: ClassVar = "reasoning"
    variants: ClassVar = ("operations=1, modulus=5", "operations=10", "operations=6, modulus=7, sizes='largest'")
    presets: ClassVar = {f"l{n}": f"operations={n}" for n in (10, 13, 16)}
    axes: ClassVar = {"operations": (1, 2, 4, 6, 10)}

    def __init__(self, *, operations: Positive = 4, modulus: Positive = 23, sizes: Sizes = "mixed") -> None:
        if modulus < 2 or any(modulus % i == 0 for i in range(2, math.isqrt(modulus) + 1)):
            prime = next(p for p in range(modulus + 1, 2 * modulus + 2) if all(p % i for i in range(2, p)))
            raise ValueError(f"mano(modulus={modulus}): the modulus must be prime; try {prime}")
        self.operations, self.modulus = operations, modulus
        self.least = operations if sizes == "largest" else 1
        self.signs, self.vocab = modulus + 3, modulus + 9 + 4 * operations
        self.length = 2 * operations + 4
        zero = zero_probabilities(modulus, operations)[self.least :]
        self.chance = self.plateau = max(sum(zero) / len(zero), (1 - sum(zero) / len(zero)) / (modulus - 1))
        n = self.least
        self.space = from_bits(3 + n * math.log2(6) + (n + 1) * math.log2(modulus))

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        def draw(least: int, most: int, *shape: int) -> Tensor:
            return torch.randint(least, most + 1, (count, *shape), generator=rng, device=rng.device)

        size = draw(self.least, self.operations, 1)
        body = self.draw_expressions(size[:, 0], rng)
        head = self.signs + 6 + 2 * (size - 1) + draw(0, 1, 1)
        sign = self.signs + 6 + 2 * (self.operations + size - 1) + draw(0, 1, 1)
        blank = torch.full_like(sign, self.modulus)
        tokens = torch.cat([self.modulus + 1 + draw(0, 1, 1), head, body, blank], dim=1)
        value, depth = self.evaluate(body, size[:, 0])
        end = 2 * size + 3
        tokens.scatter_(1, end, sign)
        targets = torch.full_like(tokens, SILENT).scatter_(1, end, value[:, None])
        facets = {"operations": size, "depth": depth[:, None]}
        return Batch(tokens, targets, {name: facet.int().expand_as(tokens) for name, facet in facets.items()})

    def draw_expressions(self, size: Int[Tensor, " count"], rng: torch.Generator) -> Int[Tensor, "count body"]:
        """Expressions of so many operations, from the left; after their ends stands the filling."""
        count, body = len(size), 2 * self.operations + 1
        number = torch.randint(self.modulus, (count, body), generator=rng, device=rng.device)
        sign = self.signs + torch.randint(6, (count, body), generator=rng, device=rng.device)
        lottery = torch.rand(count, body, generator=rng, device=rng.device, dtype=torch.float64)
        tokens, row = torch.full_like(number, self.modulus), torch.arange(count, device=rng.device)
        open_sizes, top = torch.zeros(count, self.operations + 2, dtype=torch.long, device=rng.device), 0 * size + 1
        open_sizes[:, 1] = size  # a stack of the operations in the subexpressions still to come; place 0 is its floor
        for time in range(body):
            size = open_sizes[row, top]
            left = (lottery[:, time] * size).long()
            grows = size > 0
            tokens[:, time] = torch.where(grows, sign[:, time], number[:, time]).where(top > 0, self.modulus)
            open_sizes[row, top] = (size - 1 - left).where(grows, 0)
            top = torch.where(grows, top + 1, (top - 1).clamp(min=0))
            open_sizes[row, top] = torch.where(grows, left, open_sizes[row, top])
        return tokens

    def evaluate(self, body: Int[Tensor, "count body"], size: Int[Tensor, " count"]) -> tuple[Tensor, Tensor]:
        """Value and depth of each expression, from the right, with a stack of finished subexpressions."""
        row, top = torch.arange(len(body), device=body.device), torch.zeros_like(size)
        values = torch.zeros(len(body), 2 * self.operations + 3, dtype=torch.long, device=body.device)
        depths = torch.zeros_like(values)
        for token in body.flip(1).unbind(1):
            a, b = values[row, top], values[row, (top - 1).clamp(min=0)]
            kind = (token - self.signs) // 2
            result = torch.where(kind == 0, a + b, torch.where(kind == 1, a - b, a * b)) % self.modulus
            deeper = 1 + torch.maximum(depths[row, top], depths[row, (top - 1).clamp(min=0)])
            is_sign, is_number = token >= self.signs, token < self.modulus
            top = top + is_number.long() - is_sign.long()
            change = is_sign | is_number
            values[row, top] = torch.where(is_sign, result, token).where(change, values[row, top])
            depths[row, top] = deeper.where(is_sign, 0).where(change, depths[row, top])
        return values[row, top], depths[row, top]

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        for row, sequence in enumerate(tokens.tolist()):
            waiting: list[tuple[int, int | None]] = []  # the signs read, each with its left value once it is known
            value = 0
            for time, token in enumerate(sequence):
                if self.signs <= token < self.signs + 6:
                    waiting.append(((token - self.signs) // 2, None))
                elif token < self.modulus:
                    value = token
                    while waiting and waiting[-1][1] is not None:
                        kind, left = waiting.pop()
                        value = ((left or 0) + value, (left or 0) - value, (left or 0) * value)[kind] % self.modulus
                    if waiting:
                        waiting[-1] = waiting[-1][0], value
                elif token >= self.signs + 6 + 2 * self.operations:
                    answers[row, time] = value
        return answers


@cache
def zero_probabilities(modulus: int, operations: int) -> list[float]:
    """How often an expression of 0, 1, 2, ... operations is 0; all other values are as likely as each other."""
    zero = [1 / modulus]
    for size in range(1, operations + 1):
        total = 0.0
        for a, b in zip(zero, reversed(zero), strict=True):
            added = a * b + (1 - a) * (1 - b) / (modulus - 1)
            total += (2 * added + 1 - (1 - a) * (1 - b)) / 3
        zero.append(total / size)
    return zero
