"""About how much work a run is, from its recipe alone, so that long runs can begin first.

It takes microseconds and builds no model, so it cannot know that some mixers cost several times others of the same
width, nor when a run will stop. It is for putting runs in order, not for telling anybody how long they take.
"""

from functools import cache

from bestiary.spec import Spec
from bestiary.training.recipe import Recipe

PASSES = 3  # a training step is a forward pass and a backward pass of twice the work
WIDTH = 128  # from here on matrix products are more than half of a layer's work (fitted to 37 shapes; LOG.md)
CALLS = 50_000  # numbers that could be computed in the time of a layer's calls (benchmarks/together.py)


def predict_work(recipe: Recipe, members: int = 1) -> float:
    """The work of a stack of so many recipes like this one, evaluations included, in numbers that layers compute.

    Members of a stack share the calls of operations, not the arithmetic.
    """
    tokens = training_tokens(recipe) + scored_tokens(recipe) / PASSES
    width = recipe.dim * (1 + recipe.dim / WIDTH)
    return recipe.depth * (members * tokens * width + recipe.steps * CALLS)


def training_tokens(recipe: Recipe) -> float:
    """The tokens of all training steps."""
    in_a_round = sum(turns * task_length(task) for turns, task in zip(recipe.turns, recipe.train, strict=True))
    return recipe.steps * recipe.batch * in_a_round / sum(recipe.turns)


def scored_tokens(recipe: Recipe) -> int:
    """The tokens of all evaluations of a run that does not stop early."""
    evaluations = -(-recipe.steps // recipe.every)
    selection = sum(map(task_length, recipe.select or recipe.test))
    return evaluations * recipe.selection_rows * selection + recipe.test_rows * sum(map(task_length, recipe.test))


@cache
def task_length(task: Spec) -> int:
    """Tokens in a row of the task."""
    return task.build().length
