"""Which job is next, and what becomes of it: the same for every executor.

The scheduler holds no state that matters: runs that are done are in the store, and a sweep that is stopped anywhere
goes on from there. A worker that dies is replaced, and what it held is tried again, at most `TRIES` times in all.
"""

import os
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from heapq import heappop, heappush
from itertools import count

from bestiary.runs.store import Store
from bestiary.sweep.jobs import OVER, Event, Executor, How, Job, Together, Told, halves, jobs, singles
from bestiary.sweep.local import Local, cores
from bestiary.training.recipe import Recipe

AGAIN = 2.0  # seconds before another look at a run that another worker has
TRIES = 3  # workers that may die of a job


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
    executor: Executor | None = None,
    part: tuple[int, int] = (0, 1),
) -> Generator[Event]:
    """Carry out every recipe that is not done, telling what happens. Closing the iterator stops the workers.

    `workers` run at a time, one for each core (or device) by default, of `threads` each. One thread is the default
    whatever the number of workers, since another number of threads rounds sums in another order. Small recipes of one
    shape are trained `together`, see `jobs`. An `executor` says where the workers are, on this machine by default.
    Runs that another worker has are waited for, and carried out if it dies. But as `part` (i, n), the i-th of n sweeps
    that share the recipes, it begins at another place, splits groups for all of them, and waits for nobody.
    Raises OSError when the disk is full or read-only; any other failure is told, and the sweep goes on.
    """
    left = list({recipe.key: recipe for recipe in recipes if recipe not in store}.values())
    if not left:
        if executor is not None:
            executor.close()
        return
    if executor is None:
        places = devices(device)
        slots = max(1, min(workers or (cores() if device == "cpu" else len(places)), len(left)))
        how = How(str(store.folder.absolute()), backend, keep, threads)
        executor = Local([places[slot % len(places)] for slot in range(slots)], how)
    else:
        slots = max(1, executor.slots())
    try:
        given = jobs(left, slots=slots * part[1], device=device, together=together)
        first = len(given) * part[0] // part[1]
        yield from scheduled(given[first:] + given[:first], store, executor, wait=part[1] == 1)
    finally:
        executor.close()


def scheduled(given: Sequence[Job], store: Store, executor: Executor, *, wait: bool) -> Iterator[Event]:
    """What happens while the jobs are carried out."""
    left, resting, order = deque(given), [], count()
    at_work: dict[int, set[str]] = {}  # what each job has not ended yet, by the job's identity
    held: dict[int, Job] = {}
    while left or resting or at_work:
        while resting and resting[0][0] <= time.monotonic():
            left.append(heappop(resting)[2])
        while left and executor.free() > 0:
            job = left.popleft()
            at_work[id(job)], held[id(job)] = {recipe.key for recipe in job.recipes}, job
            executor.start(job)
        for told in executor.hear(AGAIN / 4):
            open_runs = at_work.get(id(told.job), set())
            if told.recipe is not None and told.kind in ("ended", "failed", "waiting"):
                open_runs.discard(told.recipe.key)
            if told.kind == "waiting" and told.recipe is not None and wait:
                heappush(resting, (time.monotonic() + AGAIN, next(order), Job((told.recipe,))))
            if told.kind in OVER:
                del at_work[id(told.job)], held[id(told.job)]
                rest = told.job._replace(recipes=tuple(r for r in told.job.recipes if r.key in open_runs))
                more, events = after(told, rest, store)
                left.extendleft(reversed(more))
                yield from events
            elif told.recipe is not None:
                yield Event(told.kind, told.recipe, told.what)


def after(told: Told, rest: Job, store: Store) -> tuple[list[Job], list[Event]]:
    """What a job that is over leaves to do, and to tell. Raises OSError if the disk is full."""
    if told.kind == "full":
        number, text = told.what
        raise OSError(number, os.strerror(number), text)
    if not rest.recipes or told.kind == "idle":
        return [], []
    if told.kind in ("apart", "large"):
        if len(rest.recipes) == 1:
            return [rest], []
        parts, why = (halves(rest), "too large for the memory") if told.kind == "large" else (singles(rest), told.what)
        return parts, [Event("apart", rest.recipes[0], f"{len(rest.recipes)} recipes: {why}")] if why else []
    again = rest._replace(tries=rest.tries + 1)
    last, line = again.tries >= TRIES, str(told.what)
    for recipe in rest.recipes:
        store.mourn(recipe.key, line, last=last)
    if last:
        return [], [Event("failed", recipe, f"{line}, {again.tries} times") for recipe in rest.recipes]
    return singles(again), [Event("retried", recipe, line) for recipe in rest.recipes]


def devices(device: str) -> list[str]:
    """`cuda` is every CUDA device of this machine; any other name is itself."""
    if device != "cuda":
        return [device]
    import torch

    return [f"cuda:{i}" for i in range(max(1, torch.cuda.device_count()))]
