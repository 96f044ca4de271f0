"""Recall by what came before: repeated keys, contexts, triggers, and the key before a value."""

from typing import Any

import pytest
import torch
from task_helpers import at_questions, draw_rows, is_uniform, question_positions
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bestiary.spec import parse
from bestiary.tasks._layout import earlier_occurrences
from bestiary.tasks._task import SILENT, Task, stream
from bestiary.tasks.induction_heads import InductionHeads
from bestiary.tasks.joint_recall import JointRecall
from bestiary.tasks.repeated_recall import RepeatedRecall
from bestiary.tasks.reverse_recall import BEGIN, END, FIRST, PAD, ReverseRecall

ROWS = 4000


@pytest.mark.parametrize("back", [1, 2, 5, 30])
def test_earlier_occurrences_are_found(back: int) -> None:
    symbols = torch.randint(4, (40, 25))
    for row, *found in zip(symbols.tolist(), *(x.tolist() for x in earlier_occurrences(symbols, back)), strict=True):
        for time, (symbol, first, last, times) in enumerate(zip(row, *found, strict=True)):
            before = [i for i in range(time) if row[i] == symbol]
            assert first == [*before, time][0]
            assert last == (before[-back] if len(before) >= back else -1)
            assert times == len(before)


@pytest.mark.parametrize("back", [1, 2, 3])
def test_a_key_that_returns_asks_for_its_earlier_value(back: int) -> None:
    task = RepeatedRecall(vocab=20, length=60, keys=4, back=back)
    for tokens, targets, facets in draw_rows(task):
        keys, values = tokens[::2], tokens[1::2]
        assert len(set(keys)) <= 4
        assert max(keys) < 10 <= min(values)
        for i, key in enumerate(keys):
            before = [j for j in range(i) if keys[j] == key]
            wanted = values[before[-back]] if len(before) >= back else SILENT
            assert targets[2 * i : 2 * i + 2] == [wanted, SILENT]
            if wanted != SILENT:
                assert facets["times"][2 * i] == len(before)
                assert facets["distance"][2 * i] == 2 * (i - before[-back])


def test_every_key_is_assigned_as_often_and_values_are_uniform() -> None:
    tokens = RepeatedRecall(vocab=20, length=60, keys=4).sample(ROWS, stream("test")).tokens
    assert is_uniform(tokens[:, ::2], 10)
    assert is_uniform(tokens[:, 1::2] - 10, 10)
    again = (tokens[:, 0] == tokens[:, 2]).double().mean().item()
    assert again == pytest.approx(1 / 4, abs=4.5 * (3 / 16 / ROWS) ** 0.5)


def test_joint_recall_reads_blocks_with_the_same_keys_and_other_values() -> None:
    for tokens, targets, facets in draw_rows(JointRecall(vocab=60, contexts=3, keys=4, questions=5)):
        blocks = [tokens[start : start + 9] for start in (0, 9, 18)]
        contexts = [block[0] for block in blocks]
        assert len(set(contexts)) == 3
        assert max(contexts) < 20
        value_of = {(b[0], b[i]): b[i + 1] for b in blocks for i in (1, 3, 5, 7)}
        keys = {key for _, key in value_of}
        assert len(keys) == 4
        assert all(20 <= key < 40 for key in keys)
        assert len(value_of) == len(set(value_of.values())) == 12
        assert all(40 <= value < 60 for value in value_of.values())
        assert question_positions(targets) == [28, 30, 32, 34, 36]
        questions = [(tokens[time - 1], tokens[time]) for time in question_positions(targets)]
        assert len(set(questions)) == 5
        assert [value_of[question] for question in questions] == [targets[time] for time in question_positions(targets)]
        for time, (context, key) in zip(question_positions(targets), questions, strict=True):
            block = contexts.index(context)
            assert facets["block"][time] == block
            assert facets["distance"][time] == time - 9 * block - blocks[block].index(key, 1)


def test_joint_recall_mixes_keys_and_questions() -> None:
    task = JointRecall(vocab=30, contexts=2, keys=3)
    batch = task.sample(ROWS, stream("test"))
    first = batch.tokens[:, 1:2] == batch.tokens[:, 8:13:2]  # where the first block's first key is in the second
    assert is_uniform(first.long().argmax(1), 3)
    assert is_uniform(at_questions(batch, batch.facets["block"]).view(ROWS, 6)[:, 0].long(), 2)
    assert is_uniform(at_questions(batch, batch.targets) - 20, 10)


def test_space_counts_every_row_of_joint_recall_once() -> None:
    task = JointRecall(vocab=8, contexts=2, keys=2, questions=1)
    assert task.space == pytest.approx(len(task.sample(20_000, stream("test")).tokens.unique(dim=0)))


def test_induction_copies_what_followed_the_trigger() -> None:
    task, several = InductionHeads(vocab=12, length=40, following=3, triggers=4), 0
    for tokens, targets, facets in draw_rows(task, 400):
        triggers = [time for time, token in enumerate(tokens) if token == 11]
        assert triggers[-1] == 37
        answer = [*tokens[38:], targets[-1]]
        assert all(tokens[time + 1 : time + 4] == answer for time in triggers[:-1])
        assert all(b - a > 3 for a, b in zip(triggers, triggers[1:], strict=False))
        assert triggers[-2] + 3 < 36
        assert targets == [SILENT] * 37 + answer
        assert facets["shown"][-1] == len(triggers) - 1
        assert facets["distance"][37:] == [37 - triggers[-2]] * 3
        assert facets["place"][37:] == [0, 1, 2]
        several += len(triggers) > 2
    assert 140 < several < 205  # a half, less those whose places overlap


def test_the_trigger_comes_anywhere_early_and_all_else_is_uniform() -> None:
    batch = InductionHeads(vocab=6, length=64, early=0.5).sample(20000, stream("test"))
    start = 63 - batch.facets["distance"][:, -1].long()
    assert is_uniform(start, 31)
    assert is_uniform(batch.tokens[batch.tokens < 5], 5)
    assert is_uniform(batch.targets[:, -1], 5)


def test_all_tokens_are_asked_where_training_does() -> None:
    batch = InductionHeads(vocab=6, length=20, scored="all").sample(5, stream("test"))
    assert torch.equal(batch.targets[:, :-1], batch.tokens[:, 1:])
    assert torch.equal(
        batch.targets[:, -1:], InductionHeads(vocab=6, length=20).sample(5, stream("test")).targets[:, -1:]
    )


@pytest.mark.parametrize(("preset", "vocab", "length"), [("h3", 20, 31), ("mamba", 16, 256)])
def test_induction_presets_are_those_of_the_papers(preset: str, vocab: int, length: int) -> None:
    (found,) = parse("tasks", f"induction_heads.{preset}")
    assert (found.build().vocab, found.build().length) == (vocab, length)


class Largest(TorchDispatchMode):
    """The most numbers that any tensor had."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


def test_a_million_tokens_are_drawn_in_their_own_memory() -> None:
    task = InductionHeads(length=2**20)
    with Largest() as largest:
        batch = task.sample(2, stream("test"))
    assert largest.numbers == 2 * (2**20 + 1)
    assert torch.equal(task.solve(batch.tokens)[:, -1], batch.targets[:, -1])
    assert (batch.facets["distance"][:, -1] > 2**10).all()


@pytest.mark.parametrize("ask", ["key", "value", "both"])
def test_a_pair_is_asked_by_either_side(ask: str) -> None:
    task, sides = ReverseRecall(symbols=20, pairs=6, least=3, ask=ask), set[int]()
    for tokens, targets, facets in draw_rows(task):
        (question,) = question_positions(targets)
        load = tokens.index(END) // 2
        assert tokens[0] == BEGIN
        assert tokens[question - 1] == END
        assert question == 2 * load + 2
        assert set(tokens[question + 1 :]) <= {PAD}
        keys, values = tokens[1 : 2 * load : 2], tokens[2 : 2 * load + 1 : 2]
        assert len(set(keys)) == len(set(values)) == load
        assert all(FIRST <= key < FIRST + 10 <= value < FIRST + 20 for key, value in zip(keys, values, strict=True))
        reverse = int(tokens[question] in values)
        given, wanted = (values, keys) if reverse else (keys, values)
        assert targets[question] == wanted[given.index(tokens[question])]
        assert facets["distance"][question] == question - tokens.index(tokens[question])
        assert (facets["load"][question], facets["reverse"][question]) == (load, reverse)
        sides.add(reverse)
    assert sides == {"key": {0}, "value": {1}, "both": {0, 1}}[ask]


def test_every_pair_is_asked_and_every_number_of_pairs_comes_as_often() -> None:
    batch = ReverseRecall(symbols=20, pairs=6, least=3).sample(ROWS, stream("test"))
    load = batch.facets["load"][:, 0].long()
    assert is_uniform(load - 3, 4)
    full = load == 6
    place = 6 - (at_questions(batch, batch.facets["distance"])[full] // 2).long()
    assert is_uniform(place, 6)


def test_next_tokens_are_asked_up_to_the_answer() -> None:
    for tokens, targets, _ in draw_rows(ReverseRecall(symbols=20, pairs=6, least=2, scored="all")):
        question = tokens.index(END) + 1
        assert targets[:question] == tokens[1 : question + 1]
        assert targets[question] in tokens[1:question]
        assert set(targets[question + 1 :]) <= {SILENT}


IMPOSSIBLE = [
    (RepeatedRecall, {"length": 33}, "try 34"),
    (RepeatedRecall, {"length": 64, "keys": 16, "back": 2}, "from a length of 66"),
    (RepeatedRecall, {"vocab": 30, "keys": 16}, "need 32"),
    (JointRecall, {"vocab": 90}, "contexts of 8 keys need 96"),
    (JointRecall, {"questions": 33}, "32 can be asked"),
    (InductionHeads, {"vocab": 2}, "need 3"),
    (InductionHeads, {"length": 7, "following": 3}, "need 8"),
    (InductionHeads, {"early": 0.0}, "above 0 and at most 1"),
    (ReverseRecall, {"symbols": 30}, "an even 32 or more"),
    (ReverseRecall, {"symbols": 33}, "an even 32 or more"),
    (ReverseRecall, {"least": 17}, "at most pairs=16"),
]


@pytest.mark.parametrize(("task", "options", "message"), IMPOSSIBLE)
def test_impossible_options_say_what_is_possible(
    task: type[Task], options: dict[str, str | int | float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        task(**options)


def test_the_least_that_is_said_to_work_does() -> None:
    least = [
        RepeatedRecall(length=66, keys=16, back=2, vocab=32),
        JointRecall(vocab=96),
        InductionHeads(length=8, following=3, vocab=3),
        ReverseRecall(symbols=32),
    ]
    assert all(len(task.sample(3, stream("test")).targets) == 3 for task in least)
