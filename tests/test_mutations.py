"""Mistakes that are easily made, and what notices each: laws, or equality with the formula written out plainly."""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import test_mixers
import test_recurrent

from bestiary.laws import MIXER_LAWS, Broken
from bestiary.spec import parse


class Mutation(NamedTuple):
    """One line of a mixer made wrong, the laws that break, and the test of equality, which fails or does not."""

    mixer: str
    right: str
    wrong: str
    laws: tuple[str, ...]
    equality: Callable[[], None]
    fails: bool


MUTATIONS = {
    "a decay that grows": Mutation(
        mixer="gated_delta",
        right="(-rate * softplus",
        wrong="(rate * softplus",
        laws=("float32 range",),
        equality=test_mixers.test_gated_delta,
        fails=True,
    ),
    "a shift by two positions": Mutation(
        mixer="token_shift",
        right="torch.cat([first, x[:, :-1]], dim=1)",
        wrong="torch.cat([first, first, x[:, :-2]], dim=1)[:, : x.shape[1]]",
        laws=("cut",),
        equality=test_recurrent.test_token_shift,
        fails=True,
    ),
    "a convolution that forgets its past at a cut": Mutation(
        mixer="mamba",
        right="self.conv.streams(self.into(x), conv, self.skip.shape)",
        wrong="self.conv.streams(self.into(x), None, self.skip.shape)",
        laws=("cut", "no dead state"),
        equality=test_mixers.test_mamba,
        fails=False,
    ),
    "a normaliser left out": Mutation(
        mixer="based",
        right="(y[..., :-1] / y[..., -1:])",
        wrong="(y[..., :-1])",
        laws=("no dead state",),
        equality=test_mixers.test_based,
        fails=True,
    ),
    "erasing after the decay": Mutation(
        mixer="gated_delta",
        right="g.exp() * k)",
        wrong="k)",
        laws=(),
        equality=test_mixers.test_gated_delta,
        fails=True,
    ),
    "a window one too long": Mutation(
        mixer="attention",
        right="at=at, window=self.window",
        wrong="at=at, window=self.window and self.window + 1",
        laws=("cut",),
        equality=partial(test_mixers.test_attention_shares_keys_and_sees_the_window_and_the_sinks, "window=4, sinks=2"),
        fails=True,
    ),
}
CHECKED = ("cut", "no dead state", "float32 range")


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = MUTATIONS[name]
    module = import_module(f"bestiary.mixers.{made.mixer}")
    source = Path(str(module.__file__)).read_text()
    assert source.count(made.right) == 1
    wrong = ModuleType(module.__name__)
    wrong.__file__ = module.__file__
    exec(compile(source.replace(made.right, made.wrong), str(module.__file__), "exec"), wrong.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, wrong)

    (spec,) = parse("mixers", "attention(window=5)" if made.mixer == "attention" else made.mixer)
    broken = set()
    for law in CHECKED:
        try:
            MIXER_LAWS[law](spec)
        except (Broken, RuntimeError):
            broken.add(law)
    assert broken == set(made.laws)
    if made.fails:
        with pytest.raises(AssertionError):
            made.equality()
    else:
        made.equality()
