"""Questions whose answer followed the asked token earlier in the row, and where each part of the answer stands.

tokens   k1 v1 k2 v2 k3 v3  .  .  k2  .  .        the question k2: its key stands at 2, its value at 3
"""

from collections import Counter
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from bestiary.tasks._layout import earlier_occurrences
from bestiary.tasks._task import SILENT, Batch, Task

ROWS = 64  # drawn at a time until there are enough cases
NEXT = 2  # tokens from the key of a pair to that of the next, which is taken only where there is no other


class Questions(NamedTuple):
    """One entry for each question of a batch whose answer stood behind an earlier occurrence of the asked token."""

    row: Int[Tensor, " asked"]
    at: Int[Tensor, " asked"]  # the position of the question
    key: Int[Tensor, " asked"]  # where the asked token last stood before; the value is behind it
    times: Int[Tensor, " asked"]  # how often the asked token stood before
    answer: Int[Tensor, " asked"]

    def where(self, kept: Bool[Tensor, " asked"]) -> "Questions":
        """Some of the questions."""
        return Questions(*(column[kept] for column in self))


def find_questions(batch: Batch) -> tuple[Questions, int]:
    """The questions of a batch that are answered by what followed the last occurrence of their token.

    Also returns how many questions there are in all.
    """
    asked = batch.targets != SILENT
    found = earlier_occurrences(batch.tokens)
    row, at = asked.nonzero(as_tuple=True)
    key, times = found.last[row, at], found.times[row, at]
    answer = batch.targets[row, at]
    shown = (key >= 0) & (key + 1 < at) & (batch.tokens[row, (key + 1).clamp(min=0)] == answer)
    return Questions(row, at, key, times, answer).where(shown), int(asked.sum())


class Cases(NamedTuple):
    """Rows, each with one question and two pairs: the asked one and another, whose value would be the wrong answer."""

    tokens: Int[Tensor, "cases time"]
    at: Int[Tensor, " cases"]
    key: Int[Tensor, " cases"]  # of the asked pair; its value is behind it
    other: Int[Tensor, " cases"]  # where the other pair's key stands
    right: Int[Tensor, " cases"]
    wrong: Int[Tensor, " cases"]

    def where(self, kept: Bool[Tensor, " cases"]) -> "Cases":
        """Some of the cases."""
        return Cases(*(column[kept] for column in self))

    def swapped(self, what: str) -> Int[Tensor, "cases time"]:
        """The rows with the two pairs' keys or values exchanged, after which the answer is `wrong`."""
        shift = {"keys": 0, "values": 1}[what]
        tokens, rows = self.tokens.clone(), torch.arange(len(self.tokens))
        tokens[rows, self.key + shift] = self.tokens[rows, self.other + shift]
        tokens[rows, self.other + shift] = self.tokens[rows, self.key + shift]
        return tokens


def draw_cases(task: Task, count: int, *, seed: int = 0) -> Cases:
    """`count` cases from the test stream, one a row. Raises ValueError if the task has too few such questions.

    The asked token and the other key stood once each before the question, and no other pair of the row has their
    values, so that exchanging keys or values exchanges the answers.
    """
    kept: list[Cases] = []
    drawn = 0
    while drawn < 64 * ROWS and (kept or drawn < 4 * ROWS):
        batch = task.draw(ROWS, "test", "explain", seed, drawn)
        drawn += ROWS
        kept += one_case_a_row(batch, check_questions(batch))
        if len(kept) >= count:
            columns = zip(*kept[:count], strict=True)
            return Cases(*(torch.stack(column) for column in columns))
    raise ValueError(
        f"of {drawn} rows {len(kept)} ask about two pairs ({count} needed): "
        "explain is for tasks that do, and whose keys stood once before their questions"
    )


def check_questions(batch: Batch) -> Questions:
    """The questions of a batch. Raises ValueError if less than half of them are answered by what followed a token."""
    if batch.tokens.is_floating_point():
        raise ValueError("this task reads vectors, of which no two can be exchanged as tokens can")
    questions, count = find_questions(batch)
    if 2 * len(questions.row) < count:
        raise ValueError(
            f"of {count} questions {len(questions.row)} are answered by what followed an earlier occurrence of the "
            "asked token: explain is for tasks of that kind, such as mqar"
        )
    return questions


def one_case_a_row(batch: Batch, questions: Questions) -> list[Cases]:
    """The last suitable question of each row, with the nearest pair that does not stand right beside its own."""
    found = []
    for row in questions.row.unique().tolist():
        tokens = batch.tokens[row]
        here = questions.where(questions.row == row)
        pairs = sorted({*here.where(here.times == 1).key.tolist()})
        for at, key in sorted(zip(here.at.tolist(), here.key.tolist(), strict=True), reverse=True):
            others = (pair for pair in pairs if pair != key and pair + 1 < at)
            near = sorted(others, key=lambda pair: (abs(pair - key) <= NEXT, abs(pair - key)))
            values = tokens[:at]
            if key in pairs and near and at > key + 1:
                right, wrong = tokens[key + 1], tokens[near[0] + 1]
                if (values == right).sum() == 1 and (values == wrong).sum() == 1:
                    asked, shown, other = (torch.tensor(place) for place in (at, key, near[0]))
                    found.append(Cases(tokens, asked, shown, other, right, wrong))
                    break
    return found


class Pairs(NamedTuple):
    """Rows with equally many pairs that are asked for, and where each pair's key stands; its value is behind it."""

    tokens: Int[Tensor, "rows time"]
    key: Int[Tensor, "rows pairs"]


def find_pairs(batch: Batch) -> Pairs:
    """The pairs of the rows of a batch, of those rows that have the commonest number of them, 2 or more.

    Raises ValueError if there are none.
    """
    questions, _ = find_questions(batch)
    first = questions.where(questions.times == 1)
    by_row = {row: sorted({*first.key[first.row == row].tolist()}) for row in first.row.unique().tolist()}
    counts = Counter(len(keys) for keys in by_row.values() if len(keys) > 1)
    if not counts:
        raise ValueError("no row has two pairs that are asked for")
    count = counts.most_common(1)[0][0]
    rows = [row for row, keys in by_row.items() if len(keys) == count]
    return Pairs(batch.tokens[rows], torch.tensor([by_row[row] for row in rows]))
