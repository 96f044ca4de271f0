"""What is given to a worker, what it tells, and what an executor must be able to do."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from bestiary.spec import Spec
from bestiary.training.recipe import Recipe

Together = Literal["auto", "always", "never"]

FAST = 2**18  # numbers in an activation of a whole stack, up to which a CPU gains by it (benchmarks/together.py)
MOST = {"cpu": 32, "cuda": 64}  # members of a stack


class Event(NamedTuple):
    """What happened to a run."""

    kind: str  # started, measured, ended, failed, retried, apart (not together after all), waiting for another worker
    recipe: Recipe
    what: Any = None  # the Measurement, the Ended, or a line that says why


class Job(NamedTuple):
    """What a worker carries out at a time: one recipe, or several of one shape, trained as one program."""

    recipes: tuple[Recipe, ...]
    tries: int = 0  # how many workers have died of it


class How(NamedTuple):
    """What all workers of a sweep must know."""

    folder: str  # of the store
    backend: str = "auto"
    keep: bool = False  # the weights
    threads: int = 1
    since: float | None = None  # what failed after this time, by the file system's clock, is not tried again


class Told(NamedTuple):
    """What a worker tells of its job: an Event's kind for one recipe, or what became of the job as a whole.

    A job is over with `idle` (carried out), `died` (the worker is gone), `apart` (its recipes cannot be trained
    together), `large` (not in this memory) or `full` (the disk).
    """

    job: Job
    kind: str
    recipe: Recipe | None = None
    what: Any = None


OVER = ("idle", "died", "apart", "large", "full")


@runtime_checkable
class Executor(Protocol):
    """Slots, each of which carries out one job at a time."""

    def slots(self) -> int:
        """How many jobs can be at work at a time."""
        ...

    def free(self) -> int:
        """How many jobs could be started now."""
        ...

    def start(self, job: Job) -> None:
        """Give a job to a free slot."""
        ...

    def hear(self, timeout: float) -> Sequence[Told]:
        """What was told since, waiting for something at most so many seconds."""
        ...

    def close(self) -> None:
        """Stop all workers; the runs they hold are released."""
        ...


def jobs(recipes: Sequence[Recipe], *, slots: int, device: str, together: Together) -> list[Job]:
    """The recipes in jobs, in order; those of one shape in one job where that is faster, but a job for each slot."""
    groups: dict[str, list[Recipe]] = {}
    for recipe in recipes:
        groups.setdefault(recipe.key if together == "never" else recipe.company, []).append(recipe)
    found = []
    for members in groups.values():
        most = MOST["cpu" if device == "cpu" else "cuda"] if together == "always" else stack(members[0], device)
        size = max(1, min(most, -(-len(members) // slots)))
        found += [Job(tuple(members[start : start + size])) for start in range(0, len(members), size)]
    return found


def stack(recipe: Recipe, device: str) -> int:
    """How many recipes of this shape are trained fastest as one program; 1 if that is slower than one by one.

    On a CPU a stack pays as long as what goes from layer to layer stays in the cache.
    """
    if device != "cpu":
        return MOST["cuda"]
    numbers = recipe.batch * recipe.dim * max(length(task) for task in recipe.train)
    return max(1, min(MOST["cpu"], FAST // numbers))


@cache
def length(task: Spec) -> int:
    return task.build().length


def halves(job: Job) -> list[Job]:
    """The two halves of a job of several recipes."""
    middle = len(job.recipes) // 2
    return [job._replace(recipes=part) for part in (job.recipes[:middle], job.recipes[middle:])]


def singles(job: Job) -> list[Job]:
    return [job._replace(recipes=(recipe,)) for recipe in job.recipes]
