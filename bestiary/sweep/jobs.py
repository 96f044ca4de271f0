"""Jobs, what a worker reports about them, and what an executor must be able to do."""

from collections.abc import Sequence
from heapq import heapreplace
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from bestiary.sweep.cost import predict_work, task_length
from bestiary.training.recipe import Recipe

Together = Literal["auto", "always", "never"]

STACK_NUMBERS = 2**18  # largest activation of a stack that pays on a CPU (benchmarks/together.py)
LARGEST_STACK = {"cpu": 32, "cuda": 64}  # members of a stack
HALVINGS = 4  # of stacks, for each slot


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
    """The recipes as jobs, the longest first by `predict_work`; equally long ones stay in order.

    Recipes of one shape share a job where that is faster, unless a slot would then be out of work too early.
    """
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
        jobs += split_job(Job(tuple(members)), -(-len(members) // most))
    return divide_stacks(jobs, slots)


def divide_stacks(jobs: Sequence[Job], slots: int) -> list[Job]:
    """The jobs, the longest first. Stacks are halved as long as a slot has no job, or the last slot is done sooner."""
    jobs = sorted(jobs, key=job_work, reverse=True)
    loads, last = fill_slots(jobs, slots)
    for _ in range(HALVINGS * slots):
        too_few = len(jobs) < slots
        halved = jobs if too_few else last
        stack = max((job for job in halved if len(job.recipes) > 1), key=job_work, default=None)
        if stack is None:
            break
        apart = [part for job in jobs for part in (split_job(job, 2) if job is stack else [job])]
        apart.sort(key=job_work, reverse=True)
        shorter, last = fill_slots(apart, slots)
        if shorter >= loads and not too_few:
            break
        jobs, loads = apart, shorter
    return jobs


def fill_slots(jobs: Sequence[Job], slots: int) -> tuple[list[int], list[Job]]:
    """What happens if each job goes to the slot that is free first.

    Returns the work of each slot in tenths of an equal share (the prediction is no better), the largest first, and the
    jobs of the slot with most.
    """
    free, taken = [(0.0, slot) for slot in range(slots)], [[] for _ in range(slots)]
    for job in jobs:
        work, slot = free[0]
        taken[slot].append(job)
        heapreplace(free, (work + job_work(job), slot))
    share = sum(work for work, _ in free) / slots
    return sorted((round(10 * work / share) for work, _ in free), reverse=True), taken[max(free)[1]]


def job_work(job: Job) -> float:
    """About how much work a job is."""
    return predict_work(job.recipes[0], len(job.recipes))


def stack_size(recipe: Recipe, device: str) -> int:
    """The number of recipes of this shape in the fastest stack; 1 if stacking does not pay.

    On a CPU it pays as long as the activations between layers stay in the cache.
    """
    if device != "cpu":
        return LARGEST_STACK["cuda"]
    numbers = recipe.batch * recipe.dim * max(task_length(task) for task in recipe.train)
    return max(1, min(LARGEST_STACK["cpu"], STACK_NUMBERS // numbers))


def split_job(job: Job, count: int) -> list[Job]:
    """So many jobs that have the recipes in order, equally many each or one more."""
    size, more = divmod(len(job.recipes), count)
    ends = [size * i + min(i, more) for i in range(count + 1)]
    return [job._replace(recipes=job.recipes[start:end]) for start, end in pairwise(ends)]


def split_in_singles(job: Job) -> list[Job]:
    """A job for each of the recipes."""
    return [job._replace(recipes=(recipe,)) for recipe in job.recipes]
