"""Fuzzy recall: words of several letters, read back from the rows."""

from collections import Counter
from typing import Any

import pytest
import torch
from task_helpers import is_uniform, rows_of, sample_rows

from bestiary.tasks._task import SILENT

FUZZY = [
    "fuzzy_recall",
    "fuzzy_recall(keys='mixed', length=64)",
    "fuzzy_recall(vocab=10, length=40, key_size=2, multi_query=False, keys='mixed')",
    "fuzzy_recall(vocab=8, length=24, key_size=1, value_size=2)",
]


def words(task: Any, tokens: list[int]) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """Where each key begins, the key and its value (what of it is shown)."""
    found: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []
    ordinary = task.vocab - 2 + task.multi_query
    for t, token in enumerate(tokens):
        if token < ordinary // 2:
            if not found or found[-1][2] or tokens[t - 1] >= ordinary:
                found.append((t, (), ()))
            found[-1] = (found[-1][0], (*found[-1][1], token), ())
        elif token < ordinary:
            found[-1] = (*found[-1][:2], (*found[-1][2], token))
    return found


@pytest.mark.parametrize("text", FUZZY)
def test_fuzzy_rows_are_pairs_of_words_of_which_the_returning_are_asked(text: str) -> None:
    task, batch = sample_rows(text)
    most = task.key_size + task.value_size
    for tokens, targets, facets in rows_of(batch):
        found, padding = words(task, tokens), task.vocab - 2 + task.multi_query
        assert all(token == padding for token in tokens[: found[0][0]])
        assert (task.vocab - 1 in tokens[found[0][0] :]) is (not task.multi_query)
        *body, (start, probe, cut) = found
        value_of, wanted, seen = {}, [SILENT] * len(tokens), {}
        for begin, key, value in found:
            assert len(set(key)) == len(key) <= task.key_size
            assert task.keys == "mixed" or len(key) == task.key_size
            whole = value_of.setdefault(key, value) if begin != start else value_of[key]
            assert whole == value or begin == start
            assert len(set(whole)) == len(whole) <= task.value_size
            for place, token in enumerate(whole):
                t = begin + len(key) - 1 + place
                if key in seen and (task.multi_query or begin == start):
                    wanted[t] = token
                    found_here = {"distance": begin - seen[key][-1], "shown": len(seen[key]), "place": place}
                    assert {name: x[t] for name, x in facets.items()} == found_here
            seen.setdefault(key, []).append(begin)
        assert targets == wanted
        assert cut == value_of[probe][:-1]
        size, last = sum(len(k + v) for _, k, v in body), len(body[-1][1] + body[-1][2])
        limit = task.length - len(probe + value_of[probe]) - most
        assert size - last < limit <= size


def test_fuzzy_words_have_every_size_as_often_and_their_letters_are_uniform() -> None:
    task, batch = sample_rows("fuzzy_recall(keys='mixed')", 3000)
    found = [words(task, tokens)[1] for tokens in batch.tokens.tolist()]
    keys, values = [key for _, key, _ in found], [value for _, _, value in found]
    assert is_uniform(torch.tensor([len(key) - 1 for key in keys]), 3)
    assert is_uniform(torch.tensor([len(value) - 1 for value in values]), 3)
    assert is_uniform(torch.tensor([key[-1] for key in keys]), 7)
    assert is_uniform(torch.tensor([value[-1] - 7 for value in values]), 8)


def test_the_fuzzy_probe_may_stand_anywhere_in_the_body() -> None:
    task, batch = sample_rows("fuzzy_recall(vocab=64)", 2000)
    where = []
    for tokens in batch.tokens.tolist():
        *body, (_, probe, _) = words(task, tokens)
        begin = body[0][0]
        where.append(next(start for start, key, _ in body if key == probe) - begin)
    assert min(where) == 0
    assert max(where) >= 128 - 8 - 6 - 3
    assert sum(where) / len(where) == pytest.approx((128 - 5 - 12) / 2 + 2, abs=3)


@pytest.mark.parametrize("text", FUZZY)
def test_guessing_a_value_shown_that_agrees_so_far_scores_about_the_plateau(text: str) -> None:
    task, batch = sample_rows(text)
    hits, asked = 0.0, 0
    for tokens, targets, facets in rows_of(batch):
        shown = set({key: value for _, key, value in words(task, tokens)[:-1]}.values())
        for t, target in enumerate(targets):
            if target != SILENT:
                place = facets["place"][t]
                read = tuple(tokens[t - place + 1 : t + 1])
                agree = Counter(value[place] for value in shown if value[:place] == read and len(value) > place)
                hits, asked = hits + agree[target] / agree.total(), asked + 1
    assert hits / asked == pytest.approx(task.plateau, abs=0.06)
