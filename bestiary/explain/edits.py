"""What a model answers when its row is changed: does it follow the pair, its place, or neither?"""

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor, nn

from bestiary.explain.blocks import take_apart
from bestiary.explain.cases import Cases
from bestiary.runs.intervals import wilson

EDITS = {
    "none": "the row as it is",
    "values exchanged": "the asked pair and another exchange their values",
    "keys exchanged": "they exchange their keys",
    "pairs exchanged": "they exchange their places, keys and values alike",
    "another pair replaced": "the other pair gives way to a key and a value that the row has not shown",
    "new value": "the asked key gets a value that the row has not shown",
    "pair again": "the pair stands again, right before the question",
    "new value later": "the asked key stands again right before the question, with a value not shown before",
    "key removed": "the asked key is replaced by one that the row has not shown, so there is no right answer",
}


class Edited(NamedTuple):
    """Cases with changed rows, and what should now be answered; -1 where nothing is right."""

    name: str
    cases: Cases
    expected: Int[Tensor, " cases"]


def edited_rows(cases: Cases) -> Iterator[Edited]:
    """The cases with their rows changed in each way of EDITS; those of them in which that can be done."""
    yield Edited("none", cases, cases.right)
    for what in ("values", "keys"):
        yield Edited(f"{what} exchanged", cases._replace(tokens=cases.swapped(what)), cases.wrong)
    both = cases._replace(tokens=cases.swapped("keys")).swapped("values")
    yield Edited("pairs exchanged", cases._replace(tokens=both), cases.right)
    asked = cases.tokens.gather(1, cases.at.unsqueeze(1)).squeeze(1)
    some, key = with_unseen(cases, asked)
    some, value = with_unseen(with_tokens(some, [(some.other, key)]), some.right)
    yield Edited("another pair replaced", with_tokens(some, [(some.other + 1, value)]), some.right)
    some, value = with_unseen(cases, cases.right)
    yield Edited("new value", with_tokens(some, [(some.key + 1, value)]), value)
    far = cases.at - torch.maximum(cases.key, cases.other) > 3  # else what stands before the question is a pair
    distant = cases.where(far)
    yield Edited("pair again", again(distant, distant.right), distant.right)
    distant, value = with_unseen(distant, distant.right)
    yield Edited("new value later", again(distant, value), value)
    some, key = with_unseen(cases, asked)
    yield Edited("key removed", with_tokens(some, [(some.key, key)]), torch.full_like(some.right, -1))


def again(cases: Cases, value: Int[Tensor, " cases"]) -> Cases:
    """The cases with the asked key and a value right before the question."""
    asked = cases.tokens.gather(1, cases.at.unsqueeze(1)).squeeze(1)
    return with_tokens(cases, [(cases.at - 2, asked), (cases.at - 1, value)])


def with_tokens(cases: Cases, changes: list[tuple[Int[Tensor, " cases"], Int[Tensor, " cases"]]]) -> Cases:
    """The cases with tokens written at some positions of their rows."""
    tokens, rows = cases.tokens.clone(), torch.arange(len(cases.at))
    for where, token in changes:
        tokens[rows, where] = token
    return cases._replace(tokens=tokens)


def with_unseen(cases: Cases, tokens: Int[Tensor, " cases"]) -> tuple[Cases, Int[Tensor, " some"]]:
    """The cases whose rows do not hold the token of some other case, and for each of them one such token."""
    new = (tokens.unsqueeze(0).unsqueeze(2) != cases.tokens.unsqueeze(1)).all(2)  # (case, candidate)
    turn = torch.arange(len(tokens))
    later = (turn.unsqueeze(0) - turn.unsqueeze(1)) % max(1, len(tokens))  # not the same one for every row
    chosen = new.any(1)
    nearest = torch.where(new, later, len(tokens))[chosen]
    return cases.where(chosen), tokens[nearest.argmin(1)] if len(nearest) else tokens[chosen]


@torch.no_grad()
def edit_table(model: nn.Module, cases: Cases) -> pd.DataFrame:
    """One row for each edit: the share that answers as the changed row asks, as the first did, and otherwise."""
    parts, found = take_apart(model), []
    for name, changed, expected in edited_rows(cases):
        count = len(changed.at)
        if not count:
            continue
        given = parts.head(parts.stream(changed.tokens)[-1][torch.arange(count), changed.at]).argmax(-1)
        follows, stays = given == expected, given == changed.right
        share, other = (float(part.double().mean()) for part in (follows, ~follows & ~stays))
        low, high = wilson(share, count)
        row = {"edit": name, "follows": share, "low": low, "high": high, "as before": float(stays.double().mean())}
        found.append(row | {"other": other, "rows": count, "meaning": EDITS[name]})
    return pd.DataFrame(found)
