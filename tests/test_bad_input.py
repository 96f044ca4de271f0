"""Options that no mixer can have, and number formats that every mixer can."""

import re

import pytest
import torch

from bestiary.laws.mixers import build_perturbed, random_inputs
from bestiary.spec import names, parse, schema, spec

MIXERS = names("mixers")


def having(*options: str) -> list[tuple[str, str]]:
    return [(name, option) for name in MIXERS for option in schema("mixers", name) if option in options]


@pytest.mark.parametrize(("name", "option"), having("rank", "latent"))
def test_a_rank_above_the_width_is_refused(name: str, option: str) -> None:
    with pytest.raises(ValueError, match="a rank of 65 is above the width of 64"):
        spec("mixers", name, **{option: 65}).build(64)


@pytest.mark.parametrize(("name", "option"), having("window", "chunk", "block", "taps", "heads", "conv"))
def test_windows_chunks_blocks_taps_and_heads_are_positive(name: str, option: str) -> None:
    with pytest.raises(TypeError, match=rf"{name}\({option}=0\): Input should be greater than 0"):
        spec("mixers", name, **{option: 0})


DIVIDING = [name for name, _ in having("heads") if not {"key", "value"} & schema("mixers", name).keys()]


@pytest.mark.parametrize("name", DIVIDING)
def test_heads_that_do_not_divide_the_width_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="5"):
        spec("mixers", name, heads=5).build(64)


@pytest.mark.parametrize("name", [name for name, _ in having("heads")])
def test_a_head_of_one_channel_is_refused_or_remembers(name: str) -> None:
    try:
        mixer = build_perturbed(spec("mixers", name, heads=64))
    except ValueError as fault:
        if not re.search("even head width|head width that 4 divides|of one channel|over one channel", str(fault)):
            raise
        return
    x = random_inputs(1, 12).requires_grad_()
    slope, *_ = torch.autograd.grad(mixer(x)[0][:, -1].square().sum(), x)
    assert slope[:, :5].norm() > 1e-10  # farther back than convolutions of 4 taps reach
    assert mixer(x[:, :1])[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MIXERS)
def test_half_precision_comes_back_as_it_was_given(name: str, dtype: torch.dtype) -> None:
    (found,) = parse("mixers", name)
    mixer, x = build_perturbed(found, dtype=dtype), random_inputs(2, 9, dtype=dtype)
    whole, _ = mixer(x)
    head, state = mixer(x[:, :5])
    tail, _ = mixer(x[:, 5:], state)
    assert whole.dtype == dtype
    assert whole.isfinite().all()
    for part, due in ((head, whole[:, :5]), (tail, whole[:, 5:])):  # without the state, 0.18 or more
        assert (part - due).double().norm() <= 0.03 * due.double().norm()
