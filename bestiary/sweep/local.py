"""Workers on this machine: one process for each slot, from a fork server that has torch loaded.

A process carries out job after job. If it dies, nothing but its job is lost, and if the parent dies the workers stop.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from bestiary.sweep.jobs import OVER, How, Job, Told

PRELOAD = [
    "bestiary.training.together",
    "bestiary.sweep.work",
    "torch._dynamo",
]  # once for all; the last is what AdamW loads


class Local:
    """An executor with one slot for each device named; a device may be named several times."""

    def __init__(self, devices: Sequence[str], how: How) -> None:
        self.how, self.unused = how, list(devices)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)
        self.workers: dict[Any, tuple[BaseProcess, str]] = {}  # by our end of the line to each
        self.jobs: dict[Any, Job] = {}

    def slots(self) -> int:
        """How many jobs can be at work at a time."""
        return len(self.unused) + len(self.workers)

    def free(self) -> int:
        """How many jobs could be started now."""
        return self.slots() - len(self.jobs)

    def start(self, job: Job) -> None:
        """Give a job to a worker that has none, or to a new one."""
        line = next((line for line in self.workers if line not in self.jobs), None) or self.hire()
        self.jobs[line] = job
        with contextlib.suppress(OSError):  # it has just died: `hear` tells
            line.send(job)

    def hire(self) -> Any:
        """A new worker."""
        device = self.unused.pop(0)
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=live, args=(theirs, self.how, device), daemon=True)
        process.start()
        theirs.close()
        self.workers[ours] = process, device
        return ours

    def hear(self, timeout: float) -> list[Told]:
        """What the workers told since."""
        found = []
        ready: list[Any] = wait(list(self.jobs), timeout=timeout)
        for line in ready:
            job = self.jobs[line]
            try:
                told = Told(job, *line.recv())
            except (EOFError, OSError):
                told = Told(job, "died", None, self.bury(line))
            if told.kind in OVER:
                self.jobs.pop(line, None)
            found.append(told)
        return found

    def bury(self, line: Any) -> str:
        """Make room for another worker; how this one died."""
        process, device = self.workers.pop(line)
        process.join()
        line.close()
        self.unused.append(device)
        return f"the worker died (exit code {process.exitcode})"

    def close(self) -> None:
        """Stop all workers."""
        for process, _ in self.workers.values():
            process.terminate()
        for process, _ in self.workers.values():
            process.join(timeout=10)
            process.kill()


def live(line: Connection, how: How, device: str) -> None:
    """A worker's life: job after job, until the parent closes the line or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that claims are released
    threading.Thread(target=die_with_parent, daemon=True).start()
    from bestiary.sweep.work import prepare, work

    prepare(how)

    def tell(told: Told) -> None:
        line.send((told.kind, told.recipe, told.what))

    while True:
        try:
            job: Any = line.recv()
        except EOFError:
            return
        work(job, how, device, tell)


def die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
