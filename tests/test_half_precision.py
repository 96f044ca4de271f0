"""Half precision, of autocast or of weights and inputs: what is summed over time stays in float32."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from bestiary.mixers.linear_attention import LinearAttention
from bestiary.model import state_leaves
from bestiary.ops.scan import selective_scan
from bestiary.spec import parse

DIM, TIME, LAST = 64, 1000, 100
LONG_MEMORY = {"min_gru": ("z.bias", -8.0), "min_lstm": ("i.bias", -8.0)}
SHIFTS = ["rwkv4(layer=1, layers=2, init='zoology23')", "token_shift"]
LEARNERS = ["titans", "miras", "miras(form='moneta')", "atlas", "ttt_linear", "ttt_mlp", "lattice"]
SUMS = [
    "forgetting_attention",
    "hgrn2(lower=0.99)",
    "min_gru",
    "min_lstm",
    "s4d",
    "titans",
    "atlas(depth=2)",
    "ttt_linear",
    "ttt_mlp",
]


def built(text: str) -> Any:
    torch.manual_seed(0)
    (found,) = parse("mixers", text)
    mixer = found.build(DIM)
    if text in LONG_MEMORY:
        name, value = LONG_MEMORY[text]
        mixer.get_parameter(name).data.fill_(value)
    return mixer


def under_autocast(mixer: Any, x: Tensor) -> tuple[Tensor, Any]:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return mixer(x)


def error(found: Tensor, wanted: Tensor) -> float:
    """Of the last outputs, relative to their size."""
    found, wanted = (y[:, -LAST:].float() for y in (found, wanted))
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("text", [*SHIFTS, *SUMS])
def test_the_error_is_one_of_rounding_after_many_tokens_too(text: str) -> None:
    mixer, x = built(text), torch.randn(1, TIME, DIM)
    with torch.no_grad():
        wanted, _ = mixer(x)
    for given in (x, x.bfloat16()):  # as a part of `serial` is given it
        assert error(under_autocast(mixer, given)[0], wanted) < 0.008


@pytest.mark.parametrize("text", ["mamba3(state=16)", "mamba3(state=16, rotation='fixed')", "forgetting_attention"])
def test_positions_are_counted_in_float32_where_weights_are_not(text: str) -> None:
    mixer, x = built(text), torch.randn(1, TIME, DIM)
    with torch.no_grad():
        assert error(deepcopy(mixer).bfloat16()(x.bfloat16())[0], mixer(x)[0]) < 0.02


@pytest.mark.parametrize("text", [*LEARNERS, "min_gru", "min_lstm"])
def test_what_is_learnt_is_kept_in_float32(text: str) -> None:
    mixer, x = built(text), torch.randn(2, 21, DIM)
    for y, state in (under_autocast(mixer, x), mixer.bfloat16()(x.bfloat16())):
        kept = state if isinstance(state, Tensor) else [part for part in state[1:] if not isinstance(part, int)]
        assert {leaf.dtype for leaf in state_leaves(kept)} == {torch.float32}
        assert y.isfinite().all()


def test_cosformer_counts_positions_in_float32() -> None:
    (found,) = parse("mixers", "linear_attention(feature='cosformer')")
    mixer, ones = found.build(DIM), torch.ones(1, 40, 1, 2)
    assert isinstance(mixer, LinearAttention)
    assert torch.equal(mixer.phi(ones.bfloat16(), 1501), mixer.phi(ones, 1501).bfloat16())


@pytest.mark.parametrize("decays", [True, False])
def test_the_selective_scan_rounds_its_output_alone(decays: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    dt, u, b, c = (torch.randn(2, 300, width, generator=rng).bfloat16() for width in (3, 3, 4, 4))
    dt, b = dt.sigmoid() / 50, b.sigmoid()
    a, state = -torch.rand(3, 4, generator=rng) if decays else None, torch.zeros(2, 3, 4)
    y, last = selective_scan(dt, u, a, b, c, state, backend="torch")
    wanted, after = selective_scan(dt.float(), u.float(), a, b.float(), c.float(), state, backend="torch")
    assert torch.equal(y, wanted.bfloat16())
    assert torch.equal(last, after)


def test_a_router_that_opens_is_trained_under_autocast() -> None:
    mixer = built("selected(open=1, ramp=2, share=0.5)")
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            mixer.parallel(torch.randn(2, 20, DIM))
    assert mixer.router.cut.isfinite()
