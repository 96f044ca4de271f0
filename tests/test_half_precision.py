"""Half precision, of autocast or of weights and inputs: what is summed over time stays in float32."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bestiary.mixers.gsa import slot_scores
from bestiary.mixers.hola import read_before
from bestiary.mixers.linear_attention import LinearAttention
from bestiary.model import state_leaves
from bestiary.ops.drive import Drive
from bestiary.ops.recurrence import run
from bestiary.ops.scan import selective_scan
from bestiary.spec import parse

DIM, TIME, LAST = 64, 1000, 100
LONG_MEMORY = {"min_gru": ("z.bias", -8.0), "min_lstm": ("i.bias", -8.0)}
SHIFTS = ["rwkv4(layer=1, layers=2, init='zoology23')", "token_shift"]
LASTING = [  # parameters with which memory lasts, or what is summed grows
    ("log_linear(heads=2, state=16)", {"rate": -7.0, "step": 0.0, "skip": 0.0}),
    ("log_linear(heads=2, state=16)", {"rate": 0.0, "step": 0.0, "skip": 0.0}),
    ("rg_lru", {"rate": -8.0}),
    ("mamba(negative=True, skip=0.0)", {}),
    ("mlstm", {"f.bias": 8.0, "i.bias": 3.0}),
]
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


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("text", "parameters"), LASTING)
def test_memory_lasts_where_weights_are_in_half_precision(text: str, parameters: dict[str, float], whole: bool) -> None:
    mixer, x = built(text), torch.randn(1, TIME, DIM)
    for name, value in parameters.items():
        mixer.get_parameter(name).data.fill_(value)
    state, outputs, half = None, [], deepcopy(mixer).bfloat16()
    with torch.no_grad():
        for given in x.bfloat16().split(TIME if whole else 20, dim=1):
            y, state = half(given, state)
            outputs.append(y)
        assert error(torch.cat(outputs, dim=1), mixer(x)[0]) < 0.012


@pytest.mark.parametrize("time", [60, 300])
def test_two_mamba_adds_up_squares_in_float32(time: int) -> None:
    mixer, x = built("two_mamba"), torch.randn(1, time, DIM)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            parts, _ = mixer.parts(x, None)
            found = mixer(x)[0], mixer.parallel(x)
        sums, _ = mixer.recur(parts, torch.zeros(1, *mixer.shape))
        with torch.autocast("cpu", torch.bfloat16):
            wanted = mixer.read(sums[:, :time])
    for y in found:
        torch.testing.assert_close(y, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", [*LEARNERS, "min_gru", "min_lstm", "rg_lru", "mlstm", "log_linear"])
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


@pytest.mark.parametrize("whole", [True, False])
def test_gsa_remembers_long_in_float32(whole: bool) -> None:
    mixer, x = built("gsa"), torch.randn(1, TIME, DIM)
    x[..., 0], mixer.forget.weight.data[:, 0] = 1, 6
    for part in (mixer.q, mixer.k, mixer.v):
        part.weight.data *= 10
    state, half = None, deepcopy(mixer).bfloat16()
    with torch.no_grad():
        for given in x.bfloat16().split(TIME if whole else 4, dim=1):
            _, state = half(given, state)
        for found, wanted in zip(state, mixer(x)[1], strict=True):
            assert ((found - wanted).norm() / wanted.norm()).item() < 0.002
    assert {part.dtype for part in state} == {torch.float32}


def test_the_slots_of_gsa_are_the_same_under_autocast() -> None:
    q, k, s, g = (torch.rand(1, 70, 2, 8) for _ in range(4))
    state = torch.rand(1, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = slot_scores(q, k, s, -g, state)
    assert all(map(torch.equal, found, slot_scores(q, k, s, -g, state)))


@pytest.mark.parametrize("cast", [True, False])
def test_hola_measures_a_token_alike_before_and_after_a_cut(cast: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 40, 2, 16, generator=rng) for _ in range(3))
    k, (beta, g) = F.normalize(k, dim=-1), (torch.rand(1, 40, 2, 1, generator=rng) for _ in range(2))
    drive = Drive(q, k, beta * v, -g / 10, rewrite=(-beta, k)).map(lambda z: z if cast else z.bfloat16())
    early, late = drive.map(lambda z: z[:, :20]), drive.map(lambda z: z[:, 20:])
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        whole = read_before(drive, drive.k, torch.zeros(1, 2, 16, 16))
        after = read_before(late, late.k, run(early, torch.zeros(1, 2, 16, 16))[1])
    rounding = 1e-5 if cast else 2**-8
    torch.testing.assert_close(after, whole[:, 20:], rtol=rounding, atol=1e-5)


def test_a_router_that_opens_is_trained_under_autocast() -> None:
    mixer = built("selected(open=1, ramp=2, share=0.5)")
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            mixer.parallel(torch.randn(2, 20, DIM))
    assert mixer.router.cut.isfinite()
