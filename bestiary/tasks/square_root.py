"""Square roots of binary numbers, a context-sensitive task (Delétang et al., 2022, section 4)."""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.tasks._binary import carry_digits, multiply_digits
from bestiary.tasks._strings import StringBatch, Strings


class SquareRoot(Strings):
    """What is the square root of a number, rounded down? Digits from the highest.

        tokens   1 0 0 1 0 1 ? ? ?      37
        targets  . . . . . . 1 1 0      6

    Bits are tokens 0 and 1, and "?" is the blank, token 2. The number is uniform above 0 among those of its width, so
    that it may begin with zeros; its width is uniform from `least` to `length`. The root is read at the blanks, in half
    as many bits, rounded up; more blanks pad the row.

    Facets: `length` of the number and `place` of the answer from 0. Departs from the paper in that lengths are mixed
    in a batch, which is the same distribution.
    """

    blank = 2

    def max_answers(self, size: int) -> int:
        return (size + 1) // 2

    def expected_counts(self, size: int) -> list[float]:
        """Bit j of the root of n is 1 if n lies from the square of an odd multiple of 2^j to that of the next one."""
        highest, ones = math.isqrt(2**size - 1), 0
        for bit in range(self.max_answers(size)):
            pairs = highest >> (bit + 1)  # whole runs of roots without the bit and with it
            ones += (2 * pairs**2 + pairs) << (2 * bit)
            begun = (2 * pairs + 1) << bit
            if begun <= highest:
                ones += min((begun + 2**bit) ** 2, 2**size) - begun**2
        share = ones / (2**size - 1)
        return [self.max_answers(size) - share, share]

    def draw_strings(self, sizes: Int[Tensor, " rows"], rng: torch.Generator) -> StringBatch:
        number, root = self.draw_numbers(sizes, rng)
        place, width = torch.arange(self.longest, device=rng.device), sizes.unsqueeze(1)
        due = (sizes + 1) // 2
        symbols = number.gather(1, (width - 1 - place).clamp(min=0))
        answers = root.gather(1, (due.unsqueeze(1) - 1 - place[: root.shape[1]]).clamp(min=0))
        return StringBatch(symbols, sizes, answers, due)

    def draw_numbers(self, sizes: Int[Tensor, " rows"], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Numbers and their roots, little-endian. Those of odd width are drawn a bit wider and again until they fit."""
        number = torch.zeros(len(sizes), 2 * self.max_answers(self.longest), dtype=torch.long, device=rng.device)
        root, rows = number[:, ::2].clone(), torch.arange(len(sizes), device=rng.device)
        while len(rows):
            number[rows], root[rows] = draw_squares((sizes[rows] + 1) // 2, root.shape[1], rng)
            beyond = number.gather(1, sizes.clamp(max=number.shape[1] - 1).unsqueeze(1)).squeeze(1) * (sizes % 2)
            rows = ((beyond == 1) | (number.sum(1) == 0)).nonzero().squeeze(1)
        return number, root

    def solve_string(self, string: list[int]) -> list[int]:
        value = 0
        for bit in string:
            value = 2 * value + bit
        return [int(bit) for bit in f"{math.isqrt(value):0{(len(string) + 1) // 2}b}"]


def draw_squares(widths: Int[Tensor, " rows"], most: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Uniform numbers of twice so many bits, with their roots, found without taking a root.

    Two uniform numbers x and y of the root's width map one to one to r^2 + x if y = r is the larger or as large, and
    to r^2 + r + 1 + y if x = r is: all numbers whose root is r (the pairing of Szudzik, 2006).
    """
    within = torch.arange(most, device=rng.device) < widths.unsqueeze(1)
    one, other = (torch.randint(2, within.shape, generator=rng, device=rng.device) * within for _ in range(2))
    highest = ((one != other) * torch.arange(1, most + 1, device=rng.device)).argmax(1, keepdim=True)
    larger = one.gather(1, highest) > other.gather(1, highest)
    root, rest = torch.where(larger, one, other), torch.where(larger, other, one)
    digits = multiply_digits(root, root)
    digits[:, :most] += rest + larger * root
    digits[:, :1] += larger
    return carry_digits(digits), root
