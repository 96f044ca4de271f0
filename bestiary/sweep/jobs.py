"""Jobs, what a worker reports about them, and what an executor must be able to do."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from bestiary.spec import Spec
from bestiary.training.recipe import Recipe

Together = Literal["auto", "always", "never"]

STACK_NUMBERS = 2**18  # largest activation of a stack that pays on a CPU (benchmarks/together.py)
LARGEST_STACK = {"cpu": 32, "cuda": 64}  # members of a stack


class Event(NamedTuple):
    """What happened to a run."""

    kind: str  # started, measured, ended, failed, retried, unstacked, or waiting (another worker has it)
    recipe: Recipe
    detail: Any = None  # the Measurement, the Outcome, the Resumption, or a line that says why


class Resumption(NamedTuple):
    """What a run that starts is told about its checkpoint: the detail of its event."""

    step: int  # that it goes on from
    fault: str = ""  # why the checkpoint cannot be used, so that it starts over

    def __str__(self) -> str:
        return f"starts over: {self.fault}" if self.fault else f"goes on after step {self.step}"


class Job(NamedTuple):
    """What a worker carries out at one time: one recipe, or several of one shape that are trained as a stack."""

    recipes: tuple[Recipe, ...]
    tries: int = 0  # workers that have died while they had it


class WorkerConfig(NamedTuple):
    """The settings that all workers of a sweep share."""

    folder: str  # of the store, absolute
    backend: str = "auto"
    keep: bool = False  # whether to write the trained weights
    threads: int = 1
    since: float | None = None  # runs that failed after this time (file system's clock) are not tried again


class JobEvent(NamedTuple):
    """What a worker reports about its job: an event of one of its recipes, or how the job as a whole ended.

    A job ends as `over` (carried out), `died` (the worker is gone), `unstacked` (its recipes cannot be trained as one
    stack), `regrouped` (they have been trained up to different steps; the detail is the recipes of each step),
    `out of memory` or `disk full`.
    """

    job: Job
    kind: str
    recipe: Recipe | None = None
    detail: Any = None


OVER = ("over", "died", "unstacked", "regrouped", "out of memory", "disk full")


@runtime_checkable
class Executor(Protocol):
    """A number of slots, each of which carries out one job at a time."""

    def slots(self) -> int:
        """How many jobs can run at the same time."""
        ...

    def free(self) -> int:
        """How many jobs could be started now."""
        ...

    def start(self, job: Job) -> None:
        """Give a job to a free slot."""
        ...

    def poll(self, timeout: float) -> Sequence[JobEvent]:
        """What the workers reported since the last call; waits at most `timeout` seconds for something."""
        ...

    def stop(self, job: Job, reason: str) -> None:
        """End the worker that has a job. `poll` then reports that it died, for this reason."""
        ...

    def close(self) -> None:
        """Stop all workers and release the runs they hold."""
        ...


def make_jobs(recipes: Sequence[Recipe], *, slots: int, device: str, together: Together) -> list[Job]:
    """The recipes as jobs, in order. Recipes of one shape share a job where that is faster; every slot gets one."""
    groups: dict[str, list[Recipe]] = {}
    for recipe in recipes:
        groups.setdefault(recipe.key if together == "never" else recipe.stack_key, []).append(recipe)
    jobs = []
    for members in groups.values():
        most = (
            LARGEST_STACK["cpu" if device == "cpu" else "cuda"]
            if together == "always"
            else stack_size(members[0], device)
        )
        size = max(1, min(most, -(-len(members) // slots)))
        jobs += [Job(tuple(members[start : start + size])) for start in range(0, len(members), size)]
    return jobs


def stack_size(recipe: Recipe, device: str) -> int:
    """The number of recipes of this shape in the fastest stack; 1 if stacking does not pay.

    On a CPU it pays as long as the activations between layers stay in the cache.
    """
    if device != "cpu":
        return LARGEST_STACK["cuda"]
    numbers = recipe.batch * recipe.dim * max(task_length(task) for task in recipe.train)
    return max(1, min(LARGEST_STACK["cpu"], STACK_NUMBERS // numbers))


@cache
def task_length(task: Spec) -> int:
    """Tokens in a row of the task."""
    return task.build().length


def split_in_halves(job: Job) -> list[Job]:
    """Two jobs, each with half of the recipes."""
    middle = len(job.recipes) // 2
    return [job._replace(recipes=part) for part in (job.recipes[:middle], job.recipes[middle:])]


def split_in_singles(job: Job) -> list[Job]:
    """A job for each of the recipes."""
    return [job._replace(recipes=(recipe,)) for recipe in job.recipes]
