"""Associative recall with one question."""

import pytest
import torch

from bestiary.spec import spec
from bestiary.tasks._task import LARGE_SPACE, SILENT, stream
from bestiary.tasks.associative_recall import AssociativeRecall, occupancies
from tests.test_recall_induction import Largest


@pytest.mark.parametrize(
    "options", [{}, {"vocab": 10, "pairs": 10}, {"absent": True}, {"key_length": 2, "vocab": 12, "pairs": 8}]
)
def test_knowing_the_values_alone_scores_the_stated_plateau(options: dict[str, int]) -> None:
    task = AssociativeRecall(**options)
    batch = task.sample(20000, stream("test"))
    hits = 0.0
    for tokens, answer in zip(batch.tokens.tolist(), batch.targets[:, -1].tolist(), strict=True):
        values = set(tokens[task.key_length : task.body : task.key_length + 1])
        hits += (answer in values) / len(values)
    assert hits / 20000 == pytest.approx(task.plateau, abs=0.01)


def test_small_settings_keep_training_and_test_rows_apart() -> None:
    for options in ({"vocab": 6, "pairs": 4}, {"vocab": 8, "pairs": 5}):
        task = AssociativeRecall(**options)
        train, test = (set(map(tuple, task.draw(4000, split, 0).tokens.tolist())) for split in ("train", "test"))
        assert not train & test


@pytest.mark.parametrize("absent", [False, True])
def test_space_is_the_inverse_of_how_often_two_rows_are_alike(absent: bool) -> None:
    task = AssociativeRecall(vocab=6, pairs=3, absent=absent)
    _, times = task.sample(100_000, stream("test")).tokens.unique(dim=0, return_counts=True)
    assert task.space == pytest.approx(1e10 / (times.double() ** 2).sum().item(), rel=0.02)


def test_large_settings_are_drawn_without_a_hash() -> None:
    for options in ({}, {"vocab": 30, "pairs": 512}, {"vocab": 8192, "pairs": 32}, {"vocab": 8192, "pairs": 2}):
        assert AssociativeRecall(**options).space >= LARGE_SPACE


def test_one_question_is_asked_about_a_key_that_was_shown() -> None:
    batch = AssociativeRecall().sample(500, stream("test"))
    assert ((batch.targets != SILENT).sum(1) == 1).all()
    assert (batch.facets["shown"][:, -1] > 0).all()
    rows = torch.arange(500)
    shown_at = batch.tokens.shape[1] - 1 - batch.facets["distance"][:, -1]
    assert torch.equal(batch.tokens[rows, shown_at], batch.tokens[:, -1])
    assert torch.equal(batch.tokens[rows, shown_at + 1], batch.targets[:, -1])


def test_an_absent_key_is_answered_by_a_dot() -> None:
    batch = AssociativeRecall(absent=True, pairs=3).sample(500, stream("test"))
    never = batch.facets["shown"][:, -1] == 0
    assert never.any()
    assert (batch.targets[never, -1] == 19).all()
    assert (batch.targets[~never, -1] < 18).all()


def test_training_may_score_the_next_token_everywhere() -> None:
    train, test = (AssociativeRecall(scored=scored).sample(9, stream("test")) for scored in ("all", "answer"))
    assert torch.equal(train.tokens, test.tokens)
    assert torch.equal(train.targets[:, :-1], train.tokens[:, 1:])
    assert torch.equal(train.targets[:, -1], test.targets[:, -1])


def test_occupancy_is_a_distribution() -> None:
    assert [row.tolist() for row in occupancies(2, 3)] == [[1, 0, 0], [0, 1, 0], pytest.approx([0, 1 / 3, 2 / 3])]
    assert [sum(row) for row in occupancies(20, 9)] == pytest.approx([1] * 21)


def test_a_task_of_many_pairs_can_be_made() -> None:
    assert AssociativeRecall(vocab=4000, pairs=2000).plateau == pytest.approx(0.0010, abs=1e-4)


def test_rows_of_very_many_keys_are_drawn_some_at_a_time() -> None:
    task = AssociativeRecall(vocab=2**17 + 2, pairs=2)
    with Largest() as largest:
        batch = task.sample(300, stream("test"))
    assert batch.tokens.shape == (300, task.length)
    assert largest.numbers <= 2**24


def test_too_many_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 65536"):
        spec("tasks", "associative_recall", key_length=9).build()
