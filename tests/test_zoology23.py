"""Attention, Hyena, H3 and RWKV-4 start as in the code that made Figure 2 of Zoology, where they are told to.

Numbers of that code were read off its own models of width 128, built at the commits that the mixers name.
"""

import math
from typing import Any

import pytest
import torch
from mixer_helpers import assert_same, build_mixer, convolve_plainly, inputs
from torch import nn

from bestiary.experiments.figure2 import PUBLISHED, published_mixers
from bestiary.mixers._mixer import decayed_names
from bestiary.model import Model
from bestiary.spec import parse, read_specs, spec
from bestiary.training.recipe import Recipe, clean, is_key_of, zoology23

WIDTH = 256
TORCH = 1 / (3 * WIDTH) ** 0.5  # PyTorch's draw of a linear map
DRAWS = {
    "attention(init='zoology23')": {"q": 0.02, "k": 0.02, "v": 0.02, "out": 0.01},
    "attention(init='zoology23', layers=8)": {"out": 0.005},
    "hyena(init='zoology23')": {
        "project": 0.02,
        "filter.hidden.1": 0.02,
        "filter.hidden.2": 0.02,
        "filter.last": 0.02,
        "out": 0.01,
    },
    "hyena(init='zoology23', layers=8)": {"out": 0.005},
    "h3(init='zoology23')": {"q": 0.02, "k": 0.02, "v": 0.02, "out": 0.02},
    "rwkv4(init='zoology23', layers=2)": {"r": TORCH, "k": TORCH, "v": TORCH, "out": TORCH},
}
COUNTS = {"Attention": 1_453_568, "Hyena": 1_482_752, "RWKV": 1_445_632, "H3": 1_429_760}


@pytest.mark.parametrize("text", DRAWS)
def test_linear_maps_start_as_in_that_code(text: str) -> None:
    torch.manual_seed(0)
    (found,) = parse("mixers", text)
    mixer = found.build(WIDTH)
    maps = {name: part for name, part in mixer.named_modules() if isinstance(part, nn.Linear)}
    for name, std in DRAWS[text].items():
        assert maps[name].weight.std().item() == pytest.approx(std, rel=0.04), name
        assert abs(maps[name].weight.mean().item()) < 5 * std / maps[name].weight.numel() ** 0.5
    biased = {name for name, part in maps.items() if part.bias is not None}
    assert biased == ({*maps} - {"filter.last"} if found.name != "rwkv4" else set())
    assert not any(maps[name].bias.any() for name in biased)


def test_what_is_no_linear_map_starts_as_before() -> None:
    torch.manual_seed(0)
    hyena = parse("mixers", "hyena(init='zoology23', taps=64)")[0].build(WIDTH)
    uniform = 1 / 3  # within 1 / sqrt(3)
    assert hyena.short.filter.std().item() == pytest.approx(uniform, rel=0.05)
    assert hyena.short.bias.std().item() == pytest.approx(uniform, rel=0.1)
    assert hyena.skip.std().item() == pytest.approx(1, rel=0.15)
    h3 = parse("mixers", "h3(init='zoology23')")[0].build(WIDTH)
    assert h3.shift.filter.std().item() == pytest.approx(1 / math.sqrt(3 * 64), rel=0.05)
    assert torch.equal(h3.shift.b, torch.eye(64)[:, :1].expand(-1, WIDTH))
    kinds = [spec("mixers", "rwkv4", layer=1, layers=2, init=init).build(WIDTH) for init in ("paper", "zoology23")]
    for name in ("mix", "decay", "bonus"):
        assert torch.equal(getattr(kinds[0], name), getattr(kinds[1], name))


@pytest.mark.parametrize("name", COUNTS)
def test_models_of_the_figure_have_as_many_parameters_as_that_code(name: str) -> None:
    with torch.device("meta"):
        model = zoology23(published_mixers(64)[name], dim=128).build()
    assert sum(weight.numel() for weight in model.parameters()) == COUNTS[name]


def test_the_figures_mixers_all_start_as_they_did() -> None:
    for length, cells in PUBLISHED.items():
        for name in {*cells} - {"BaseConv"}:
            for part in parse("mixers", published_mixers(length)[name]):
                options = dict(part.options)
                assert (options["init"], options.get("layers", 2)) == ("zoology23", 2), name


def test_the_networks_between_the_mixers_start_as_in_that_code() -> None:
    torch.manual_seed(0)
    for depth in (2, 8):
        model: Any = Model(16, dim=128, depth=depth, pattern=parse("mixers", "attention"), channel="zoology23")
        first, activation, second = model.layers[0].channel
        assert isinstance(activation, nn.Tanh)
        assert first.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert second.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * depth), rel=0.02)
        assert not (first.bias.any())
        assert not (second.bias.any())


def test_the_shift_of_h3_reads_by_a_trained_vector() -> None:
    shift, x = build_mixer("h3(init='zoology23', state=8)").shift, inputs()
    taps = torch.zeros_like(shift.filter)
    for t in range(8):
        for n in range(8 - t):
            taps[t] += shift.b[n] * shift.filter[n + t]
    assert shift.b[1:].abs().min() > 0
    assert_same(shift(x, None)[0], convolve_plainly(x, taps))


def test_what_that_code_trains_besides_is_spared_by_weight_decay_of_matrices() -> None:
    h3, hyena = (parse("mixers", f"{name}(init='zoology23')")[0].build(16) for name in ("h3", "hyena"))
    assert {"shift.b", "shift.filter"} & decayed_names(h3) == {"shift.filter"}
    assert "filter.positions" in dict(hyena.named_parameters())
    assert "filter.positions" not in decayed_names(hyena)


@pytest.mark.parametrize("name", ["attention", "hyena", "h3", "rwkv4"])
def test_runs_made_before_the_option_keep_their_keys(name: str) -> None:
    (plain,), (other,) = parse("mixers", name), parse("mixers", f"{name}(init='zoology23')")
    assert "init" not in plain.identity["options"]
    assert "layers" not in plain.stored["options"] or name == "rwkv4"
    assert other.identity["options"]["init"] == "zoology23"
    assert plain.key != other.key
    for found in (plain, other):
        assert read_specs("mixers", [found.stored]) == (found,)
        recipe = clean(str(found), dim=16)
        assert is_key_of(recipe.key, recipe.json())
        assert Recipe(**recipe.json()).key == recipe.key
