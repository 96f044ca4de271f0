"""Looking up a number in a phone book (Jelassi et al., 2024, section 4)."""

from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from bestiary.spec import Natural, Positive
from bestiary.tasks._count import choice_bits, from_bits, guess_accuracy
from bestiary.tasks._draw import distinct, random_orders
from bestiary.tasks._layout import gather_vectors
from bestiary.tasks._task import SILENT, Batch, Task

DIGITS = 10
COLON, NEWLINE, FIRST = 10, 11, 12  # FIRST is the first name


class PhoneBook(Task):
    """Read lines of a name and a number of ten digits, two of them again as examples, then a name; say its number.

        tokens   ann : 6 0 4 .. \\n bob : 9 9 1 .. \\n ... bob : 9 9 1 .. \\n  ann : 6 0 ..
        targets    . . . . . ..  .   . . . . . ..  . ...   . . . . . ..  .    . 6 0 4 ..

    Tokens 0 to 9 are digits, then ":" and the end of a line, then `names` names, of which each sequence has `lines`
    different ones. The first digit is 6 to 9, all others 0 to 9, each equally likely. After the book `examples` of its
    lines are repeated, and then another name is asked. Each digit is asked after the ones before it have been given.

    Facets: `distance` back to where the digit stands in the book (from the question to the token before it there),
    `line` (its place in the book, from 0) and `place` (of the digit in the number, from 0).

    Departs from the paper: a name is one token, and the score is that of digits; whole numbers are counted elsewhere.
    """

    family: ClassVar = "recall"
    variants: ClassVar = ("names=20, lines=3", "names=20, lines=6, examples=0")
    axes: ClassVar = {"lines": (3, 5, 10, 20)}

    def __init__(self, *, names: Positive = 1000, lines: Positive = 10, examples: Natural = 2) -> None:
        self.names, self.lines, self.examples = names, lines, examples
        if names < lines:
            raise ValueError(f"phone_book(names={names}): {lines} lines need as many names")
        if lines <= examples:
            raise ValueError(f"phone_book(lines={lines}): {examples} examples and another line need {examples + 1}")
        self.width = DIGITS + 3
        self.vocab, self.length = FIRST + names, (lines + examples + 1) * self.width - 2
        self.space = from_bits(choice_bits(names, lines) + choice_bits(lines, examples + 1) + lines * 31.8)
        self.chance = (1 / 4 + (DIGITS - 1) / 10) / DIGITS
        self.plateau = guess_accuracy(lines, [4, *[10] * (DIGITS - 1)])

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        shown = torch.empty(count, self.lines, self.width, dtype=torch.long, device=rng.device)
        shown[:, :, 0] = FIRST + distinct(count, self.lines, self.names, rng)
        shown[:, :, 1], shown[:, :, -1] = COLON, NEWLINE
        shown[:, :, 2] = torch.randint(6, 10, (count, self.lines), generator=rng, device=rng.device)
        others = count, self.lines, DIGITS - 1
        shown[:, :, 3:-1] = torch.randint(10, others, generator=rng, device=rng.device)
        again = random_orders(count, self.lines, rng)[:, : self.examples + 1]
        repeated = gather_vectors(shown, again)
        text = torch.cat([shown, repeated], dim=1).flatten(1)
        tokens, targets = text[:, :-2].clone(), text[:, 1:-1].clone()
        targets[:, :-DIGITS] = SILENT
        facets = {name: torch.zeros_like(tokens, dtype=torch.int32) for name in ("distance", "line", "place")}
        facets["distance"][:, -DIGITS:] = (self.lines + self.examples - again[:, -1:]) * self.width
        facets["line"][:, -DIGITS:] = again[:, -1:]
        facets["place"][:, -DIGITS:] = torch.arange(DIGITS, device=rng.device)
        return Batch(tokens, targets, facets)

    def solve(self, tokens: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
        answers = torch.full_like(tokens, SILENT)
        asked = self.length - DIGITS - 1  # the position of the name
        for row, sequence in enumerate(tokens.tolist()):
            if len(sequence) > asked:
                line = sequence.index(sequence[asked])
                for time in range(asked + 1, len(sequence)):
                    answers[row, time] = sequence[line + 1 + time - asked]
        return answers
