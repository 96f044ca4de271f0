"""Training that is interrupted goes on from its state, and measures what it would have measured, to the last bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bestiary.runs.tensors import read_tensors, write_tensors
from bestiary.training.recipe import Recipe, clean
from bestiary.training.state import TrainingState
from bestiary.training.together import MemberStates, train_together
from bestiary.training.train import Diverged, Measurement, batches, new_state, train

SMALL: dict[str, Any] = {
    "train": "mqar(vocab=20, length=12, pairs=2)",
    "dim": 8,
    "batch": 8,
    "steps": 11,
    "every": 4,
    "hold": 3,
    "selection_rows": 16,
    "test_rows": 16,
    "stop": None,
}
TWO = "mqar(vocab=20, length=12, pairs=2), mqar(vocab=20, length=16, pairs=3)"
RECIPES: dict[str, Recipe] = {
    "adamw": clean("attention", **SMALL),
    "muon": clean("mamba", **SMALL, optimizer="muon"),
    "adafactor": clean("mamba", **SMALL, optimizer="adafactor"),
    "no decay, no clip": clean("base_conv", **SMALL | {"weight_decay": 0.0, "clip": None, "hold": 1}),
    "shuffled rows and dropout": clean("gla", **SMALL, distinct=(3,), shuffle="rows", dropout=0.2),
    "shuffled batches": clean("attention(dropout=0.2)", **SMALL, distinct=(4,), shuffle="batches"),
    "segments": clean("attention, base_conv", **SMALL | {"train": TWO}, channel="mlp", positions=16),
    "finite segments": clean("gated_delta", **SMALL | {"train": TWO}, distinct=(3, 2), shuffle="rows"),
    "curriculum": clean("kda", **SMALL | {"train": TWO}, curriculum=True),
    "bfloat16": clean("attention", **SMALL, precision="bfloat16", betas=(0.8, 0.9)),
    "early stop": clean("attention", **SMALL | {"stop": 0.01, "every": 2}),
    "fixed features": clean("linear_attention(feature='performer')", **SMALL),
}


def states(recipe: Recipe, folder: Path) -> list[Path]:
    """A file for the state after each step."""
    places: list[Path] = []

    def write(state: TrainingState) -> None:
        assert state.step == len(places) + 1
        places.append(folder / f"{state.step}.safetensors")
        write_tensors(places[-1], state.tensors())

    list(train(recipe, after_step=write))
    return places


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_run_measures_and_learns_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    model = recipe.build()
    whole = list(train(recipe, model))
    places = states(recipe, tmp_path)
    assert places
    for step, place in enumerate(places, start=1):
        if step in (1, 4, 6, recipe.steps):
            again = recipe.build()
            found = list(train(recipe, again, saved=read_tensors(place)))
            assert found == [one for one in whole if one.step > step or one.split == "test"]
            wanted = model.state_dict()
            assert all(torch.equal(weight, wanted[weight_name]) for weight_name, weight in again.state_dict().items())


def test_a_run_may_be_interrupted_several_times() -> None:
    recipe = RECIPES["shuffled rows and dropout"]
    whole, found, saved = list(train(recipe)), [], None
    for until in (2, 4, 5, 9):
        kept: dict[int, dict[str, Tensor]] = {}

        def keep(state: TrainingState, kept: dict[int, dict[str, Tensor]] = kept) -> None:
            kept[state.step] = copies(state.tensors())

        rows = [one for one in train(recipe, saved=saved, after_step=keep) if one.split != "test"]
        found += [one for one in rows if one.step <= until]
        saved = kept[until]
    assert found + list(train(recipe, saved=saved)) == whole


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_the_state_of_a_member_of_a_stack_is_that_of_its_run_alone() -> None:
    own = ({"rate": 1e-3, "weight_decay": 0.0}, {"rate": 1e-2, "seed": 1}, {"rate": 3e-3})
    recipes = [clean("attention, gla", **SMALL | changes, channel="mlp") for changes in own]
    alone: list[dict[int, dict[str, Tensor]]] = [{} for _ in recipes]
    for recipe, kept in zip(recipes, alone, strict=True):

        def keep(state: TrainingState, kept: dict[int, dict[str, Tensor]] = kept) -> None:
            kept[state.step] = copies(state.tensors())

        list(train(recipe, recipe.build().double(), after_step=keep))
    members: dict[int, list[dict[str, Tensor]]] = {}

    def keep_all(states: MemberStates) -> None:
        found = [copies(tensors) for _, tensors in states()]
        members[int(found[0]["step"])] = found

    for saved in (None, [kept[6] for kept in alone]):
        members.clear()
        models = [recipe.build().double() for recipe in recipes]
        rows = list(train_together(recipes, models, saved=saved, after_step=keep_all))
        assert list(members) == list(range(1 if saved is None else 7, 12))
        assert {row.step for _, row in rows if isinstance(row, Measurement)} == (
            {4, 8, 11} if saved is None else {8, 11}
        )
        for step, found in members.items():
            for one, kept in zip(found, alone, strict=True):
                assert one.keys() == kept[step].keys()
                for name, tensor in one.items():
                    assert torch.allclose(tensor.double(), kept[step][name].double(), rtol=1e-7, atol=1e-9), (
                        step,
                        name,
                    )


@pytest.mark.parametrize("name", ["adamw", "shuffled rows and dropout", "finite segments", "curriculum"])
def test_batches_from_a_step_on_are_those_of_the_whole(name: str) -> None:
    whole = list(batches(RECIPES[name]))
    for start in range(len(whole) + 1):
        rest = list(batches(RECIPES[name], start=start))
        assert len(rest) == len(whole) - start
        assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(rest, whole[start:], strict=True))


def test_batches_before_the_start_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr("bestiary.training.train.draw_batch", lambda _recipe, _task, i: drawn.append(i))
    list(batches(RECIPES["curriculum"], start=9))
    assert drawn == [9, 10]


def test_a_loss_that_is_no_number_ends_a_resumed_run_too() -> None:
    recipe = clean("attention", **SMALL | {"rate": 1e30, "clip": None, "warmup": 0})
    kept: list[dict[str, Tensor]] = []
    with pytest.raises(Diverged, match="at step 4") as whole:
        list(train(recipe, after_step=lambda state: kept.append(copies(state.tensors()))))
    assert len(kept) == 3
    with pytest.raises(Diverged) as resumed:
        list(train(recipe, saved=kept[-1]))
    assert str(resumed.value) == str(whole.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.pop("model/embed.weight"), "its model/embed.weight is missing"),
        (lambda saved: saved.pop("step"), "its step is missing"),
        (lambda saved: saved.update(sums=torch.zeros(2)), r"its sums is \[2\] of torch.float32"),
        (lambda saved: saved.update({"model/other": torch.zeros(2)}), r"its model/other is \[2\]"),
        (lambda saved: saved.update({"optimizer/embed.weight/exp_avg": torch.zeros(7)}), r"exp_avg is \[7\]"),
        (lambda saved: saved.update({"optimizer/other/exp_avg": torch.zeros(7)}), r"optimizer/other/exp_avg is"),
        (lambda saved: saved.update({"model/embed.weight": torch.zeros(20, 9)}), r"embed.weight is \[20, 9\]"),
    ],
)  # fmt: skip
def test_the_state_of_another_model_is_refused_and_changes_nothing(change: Any, message: str, tmp_path: Path) -> None:
    saved = read_tensors(states(RECIPES["adamw"], tmp_path)[4])
    change(saved)
    state = new_state(RECIPES["adamw"])
    before = copies(state.tensors())
    with pytest.raises(ValueError, match=message):
        state.load(saved)
    assert before.keys() == state.tensors().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())
