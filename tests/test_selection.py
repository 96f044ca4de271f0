"""Attention that computes only what it selects, against all keys with a mask, which defines it."""

import math

import pytest
import torch
from mixer_helpers import assert_same, build_mixer, inputs
from torch import Tensor
from torch.func import vmap

from bestiary.laws import MIXER_LAWS
from bestiary.mixers import dsa
from bestiary.ops import selection
from bestiary.ops.selection import attend_to_blocks, top_mask, top_places
from bestiary.spec import parse

SPARSE = [
    "moba(heads=2, block=5, top=3)",
    "nsa(heads=4, groups=2, block=4, window=5)",
    "big_bird(block=4)",
    "dsa(top=8)",
]
LAWS = [
    "causality",
    "cut",
    "empty input",
    "batch independence",
    "parallel form",
    "gradients",
    "float32 range",
    "stacking",
]


@pytest.fixture
def never_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (selection, dsa):
        monkeypatch.setattr(module, "MASKED", 0)


def by_mask(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, where: Tensor, size: int) -> Tensor:
    """Each query's softmax over all keys of its blocks up to its position, one by one."""
    y, share = torch.empty_like(q[..., : v.shape[-1]]), q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                place = int(where[i] if where.ndim == 1 else where[b, i])
                chosen = blocks[b, h // share, i].tolist()
                seen = [j for j in range(place + 1) if j // size in chosen]
                logits = k[b, h // share, seen] @ q[b, h, i] / math.sqrt(q.shape[-1])
                y[b, h, i] = logits.softmax(0) @ v[b, h // share, seen]
    return y


def draw_blocks(where: Tensor, groups: int, size: int, chosen: int, count: int) -> Tensor:
    """The own block and others, some of which begin later, and some of which are none."""
    where = where.expand(2, -1)
    blocks = torch.rand(2, groups, where.shape[1], count).argsort(-1)[..., :chosen]
    own = (where // size)[:, None, :, None].expand(-1, groups, -1, -1)
    blocks = torch.where((blocks == own).any(-1, keepdim=True), blocks, torch.cat([own, blocks[..., 1:]], dim=-1))
    return blocks.masked_fill((torch.rand(blocks.shape) < 0.2) & (blocks != own), -1)


@pytest.mark.parametrize(("time", "size", "chosen"), [(90, 4, 3), (61, 7, 2), (40, 1, 6), (33, 16, 1)])
@pytest.mark.parametrize("ask", ["all", "the last", "each row elsewhere", "one"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.usefixtures("never_masked")
def test_blocks_are_attended_to_as_by_a_mask(time: int, size: int, chosen: int, ask: str, groups: int) -> None:
    where = {
        "all": torch.arange(time),
        "the last": torch.arange(time - 20, time),
        "each row elsewhere": torch.randint(time, (2, 11)),
        "one": torch.tensor([time - 1]),
    }[ask]
    blocks = draw_blocks(where, groups, size, chosen, -(-time // size))
    asked = where.shape[-1]
    shapes = (4, asked, 6), (groups, time, 6), (groups, time, 5)
    q, k, v = (torch.randn(2, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    found = attend_to_blocks(q, k, v, blocks, where, size=size)
    wanted, pull = by_mask(q, k, v, blocks, where, size), torch.randn_like(found)
    assert_same(found, wanted)
    grads = [torch.autograd.grad((y * pull).sum(), [q, k, v]) for y in (found, wanted)]
    for one, two in zip(*grads, strict=True):
        assert_same(one, two)


@pytest.mark.parametrize("count", [1, 3, 20, 50])
@pytest.mark.parametrize("kind", ["apart", "tied", "hidden"])
def test_places_are_those_of_the_highest_and_of_equals_the_later(count: int, kind: str) -> None:
    scores = torch.randn(3, 40, 30)
    if kind != "apart":
        scores = scores.round().relu()
    if kind == "hidden":
        scores = scores.masked_fill(torch.rand(scores.shape).sort(1).values > 0.5, -torch.inf)
    for found in (top_places(scores, count), vmap(lambda x: top_places(x, count))(scores)):
        assert found.shape == (3, 40, count)
        marked = torch.zeros(3, 40, 31, dtype=torch.long).scatter_add(-1, found + 1, torch.ones_like(found))[..., 1:]
        assert torch.equal(marked, (top_mask(scores, count) & (scores > -torch.inf)).long())


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("text", SPARSE)
@pytest.mark.usefixtures("never_masked")
def test_laws_hold_where_nothing_is_masked(text: str, law: str) -> None:
    MIXER_LAWS[law](parse("mixers", text)[0])


@pytest.mark.parametrize("text", ["moba", "nsa", "big_bird", "dsa", "nsa(heads=4, groups=2, selected=6)"])
@pytest.mark.parametrize("past", [0, 37])
def test_a_long_sequence_is_what_a_mask_gives(text: str, past: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x, pull, found = build_mixer(text), inputs(700), inputs(700), []
    for most in (0, 10**6):
        for module in (selection, dsa):
            monkeypatch.setattr(module, "MASKED", most)
        given, state, outputs = x.clone().requires_grad_(), None, []
        for part in (given[:, :past], given[:, past:]):
            y, state = mixer(part, state)
            outputs.append(y)
        y = torch.cat(outputs, dim=1)
        grads = torch.autograd.grad((y * pull).sum(), [given, *mixer.parameters()])
        where = torch.tensor([[3, 650, 699], [0, 15, 16]])
        found.append((y, mixer.parallel(x, where), *grads))
    for one, two in zip(*found, strict=True):
        assert_same(one, two)


@pytest.mark.parametrize("text", ["moba", "nsa", "big_bird", "dsa"])
def test_what_is_kept_for_the_gradient_grows_with_the_length(text: str) -> None:
    mixer, kept = build_mixer(text), []
    for time in (1024, 4096):
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.update({x.data_ptr(): x.untyped_storage().nbytes()}) or x, lambda x: x
        ):
            mixer.parallel(inputs(time)[:1])
        kept.append(sum(sizes.values()))
    assert kept[1] < 5.5 * kept[0]
