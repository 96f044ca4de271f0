"""Attention to keys that reflections move: in blocks, and token by token, against the recurrence that defines it."""

import pytest
import torch
from mixer_helpers import assert_same, build_mixer
from torch import Tensor
from torch.nn import functional as F

from bestiary.ops import transport
from bestiary.ops.drive import Drive
from bestiary.ops.recurrence import run

HEADS, KEY = 2, 6


def draw(time: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    q, k, v, w = (torch.randn(2, HEADS, time, KEY, dtype=torch.float64) for _ in range(4))
    beta = 2 * torch.rand(2, HEADS, time, 1, dtype=torch.float64)
    w = F.normalize(w, dim=-1)
    for x in (q, k, v, w, beta):
        x.requires_grad_()
    return q, k, v, w, beta


def by_recurrence(q: Tensor, k: Tensor, v: Tensor, w: Tensor, beta: Tensor) -> Tensor:
    """S_i = H_i S_{i-1} + k_i e_i^T as a delta rule with one-hot values, which gives all logits q_i^T S_i."""
    time = q.shape[2]
    place = torch.eye(time, dtype=q.dtype).unsqueeze(1).expand(len(q), time, HEADS, time)
    q, k, w, beta = (x.transpose(1, 2) for x in (q, k, w, beta))
    logits, _ = run(Drive(q, k, place, erase=(-beta * w, w)), q.new_zeros(len(q), HEADS, KEY, time))
    logits = logits.transpose(1, 2).masked_fill(~torch.ones(time, time, dtype=torch.bool).tril(), -torch.inf)
    return (logits * KEY**-0.5).softmax(-1) @ v


def start(like: Tensor) -> transport.Keys:
    return transport.no_keys(like.new_zeros(len(like), 1, 1), HEADS, KEY)


@pytest.mark.parametrize("time", [3, 64, 197, 582])
def test_blocks_are_the_recurrence_with_its_gradients(time: int) -> None:
    given = draw(time)
    found, _ = transport.attend(*given, start(given[0]))
    wanted, pull = by_recurrence(*given), torch.randn_like(found)
    assert_same(found, wanted)
    grads = [torch.autograd.grad((y * pull).sum(), given) for y in (found, wanted)]
    for one, two in zip(*grads, strict=True):
        assert_same(one, two)


def test_one_block_gives_its_logits_alone() -> None:
    q, k, v, w, beta = draw(40)
    assert_same(transport.block_logits(q, k, w, beta).softmax(-1) @ v, by_recurrence(q, k, v, w, beta))


def test_token_by_token_and_in_pieces_the_outputs_are_the_same() -> None:
    time, keys, outputs = 2 * transport.BLOCK + 9, None, []
    q, k, v, w, beta = draw(time)
    pieces = (*(1,) * (transport.BLOCK + 3), 7, *(1,) * (time - transport.BLOCK - 10))
    keys, at = start(q), 0
    for size in pieces:
        here = slice(at, at + size)
        a, b, c, d = (x[:, :, here] for x in (q, k, w, beta))
        if size == 1:
            logits, keys = transport.step(a, b, c, d, keys)
            y = (logits * KEY**-0.5).softmax(-1) @ v[:, :, : at + 1]
        else:
            y, keys = transport.attend(a, b, v[:, :, : at + size], c, d, keys)
        outputs.append(y)
        at += size
    assert_same(torch.cat(outputs, dim=2), by_recurrence(q, k, v, w, beta))


def test_keys_that_a_token_reads_are_not_written_for_it() -> None:
    q, k, _, w, beta = draw(transport.BLOCK)
    past = torch.randn(2, HEADS, 100, KEY, dtype=torch.float64)
    keys = transport.Keys(past, past[:, :, :0], transport.identity(past))
    for t in range(transport.BLOCK):
        assert keys.past is past
        a, b, c, d = (x[:, :, t : t + 1] for x in (q, k, w, beta))
        _, keys = transport.step(a, b, c, d, keys)
    assert keys.past.shape[2] == 100 + transport.BLOCK
    assert keys.recent.shape[2] == 0


def test_a_long_sequence_keeps_no_square_for_its_gradient() -> None:
    time = 4 * transport.BLOCK * transport.SEGMENT
    given, sizes = draw(time), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        transport.attend(*given, start(given[0]))
    assert sum(sizes) < 2 * HEADS * time**2 / 2


def test_half_precision_reads_and_gives_half() -> None:
    mixer, x = build_mixer("path"), torch.randn(2, 150, 64)
    wanted = mixer.float()(x)[0]
    mixer = mixer.bfloat16()
    found, state = mixer(x[:, :70].bfloat16())
    outputs = [found]
    for t in range(70, 150):
        y, state = mixer(x[:, t : t + 1].bfloat16(), state)
        outputs.append(y)
    found = torch.cat(outputs, dim=1)
    assert found.dtype == state.v.dtype == torch.bfloat16
    assert (found.float() - wanted).abs().max() < 0.05 * wanted.abs().max()
