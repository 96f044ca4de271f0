"""Parity of a string of bits (Delétang et al., 2022, section 4; as a circuit, Arora et al., 2024)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Positive
from bestiary.tasks._strings import StringBatch, Strings


class Parity(Strings):
    """Is the number of ones odd?

        tokens      0 1 1 0 1 ?        cumulative   0 1 1 0 1 ?
        targets     . . . . . 1                     0 1 0 0 1 .

    Bits are tokens 0 and 1, "?" is the blank, token 2: the answer is read there, and blanks pad the row. With
    `cumulative` the parity of the bits so far is asked at every bit, and blanks are padding only. Bits are uniform; the
    length of the string is uniform from `least` to `length`.

    Facets: `length` of the string and, if cumulative, `place` of the bit from 0. Departs from the paper, whose
    batches have strings of one length: here lengths are mixed in a batch, which is the same distribution.
    """

    blank = 2
    variants: ClassVar = (*Strings.variants, "cumulative=True", "least=20, length=64, cumulative=True")
    presets: ClassVar[Mapping[str, str]] = {
        **Strings.presets,
        "circuit": "least=127, length=127",
        "cumulative_circuit": "least=127, length=127, cumulative=True",
    }

    def __init__(self, *, least: Positive = 3, length: Positive = 40, cumulative: bool = False) -> None:
        self.running = cumulative
        super().__init__(least=least, length=length)

    def expected_counts(self, size: int) -> list[float]:
        return [0.5, 0.5]

    def draw_strings(self, sizes: Int[Tensor, " rows"], rng: torch.Generator) -> StringBatch:
        symbols = self.uniform_symbols(len(sizes), 2, rng)
        parity = symbols.cumsum(1) % 2
        if self.running:
            return StringBatch(symbols, sizes, parity, sizes)
        return StringBatch(symbols, sizes, parity.gather(1, sizes.unsqueeze(1) - 1), torch.ones_like(sizes))

    def solve_string(self, string: list[int]) -> list[int]:
        odd, answers = 0, []
        for bit in string:
            odd = 1 - odd if bit == 1 else odd
            answers.append(odd)
        return answers if self.running else answers[-1:]
