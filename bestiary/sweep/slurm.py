"""Sweeps on Slurm: one array of jobs, each of which sweeps over all recipes with workers of its own.

The jobs know nothing of each other: claims in the store say who has what, and each begins at another place. The
driver reads the course of the runs from the store, and submits again what jobs that died have left undone.
"""

import ast
import json
import os
import signal
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.runs.store import Store
from bestiary.sweep.jobs import Event, How, Together
from bestiary.sweep.local import Local, cores
from bestiary.sweep.schedule import devices, sweep
from bestiary.sweep.work import FULL
from bestiary.training.recipe import Recipe

if TYPE_CHECKING:
    from bestiary.training.train import Measurement

AGAIN = 2  # times that what was left undone is submitted again
TIMEOUTS = 100  # times that a job may reach its time limit and be queued again
POLL = {"slurm": 5.0, "local": 0.5}  # seconds between looks at the store
LISTS = ("setup", "srun_args")  # options of submitit that are lists of texts


def slurm_sweep(
    recipes: Sequence[Recipe],
    store: Store,
    options: str,
    *,
    workers: int | None = None,
    threads: int = 1,
    device: str = "cpu",
    backend: str = "auto",
    keep: bool = False,
    together: Together = "auto",
) -> Generator[Event]:
    """Carry out every recipe that is not done by Slurm jobs, telling what happens. Closing the iterator cancels them.

    `options` are submitit's, as in "partition=gpu,timeout_min=60,gpus_per_node=1,jobs=8"; `workers` run at a time in
    each of the jobs. Raises ValueError for options that are not allowed.
    """
    folder = store.folder.absolute() / ".slurm"
    settings = parsed(options)
    count = settings.pop("jobs", 1)
    if type(count) is not int or count < 1:
        raise ValueError(f"jobs={count} is not a number of Slurm jobs; give a whole number from 1")
    left = list({recipe.key: recipe for recipe in recipes if recipe not in store}.values())
    executor = submitter(settings, folder)
    how = How(str(folder.parent), backend, keep, threads, now(folder))
    part = Part((), 0, count, how, device, together, workers)
    return followed(left, store, executor, part)


def parsed(options: str) -> dict[str, Any]:
    """ "a=1,b=x,y" as names and values; a piece without a name belongs to the value before it."""
    texts: dict[str, str] = {}
    name = ""
    for piece in options.split(","):
        head, sign, value = piece.partition("=")
        if sign and head.strip().isidentifier():
            name = head.strip()
            texts[name] = value
        elif name:
            texts[name] += f",{piece}"
        elif piece.strip():
            raise ValueError(f"{piece!r} is not an option of Slurm; write name=value, as in partition=gpu,jobs=8")
    return {name: value_of(name, text.strip()) for name, text in texts.items()}


def value_of(name: str, text: str) -> Any:
    if name in LISTS:
        return [text]
    with suppress(ValueError, SyntaxError):
        value = ast.literal_eval(text)
        if isinstance(value, int | float):
            return value
    return text


def now(folder: Path) -> float:
    """The time by the clock of a folder's file system."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "begun").write_text("")
    return (folder / "begun").stat().st_mtime


def submitter(settings: dict[str, Any], folder: Path) -> Any:
    """submitit's executor with its options set. Raises ValueError with its message."""
    try:
        from submitit import AutoExecutor
    except ImportError:
        raise ImportError("sweeps on Slurm need submitit: pip install 'bestiary[slurm]'") from None
    cluster = settings.pop("cluster", "slurm")
    if many := [f"{name}={settings[name]}" for name in ("nodes", "tasks_per_node") if settings.get(name, 1) != 1]:
        raise ValueError(f"{many[0]}: each job is one process on one node; for more of them give jobs=...")
    shared = AutoExecutor._valid_parameters()
    given = {"timeout_min": 60, "name": "bestiary"} | settings
    try:
        executor = AutoExecutor(folder, cluster=cluster, slurm_max_num_timeout=TIMEOUTS)
        executor.update_parameters(**{name if name in shared else f"slurm_{name}": given[name] for name in given})
    except (NameError, ValueError, TypeError, AssertionError, RuntimeError) as fault:
        raise ValueError(f"Slurm: {str(fault).splitlines()[0]}") from None
    return executor


@dataclass(frozen=True)
class Part:
    """What one job of the array does. It is the same after it was preempted, since all its state is in the store."""

    recipes: Sequence[Recipe]
    number: int
    count: int
    how: How
    device: str
    together: Together
    workers: int | None

    def __call__(self) -> tuple[int, str] | None:
        """Sweep over all recipes, from this part's own place on; the fault of the disk if that ended it."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # cancelled or preempted: claims are released
        events = sweep(
            self.recipes,
            Store(self.how.folder),
            executor=self.executor(),
            device=self.device,
            together=self.together,
            part=(self.number, self.count),
        )
        try:
            with closing(events):
                for _ in events:
                    pass
        except OSError as fault:
            if fault.errno not in FULL:
                raise
            return fault.errno, str(fault)
        return None

    def checkpoint(self) -> Any:
        """What to queue again when the job is preempted or at its time limit."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def executor(self) -> Local:
        """Workers for what Slurm has given to this job, none of which hears the signal that is meant for submitit."""
        places = devices(self.device)
        allowed = min(cores(), int(os.environ.get("SLURM_CPUS_PER_TASK", cores()))) // self.how.threads
        slots = max(1, self.workers or (allowed if self.device == "cpu" else len(places)))
        made = Local([places[slot % len(places)] for slot in range(slots)], self.how)
        kept = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        forkserver.ensure_running()
        signal.signal(signal.SIGUSR2, kept)
        return made


def followed(left: Sequence[Recipe], store: Store, executor: Any, part: Part) -> Generator[Event]:
    """Submit the recipes, tell their course until all jobs are over, and submit again what is left."""
    courses = [Course(recipe, store, part.how.since or 0.0) for recipe in left]
    pause, why = POLL.get(executor.cluster, POLL["slurm"]), ""
    for attempt in range(1 + AGAIN):
        if not courses:
            return
        if attempt:
            for course in courses:
                yield from course.anew(why)
        jobs = submitted([course.recipe for course in courses], executor, part)
        try:
            while courses:
                over = all([job.done() for job in jobs])
                for course in courses:
                    yield from course.news()
                courses = [course for course in courses if not course.over]
                if over and not any(store.owner(course.recipe.key) for course in courses):
                    break  # a claim of a job that died is waited for until it is stale
                time.sleep(pause)
            why = outcome(jobs)
        finally:
            cancel(jobs, wait=executor.cluster == "local")
    for course in courses:
        yield Event("failed", course.recipe, f"{why}, {1 + AGAIN} times; see {part.how.folder}/.slurm")


def submitted(recipes: Sequence[Recipe], executor: Any, part: Part) -> list[Any]:
    """The jobs of one array."""
    count = min(part.count, len(recipes))
    with executor.batch():
        return [
            executor.submit(replace(part, recipes=tuple(recipes), number=number, count=count))
            for number in range(count)
        ]


def outcome(jobs: Sequence[Any]) -> str:
    """Why jobs that are over may have left something undone. Raises OSError if the disk is full."""
    line = "its Slurm job died"
    for job in jobs:
        if not job.paths.result_pickle.exists():
            continue
        if job.exception() is not None:
            line = "its Slurm job failed"
        elif (full := job.result()) is not None:
            number, text = full
            raise OSError(number, os.strerror(number), text)
    return line


def cancel(jobs: Sequence[Any], *, wait: bool) -> None:
    """Cancel the jobs that are not over, so that they release their runs."""
    for job in jobs:
        if not job.done():
            job.cancel(check=False)
    until = time.monotonic() + 10
    while wait and time.monotonic() < until and not all(job.done() for job in jobs):
        time.sleep(0.1)


class Course:
    """How a run goes on, as the store tells."""

    def __init__(self, recipe: Recipe, store: Store, since: float) -> None:
        self.recipe, self.store, self.since, self.over = recipe, store, since, False
        self.place = store.folder / recipe.key
        self.attempt, self.read = self.opened(), 0
        self.started = False

    def opened(self) -> int:
        """When the last attempt began, 0 if there was none."""
        try:
            return (self.place / "origin.json").stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def anew(self, why: str) -> Iterator[Event]:
        """What was begun is submitted again."""
        self.started = False
        yield Event("retried", self.recipe, why)

    def news(self) -> Iterator[Event]:
        """What happened since the last look."""
        done = self.recipe in self.store  # before the log is read, which is complete then
        failure = None if done else self.store.failure(self.recipe.key, since=self.since)
        if (attempt := self.opened()) != self.attempt:
            if self.started:
                yield from self.anew("its worker was lost")
            self.attempt, self.read, self.started = attempt, 0, True
            yield Event("started", self.recipe)
        if self.started:
            for row in self.rows():
                yield Event("measured", self.recipe, row)
        if done:
            yield Event("ended", self.recipe, self.store.read(self.recipe.key).ended)
        elif failure is not None:
            yield Event("failed", self.recipe, (failure.strip().splitlines() or ["no traceback"])[-1])
        self.over = done or failure is not None

    def rows(self) -> "Iterator[Measurement]":
        """The measurements of all answers that were added to the log."""
        from bestiary.training.train import Measurement

        with suppress(FileNotFoundError), (self.place / "log.jsonl").open("rb") as file:
            file.seek(self.read)
            whole, end, _ = file.read().rpartition(b"\n")
            self.read += len(whole) + len(end)
            for line in whole.splitlines():
                row = Measurement(**json.loads(line))
                if not row.facet:
                    yield row
