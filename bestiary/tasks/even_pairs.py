"""Even pairs, a regular language (Delétang et al., 2022, section 4)."""

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.tasks._strings import StringBatch, Strings


class EvenPairs(Strings):
    """Is the number of places where neighbouring bits differ even?

        tokens   0 1 1 0 1 ?
        targets  . . . . . 1

    Bits are tokens 0 and 1, "?" is the blank, token 2: the answer is read there, and blanks pad the row. The answer is
    0 if the pairs 01 and 10 are even in number and 1 if not, which is the first bit xor the last. Bits are uniform; the
    length of the string is uniform from `least` to `length`.

    Facet: `length` of the string. Departs from the paper, whose batches have strings of one length: here lengths
    are mixed in a batch, which is the same distribution.
    """

    blank = 2

    def expected_counts(self, size: int) -> list[float]:
        return [1.0, 0.0] if size == 1 else [0.5, 0.5]

    def draw_strings(self, sizes: Int[Tensor, " rows"], rng: torch.Generator) -> StringBatch:
        symbols = self.uniform_symbols(len(sizes), 2, rng)
        last = symbols.gather(1, sizes.unsqueeze(1) - 1)
        return StringBatch(symbols, sizes, symbols[:, :1] ^ last, torch.ones_like(sizes))

    def solve_string(self, string: list[int]) -> list[int]:
        unequal = sum(a != b for a, b in zip(string, string[1:], strict=False))
        return [unequal % 2]
