"""Sweeps on Slurm: an array of jobs, each of which sweeps over all recipes with its own workers.

The jobs do not talk to each other: claims in the store say who has which run, and each job starts with other runs. The
driver follows the runs through the store, and submits again what jobs that died have left undone.
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

from bestiary.runs.store import DamagedRun, Store
from bestiary.sweep.jobs import Event, Together, WorkerConfig
from bestiary.sweep.local import Local, cores
from bestiary.sweep.schedule import devices, sweep
from bestiary.sweep.work import DISK_FULL
from bestiary.training.recipe import Recipe

if TYPE_CHECKING:
    from bestiary.training.train import Measurement

RESUBMISSIONS = 2  # how often unfinished runs are submitted again
MAX_TIMEOUTS = 100  # how often a job may reach its time limit and be queued again
POLL_INTERVAL = {"slurm": 5.0, "local": 0.5}  # seconds between two looks at the store
LIST_OPTIONS = ("setup", "srun_args")  # options of submitit that are lists of strings


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
    patience: float | None = None,
) -> Generator[Event]:
    """Carry out every recipe that is not done by Slurm jobs, and yield what happens. Closing the iterator cancels them.

    `options` are submitit's, as in "partition=gpu,timeout_min=60,gpus_per_node=1,jobs=8"; `workers` run at a time in
    each of the jobs. Raises ValueError for options that are not allowed.
    """
    folder = store.folder.absolute() / ".slurm"
    settings = parse_options(options)
    count = settings.pop("jobs", 1)
    if type(count) is not int or count < 1:
        raise ValueError(f"jobs={count} is not a number of Slurm jobs; give a whole number from 1")
    left = list({recipe.key: recipe for recipe in recipes if recipe not in store}.values())
    executor = make_executor(settings, folder)
    config = WorkerConfig(str(folder.parent), backend, keep, threads, file_system_time(folder))
    job = ArrayJob((), 0, count, config, device, together, workers, patience)
    return follow_runs(left, store, executor, job)


def parse_options(options: str) -> dict[str, Any]:
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
    return {name: parse_value(name, text.strip()) for name, text in texts.items()}


def parse_value(name: str, text: str) -> Any:
    """The number that the text spells, a list for the options that are lists, otherwise the text."""
    if name in LIST_OPTIONS:
        return [text]
    with suppress(ValueError, SyntaxError):
        value = ast.literal_eval(text)
        if isinstance(value, int | float):
            return value
    return text


def file_system_time(folder: Path) -> float:
    """The time by the clock of a folder's file system. If there is no such folder, it is made for this user alone."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # submitit's pickles will be in it
    (folder / "begun").write_text("")
    return (folder / "begun").stat().st_mtime


def make_executor(settings: dict[str, Any], folder: Path) -> Any:
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
        executor = AutoExecutor(folder, cluster=cluster, slurm_max_num_timeout=MAX_TIMEOUTS)
        executor.update_parameters(**{name if name in shared else f"slurm_{name}": given[name] for name in given})
    except (NameError, ValueError, TypeError, AssertionError, RuntimeError) as fault:
        raise ValueError(f"Slurm: {str(fault).splitlines()[0]}") from None
    return executor


@dataclass(frozen=True)
class ArrayJob:
    """What one job of the array does. A preempted job starts again unchanged, since all its state is in the store."""

    recipes: Sequence[Recipe]
    number: int
    count: int
    config: WorkerConfig
    device: str
    together: Together
    workers: int | None
    patience: float | None = None

    def __call__(self) -> tuple[int, str] | None:
        """Sweep over all recipes, beginning with this job's share. Returns errno and message if the disk ended it."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # cancelled or preempted: claims are released
        events = sweep(
            self.recipes,
            Store(self.config.folder),
            executor=self.executor(),
            device=self.device,
            together=self.together,
            patience=self.patience,
            part=(self.number, self.count),
        )
        try:
            with closing(events):
                for _ in events:
                    pass
        except OSError as fault:
            if fault.errno not in DISK_FULL:
                raise
            return fault.errno, str(fault)
        return None

    def checkpoint(self) -> Any:
        """What submitit queues again when the job is preempted or at its time limit."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def executor(self) -> Local:
        """Workers on what Slurm has given to this job. They ignore the signal that is meant for submitit."""
        places = devices(self.device)
        allowed = min(cores(), int(os.environ.get("SLURM_CPUS_PER_TASK", cores()))) // self.config.threads
        slots = max(1, self.workers or (allowed if self.device == "cpu" else len(places)))
        executor = Local([places[slot % len(places)] for slot in range(slots)], self.config)
        handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        forkserver.ensure_running()
        signal.signal(signal.SIGUSR2, handler)
        return executor


def follow_runs(left: Sequence[Recipe], store: Store, executor: Any, job: ArrayJob) -> Generator[Event]:
    """Submit the recipes, yield what happens until all jobs are over, and submit again what is left."""
    unfinished = [RunProgress(recipe, store, job.config.since or 0.0) for recipe in left]
    pause, why = POLL_INTERVAL.get(executor.cluster, POLL_INTERVAL["slurm"]), ""
    for attempt in range(1 + RESUBMISSIONS):
        if not unfinished:
            return
        if attempt:
            for run in unfinished:
                yield from run.restart(why)
        jobs = submit([run.recipe for run in unfinished], executor, job)
        try:
            while unfinished:
                over = all([job.done() for job in jobs])
                for run in unfinished:
                    yield from run.poll()
                unfinished = [run for run in unfinished if not run.finished]
                if over and not any(run.is_owned() for run in unfinished):
                    break  # the claim of a dead job counts until it is stale
                time.sleep(pause)
            why = check_jobs(jobs)
        finally:
            cancel(jobs, wait=executor.cluster == "local")
    for run in unfinished:
        yield Event("failed", run.recipe, f"{why}, {1 + RESUBMISSIONS} times; see {job.config.folder}/.slurm")


def submit(recipes: Sequence[Recipe], executor: Any, job: ArrayJob) -> list[Any]:
    """Submit an array of jobs. Returns submitit's handles."""
    count = min(job.count, len(recipes))
    with executor.batch():
        return [
            executor.submit(replace(job, recipes=tuple(recipes), number=number, count=count)) for number in range(count)
        ]


def check_jobs(jobs: Sequence[Any]) -> str:
    """Why jobs that have ended may have left runs unfinished. Raises OSError if the disk is full."""
    reason = "its Slurm job died"
    for job in jobs:
        if not job.paths.result_pickle.exists():
            continue
        if job.exception() is not None:
            reason = "its Slurm job failed"
        elif (full := job.result()) is not None:
            number, text = full
            raise OSError(number, os.strerror(number), text)
    return reason


def cancel(jobs: Sequence[Any], *, wait: bool) -> None:
    """Cancel the jobs that have not ended, so that they release their runs."""
    for job in jobs:
        if not job.done():
            job.cancel(check=False)
    until = time.monotonic() + 10
    while wait and time.monotonic() < until and not all(job.done() for job in jobs):
        time.sleep(0.1)


class RunProgress:
    """How far a run is, read from the store."""

    def __init__(self, recipe: Recipe, store: Store, since: float) -> None:
        self.recipe, self.store, self.since, self.finished = recipe, store, since, False
        self.place = store.folder / recipe.key
        self.attempt, self.read = self.attempt_time(), 0
        self.started = False

    def attempt_time(self) -> int:
        """When the last attempt started, in nanoseconds; 0 if there was none."""
        try:
            return (self.place / "origin.json").stat().st_mtime_ns
        except OSError:
            return 0

    def restart(self, why: str) -> Iterator[Event]:
        """Report that the run is submitted again."""
        self.started = False
        yield Event("retried", self.recipe, why)

    def is_owned(self) -> bool:
        """Whether a worker has the run now."""
        try:
            return self.store.owner(self.recipe.key) is not None
        except DamagedRun:
            return False

    def poll(self) -> Iterator[Event]:
        """What happened since the last call."""
        try:
            yield from self.read_news()
        except DamagedRun as fault:
            self.finished = True
            yield Event("failed", self.recipe, str(fault))

    def read_news(self) -> Iterator[Event]:
        """`poll`, unless the folder is damaged. Raises DamagedRun."""
        done = self.recipe in self.store  # before the log is read, so that the log is complete
        failure = None if done else self.store.failure(self.recipe.key, since=self.since)
        if (attempt := self.attempt_time()) != self.attempt:
            if self.started:
                yield from self.restart("its worker was lost")
            self.attempt, self.read, self.started = attempt, 0, True
            yield Event("started", self.recipe)
        if self.started:
            for row in self.rows():
                yield Event("measured", self.recipe, row)
        if done:
            yield Event("ended", self.recipe, self.store.read(self.recipe.key).ended)
        elif failure is not None:
            yield Event("failed", self.recipe, (failure.strip().splitlines() or ["no traceback"])[-1])
        self.finished = done or failure is not None

    def rows(self) -> "Iterator[Measurement]":
        """The measurements over all answers that were added to the log."""
        from bestiary.training.train import Measurement

        with suppress(FileNotFoundError), (self.place / "log.jsonl").open("rb") as file:
            file.seek(self.read)
            whole, end, _ = file.read().rpartition(b"\n")
            self.read += len(whole) + len(end)
            for line in whole.splitlines():
                row = Measurement(**json.loads(line))
                if not row.facet:
                    yield row
