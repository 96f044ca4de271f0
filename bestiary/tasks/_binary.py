"""Binary arithmetic on rows of bits, little-endian: what the tasks that reckon with long numbers share."""

import random
from abc import abstractmethod
from functools import cache
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.tasks._draw import uniform_below
from bestiary.tasks._strings import MEASURED, StringBatch, Strings

Bits = Int[Tensor, "rows width"]


class Operation(Strings):
    """Two binary numbers with a mark between them, and the number that they make."""

    shortest: ClassVar = 3
    blank = 3

    @staticmethod
    @abstractmethod
    def combine(one: int, other: int) -> int:
        """The result."""

    @staticmethod
    @abstractmethod
    def result_digits(one: Bits, other: Bits) -> Tensor:
        """The result's digits, carries to be done: each place may hold more than 1."""

    def max_answers(self, size: int) -> int:
        return size

    def count_strings(self, size: int) -> int:
        return sum((2**width - 1) * (2 ** (size - 1 - width) - 1) for width in range(1, size - 1))

    def constant_accuracy(self) -> float:
        return measure_chance(type(self), self.least, self.longest)

    def draw_strings(self, sizes: Int[Tensor, " rows"], rng: torch.Generator) -> StringBatch:
        width = 1 + uniform_below(sizes - 2, rng)
        one, other = (draw_positive(part, self.longest, rng) for part in (width, sizes - 1 - width))
        place, after = torch.arange(self.longest, device=rng.device), width.unsqueeze(1)
        symbols = torch.where(place < after, one, other.gather(1, (place - after - 1).clamp(min=0)))
        symbols.scatter_(1, after, 2)
        answers = carry_digits(self.result_digits(one, other))[:, : self.longest]
        due = (answers * (place + 1)).amax(1) + 1
        answers.scatter_(1, due.unsqueeze(1) - 1, 2)
        return StringBatch(symbols, sizes, answers, due)

    def solve_string(self, string: list[int]) -> list[int]:
        mark = string.index(2)
        result = self.combine(to_int(string[:mark]), to_int(string[mark + 1 :]))
        return [*(int(digit) for digit in reversed(f"{result:b}")), 2]


def to_int(bits: list[int]) -> int:
    """The number that little-endian bits write."""
    return sum(bit << place for place, bit in enumerate(bits))


def draw_positive(widths: Int[Tensor, " rows"], longest: int, rng: torch.Generator) -> Bits:
    """Numbers above 0 of so many bits, uniform."""
    within = torch.arange(longest, device=rng.device) < widths.unsqueeze(1)
    bits = torch.randint(2, within.shape, generator=rng, device=rng.device) * within
    while len(zero := (bits.sum(1) == 0).nonzero().squeeze(1)):
        fresh = torch.randint(2, (len(zero), longest), generator=rng, device=rng.device)
        bits[zero] = fresh * within[zero]
    return bits


def carry_digits(digits: Bits) -> Bits:
    """The same number with every digit 0 or 1; it must fit."""
    bits, carry = [], torch.zeros_like(digits[:, 0])
    for digit in digits.unbind(1):
        carry = carry + digit
        bits.append(carry & 1)
        carry = carry >> 1
    return torch.stack(bits, 1)


def multiply_digits(one: Bits, other: Bits) -> Tensor:
    """The digits of a product, carries to be done, exact as they stay far below what float64 can tell apart."""
    width = 2 * one.shape[1]
    spectrum = torch.fft.rfft(one.double(), width) * torch.fft.rfft(other.double(), width)
    return torch.fft.irfft(spectrum, width).round().long()


@cache
def measure_chance(operation: type[Operation], least: int, longest: int) -> float:
    """The share of the likeliest of 0, 1 and the end mark in the answers, measured."""
    rng, ones, digits = random.Random(0), 0, 0
    for draw in range(MEASURED):
        size = least + draw % (longest - least + 1)
        width = rng.randint(1, size - 2)
        result = operation.combine(rng.randint(1, 2**width - 1), rng.randint(1, 2 ** (size - 1 - width) - 1))
        ones, digits = ones + result.bit_count(), digits + result.bit_length()
    return max(ones, digits - ones, MEASURED) / (digits + MEASURED)
