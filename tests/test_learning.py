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


# Three steps on short rows with many pairs for one on long rows: as many answers in a third of the tokens.
MIXTURE = ", ".join(["mqar(length=32, pairs=8)"] * 3 + ["mqar(length=64, pairs=4)"])


def learned(pattern: str, rate: float, steps: int) -> float:
    """Test accuracy on (64, 4) with 8,192 symbols of a run that stops at 0.9."""
    size = {"batch": 64, "rate": rate, "steps": steps, "stop": 0.9}
    return accuracy(clean(pattern, train=MIXTURE, test="mqar(length=64, pairs=4)", **size))


@pytest.mark.parametrize(
    ("pattern", "rate", "steps"),
    [
        ("delta_net", 5e-3, 450),
        ("rwkv7", 1e-2, 200),
        ("kda", 5e-3, 350),
        ("gated_delta(init='short')", 1e-2, 600),
        ("mamba2(skip=0.0)", 1e-2, 700),
    ],
)
def test_a_mixer_learns_recall_within_the_steps_that_it_is_known_to_need(pattern: str, rate: float, steps: int) -> None:
    assert learned(pattern, rate, steps) > 0.85


def test_gated_delta_as_it_was_drawn_in_2024_does_not_learn_within_450_steps() -> None:
    assert learned("gated_delta(init='fla2024')", 1e-2, 450) < 0.1
