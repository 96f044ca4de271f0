"""Caches that grow in place are values: no branch, copy or gradient sees what another holder does."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import pytest
import torch
from mixer_helpers import DIM, assert_same, build_mixer, inputs
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from bestiary.laws import MIXER_LAWS, variants
from bestiary.model import measure_state, memory, state_leaves
from bestiary.ops.growth import append
from bestiary.spec import Spec, names, parse

CACHED = [
    "attention(heads=4, kv_heads=2)",
    "attention(heads=2, window=5, sinks=2)",
    "latent_attention",
    "differential",
    "forgetting_attention",
    "stick_breaking",
    "selected",
    'selected(select="repeat")',
    'selected(select="random", most=9)',
    "big_bird(block=4)",
    "moba(block=4)",
    "nsa(block=4, window=5)",
    "dsa(top=8)",
    "path",
    "conv_attention(v=2)",
]


def entries(time: int, *, start: int = 0) -> Tensor:
    return torch.arange(start, start + time, dtype=torch.float64).reshape(1, time, 1).expand(2, time, 3).clone()


def repeating(time: int) -> Tensor:
    """Inputs among which every third is one of the first four again."""
    x = inputs(time)
    x[:, 5::3] = x[:, torch.arange(len(x[0, 5::3])) % 4]
    return x


def test_appending_is_concatenation_and_older_caches_stay_as_they_were() -> None:
    caches = [entries(5)]
    for t in range(5, 40):
        caches.append(append(caches[-1], entries(1, start=t)))
    for time, cache in enumerate(caches, start=5):
        assert torch.equal(cache, entries(time))


def test_a_cache_is_copied_only_when_its_buffer_is_full() -> None:
    cache, places = entries(4), []
    for t in range(4, 200):
        cache = append(cache, entries(1, start=t))
        places.append(cache.data_ptr())
    assert len(set(places)) <= 6


def test_two_branches_go_on_from_one_cache() -> None:
    root = append(entries(5), entries(1, start=5))
    one, two = append(root, entries(1, start=70)), append(root, entries(2, start=80))
    one = append(one, entries(1, start=71))
    assert one[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 70, 71]
    assert two[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 80, 81]
    assert root[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_threads_that_go_on_from_one_cache_get_their_own() -> None:
    often = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            root, start = append(entries(5), entries(1, start=5)), Barrier(4)
            go = partial(append_together, root, start)
            with ThreadPoolExecutor(4) as pool:
                for i, cache in enumerate(pool.map(go, range(4))):
                    assert torch.equal(cache, torch.cat([entries(6), entries(2, start=1000 * i)], dim=1))
    finally:
        sys.setswitchinterval(often)


def append_together(root: Tensor, start: Barrier, i: int) -> Tensor:
    new = entries(2, start=1000 * i)
    start.wait()
    return append(root, new)


@pytest.mark.parametrize("text", CACHED)
def test_an_old_state_may_be_continued_again(text: str) -> None:
    mixer, x = build_mixer(text), repeating(40)
    other = torch.cat([x[:, :20], repeating(20)], dim=1)
    with torch.no_grad():
        wanted, branched = mixer(x)[0], mixer(other)[0]
        _, state = mixer(x[:, :7])
        states, outputs = {7: state}, []
        for t in range(7, 40):
            y, state = mixer(x[:, t : t + 1], state)
            states[t + 1] = state
            outputs.append(y)
        assert_same(torch.cat(outputs, dim=1), wanted[:, 7:])
        for start in (20, 13, 20):  # from a state in the middle, twice, while newer ones exist
            state = states[start]
            for t in range(start, 40):
                y, state = mixer(other[:, t : t + 1], state)
                assert_same(y, branched[:, t : t + 1])
        for t, state in reversed(states.items()):  # and the newer ones are still right
            assert t == 40 or torch.allclose(mixer(x[:, t : t + 1], state)[0], wanted[:, t : t + 1], 1e-8, 1e-8)


@pytest.mark.parametrize("text", sorted({*CACHED} - {CACHED[1], "path"}))  # which keep few, and move keys
def test_decoding_does_not_copy_the_cache_for_each_token(text: str) -> None:
    mixer, state, places = build_mixer(text), None, set()
    with torch.no_grad():
        for t in range(60):
            _, state = mixer(inputs(60)[:, t : t + 1], state)
            longest = max((leaf for leaf in state_leaves(state) if isinstance(leaf, Tensor)), key=Tensor.numel)
            places.add(longest.data_ptr())
    assert len(places) < 12


@pytest.mark.parametrize("text", CACHED)
def test_cutting_changes_nothing_where_caches_grow_in_place(text: str) -> None:
    with torch.no_grad():
        MIXER_LAWS["cut"](parse("mixers", text)[0])


@pytest.mark.parametrize("text", CACHED)
def test_a_copied_state_goes_its_own_way(text: str) -> None:
    mixer, x, other = build_mixer(text), repeating(30), repeating(12)
    with torch.no_grad():
        _, state = mixer(x[:, :17])
        _, state = mixer(x[:, 17:18], state)
        copied = copy.deepcopy(state)
        for t in range(12):
            _, copied = mixer(other[:, t : t + 1], copied)
        outputs = []
        for t in range(18, 30):
            y, state = mixer(x[:, t : t + 1], state)
            outputs.append(y)
        assert_same(torch.cat(outputs, dim=1), mixer(x)[0][:, 18:])
        joined = torch.cat([x[:, :18], other], dim=1)
        assert_same(mixer(x[:, :1], copied)[0], mixer(torch.cat([joined, x[:, :1]], dim=1))[0][:, -1:])


@pytest.mark.parametrize("text", CACHED)
def test_only_what_is_used_counts_as_memory(text: str) -> None:
    mixer, state = build_mixer(text), None
    with torch.no_grad():
        for t in range(35):
            _, state = mixer(inputs(40)[:1, t : t + 1], state)
    build: Any = parse("mixers", text)[0]
    assert measure_state(state).numbers <= memory(lambda: build.build(DIM), time=35, dim=DIM).numbers


@pytest.mark.parametrize("text", CACHED)
def test_gradients_flow_through_decoding_from_a_state_without(text: str) -> None:
    mixer, x = build_mixer(text), inputs(20)
    with torch.no_grad():
        _, state = mixer(x[:, :8])
        _, state = mixer(x[:, 8:9], state)
    weights = dict(mixer.named_parameters())

    def loss(weights: Any) -> Tensor:
        after, outputs = state, []
        for t in range(9, 20):
            y, after = functional_call(mixer, weights, (x[:, t : t + 1], after))
            outputs.append(y)
        return torch.cat(outputs, dim=1).square().sum()

    wanted = grad(loss)(weights)  # under a transform nothing grows in place
    loss(weights).backward()
    for name, weight in weights.items():
        assert_same(torch.zeros_like(weight) if weight.grad is None else weight.grad, wanted[name])


def test_what_a_gradient_still_needs_may_be_continued() -> None:
    mixer, x = build_mixer("attention"), inputs(20)
    for name, weight in mixer.named_parameters():
        weight.requires_grad_(name == "q.weight")  # so that keys and values grow in place
    with torch.no_grad():
        _, state = mixer(x[:, :8])
        _, state = mixer(x[:, 8:9], state)
    places, total = set(), torch.zeros((), dtype=torch.float64)
    for t in range(9, 15):
        y, state = mixer(x[:, t : t + 1], state)
        places.add(state.k.data_ptr())
        total = total + y.square().sum()
    assert len(places) == 1
    (found,) = torch.autograd.grad(total, [mixer.q.weight])
    (wanted,) = torch.autograd.grad(mixer(x)[0][:, 9:15].square().sum(), [mixer.q.weight])
    assert_same(found, wanted)


def test_stacked_models_decode_as_each_alone() -> None:
    mixers, x = [build_mixer("attention"), build_mixer("attention").double()], inputs(12)
    with torch.no_grad():
        for weight in mixers[1].parameters():
            weight.mul_(1.1)
        weights, _ = stack_module_state(list(mixers))

        def decode(weights: Any) -> Tensor:
            state, outputs = None, []
            for t in range(12):
                y, state = functional_call(mixers[0], weights, (x[:, t : t + 1], state))
                outputs.append(y)
            return torch.cat(outputs, dim=1)

        found = vmap(decode)(weights)
        for mixer, y in zip(mixers, found, strict=True):
            assert_same(y, mixer(x)[0])


@pytest.mark.parametrize("text", ["attention", "path", "dsa(top=8)"])
def test_a_state_from_inference_mode_goes_on_outside(text: str) -> None:
    mixer, x = build_mixer(text).requires_grad_(False), inputs(12)
    with torch.inference_mode():
        _, state = mixer(x[:, :5])
        _, state = mixer(x[:, 5:6], state)
    y, after = mixer(x[:, 6:7], state)
    assert_same(y, mixer(x)[0][:, 6:7])
    with torch.inference_mode():
        assert_same(mixer(x[:, 7:8], after)[0], mixer(x)[0][:, 7:8])


@pytest.mark.parametrize("text", CACHED)
def test_half_precision_decodes_what_it_reads_at_once(text: str) -> None:
    mixer, x = build_mixer(text).bfloat16(), inputs(150).bfloat16()
    with torch.no_grad():
        wanted, outputs = mixer(x)[0], []
        y, state = mixer(x[:, :140])
        for t in range(140, 150):
            y, state = mixer(x[:, t : t + 1], state)
            outputs.append(y)
        found = torch.cat(outputs, dim=1)
        assert found.dtype == torch.bfloat16
        assert all(leaf.isfinite().all() for leaf in state_leaves(state) if isinstance(leaf, Tensor))
        near = (found - wanted[:, 140:]).float().abs().flatten().sort().values
        assert near[int(0.9 * len(near))] <= 0.05 * wanted.float().abs().max()  # rounding may select another block


EVERY = [pytest.param(found, id=str(found)) for name in names("mixers") for found in variants("mixers", name)]


@pytest.mark.parametrize("found", EVERY)
def test_no_state_keeps_a_long_prefill_alive(found: Spec) -> None:
    mixer, state = found.build(DIM).eval(), None
    for time in (150, 100):
        with torch.no_grad():
            _, state = mixer(inputs(time).float(), state)
        for kept in state_leaves(state):
            if isinstance(kept, Tensor):
                assert kept.untyped_storage().nbytes() <= kept.element_size() * (2 * kept.numel() + 64)


def test_a_state_of_which_gradients_are_recorded_is_left_as_it_is() -> None:
    mixer, x = build_mixer("short_conv"), inputs()
    _, kept = mixer(x.requires_grad_())
    assert kept._is_view()
    with torch.no_grad():
        assert not mixer(x)[1]._is_view()
