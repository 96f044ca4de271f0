"""Workers on a Ray cluster: an actor for each slot, on any node.

Only recipes, measurements and lines go over the wire. The driver always has one call to each actor under way, which
comes back with what the actor has told since, or with how it died; so an actor that was never placed is no free slot.
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

from bestiary.runs.store import get, machine, numbered
from bestiary.sweep.jobs import OVER, How, Job, Told
from bestiary.training.recipe import Recipe

if TYPE_CHECKING:
    import ray

PATIENCE = 60.0  # seconds to wait for the first worker
PAUSE = 10.0  # seconds before another worker takes the place of one that died before it was ready
LOOK = 2.0  # seconds between looks at what the cluster has
ANSWER = 2.0, 7.0  # seconds in which a port must open, and Ray must answer there
SETTINGS = {
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # deaths of workers are told by this executor
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S": "2",  # thrice
    "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "2",
}


@dataclass
class Hand:
    """A worker as the driver sees it."""

    actor: Any
    owner: tuple[str, int] | None = None  # its machine and process, once it is ready
    fit: bool = True
    job: Job | None = None


class RayCluster:
    """An executor with a worker for each place of `how.threads` CPUs and `gpus` GPUs, at most `workers` of them.

    Workers that die are replaced, and new nodes are used as they come. The constructor waits for the first worker;
    raises ValueError if the cluster does not answer, or cannot carry out anything.
    """

    def __init__(
        self, address: str, how: How, *, device: str = "cpu", gpus: float | None = None, workers: int | None = None
    ) -> None:
        self.how, self.device, self.most = how, device, workers
        self.gpus = (0.0 if device == "cpu" else 1.0) if gpus is None else gpus
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ValueError(f"{self.gpus:g} GPUs for a worker: give a part of one, as in 0.25, or a whole number")
        self.address, self.joined = address, connect(address)
        self.mark = Path(how.folder) / f".ray-{uuid.uuid4().hex}"  # what a worker must see to share the store
        self.hands: dict[ray.ObjectRef, Hand] = {}
        self.next_look, self.trouble = 0.0, ""
        try:
            self.mark.parent.mkdir(parents=True, exist_ok=True)
            self.mark.touch()
            self.await_first()
        except BaseException:
            self.close()
            raise

    def await_first(self) -> None:
        """Wait for a worker that is ready."""
        until = time.monotonic() + PATIENCE
        if not self.places():
            raise ValueError(f"no node of the Ray cluster at {self.address} has {self.needs()}")
        while not self.free():
            self.hear(0.5)
            if self.trouble and not any(hand.fit for hand in self.hands.values()):
                raise ValueError(f"no worker can start on the Ray cluster at {self.address}: {self.trouble}")
            if time.monotonic() > until:
                wants = f"{self.needs()} for a worker; others may be using them (see `ray status`)"
                raise ValueError(f"waited {PATIENCE:.0f} s for the Ray cluster at {self.address} to give {wants}")

    def needs(self) -> str:
        return f"{self.how.threads} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")

    def slots(self) -> int:
        """How many jobs can be at work at a time, as the cluster is now."""
        return self.places()

    def free(self) -> int:
        """How many jobs could be started now."""
        return sum(hand.owner is not None and hand.job is None for hand in self.hands.values())

    def start(self, job: Job) -> None:
        """Give a job to a worker that is ready."""
        hand = next(hand for hand in self.hands.values() if hand.owner is not None and hand.job is None)
        hand.job = job
        hand.actor.begin.remote(job)

    def hear(self, timeout: float) -> list[Told]:
        """What the workers told since."""
        import ray
        from ray.exceptions import RayError

        self.look()
        if not self.hands:
            time.sleep(timeout)
            return []
        found: list[Told] = []
        first, _ = ray.wait(list(self.hands), num_returns=1, timeout=timeout)
        answered, _ = ray.wait(list(self.hands), num_returns=len(self.hands), timeout=0) if first else ([], [])
        for call in answered:
            hand = self.hands.pop(call)
            try:
                said = ray.get(call)
            except RayError as fault:
                found += self.bury(hand, fault)
            else:
                self.hands[hand.actor.hear.remote()] = hand
                found += self.understood(hand, said)
        return found

    def understood(self, hand: Hand, said: list[tuple[str, Recipe | None, Any]]) -> list[Told]:
        """What a worker said of its job."""
        found = []
        for kind, recipe, what in said:
            if kind == "ready":
                hand.owner, self.trouble = what, ""
            elif kind == "unfit":
                hand.fit, self.trouble = False, what
            elif hand.job is not None:
                found.append(Told(hand.job, kind, recipe, what))
            if kind in OVER and kind != "full":  # then its claims are given up at the end
                hand.job = None
        return found

    def look(self) -> None:
        """Start as many workers as the cluster has places for; those not placed yet count."""
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + LOOK
        for _ in range(self.places() - len(self.hands)):
            self.hire()

    def places(self) -> int:
        """How many workers the nodes that are alive have room for."""
        import ray

        found = 0
        for node in ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            room = int(has.get("CPU", 0) // self.how.threads)
            found += min(room, int(has.get("GPU", 0) / self.gpus + 1e-9)) if self.gpus else room
        return found if self.most is None else min(found, self.most)

    def hire(self) -> None:
        """A new worker, wherever there is room."""
        import ray

        options = {"num_cpus": self.how.threads, "num_gpus": self.gpus, "max_concurrency": 2}
        make: Any = ray.remote(**options, max_restarts=0, scheduling_strategy="SPREAD")
        actor = make(Worker).remote(self.how, self.device, os.getcwd(), str(self.mark))
        self.hands[actor.hear.remote()] = Hand(actor)

    def bury(self, hand: Hand, fault: Exception) -> list[Told]:
        """Let go of a worker that died, and of the runs it held; what that means for its job."""
        import ray
        from ray.exceptions import RayError

        line = f"the worker died ({type(fault).__name__}: {cause(fault)})"
        with contextlib.suppress(RayError):  # it may only be out of reach
            ray.kill(hand.actor)
        self.release(hand)
        if hand.owner is None:
            self.trouble, self.next_look = line, time.monotonic() + PAUSE
        return [] if hand.job is None else [Told(hand.job, "died", None, line)]

    def release(self, hand: Hand) -> None:
        """Give up the claims of a worker that is gone, which on another machine would count until they are stale."""
        for recipe in hand.job.recipes if hand.job else ():
            for claim in numbered(Path(self.how.folder) / recipe.key)[-1:]:
                owner = get(claim / "owner.json")
                if (owner["machine"], owner["process"]) == hand.owner:
                    (claim / "released").touch()

    def close(self) -> None:
        """Stop all workers; the runs they hold are released."""
        import ray
        from ray.exceptions import RayError

        with contextlib.suppress(RayError, ConnectionError):
            for hand in self.hands.values():
                ray.kill(hand.actor)
            if self.hands:
                ray.wait(list(self.hands), num_returns=len(self.hands), timeout=5)
        for hand in self.hands.values():
            self.release(hand)
        self.hands = {}
        self.mark.unlink(missing_ok=True)
        if self.joined:
            ray.shutdown()


class Worker:
    """An actor: carries out job after job in a thread of its own, while a call waits for what there is to tell."""

    def __init__(self, how: How, device: str, place: str, mark: str) -> None:
        self.given: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.told: queue.SimpleQueue[tuple[str, Recipe | None, Any]] = queue.SimpleQueue()
        threading.Thread(target=self.live, args=(how, device, place, mark), daemon=True).start()

    def begin(self, job: Job) -> None:
        """Take a job."""
        self.given.put(job)

    def hear(self) -> list[tuple[str, Recipe | None, Any]]:
        """All that was told since the last call, at least one thing."""
        found = [self.told.get()]
        while not self.told.empty():
            found.append(self.told.get())
        return found

    def live(self, how: How, device: str, place: str, mark: str) -> None:
        """Job after job; what stops this ends the process, so that its claims are free."""
        try:
            if (line := unfit(place, mark)) is not None:
                self.told.put(("unfit", None, line))
                return
            from bestiary.sweep.work import prepare, work

            prepare(how)
            self.told.put(("ready", None, (machine(), os.getpid())))
            while True:
                work(self.given.get(), how, device, lambda told: self.told.put((told.kind, told.recipe, told.what)))
        except BaseException:
            traceback.print_exc()
            os._exit(1)


def unfit(place: str, mark: str) -> str | None:
    """Go to the driver's folder; why this node cannot share its work."""
    try:
        os.chdir(place)
    except OSError:
        return f"{place} is not a folder on {socket.gethostname()}; all nodes must share the driver's file system"
    if not Path(mark).exists():
        store = Path(mark).parent
        return f"{store} on {socket.gethostname()} is not the driver's; the store must be on a file system all share"
    return None


def cause(fault: Exception) -> str:
    """The line of Ray's long message that says how a worker ended."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()] or [""]
    if "creation task" in lines[0]:
        return lines[-1]
    told = next((line for line in lines if line.startswith("The actor is dead because")), lines[0])
    return told.partition(" Some common causes")[0].partition(" Worker exit detail")[0].rstrip(".")


def connect(address: str) -> bool:
    """Join the cluster at `auto` (this machine's), host:port or ray://host:port; False if it was joined before.

    Raises ValueError in ten seconds if nothing answers.
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
    reach(address)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, RayError) as fault:
        refuse(address, first_reason(str(fault)))
    return True


def reach(address: str) -> None:
    """See that Ray answers at an address, without joining it. Raises ValueError."""
    bare = address.removeprefix("ray://")
    if address != "auto":
        host, colon, port = bare.rpartition(":")
        if not (host and colon and port.isdigit() and int(port) < 2**16):
            raise ValueError(
                f"{address!r} is not the address of a Ray cluster; give auto, host:port or ray://host:port"
            )
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER[0]).close()
        except OSError as fault:
            refuse(address, str(fault))
    if address != bare:
        greet(address, bare)
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER[1], check=False)
    except subprocess.TimeoutExpired:
        refuse(address, f"no answer in {ANSWER[1]:.0f} s")
    if asked.returncode:
        refuse(address, first_reason(asked.stderr))


def greet(address: str, bare: str) -> None:
    """See that something speaks the protocol of Ray's client server."""
    try:
        import grpc
    except ImportError:
        raise ImportError(f"{address} needs Ray's client: pip install 'ray[client]'") from None
    channel = grpc.insecure_channel(bare)
    try:
        grpc.channel_ready_future(channel).result(timeout=ANSWER[1])
    except grpc.FutureTimeoutError:
        refuse(address, f"no answer in {ANSWER[1]:.0f} s")
    finally:
        channel.close()


def first_reason(text: str) -> str:
    """The line of Ray's message, which may end with a traceback, that says what is wrong."""
    if "InvalidAuthToken" in text or "authentication token" in text:
        return "it wants a token: put its ~/.ray/auth_token here and set RAY_AUTH_MODE=token"
    lines = [line.strip() for line in text.splitlines() if "Error:" in line] or text.strip().splitlines()
    return (lines or ["no reason given"])[-1]


def refuse(address: str, why: str) -> NoReturn:
    if address == "auto":
        raise ValueError(f"no Ray cluster answers on this machine ({why}); start one with: ray start --head") from None
    raise ValueError(f"no Ray cluster answers at {address} ({why})") from None
