"""Which job is next, and what follows when one ends. The same for every executor.

The scheduler keeps nothing that matters: finished runs are in the store, and a sweep that is stopped anywhere goes on
from there. A worker that dies is replaced, and the runs it held are tried again, `TRIES` times in all.
"""

import math
import os
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from heapq import heappop, heappush
from itertools import count

from bestiary.runs.store import Store
from bestiary.sweep.jobs import (
    OVER,
    Event,
    Executor,
    Job,
    JobEvent,
    Together,
    WorkerConfig,
    make_jobs,
    split_in_singles,
    split_job,
)
from bestiary.sweep.local import Local, cores
from bestiary.sweep.work import DISK_FULL
from bestiary.training.recipe import Recipe

RETRY_PAUSE = 2.0  # seconds until a run that another worker has is looked at again
STARTUP = 60.0  # seconds more that a worker may take until its first news: it loads torch
TRIES = 3  # workers that may die while they have the same job


def sweep(
    recipes: Sequence[Recipe],
    store: Store,
    *,
    workers: int | None = None,
    threads: int = 1,
    device: str = "cpu",
    backend: str = "auto",
    keep: bool = False,
    together: Together = "auto",
    patience: float | None = None,
    executor: Executor | None = None,
    part: tuple[int, int] = (0, 1),
) -> Generator[Event]:
    """Carry out every recipe that is not done, and yield what happens. Closing the iterator stops the workers.

    `workers` run at a time (by default one for each core or device) with `threads` each. The default is one thread
    whatever the number of workers, since another number of threads rounds sums in another order. Long runs come first,
    and small recipes of one shape are trained `together`: see `make_jobs`. An `executor` says where the workers run;
    by default on this machine.
    A worker that has given no measurement for `patience` seconds is ended, and its runs are tried again.
    Runs that another worker has are waited for, and carried out if it dies. With `part` (i, n) this is the i-th of n
    sweeps that share the recipes: it starts with every n-th job, divides stacks for all n, and does not wait.
    Raises OSError when the disk is full or read-only. Any other failure is an event, and the sweep goes on.
    """
    to_do = list({recipe.key: recipe for recipe in recipes if recipe not in store}.values())
    if not to_do:
        if executor is not None:
            executor.close()
        return
    if executor is None:
        places = devices(device)
        slots = max(1, min(workers or (max(1, cores() // threads) if device == "cpu" else len(places)), len(to_do)))
        config = WorkerConfig(str(store.folder.absolute()), backend, keep, threads)
        executor = Local([places[slot % len(places)] for slot in range(slots)], config)
    else:
        slots = max(1, executor.slots())
    try:
        jobs = make_jobs(to_do, slots=slots * part[1], device=device, together=together)
        own = jobs[part[0] :: part[1]]
        rest = [job for place, job in enumerate(jobs) if place % part[1] != part[0]]
        yield from run_jobs(own + rest, store, executor, wait=part[1] == 1, patience=patience)
    finally:
        executor.close()


def run_jobs(
    jobs: Sequence[Job], store: Store, executor: Executor, *, wait: bool, patience: float | None = None
) -> Iterator[Event]:
    """What happens while the jobs are carried out."""
    left, resting, order = deque(jobs), [], count()
    at_work: dict[int, set[str]] = {}  # keys of the runs that each job has not ended yet, by the identity of the job
    held: dict[int, Job] = {}
    deadlines: dict[int, float] = {}  # of the next news of each job, if somebody is impatient
    while left or resting or at_work:
        while resting and resting[0][0] <= time.monotonic():
            left.append(heappop(resting)[2])
        while left and executor.free() > 0:
            job = left.popleft()
            at_work[id(job)], held[id(job)] = {recipe.key for recipe in job.recipes}, job
            executor.start(job)
            deadlines[id(job)] = time.monotonic() + (patience or math.inf) + STARTUP
        for event in executor.poll(RETRY_PAUSE / 4):
            open_runs = at_work.get(id(event.job), set())
            deadlines[id(event.job)] = time.monotonic() + (patience or math.inf)
            if event.recipe is not None and event.kind in ("ended", "failed", "waiting"):
                open_runs.discard(event.recipe.key)
            if event.kind == "waiting" and event.recipe is not None and wait:
                heappush(resting, (time.monotonic() + RETRY_PAUSE, next(order), Job((event.recipe,))))
            if event.kind in OVER:
                del at_work[id(event.job)], held[id(event.job)], deadlines[id(event.job)]
                rest = event.job._replace(recipes=tuple(r for r in event.job.recipes if r.key in open_runs))
                more, events = follow_up(event, rest, store)
                left.extendleft(reversed(more))
                yield from events
            elif event.recipe is not None:
                yield Event(event.kind, event.recipe, event.detail)
        for late in [job for job in held.values() if deadlines[id(job)] < time.monotonic()]:
            deadlines[id(late)] = math.inf
            executor.stop(late, f"no measurement for {patience:g} s")


def follow_up(event: JobEvent, rest: Job, store: Store) -> tuple[list[Job], list[Event]]:
    """The jobs and the events that follow when a job has ended. Raises OSError if the disk is full."""
    if event.kind == "disk full":
        number, text = event.detail
        raise OSError(number, os.strerror(number), text)
    if not rest.recipes or event.kind == "over":
        return [], []
    if event.kind == "regrouped":
        return [rest._replace(recipes=tuple(recipes)) for recipes in event.detail], []
    if event.kind in ("unstacked", "out of memory"):
        if len(rest.recipes) == 1:
            return [rest], []
        too_large = event.kind == "out of memory"
        parts = split_job(rest, 2) if too_large else split_in_singles(rest)
        why = "too large for the memory" if too_large else event.detail
        return parts, [Event("unstacked", rest.recipes[0], f"{len(rest.recipes)} recipes: {why}")] if why else []
    again = rest._replace(tries=rest.tries + 1)
    last, line = again.tries >= TRIES, str(event.detail)
    for recipe in rest.recipes:
        record_death(store, recipe, line, last=last)
    if last:
        return [], [Event("failed", recipe, f"{line}, {again.tries} times") for recipe in rest.recipes]
    return split_in_singles(again), [Event("retried", recipe, line) for recipe in rest.recipes]


def record_death(store: Store, recipe: Recipe, line: str, *, last: bool) -> None:
    """Record that a worker died, unless the folder of the run cannot be written. Raises OSError if the disk is full."""
    try:
        store.record_death(recipe, line, last=last)
    except OSError as fault:
        if fault.errno in DISK_FULL:
            raise


def devices(device: str) -> list[str]:
    """The names of the devices: every CUDA device of this machine for `cuda`, otherwise the one that was named."""
    if device != "cuda":
        return [device]
    import torch

    return [f"cuda:{i}" for i in range(max(1, torch.cuda.device_count()))]
