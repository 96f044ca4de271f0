"""What must train until something is learnt. Slow: minutes, not seconds."""

import pytest

from bestiary.training.recipe import Recipe, clean
from bestiary.training.train import train

pytestmark = pytest.mark.slow


def accuracy(recipe: Recipe) -> float:
    """Test accuracy of a run."""
    *_, answers = (m for m in train(recipe) if m.split == "test" and not m.facet)
    return answers.right / answers.asked


def test_attention_solves_the_default_task_within_the_default_recipe() -> None:
    assert accuracy(clean("attention")) >= 0.99


@pytest.mark.parametrize(
    "pattern", ["base_conv, attention(rotary=False)", "base_conv, based(features=8)", "gated_delta"]
)
def test_mixers_whose_weights_depend_on_the_input_solve_a_small_task(pattern: str) -> None:
    task = "mqar(vocab=64, length=32, pairs=4)"
    assert accuracy(clean(pattern, train=task, rate=1e-2, seed=1)) >= 0.95


@pytest.mark.parametrize("mixer", ["attention(rotary=False)", "long_conv"])
def test_one_layer_that_cannot_tell_a_key_from_its_value_stays_at_the_plateau(mixer: str) -> None:
    task = "mqar(vocab=64, length=32, pairs=4)"
    assert accuracy(clean(mixer, train=task, depth=1, steps=600)) < 0.4
