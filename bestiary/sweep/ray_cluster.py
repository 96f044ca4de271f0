"""Workers on a Ray cluster: an actor for each slot, on any node.

Only recipes, measurements and lines of text go over the network. The driver always has one pending call to each actor.
It returns what the actor has reported since, or fails if the actor died. An actor that Ray has not placed yet has not
answered, so it does not count as a free slot.
"""

import contextlib
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import traceback
import uuid
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bestiary.runs.claims import list_claims, machine, read_owner
from bestiary.runs.store import DamagedRun
from bestiary.sweep.jobs import OVER, Job, JobEvent, WorkerConfig
from bestiary.training.recipe import Recipe

if TYPE_CHECKING:
    import ray

FIRST_WORKER_TIMEOUT = 60.0  # seconds to wait for the first worker
RETRY_PAUSE = 10.0  # seconds before another worker replaces one that died before it was ready
CAPACITY_INTERVAL = 2.0  # seconds between two looks at the nodes of the cluster
ANSWER_TIMEOUTS = 2.0, 7.0  # seconds for a port to open, and for Ray to answer there
SETTINGS = {
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # this executor reports deaths of workers itself
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S": "2",  # tried three times
    "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "2",
}


@dataclass
class WorkerHandle:
    """A worker as the driver sees it."""

    actor: Any
    owner: tuple[str, int] | None = None  # its machine and process, once it is ready
    usable: bool = True  # whether it shares the driver's files
    reason: str = ""  # why it was stopped
    job: Job | None = None


class RayCluster:
    """An executor with as many workers of `config.threads` CPUs and `gpus` GPUs as fit the cluster, at most `workers`.

    Workers that die are replaced, and new nodes are used as they join. The constructor waits for the first worker. It
    raises ValueError if the cluster does not answer or no worker can start on it.
    """

    def __init__(
        self,
        address: str,
        config: WorkerConfig,
        *,
        device: str = "cpu",
        gpus: float | None = None,
        workers: int | None = None,
    ) -> None:
        self.config, self.device, self.most = config, device, workers
        self.gpus = (0.0 if device == "cpu" else 1.0) if gpus is None else gpus
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ValueError(f"{self.gpus:g} GPUs for a worker: give a part of one, as in 0.25, or a whole number")
        self.address, self.joined = address, connect(address)
        self.probe = Path(config.folder) / f".ray-{uuid.uuid4().hex}"  # a worker that sees this file shares the store
        self.workers: dict[ray.ObjectRef, WorkerHandle] = {}
        self.next_check, self.last_failure = 0.0, ""
        try:
            self.probe.parent.mkdir(parents=True, exist_ok=True)
            self.probe.touch()
            self.wait_for_first_worker()
        except BaseException:
            self.close()
            raise

    def wait_for_first_worker(self) -> None:
        """Wait until a worker is ready. Raises ValueError if none can start."""
        until = time.monotonic() + FIRST_WORKER_TIMEOUT
        if not self.capacity():
            raise ValueError(f"no node of the Ray cluster at {self.address} has {self.requirements()}")
        while not self.free():
            self.poll(0.5)
            if self.last_failure and not any(worker.usable for worker in self.workers.values()):
                raise ValueError(f"no worker can start on the Ray cluster at {self.address}: {self.last_failure}")
            if time.monotonic() > until:
                wants = f"{self.requirements()} for a worker; others may be using them (see `ray status`)"
                raise ValueError(
                    f"waited {FIRST_WORKER_TIMEOUT:.0f} s for the Ray cluster at {self.address} to give {wants}"
                )

    def requirements(self) -> str:
        """What a worker needs, in words."""
        return f"{self.config.threads} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")

    def slots(self) -> int:
        """How many jobs can run at the same time on the cluster as it is now."""
        return self.capacity()

    def free(self) -> int:
        """How many jobs could be started now."""
        return sum(worker.owner is not None and worker.job is None for worker in self.workers.values())

    def start(self, job: Job) -> None:
        """Give a job to a worker that is ready."""
        worker = next(worker for worker in self.workers.values() if worker.owner is not None and worker.job is None)
        worker.job = job
        worker.actor.begin.remote(job)

    def poll(self, timeout: float) -> list[JobEvent]:
        """What the workers reported since the last call."""
        import ray
        from ray.exceptions import RayError

        self.add_workers()
        if not self.workers:
            time.sleep(timeout)
            return []
        events: list[JobEvent] = []
        first, _ = ray.wait(list(self.workers), num_returns=1, timeout=timeout)
        answered, _ = ray.wait(list(self.workers), num_returns=len(self.workers), timeout=0) if first else ([], [])
        for call in answered:
            worker = self.workers.pop(call)
            try:
                messages = ray.get(call)
            except RayError as fault:
                events += self.remove_worker(worker, fault)
            else:
                self.workers[worker.actor.poll.remote()] = worker
                events += self.read_messages(worker, messages)
        return events

    def read_messages(self, worker: WorkerHandle, messages: list[tuple[str, Recipe | None, Any]]) -> list[JobEvent]:
        """The events in what a worker sent."""
        events = []
        for kind, recipe, detail in messages:
            if kind == "ready":
                worker.owner, self.last_failure = detail, ""
            elif kind == "unfit":
                worker.usable, self.last_failure = False, detail
            elif worker.job is not None:
                events.append(JobEvent(worker.job, kind, recipe, detail))
            if kind in OVER and kind != "disk full":  # after that its claims are released at the end
                worker.job = None
        return events

    def add_workers(self) -> None:
        """Start workers until there are as many as the cluster holds; those that Ray has not placed yet count."""
        if time.monotonic() < self.next_check:
            return
        self.next_check = time.monotonic() + CAPACITY_INTERVAL
        for _ in range(self.capacity() - len(self.workers)):
            self.start_worker()

    def capacity(self) -> int:
        """How many workers the live nodes have room for."""
        import ray

        count = 0
        for node in ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            room = int(has.get("CPU", 0) // self.config.threads)
            count += min(room, int(has.get("GPU", 0) / self.gpus + 1e-9)) if self.gpus else room
        return count if self.most is None else min(count, self.most)

    def start_worker(self) -> None:
        """Start a worker, wherever there is room."""
        import ray

        options = {"num_cpus": self.config.threads, "num_gpus": self.gpus, "max_concurrency": 2}
        make: Any = ray.remote(**options, max_restarts=0, scheduling_strategy="SPREAD")
        actor = make(Worker).remote(self.config, self.device, os.getcwd(), str(self.probe))
        self.workers[actor.poll.remote()] = WorkerHandle(actor)

    def stop(self, job: Job, reason: str) -> None:
        """End the actor that has a job."""
        import ray
        from ray.exceptions import RayError

        for worker in [worker for worker in self.workers.values() if worker.job is job]:
            worker.reason = reason
            with contextlib.suppress(RayError):
                ray.kill(worker.actor)

    def remove_worker(self, worker: WorkerHandle, fault: Exception) -> list[JobEvent]:
        """Release the runs of a worker that died. Returns the event for its job, if it had one."""
        import ray
        from ray.exceptions import RayError

        line = f"the worker died ({worker.reason or f'{type(fault).__name__}: {death_reason(fault)}'})"
        with contextlib.suppress(RayError):  # it may only be out of reach
            ray.kill(worker.actor)
        self.release(worker)
        if worker.owner is None:
            self.last_failure, self.next_check = line, time.monotonic() + RETRY_PAUSE
        return [] if worker.job is None else [JobEvent(worker.job, "died", None, line)]

    def release(self, worker: WorkerHandle) -> None:
        """Release the claims of a worker that is gone; on another machine they would be valid until they are stale."""
        for recipe in worker.job.recipes if worker.job else ():
            with contextlib.suppress(DamagedRun, OSError):  # whoever reads the run will say so
                for claim in list_claims(Path(self.config.folder) / recipe.key)[-1:]:
                    owner = read_owner(claim)
                    if (owner["machine"], owner["process"]) == worker.owner:
                        (claim / "released").touch()

    def close(self) -> None:
        """Stop all workers and release the runs they hold."""
        import ray
        from ray.exceptions import RayError

        with contextlib.suppress(RayError, ConnectionError):
            for worker in self.workers.values():
                ray.kill(worker.actor)
            if self.workers:
                ray.wait(list(self.workers), num_returns=len(self.workers), timeout=5)
        for worker in self.workers.values():
            self.release(worker)
        self.workers = {}
        self.probe.unlink(missing_ok=True)
        if self.joined:
            ray.shutdown()


class Worker:
    """A Ray actor. It carries out one job after another in its own thread, while a pending call waits for reports."""

    def __init__(self, config: WorkerConfig, device: str, folder: str, probe: str) -> None:
        self.inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[tuple[str, Recipe | None, Any]] = queue.SimpleQueue()
        threading.Thread(target=self.run, args=(config, device, folder, probe), daemon=True).start()

    def begin(self, job: Job) -> None:
        """Take a job."""
        self.inbox.put(job)

    def poll(self) -> list[tuple[str, Recipe | None, Any]]:
        """Everything reported since the last call; waits until there is something."""
        messages = [self.outbox.get()]
        while not self.outbox.empty():
            messages.append(self.outbox.get())
        return messages

    def report(self, event: JobEvent) -> None:
        """Put an event where the driver's call finds it."""
        self.outbox.put((event.kind, event.recipe, event.detail))

    def run(self, config: WorkerConfig, device: str, folder: str, probe: str) -> None:
        """One job after another. An exception ends the process, so that its claims are released."""
        try:
            if (line := why_unfit(folder, probe)) is not None:
                self.outbox.put(("unfit", None, line))
                return
            from bestiary.sweep.work import prepare, work

            prepare(config)
            self.outbox.put(("ready", None, (machine(), os.getpid())))
            while True:
                work(self.inbox.get(), config, device, self.report)
        except BaseException:
            traceback.print_exc()
            os._exit(1)


def why_unfit(folder: str, probe: str) -> str | None:
    """Change to the driver's folder. Returns why this node cannot take part, or None if it can."""
    try:
        os.chdir(folder)
    except OSError:
        return f"{folder} is not a folder on {socket.gethostname()}; all nodes must share the driver's file system"
    if not Path(probe).exists():
        store = Path(probe).parent
        return f"{store} on {socket.gethostname()} is not the driver's; the store must be on a file system all share"
    return None


def death_reason(fault: Exception) -> str:
    """The line of Ray's long message that says how a worker ended."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()] or [""]
    if "creation task" in lines[0]:
        return lines[-1]
    reason = next((line for line in lines if line.startswith("The actor is dead because")), lines[0])
    return reason.partition(" Some common causes")[0].partition(" Worker exit detail")[0].rstrip(".")


def connect(address: str) -> bool:
    """Join the cluster at `auto` (on this machine), host:port or ray://host:port. False if this process had joined one.

    Raises ValueError within ten seconds if nothing answers.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise ImportError("a Ray cluster needs ray: pip install 'bestiary[ray]'") from None
    if ray.is_initialized():
        return False
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "auto"
    check_address(address)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, RayError) as fault:
        refuse(address, first_reason(str(fault)))
    return True


def check_address(address: str) -> None:
    """Check that Ray answers at an address, without joining it. Raises ValueError if not."""
    bare = address.removeprefix("ray://")
    if address != "auto":
        host, colon, port = bare.rpartition(":")
        if not (host and colon and port.isdigit() and int(port) < 2**16):
            raise ValueError(
                f"{address!r} is not the address of a Ray cluster; give auto, host:port or ray://host:port"
            )
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUTS[0]).close()
        except OSError as fault:
            refuse(address, str(fault))
    if address != bare:
        check_client_server(address, bare)
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_TIMEOUTS[1], check=False)
    except subprocess.TimeoutExpired:
        refuse(address, f"no answer in {ANSWER_TIMEOUTS[1]:.0f} s")
    if answer.returncode:
        refuse(address, first_reason(answer.stderr))


def check_client_server(address: str, bare: str) -> None:
    """Check that a Ray client server answers. Raises ValueError if not."""
    try:
        import grpc
    except ImportError:
        raise ImportError(f"{address} needs Ray's client: pip install 'ray[client]'") from None
    channel = grpc.insecure_channel(bare)
    try:
        grpc.channel_ready_future(channel).result(timeout=ANSWER_TIMEOUTS[1])
    except grpc.FutureTimeoutError:
        refuse(address, f"no answer in {ANSWER_TIMEOUTS[1]:.0f} s")
    finally:
        channel.close()


def first_reason(text: str) -> str:
    """The line of Ray's message, which may end with a traceback, that says what is wrong."""
    if "InvalidAuthToken" in text or "authentication token" in text:
        return "it wants a token: put its ~/.ray/auth_token here and set RAY_AUTH_MODE=token"
    lines = [line.strip() for line in text.splitlines() if "Error:" in line] or text.strip().splitlines()
    return (lines or ["no reason given"])[-1]


def refuse(address: str, why: str) -> NoReturn:
    """Raise the ValueError that says no cluster answers, and why."""
    if address == "auto":
        raise ValueError(f"no Ray cluster answers on this machine ({why}); start one with: ray start --head") from None
    raise ValueError(f"no Ray cluster answers at {address} ({why})") from None
