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
FACETS = {
    "tokens back": "from the question to the value that is asked for",
    "pairs before": "how many pairs stood before the question",
    "which pair": "the asked pair's place among them, from 1",
}


@runtime_checkable
class Answering(Protocol):
    """What answers questions: `bestiary.Model`, a construction, or anything of that form."""

    def answer(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and targets of all questions, row by row."""
        ...


class Answers(NamedTuple):
    """The kind of each answer, and for each kind the chance that a guess among the row's asked values is of it."""

    kinds: list[str]
    guesses: list[dict[str, float]]
    facets: dict[str, list[int]]  # FACETS of each question


@torch.no_grad()
def answers_by_kind(model: Answering, batch: Batch) -> Answers:
    """Each question of a batch whose answer followed the asked token, and what the model said."""
    questions = check_questions(batch)
    given = torch.full_like(batch.targets, -1)
    given[batch.targets != SILENT] = model.answer(batch)[0].argmax(1)
    kinds, guesses, facets = [], [], {name: [] for name in FACETS}
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
            for name, value in zip(FACETS, (at - key - 1, len(before), before.index(key) + 1), strict=True):
                facets[name].append(value)
    return Answers(kinds, guesses, facets)


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
    """One row for each kind of answer: its share with a 95 % interval, and that of a guess among the asked values.

    Raises ValueError for a task that reads vectors or is not about pairs.
    """
    return count_kinds(answers_by_kind(model, task.draw(rows, "test", "explain", seed)))


def count_kinds(found: Answers) -> pd.DataFrame:
    """The table of `error_table`, from answers by kind."""
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


def facet_table(found: Answers) -> pd.DataFrame:
    """The share of right answers by each of FACETS, in bins that double, with the commonest mistake of each bin.

    Columns: `by`, `from`, `to`, `right`, `low`, `high` (Wilson's 95 % interval), `asked`, `mistake`.
    """
    rows = []
    for name, values in found.facets.items():
        low = 1
        while low <= max(values, default=0):
            kinds = [kind for kind, value in zip(found.kinds, values, strict=True) if low <= value < 2 * low]
            if kinds:
                right, wrong = kinds.count("right"), [kind for kind in kinds if kind != "right"]
                ends = wilson(right / len(kinds), len(kinds))
                row = {"by": name, "from": low, "to": 2 * low - 1, "right": right / len(kinds)}
                row |= {"low": ends[0], "high": ends[1], "asked": len(kinds)}
                rows.append(row | {"mistake": max(KINDS, key=wrong.count) if wrong else "none"})
            low *= 2
    return pd.DataFrame(rows)
