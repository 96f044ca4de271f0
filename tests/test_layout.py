"""Things picked, spaced out and packed in rows, against plain Python."""

import pytest
import torch
from task_helpers import is_uniform

from bestiary.tasks._draw import blocks, sorted_subsets
from bestiary.tasks._layout import add_filler, gather_vectors, pack_rows
from bestiary.tasks._task import stream


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("length", [3, 9, 20])
def test_what_is_kept_moves_to_one_side(length: int, right: bool) -> None:
    kept, numbers = torch.rand(50, 3, 4) < 0.5, torch.randint(100, (50, 3, 4))
    (found,) = pack_rows(kept, (numbers, -1), length=length, right=right)
    for row, parts, mask in zip(found.tolist(), numbers.flatten(1).tolist(), kept.flatten(1).tolist(), strict=True):
        chosen = [x for x, keep in zip(parts, mask, strict=True) if keep]
        blank = [-1] * (length - len(chosen))
        assert row == (blank + chosen[-length:] if right else chosen[:length] + blank)


def test_numbers_are_spaced_and_vectors_picked() -> None:
    assert add_filler(torch.tensor([[5, 6]]), 1, 2, 0).tolist() == [[0, 5, 0, 0, 0, 6, 0, 0]]
    vectors = torch.tensor([[[1, 2], [3, 4], [5, 6]]])
    assert gather_vectors(vectors, torch.tensor([[2, 0]])).tolist() == [[[5, 6], [1, 2]]]


@pytest.mark.parametrize("count", [0, 1, 7, 8])
def test_blocks_hold_every_row_once(count: int) -> None:
    parts = list(blocks(count, 10, most=35))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(count))
    assert all(part.stop - part.start <= 3 for part in parts)
    assert parts


def test_every_choice_of_increasing_numbers_is_as_likely() -> None:
    drawn = sorted_subsets(20000, 2, 4, stream("test"))
    assert (drawn[:, 0] < drawn[:, 1]).all()
    number = torch.tensor([[-1, 0, 1, 2], [-1, -1, 3, 4], [-1, -1, -1, 5]])
    assert is_uniform(number[drawn[:, 0], drawn[:, 1]], 6)
