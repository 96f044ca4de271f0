"""Many recipes as one program: the same measurements, run by run, as those of `train`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from bestiary.laws import variants
from bestiary.model import Model
from bestiary.ops.capture import WARM, CapturedFunction
from bestiary.spec import Spec, names
from bestiary.training.recipe import Recipe, clean
from bestiary.training.together import CannotStack, Stack, stacked_batches, train_together
from bestiary.training.train import Diverged, Measurement, train

SMALL: dict[str, Any] = {
    "train": "mqar(vocab=40, length=36, pairs=3)",
    "dim": 16,
    "batch": 4,
    "steps": 8,
    "every": 8,
    "selection_rows": 8,
    "test_rows": 8,
    "stop": None,
}
MEMBERS = ({"rate": 1e-3, "seed": 0}, {"rate": 1e-2, "seed": 1, "weight_decay": 0.0}, {"rate": 3e-3, "seed": 0})


def members(pattern: str, **changes: Any) -> list[Recipe]:
    return [clean(pattern, **(SMALL | changes | own)) for own in MEMBERS]


def two_members(pattern: str, **changes: Any) -> list[Recipe]:
    """Of two rates, decays and seeds, for three steps: where only the mixer is new."""
    return members(pattern, steps=3, every=3, **changes)[:2]


def alone(recipe: Recipe) -> list[Measurement | Diverged]:
    seen: list[Measurement | Diverged] = []
    try:
        for measurement in train(recipe, recipe.build().double()):
            seen.append(measurement)
    except Diverged as diverged:
        seen.append(diverged)
    return seen


def together(recipes: list[Recipe]) -> list[list[Any]]:
    seen: list[list[Any]] = [[] for _ in recipes]
    for place, what in train_together(recipes, [recipe.build().double() for recipe in recipes]):
        seen[place].append(what)
    return seen


def same(recipes: list[Recipe]) -> None:
    for recipe, found in zip(recipes, together(recipes), strict=True):
        wanted = alone(recipe)
        if isinstance(found[-1], Model):
            found.pop()
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            if isinstance(other, Diverged):
                assert str(one) == str(other)
                continue
            assert one[:5] == other[:5]
            assert (one.right, one.asked) == (other.right, other.asked)
            assert one.extra == pytest.approx(other.extra, rel=1e-4, abs=1e-12)
            assert one.loss == pytest.approx(other.loss, rel=1e-8, abs=1e-8, nan_ok=True)


# One mixer of each family, engine and way to fail at it; the others are slow.
FAST = ("attention", "base_conv", "gated_delta", "lstm", "mamba", "serial")
EVERY = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names("mixers")]


@pytest.mark.parametrize("name", EVERY)
def test_members_measure_what_they_would_alone(name: str) -> None:
    same(members(name) if name in FAST else two_members(name))


def test_members_with_a_lone_number_among_their_weights_measure_what_they_would_alone(tmp_path: Path) -> None:
    """A parameter without axes, as modules of others have them."""
    (tmp_path / "scaled.py").write_text(
        "import torch\nfrom bestiary import Mixer\n\n\n"
        "class Scaled(Mixer):\n"
        "    def __init__(self, dim):\n        super().__init__()\n"
        "        self.scale = torch.nn.Parameter(torch.tensor(0.5))\n\n"
        "    def forward(self, x, state=None):\n        return self.scale * x, None\n"
    )
    same(members(str(tmp_path / "scaled.py")))


OPTIONS = [part for name in names("mixers") for part in list(variants("mixers", name))[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("part", OPTIONS, ids=str)
def test_members_measure_what_they_would_alone_with_other_options(part: Spec) -> None:
    recipes = two_members(str(part))
    try:
        recipes[0].check()
    except ValueError:
        recipes = two_members(str(part), dim=48)
    same(recipes)


@pytest.mark.slow
def test_members_of_other_regimes_measure_what_they_would_alone() -> None:
    same(members("attention, base_conv", channel="mlp", positions=36, clip=None, decay="all"))
    two = "mqar(vocab=40, length=36, pairs=3), mqar(vocab=40, length=24, pairs=4)"
    same(members("gla", train=two, distinct=(3, 2), hold=5, warmup=0))
    same(members("gla", distinct=(3,), shuffle="rows", every=10))
    same(members("attention", train="majority(length=15)"))


@pytest.mark.parametrize("pattern", ["attention", "gla", "mamba"])
def test_members_share_the_precision_of_their_products(pattern: str) -> None:
    """Their weights change as they would alone: much more alike than in float32, where nothing is rounded so."""
    recipes = members(pattern, precision="bfloat16", steps=2, every=1, warmup=0)
    seen: list[list[Any]] = [[] for _ in recipes]
    for place, what in train_together(recipes, [recipe.build() for recipe in recipes]):
        seen[place].append(what)
    for recipe, (*found, model) in zip(recipes, seen, strict=True):
        begun, alone, exact = (recipe.build() for _ in range(3))
        wanted = [one.loss for one in train(recipe, alone)]
        assert [one.loss for one in found] == pytest.approx(wanted, rel=0.005)
        assert list(train(recipe.model_copy(update={"precision": "float32"}), exact))
        start, due, *others = (parameters_to_vector(of.parameters()) for of in (begun, alone, model, exact))
        apart, in_float32 = ((other - due).norm() / (due - start).norm() for other in others)
        assert apart < min(0.1, 0.85 * in_float32)


def test_members_of_one_seed_share_their_dropout() -> None:
    rates = [clean("attention(dropout=0.2)", **SMALL, dropout=0.1, rate=rate) for rate in (1e-3, 1e-2)]
    assert rates[0].stack_key == rates[1].stack_key
    same(rates)
    assert rates[0].stack_key != rates[0].model_copy(update={"seed": 1}).stack_key
    inner = "serial('short_conv, attention(dropout=0.2)')"
    assert clean(inner, seed=0).stack_key != clean(inner, seed=1).stack_key


def test_seeds_that_deal_the_tasks_in_another_order_are_no_company() -> None:
    two: dict[str, Any] = {"train": "mqar(vocab=40, length=36), mqar(vocab=40, length=24)", "distinct": (3, 2)}
    for shuffle in ("none", "batches", "rows"):
        companies = {clean("gla", **two, shuffle=shuffle, seed=seed).stack_key for seed in range(2)}
        assert len(companies) == (1 if shuffle == "none" else 2)


def test_only_rate_decay_and_seed_may_differ() -> None:
    one, other = clean("attention", **SMALL), clean("attention", **(SMALL | {"clip": 0.5}))
    assert len({recipe.stack_key for recipe in members("attention")}) == 1
    assert one.stack_key != other.stack_key
    with pytest.raises(CannotStack, match="differ in more than rate"):
        next(train_together([one, other]))


@pytest.mark.slow
def test_members_that_have_solved_their_task_or_diverged_leave() -> None:
    easy = "mqar(vocab=16, length=8, pairs=1)"
    changes: dict[str, Any] = {"train": easy, "stop": 0.9, "steps": 60, "batch": 32, "clip": None, "positions": 8}
    own = ({"rate": 3e-2, "seed": 2}, {"rate": 1e200}, {"rate": 1e-5}, {"rate": 3e-2, "seed": 1})
    recipes = [clean("attention", **(SMALL | changes | o)) for o in own]
    same(recipes)
    ends = [seen[-1] for seen in together(recipes)]
    assert [type(end) for end in ends] == [Model, Diverged, Model, Model]
    last = [seen[-2].step for seen in together(recipes)]
    assert last[0] < 60
    assert last[2] == 60


def test_members_that_their_last_step_breaks_have_diverged() -> None:
    own = ({"rate": 1e-3}, {"rate": 1e200})
    recipes = [clean("attention", **(SMALL | {"steps": 1, "clip": None} | o)) for o in own]
    same(recipes)
    assert [type(seen[-1]) for seen in together(recipes)] == [Model, Diverged]


def test_the_model_of_a_member_holds_its_weights() -> None:
    recipes = members("gated_delta")
    models = [recipe.build().double() for recipe in recipes]
    for recipe, model in zip(recipes, models, strict=True):
        list(train(recipe, model))
    found = {place: what for place, what in train_together(recipes, [r.build().double() for r in recipes])}
    for place, model in enumerate(models):
        last = found[place]
        assert isinstance(last, Model)
        for name, weight in last.state_dict().items():
            torch.testing.assert_close(weight, model.state_dict()[name], rtol=1e-8, atol=1e-8)


MIXER = '''
from bestiary.mixers._mixer import Mixer
from torch import nn


class Branching(Mixer):
    """Looks at numbers, which vmap cannot."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, dim)

    def forward(self, x, state=None):
        y = self.out(x)
        return (y if y.sum() > 0 else -y), None
'''


def test_a_mixer_that_knows_no_vmap_is_told_apart(tmp_path: Any) -> None:
    file = tmp_path / "branching.py"
    file.write_text(MIXER)
    with pytest.raises(CannotStack, match="data-dependent control flow"):
        next(train_together(members(str(file))))


AVERAGING = """
import torch
from bestiary import Mixer


class Averaging(Mixer):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out = torch.nn.Linear(dim, dim)
        self.register_buffer("mean", torch.zeros(dim))

    def forward(self, x, state=None):
        if self.training:
            mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))
            KEEP
        return self.out(x - self.mean), None
"""


def test_a_buffer_may_be_written_into_and_not_replaced(tmp_path: Path) -> None:
    for name, keep in {"writes": "self.mean.copy_(mean)", "replaces": "self.mean = mean"}.items():
        (tmp_path / f"{name}.py").write_text(AVERAGING.replace("KEEP", keep))
    same(members(str(tmp_path / "writes.py")))
    with pytest.raises(CannotStack, match=r"a pass replaces the buffer layers\.0\.mixer\.mean"):
        next(train_together(members(str(tmp_path / "replaces.py"))))


def stand_in(call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Records nothing: it calls again, and leaves the result where it was promised."""
    result = torch.full((3, 3), torch.nan, dtype=torch.float64)

    def replay() -> None:
        result.copy_(call())

    return replay, result


def test_a_captured_step_is_the_step() -> None:
    recipes = members("attention")
    plain, captured = (Stack(recipes, [recipe.build().double() for recipe in recipes]) for _ in range(2))
    captured.step = CapturedFunction(captured.gradient_step, record=stand_in)
    for step, batch in enumerate(stacked_batches(plain), start=1):
        torch.testing.assert_close(captured.update(batch, step), plain.update(batch, step), rtol=1e-12, atol=0)
    assert len(captured.step.recorded) == 1
    assert captured.step.calls.total() > WARM


def test_what_cannot_be_captured_is_called_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(call: Callable[[], Tensor]) -> Any:  # noqa: ARG001
        raise RuntimeError("operation not permitted when stream is capturing")

    double = CapturedFunction(lambda x: 2 * x, record=refuse)
    for value in range(WARM + 3):
        assert double(torch.tensor([float(value)])).item() == 2 * value
    assert [record.message for record in caplog.records] == [
        "not captured in a graph, so slower: operation not permitted when stream is capturing"
    ]
