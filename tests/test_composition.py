"""Mixers made of mixers: what they compute, and how they are named, stored and told apart."""

import json
from pathlib import Path

import pytest
import torch
from mixer_helpers import assert_same, build_mixer, inputs

from bestiary.spec import parse, spec
from bestiary.training.recipe import Recipe, clean


def test_serial_applies_its_parts_in_order() -> None:
    mixer, x = build_mixer("serial('base_conv, attention')"), inputs()
    first, second = mixer.parts
    assert_same(mixer(x)[0], second(first(x)[0])[0])


def test_parallel_adds_its_parts() -> None:
    mixer, x = build_mixer("parallel('base_conv, attention, h3')"), inputs()
    assert_same(mixer(x)[0], mixer.parts[0](x)[0] + mixer.parts[1](x)[0] + mixer.parts[2](x)[0])


def test_narrow_heads_side_by_side_are_the_heads_of_one_attention() -> None:
    """A hybrid by heads is a sum: the output map of several heads is that of each, added."""
    whole, x = build_mixer("attention(heads=4)"), inputs()
    width = x.shape[-1] // 4
    split = build_mixer(f"parallel('attention(heads=1, key={width}), attention(heads=3, key={width})')")
    for part, rows in zip(split.parts, (slice(None, width), slice(width, None)), strict=True):
        for name in ("q", "k", "v"):
            getattr(part, name).weight.data = getattr(whole, name).weight.data[rows]
        part.out.weight.data = whole.out.weight.data[:, rows]
    assert_same(split(x)[0], whole(x)[0])


def test_a_gated_sum_weighs_its_parts_by_the_input() -> None:
    mixer, x = build_mixer("gated_sum('base_conv, attention')"), inputs()
    one, two = (part(x)[0] for part in mixer.parts)
    logits = x @ mixer.gate.weight.T + mixer.gate.bias
    share = torch.sigmoid(logits[..., :1] - logits[..., 1:])
    assert_same(mixer(x)[0], share * one + (1 - share) * two)


def test_a_mixer_of_mixers_is_named_by_them() -> None:
    short, long = parse("mixers", "serial('base_conv, based(features=8)'), serial(mixers='2*base_conv')")
    assert str(short) == "serial(mixers='base_conv, based(features=8)')"
    assert str(long) == "serial(mixers='base_conv, base_conv')"
    assert parse("mixers", f"{short}, {long}") == (short, long)
    assert spec("mixers", "serial", mixers="base_conv, based(features=8)") == short
    assert short.key != long.key


def test_a_stored_recipe_of_mixers_of_mixers_is_the_recipe_again() -> None:
    recipe = clean("serial('base_conv, parallel(mixers=\"attention(window=8), based\")')")
    read = Recipe(**json.loads(json.dumps(recipe.json())))
    assert read == recipe
    assert read.key == recipe.key


def test_a_file_within_a_mixer_is_known_by_its_content(tmp_path: Path) -> None:
    text, keys = Path("examples/my_mixer.py").read_text(), []
    for folder, source in (("a", text), ("b", text), ("c", text + "# changed\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(source)
        keys.append(clean(f"serial('{tmp_path}/{folder}/mine.py, attention')").key)
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("serial('atention')", "did you mean 'attention'"),
        ("serial(mixers=3)", "3 is no mixer, nor a list or a text of some"),
        ("attention('based')", "attention has no option 'mixers'"),
    ],
)
def test_a_mistake_within_is_answered_in_one_line(text: str, message: str) -> None:
    with pytest.raises((LookupError, TypeError), match=message) as caught:
        parse("mixers", text)
    assert len(str(caught.value).splitlines()) == 1
