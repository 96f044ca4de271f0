"""Multiplying binary numbers, a context-sensitive task (Delétang et al., 2022, section 4)."""

from torch import Tensor

from bestiary.tasks._binary import Bits, Operation, multiply_digits


class BinaryMultiplication(Operation):
    """Multiply two numbers, digits from the lowest.

        tokens   1 0 1 $ 0 1 ? ? ? ? ?    5 x 2 = 10
        targets  . . . . . . 0 1 0 1 $

    Bits are tokens 0 and 1, "$" between the numbers and at the result's end is token 2, and "?" is the blank, token 3:
    the result is read at the blanks, and more of them pad the row. Where the mark stands is uniform, and each number is
    uniform above 0 among those of its width, so that it may end in zeros; the result does not. The length of all this
    is uniform from `least` to `length`.

    Facets: `length` of the string and `place` of the answer from 0. `chance` is measured. Departs from the paper in
    that strings have at least 3 symbols and lengths are mixed in a batch.
    """

    @staticmethod
    def combine(one: int, other: int) -> int:
        return one * other

    @staticmethod
    def result_digits(one: Bits, other: Bits) -> Tensor:
        return multiply_digits(one, other)
