"""Attention by its formula, in either of its ways, and rotation by its property."""

import math

import pytest
import torch
from torch import Tensor

from bestiary.ops.attention import FUSED, attend, rotate


def by_formula(q: Tensor, k: Tensor, v: Tensor, where: list[int], window: int) -> Tensor:
    outputs = []
    for i, place in enumerate(where):
        seen = slice(max(0, place - window + 1), place + 1)
        weights = (q[:, :, i : i + 1] @ k[:, :, seen].mT / math.sqrt(q.shape[-1])).softmax(-1)
        outputs.append(weights @ v[:, :, seen])
    return torch.cat(outputs, dim=2)


@pytest.mark.parametrize("window", [1, 6, None])
@pytest.mark.parametrize("keys", [9, FUSED + 1])
def test_attention_is_its_formula(keys: int, window: int | None) -> None:
    where = [0, 3, 4, 8]
    q, k, v = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (len(where), keys, keys))
    found = attend(q, k, v, torch.tensor(where), window=window)
    torch.testing.assert_close(found, by_formula(q, k, v, where, window or keys), rtol=1e-10, atol=1e-10)


def test_each_row_may_ask_elsewhere() -> None:
    q, k, v = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (2, 9, 9))
    found = attend(q, k, v, torch.tensor([[0, 5], [8, 2]]))
    for row, where in enumerate([[0, 5], [8, 2]]):
        wanted = by_formula(q[row : row + 1], k[row : row + 1], v[row : row + 1], where, 9)
        torch.testing.assert_close(found[row : row + 1], wanted, rtol=1e-10, atol=1e-10)


def test_rotated_scores_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def score(i: int, j: int) -> Tensor:
        return (rotate(q, torch.tensor([i])) * rotate(k, torch.tensor([j]))).sum()

    torch.testing.assert_close(score(12, 5), score(107, 100))
    assert not torch.isclose(score(12, 5), score(12, 6))
