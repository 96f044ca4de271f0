"""Every family of tasks has one that a mixer learns, and what cannot be learnt stays within its bound. Slow."""

import pytest

from bestiary.training.recipe import Recipe, clean
from bestiary.training.train import Measurement, train

pytestmark = pytest.mark.slow


def run(pattern: str, task: str, *, test: str = "", **changes: object) -> list[Measurement]:
    """The measurements on the test stream of a run that is steered by its own task."""
    made: Recipe = clean(pattern, train=task, select=task, test=test or task, channel="mlp", **changes)
    return [measured for measured in train(made) if measured.split == "test"]


def accuracy(measured: list[Measurement], segment: int = 0) -> float:
    (found,) = (m for m in measured if m.segment == segment and not m.facet)
    return found.right / found.asked


@pytest.mark.parametrize(
    ("pattern", "task", "steps"),
    [
        ("gated_delta", "in_context_recall(length=32)", 400),
        ("attention", "palindrome(length=20, vocab=8)", 1000),
        ("lstm", "flip_flop(pairs=16)", 400),
        ("attention", "bucket_sort(least=4, length=8)", 800),
        ("lstm", "group_words(group='S3', length=12)", 600),
        ("lstm", "selective_grammar", 400),
        ("base_conv, attention", "p_hop(hops=1, length=32)", 600),
    ],
)
def test_a_mixer_that_should_learn_a_small_task_does(pattern: str, task: str, steps: int) -> None:
    assert accuracy(run(pattern, task, steps=steps)) > 0.95


BITS = "parity(least=12, length=12, cumulative=True)"
LONG = "parity(least=64, length=64, cumulative=True)"


def late(measured: list[Measurement]) -> float:
    """Accuracy on the long strings from the 33rd bit on."""
    found = [m for m in measured if m.segment == 1 and m.facet == "place" and m.value >= 32]
    return sum(m.right for m in found) / sum(m.asked for m in found)


def test_eigenvalues_that_are_positive_cannot_keep_a_parity_beyond_the_trained_length() -> None:
    assert late(run("mamba2", BITS, test=f"{BITS}, {LONG}", steps=600, dim=32)) < 0.6


def test_a_nonlinear_recurrence_can() -> None:
    # All steps: it knows the trained length long before it carries the bit further.
    measured = run("lstm", BITS, test=f"{BITS}, {LONG}", steps=600, dim=32, stop=None)
    assert accuracy(measured) > 0.99
    assert late(measured) > 0.9
