"""The mistakes of a model by kind: which wrong answer was given, beside what a guess among the row's values would."""

from typing import NamedTuple, Protocol, runtime_checkable

import pandas as pd
import torch
from torch import Tensor

from bestiary.explain.cases import check_questions
from bestiary.runs.intervals import wilson
from bestiary.tasks._task import SILENT, Batch, Task

KINDS = {
    "right": "the right answer",
    "earlier value": "what the asked key had before it was given its last value",
    "neighbour's value": "the value of the pair shown just before or after the right one",
    "first value": "the value of the first pair of the row",
    "last value": "the value of the last pair shown before the question",
    "another value": "the value of another pair of the row",
    "a key": "a key of the row",
    "another token shown": "any other token that stood before the question",
    "never shown": "a token that did not stand before the question",
}
ROWS = 256


@runtime_checkable
class Answering(Protocol):
    """What answers questions: `bestiary.Model`, a construction, or anything of that form."""

    def answer(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and targets of all questions, row by row."""
        ...


class Answers(NamedTuple):
    """The kind of each answer, and for each kind the chance that a guess among the values of the row is of it."""

    kinds: list[str]
    guesses: list[dict[str, float]]
    distance: list[int]  # from the question back to the value


@torch.no_grad()
def answers_by_kind(model: Answering, batch: Batch) -> Answers:
    """Each question of a batch whose answer followed the asked token, and what the model said."""
    questions = check_questions(batch)
    given = torch.full_like(batch.targets, -1)
    given[batch.targets != SILENT] = model.answer(batch)[0].argmax(1)
    kinds, guesses = [], []
    for row in range(len(batch.tokens)):
        here = questions.where(questions.row == row)
        pairs = sorted({*here.key.tolist()})
        tokens = batch.tokens[row].tolist()
        for at, key in zip(here.at.tolist(), here.key.tolist(), strict=True):
            before = [pair for pair in pairs if pair + 1 < at]
            kind_of = kinds_of_tokens(tokens, before, at, key)
            kinds.append(kind_of.get(int(given[row, at]), "never shown"))
            values = [kind_of[tokens[pair + 1]] for pair in before]
            guesses.append({kind: values.count(kind) / len(values) for kind in {*values}})
    return Answers(kinds, guesses, (questions.at - questions.key - 1).tolist())


def kinds_of_tokens(tokens: list[int], pairs: list[int], at: int, key: int) -> dict[int, str]:
    """The kind that each token shown before the question would be as an answer."""
    found = dict.fromkeys(tokens[: at + 1], "another token shown")
    found |= {tokens[pair]: "a key" for pair in pairs}
    found |= {tokens[pair + 1]: "another value" for pair in pairs}
    if pairs:
        found |= {tokens[pairs[-1] + 1]: "last value", tokens[pairs[0] + 1]: "first value"}
    place = pairs.index(key)
    found |= {tokens[pair + 1]: "neighbour's value" for pair in pairs[max(0, place - 1) : place + 2]}
    found |= {tokens[i + 1]: "earlier value" for i in range(key) if tokens[i] == tokens[key]}
    return found | {tokens[key + 1]: "right"}


def error_table(model: Answering, task: Task, *, rows: int = ROWS, seed: int = 0) -> pd.DataFrame:
    """One row for each kind of answer: its share with a 95 % interval, and what a guess among the values would have.

    Raises ValueError for a task that reads vectors or is not about pairs.
    """
    found = answers_by_kind(model, task.draw(rows, "test", "explain", seed))
    count = len(found.kinds)
    table = []
    for kind, meaning in KINDS.items():
        number = found.kinds.count(kind)
        low, high = wilson(number / count, count)
        guess = sum(chances.get(kind, 0.0) for chances in found.guesses) / count
        if number or guess:
            table.append({"answer": kind, "share": number / count, "low": low, "high": high, "guess": guess})
            table[-1] |= {"meaning": meaning}
    return pd.DataFrame(table)
