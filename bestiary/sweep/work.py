"""What a worker does with a job: claim its runs, train them, write to the store, and tell."""

import errno
import gc
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from bestiary.runs.store import Lost, Run, Store
from bestiary.sweep.jobs import How, Job, Told
from bestiary.training.recipe import Recipe

if TYPE_CHECKING:
    from bestiary.training.train import Measurement

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # of the disk: every further run would fail alike

Tell = Callable[[Told], None]


def prepare(how: How) -> None:
    """What a worker's process does once."""
    import torch

    from bestiary.ops.backend import use
    from bestiary.training.train import keep_memory

    torch.set_num_threads(how.threads)
    keep_memory()
    use(how.backend)


def work(job: Job, how: How, device: str, tell: Tell) -> None:
    """Carry out a job. What fails is told, its traceback is in the store, and the next job may come."""
    try:
        over = alone(job, how, device, tell) if len(job.recipes) == 1 else together(job, how, device, tell)
    except OSError as fault:
        if fault.errno not in FULL:
            raise
        over = Told(job, "full", None, (fault.errno, str(fault)))
    tell(over)
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)  # raises after an error that stays: this worker ends, another takes its place


def claimed(job: Job, how: How, device: str, tell: Tell) -> list[Run]:
    """The runs of a job that nobody else has; the others are told of."""
    store, runs = Store(how.folder), []
    for recipe in job.recipes:
        known = None if how.since is None else store.failure(recipe.key, since=how.since)
        if known is not None:
            tell(Told(job, "failed", recipe, known.strip().splitlines()[-1]))
            continue
        run = store.claim(recipe)
        if run is not None:
            run.how = {"device": device, "backend": how.backend, "threads": how.threads}
            runs.append(run)
        elif recipe in store:
            tell(Told(job, "ended", recipe, store.read(recipe.key).ended))
        else:
            tell(Told(job, "waiting", recipe))
    return runs


def alone(job: Job, how: How, device: str, tell: Tell) -> Told:
    """One recipe."""
    from bestiary.training.train import Diverged, train

    for run in claimed(job, how, device, tell):
        recipe = run.recipe
        try:
            with run:
                tell(Told(job, "started", recipe))
                model = recipe.build()
                try:
                    for measurement in train(recipe, model, device=device):
                        keep_and_tell(run, measurement, job, tell)
                    ended = run.finish(model if how.keep else None)
                except Diverged as diverged:
                    ended = run.end("diverged", str(diverged))
        except Exception as fault:  # whatever it is
            failed(job, recipe, fault, tell)
        else:
            tell(Told(job, "ended", recipe, ended))
    return Told(job, "idle")


def together(job: Job, how: How, device: str, tell: Tell) -> Told:
    """Several recipes as one program; if they cannot be trained so, all are released again."""
    import torch

    from bestiary.training.together import Apart

    runs = claimed(job, how, device, tell)
    if len(runs) < 2:
        for run in runs:
            run.release()
        return Told(job, "apart" if runs else "idle")
    try:
        follow(runs, job, how, device, tell)
    except torch.OutOfMemoryError as fault:
        return Told(job, "large", None, str(fault).splitlines()[0])
    except Apart as fault:
        return Told(job, "apart", None, str(fault))
    except Exception as fault:  # alone, each tells its own
        if isinstance(fault, OSError) and fault.errno in FULL:
            raise
        return Told(job, "apart", None, f"{type(fault).__name__}: {fault}".splitlines()[0])
    finally:
        gc.collect()  # a group refers to itself, and what it holds is large
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    return Told(job, "idle")


def follow(runs: list[Run], job: Job, how: How, device: str, tell: Tell) -> None:
    """Train the runs together, each writing to its own log."""
    from bestiary.model import Model
    from bestiary.training.together import train_together
    from bestiary.training.train import Diverged

    with ExitStack() as held:
        for run in runs:
            held.callback(run.release)
        for run in runs:
            run.how |= {"together": len(runs)}
            run.records = False  # a fault of the group is not one of the run
            held.enter_context(run)
            tell(Told(job, "started", run.recipe))
        lost: set[int] = set()
        for place, seen in train_together([run.recipe for run in runs], device=device):
            run = runs[place]
            try:
                if place in lost:
                    continue
                if isinstance(seen, Diverged):
                    tell(Told(job, "ended", run.recipe, run.end("diverged", str(seen))))
                elif isinstance(seen, Model):
                    tell(Told(job, "ended", run.recipe, run.finish(seen if how.keep else None)))
                else:
                    keep_and_tell(run, seen, job, tell)
            except Lost:
                lost.add(place)
                tell(Told(job, "waiting", run.recipe))


def keep_and_tell(run: Run, measurement: "Measurement", job: Job, tell: Tell) -> None:
    run.append(measurement._asdict())
    if not measurement.facet:
        tell(Told(job, "measured", run.recipe, measurement))


def failed(job: Job, recipe: Recipe, fault: Exception, tell: Tell) -> None:
    """Tell of a run's failure. Raises what would fail all others too."""
    if isinstance(fault, OSError) and fault.errno in FULL:
        raise fault
    lost = isinstance(fault, Lost)
    line = f"{type(fault).__name__}: {fault}".splitlines()[0]
    tell(Told(job, "waiting" if lost else "failed", recipe, None if lost else line))
