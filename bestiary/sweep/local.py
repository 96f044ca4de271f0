"""Workers on this machine: one process for each slot, forked from a server that has already loaded torch.

A process carries out one job after another. If it dies, only its job is lost. If the parent dies, the workers stop.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from bestiary.sweep.jobs import OVER, Job, JobEvent, WorkerConfig

PRELOAD = [
    "bestiary.training.together",
    "bestiary.sweep.work",
    "torch._dynamo",
]  # loaded once for all workers; AdamW needs the last


def start_server() -> None:
    """Start the process that workers are forked from. It loads torch while the caller goes on."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
    forkserver.ensure_running()


class Local:
    """An executor with one slot for each of `devices`; a device may be named several times."""

    def __init__(self, devices: Sequence[str], config: WorkerConfig) -> None:
        self.config, self.unused = config, list(devices)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)
        self.workers: dict[Any, tuple[BaseProcess, str]] = {}  # by our end of the pipe to it
        self.jobs: dict[Any, Job] = {}
        self.reasons: dict[Any, str] = {}  # why workers were stopped

    def slots(self) -> int:
        """How many jobs can run at the same time."""
        return len(self.unused) + len(self.workers)

    def free(self) -> int:
        """How many jobs could be started now."""
        return self.slots() - len(self.jobs)

    def start(self, job: Job) -> None:
        """Give a job to a worker that has none, or to a new one."""
        pipe = next((pipe for pipe in self.workers if pipe not in self.jobs), None) or self.start_worker()
        self.jobs[pipe] = job
        with contextlib.suppress(OSError):  # it has just died; `poll` will report that
            pipe.send(job)

    def start_worker(self) -> Any:
        """Start a worker process. Returns our end of the pipe to it."""
        device = self.unused.pop(0)
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=run_worker, args=(theirs, self.config, device), daemon=True)
        process.start()
        theirs.close()
        self.workers[ours] = process, device
        return ours

    def poll(self, timeout: float) -> list[JobEvent]:
        """What the workers reported since the last call."""
        events = []
        ready: list[Any] = wait(list(self.jobs), timeout=timeout)
        for pipe in ready:
            job = self.jobs[pipe]
            try:
                event = JobEvent(job, *pipe.recv())
            except (EOFError, OSError):
                event = JobEvent(job, "died", None, self.remove_worker(pipe))
            if event.kind in OVER:
                self.jobs.pop(pipe, None)
            events.append(event)
        return events

    def stop(self, job: Job, reason: str) -> None:
        """End the process that has a job."""
        for pipe in [pipe for pipe, held in self.jobs.items() if held is job]:
            self.reasons[pipe] = reason
            self.workers[pipe][0].kill()

    def remove_worker(self, pipe: Any) -> str:
        """Free the slot of a worker that died. Returns a line that says how it died."""
        process, device = self.workers.pop(pipe)
        process.join()
        pipe.close()
        reason = self.reasons.pop(pipe, f"exit code {process.exitcode}")
        self.unused.append(device)
        return f"the worker died ({reason})"

    def close(self) -> None:
        """Stop all workers."""
        for process, _ in self.workers.values():
            process.terminate()
        for process, _ in self.workers.values():
            process.join(timeout=10)
            process.kill()


def run_worker(pipe: Connection, config: WorkerConfig, device: str) -> None:
    """What a worker process does: one job after another, until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that claims are released
    threading.Thread(target=die_with_parent, daemon=True).start()
    from bestiary.sweep.work import prepare, work

    prepare(config)

    def report(event: JobEvent) -> None:
        pipe.send((event.kind, event.recipe, event.detail))

    while True:
        try:
            job: Any = pipe.recv()
        except EOFError:
            return
        work(job, config, device, report)


def die_with_parent() -> None:
    """End this process as soon as its parent has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def default_threads() -> int:
    """The threads of a run that has this machine to itself: OMP_NUM_THREADS if set, otherwise one for each core."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(asked) if asked.isdecimal() and int(asked) > 0 else cores()


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
