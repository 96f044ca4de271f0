"""Attention by its formula, in either of its ways, and rotation by its property."""

import math

import pytest
import torch
from mixer_helpers import assert_same, build_mixer, inputs
from torch import Tensor

from bestiary.mixers import attention
from bestiary.mixers._mixer import take
from bestiary.ops.attention import FUSED, attend, rotate, sliding_window


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


@pytest.mark.parametrize("keys", [9, FUSED + 1])
def test_every_position_is_what_asking_each_gives(keys: int) -> None:
    q, k, v = torch.randn(3, 2, 3, keys, 4, dtype=torch.float64)
    assert_same(attend(q, k, v, None), attend(q, k, v, torch.arange(keys)))
    assert_same(attend(q, k, v, None, window=3), attend(q, k, v, torch.arange(keys), window=3))


def test_positions_are_exact_in_half_precision() -> None:
    x = torch.randn(1, 1, 2, 8)
    where = torch.tensor([1000, 1001])
    apart = rotate(x.bfloat16(), where).float() - rotate(x.bfloat16().float(), where)
    assert apart.abs().max() < 0.03 * x.abs().max()


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


@pytest.mark.parametrize("sinks", [0, 3, 9])
@pytest.mark.parametrize(("time", "window"), [(1, 4), (23, 4), (24, 1), (64, 8), (9, 20), (300, 70)])
def test_block_by_block_a_window_gives_the_same(time: int, window: int, sinks: int) -> None:
    q, k, v = (torch.randn(2, 3, time, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    found = sliding_window(q, k, v, window=window, sinks=sinks)
    wanted = attend(q, k, v, torch.arange(time), window=window, sinks=sinks)
    assert_same(found, wanted)
    pull = torch.randn_like(found)
    grads = [torch.autograd.grad((y * pull).sum(), [q, k, v]) for y in (found, wanted)]
    for one, two in zip(*grads, strict=True):
        assert_same(one, two)


@pytest.mark.parametrize("options", ["window=5", "window=5, sinks=2, kv_heads=2"])
def test_a_long_sequence_is_attended_block_by_block(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x, calls = build_mixer(f"attention(heads=4, {options})"), inputs(41), []
    monkeypatch.setattr(attention, "LONG", 99)
    wanted = mixer(x)[0]
    monkeypatch.undo()
    monkeypatch.setattr(
        attention, "sliding_window", lambda *given, **named: calls.append(1) or sliding_window(*given, **named)
    )
    many, few = torch.randint(41, (2, 40)), torch.randint(41, (2, 39))
    assert_same(mixer(x)[0], wanted)
    assert_same(mixer.parallel(x), wanted)
    assert_same(mixer.parallel(x, many), take(wanted, many))
    assert len(calls) == 3
    assert_same(mixer.parallel(x, few), take(wanted, few))
    assert len(calls) == 3


@pytest.mark.parametrize("keys", [9, FUSED + 1])
def test_no_queries_get_no_output(keys: int) -> None:
    k = torch.randn(2, 3, keys, 4)
    for where in (torch.arange(0), torch.zeros(2, 0, dtype=torch.long)):
        assert attend(k[:, :, :0], k, k, where).shape == (2, 3, 0, 4)
        assert attend(k[:, :, :0], k, k, where, window=3, sinks=1).shape == (2, 3, 0, 4)
    nothing, nobody = k[:, :, :0], k[:0]
    assert attend(nothing, nothing, nothing, None).shape == sliding_window(nothing, nothing, nothing, window=3).shape
    assert sliding_window(nobody, nobody, nobody, window=3, sinks=2).shape == nobody.shape
    assert attend(nobody, nobody, nobody, None).shape == nobody.shape
