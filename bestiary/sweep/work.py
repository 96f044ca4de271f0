"""What a worker does with a job: claim its runs, train them, write to the store, and report what happens."""

import errno
import gc
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from bestiary.runs.files import FAULTS, reason
from bestiary.runs.store import ClaimLost, DamagedRun, Run, Store
from bestiary.sweep.checkpoints import CheckpointedRun, Timer
from bestiary.sweep.jobs import Job, JobEvent, Resumption, WorkerConfig
from bestiary.training.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from bestiary.model import Model
    from bestiary.training.state import TrainingState
    from bestiary.training.together import MemberStates
    from bestiary.training.train import Measurement

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # the disk is full or read-only: every other run would fail too

Report = Callable[[JobEvent], None]


def prepare(config: WorkerConfig) -> None:
    """Set up a worker's process, once."""
    import logging

    import torch

    from bestiary.ops.backend import use
    from bestiary.training.train import keep_freed_memory

    torch.set_num_threads(config.threads)
    keep_freed_memory()
    use(config.backend)
    logging.getLogger("bestiary").setLevel(logging.ERROR)  # who asked for the runs has been told the rest


def work(job: Job, config: WorkerConfig, device: str, report: Report) -> None:
    """Carry out a job. A failure is reported, its traceback written to the store; the worker can take another job."""
    try:
        carry_out = train_alone if len(job.recipes) == 1 else train_stack
        end = carry_out(job, config, device, report)
    except OSError as fault:
        if fault.errno not in DISK_FULL:
            raise
        end = JobEvent(job, "disk full", None, (fault.errno, str(fault)))
    report(end)
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)  # raises if CUDA is broken in this process; another worker then replaces it


def claim_runs(job: Job, config: WorkerConfig, device: str, report: Report) -> list[CheckpointedRun]:
    """The runs of a job that nobody else has. Of the others it reports why not."""
    store, runs = Store(config.folder), list[CheckpointedRun]()
    for recipe in job.recipes:
        try:
            failure = None if config.since is None else store.failure(recipe.key, since=config.since)
            if failure is not None:
                report(JobEvent(job, "failed", recipe, (failure.strip().splitlines() or ["no traceback"])[-1]))
                continue
            run = store.claim(recipe)
            ended = store.read(recipe.key).ended if run is None and recipe in store else None
        except (DamagedRun, OSError) as fault:
            if isinstance(fault, OSError) and fault.errno in DISK_FULL:
                raise
            with suppress(OSError):  # it may not even be a folder, or one that others own
                store.record_failure(recipe, str(fault))
            report(JobEvent(job, "failed", recipe, str(fault)))
            continue
        if run is not None:
            runs.append(CheckpointedRun(run.place, run.claim, recipe))
            runs[-1].details = {"device": device, "backend": config.backend, "threads": config.threads}
        else:
            report(JobEvent(job, "waiting" if ended is None else "ended", recipe, ended))
    return runs


def train_alone(job: Job, config: WorkerConfig, device: str, report: Report) -> JobEvent:
    """Carry out a job of one recipe."""
    from bestiary.training.train import Diverged, train

    for run in claim_runs(job, config, device, report):
        recipe = run.recipe
        try:
            with run:
                report_start(run, job, report)
                model = recipe.build()
                saved = resume(run, model, job, report)
                try:
                    for measurement in train(recipe, model, device=device, saved=saved, after_step=saver(run)):
                        record_measurement(run, measurement, job, report)
                    ended = run.finish(model if config.keep else None)
                except Diverged as diverged:
                    ended = run.end("diverged", str(diverged))
        except Exception as fault:  # whatever it is
            report_failure(job, recipe, fault, report)
        else:
            report(JobEvent(job, "ended", recipe, ended))
    return JobEvent(job, "over")


def report_start(run: CheckpointedRun, job: Job, report: Report) -> None:
    """Report that a run starts, and what is in its log from the time before its checkpoint."""
    from bestiary.training.train import Measurement

    resumption = Resumption(run.first, run.note) if run.last or run.note else None
    report(JobEvent(job, "started", run.recipe, resumption))
    for line in run.measurements():
        if not line["facet"]:
            report(JobEvent(job, "measured", run.recipe, Measurement(**line)))


def resume(run: CheckpointedRun, model: "Model", job: Job, report: Report) -> "dict[str, Tensor] | None":
    """The tensors of the run's checkpoint; None if there are none, or they do not fit and the run starts over."""
    from bestiary.training.train import new_state

    try:
        saved = run.saved_tensors()
        if saved is not None:
            new_state(run.recipe, model).check(saved)
            run.check_step(int(saved["step"]))
    except FAULTS as fault:
        run.start_over(reason(fault))
        report_start(run, job, report)
        return None
    return saved


def saver(run: CheckpointedRun) -> "Callable[[TrainingState], None]":
    """What is called after each step, and writes a checkpoint when one is due."""
    timer = Timer()

    def save_if_due(state: "TrainingState") -> None:
        if timer.is_due():
            with timer:
                run.save(state.tensors())

    return save_if_due


def train_stack(job: Job, config: WorkerConfig, device: str, report: Report) -> JobEvent:
    """Carry out a job of several recipes as one stack. If that is not possible, their claims are released."""
    import torch

    from bestiary.training.together import CannotStack

    runs = claim_runs(job, config, device, report)
    if len(runs) < 2:
        for run in runs:
            run.release()
        return JobEvent(job, "unstacked" if runs else "over")
    if len({run.first for run in runs}) > 1:
        for run in runs:
            run.release()
        return JobEvent(job, "regrouped", None, group_by_step(runs))
    try:
        train_and_record(runs, job, config, device, report)
    except torch.OutOfMemoryError as fault:
        return JobEvent(job, "out of memory", None, str(fault).splitlines()[0])
    except CannotStack as fault:
        return JobEvent(job, "unstacked", None, str(fault))
    except Exception as fault:  # each will report its own when it is trained alone
        if isinstance(fault, OSError) and fault.errno in DISK_FULL:
            raise
        return JobEvent(job, "unstacked", None, f"{type(fault).__name__}: {fault}".splitlines()[0])
    finally:
        gc.collect()  # a stack refers to itself, and is large
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    return JobEvent(job, "over")


def group_by_step(runs: list[CheckpointedRun]) -> list[list[Recipe]]:
    """The recipes of the runs that go on from the same step, for each step."""
    return [[run.recipe for run in runs if run.first == step] for step in sorted({run.first for run in runs})]


def train_and_record(runs: list[CheckpointedRun], job: Job, config: WorkerConfig, device: str, report: Report) -> None:
    """Train the runs as one stack; each has its own log."""
    from bestiary.model import Model
    from bestiary.training.together import train_together
    from bestiary.training.train import Diverged

    with ExitStack() as held:
        for run in runs:
            held.callback(run.release)
        for run in runs:
            run.details |= {"together": len(runs)}
            run.records_failure = False  # an exception in the stack is not the run's own failure
            held.enter_context(run)
            report_start(run, job, report)
        lost: set[int] = set()
        recipes, saved = [run.recipe for run in runs], load_stack(runs, job, report)
        save = stack_saver(runs, lost, job, report)
        for place, result in train_together(recipes, device=device, saved=saved, after_step=save):
            run = runs[place]
            try:
                if place in lost:
                    continue
                if isinstance(result, Diverged):
                    report(JobEvent(job, "ended", run.recipe, run.end("diverged", str(result))))
                elif isinstance(result, Model):
                    report(JobEvent(job, "ended", run.recipe, run.finish(result if config.keep else None)))
                else:
                    record_measurement(run, result, job, report)
            except ClaimLost:
                lost.add(place)
                report(JobEvent(job, "waiting", run.recipe))


def load_stack(runs: list[CheckpointedRun], job: Job, report: Report) -> "list[dict[str, Tensor]] | None":
    """The tensors of the checkpoints of all runs; None if they start from the beginning.

    If one does not fit, all start over, since a stack is at one step.
    """
    if not runs[0].first:
        return None
    saved = [resume(run, run.recipe.build(), job, report) for run in runs]
    found = [tensors for tensors in saved if tensors is not None]
    if len(found) == len(runs):
        return found
    for run in (run for run in runs if run.first):
        run.start_over("the checkpoint of another run of its stack does not fit")
        report_start(run, job, report)
    return None


def stack_saver(
    runs: list[CheckpointedRun], lost: set[int], job: Job, report: Report
) -> "Callable[[MemberStates], None]":
    """`saver` for a stack: each run gets a checkpoint of its own."""
    timer = Timer()

    def save_if_due(states: "MemberStates") -> None:
        if not timer.is_due():
            return
        with timer:
            for place, tensors in states():
                try:
                    if place not in lost:
                        runs[place].save(tensors)
                except ClaimLost:
                    lost.add(place)
                    report(JobEvent(job, "waiting", runs[place].recipe))

    return save_if_due


def record_measurement(run: Run, measurement: "Measurement", job: Job, report: Report) -> None:
    """Write a measurement to the log, and report it if it counts all answers."""
    run.append(measurement._asdict())
    if not measurement.facet:
        report(JobEvent(job, "measured", run.recipe, measurement))


def report_failure(job: Job, recipe: Recipe, fault: Exception, report: Report) -> None:
    """Report the failure of a run. Raises what would make every other run fail too."""
    if isinstance(fault, OSError) and fault.errno in DISK_FULL:
        raise fault
    lost = isinstance(fault, ClaimLost)
    line = f"{type(fault).__name__}: {fault}".splitlines()[0]
    report(JobEvent(job, "waiting" if lost else "failed", recipe, None if lost else line))
