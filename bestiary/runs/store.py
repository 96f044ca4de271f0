"""Runs on disk, append only. Knows nothing of torch.

    runs/<key>/recipe.json          what was run, every option resolved
               source/              copies of a user's own files that it was made from
               origin.json          versions, host and time of the attempt that holds the run
               claim-0/             one folder for each attempt; the last is the owner
               log.jsonl            one measurement a line
               weights.safetensors  if they were kept
               failure.txt          the traceback of the last attempt, if it failed
               done                 how the run ended, written last

A run is taken by renaming a prepared folder to the next free claim, which only one worker can do, on any file
system. A claim is alive while its process is seen alive on this machine or its heartbeat is fresh elsewhere; a dead
one is followed by the next, and the run starts over. Files other than the log are written beside their place and
renamed, so that nobody reads half of one; a log that ends in half a line is read without it.
"""

import json
import os
import platform
import shutil
import socket
import subprocess
import threading
import time
import traceback
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from bestiary._version import __version__

if TYPE_CHECKING:
    from torch import nn

    from bestiary.training.recipe import Recipe

STALE = 600.0  # seconds without a heartbeat after which a claim of another machine is dead
BEAT = 15.0  # seconds between heartbeats


class Damaged(Exception):
    """A run's folder cannot be read."""


class Lost(Exception):
    """Another worker has taken over this run."""


class Ended(NamedTuple):
    """How a run ended."""

    outcome: str  # "solved" (stopped early), "finished" or "diverged"
    seconds: float
    note: str = ""


class Record(NamedTuple):
    """A run as it stands on disk."""

    key: str
    recipe: dict[str, Any]
    ended: Ended | None
    log: list[dict[str, Any]]


class Store:
    """A folder of runs, shared by any number of workers without a server."""

    def __init__(self, folder: Path | str = "runs") -> None:
        self.folder = Path(folder)

    def __contains__(self, recipe: "Recipe") -> bool:
        """Whether the run is done."""
        return (self.folder / recipe.key / "done").is_file()

    def claim(self, recipe: "Recipe") -> "Run | None":
        """The run, to be carried out; None if it is done or another worker has it."""
        if recipe in self:
            return None
        place = self.folder / recipe.key
        place.mkdir(parents=True, exist_ok=True)
        claims = numbered(place)
        prepared, taken = place / f".claim-{uuid.uuid4().hex}", place / f"claim-{len(claims)}"
        try:
            prepared.mkdir()
            put(prepared / "owner.json", {"machine": machine(), "process": os.getpid(), "born": born(os.getpid())})
            if not (claims and alive(claims[-1], now=prepared.stat().st_mtime)) and moved(prepared, taken):
                if recipe not in self:
                    return Run(place, taken, recipe)
                (taken / "released").touch()
        finally:
            shutil.rmtree(prepared, ignore_errors=True)
        return None

    def owner(self, key: str) -> str | None:
        """Who is carrying out a run now."""
        claims = numbered(self.folder / key)
        if not claims or not alive(claims[-1], now=time.time()):
            return None
        owner = get(claims[-1] / "owner.json")
        return f"{owner['machine'].split(' ')[0]}, process {owner['process']}"

    def mourn(self, key: str, how: str, *, last: bool) -> None:
        """Record that the worker of a run died; as the failure of the run if it is not tried again."""
        place = self.folder / key
        if claims := numbered(place):
            put(claims[-1] / "died", how + "\n")
        if last and place.is_dir():
            put(place / "failure.txt", how + "\n")

    def failure(self, key: str, *, since: float = 0.0) -> str | None:
        """The traceback of the last attempt, if it failed, and not before a time by the file system's clock."""
        place = self.folder / key / "failure.txt"
        try:
            return place.read_text() if place.stat().st_mtime >= since else None
        except FileNotFoundError:
            return None

    def read(self, key: str) -> Record:
        """A run's recipe, end and measurements. Raises Damaged."""
        place = self.folder / key
        try:
            done = get(place / "done") if (place / "done").is_file() else None
            ended = None if done is None else Ended(**done)
            return Record(key, get(place / "recipe.json"), ended, lines(place / "log.jsonl"))
        except (OSError, ValueError, TypeError) as fault:
            raise unreadable(place, fault) from None

    def begun(self) -> list[str]:
        """Every run begun, by name; folders with a dot in their name are set aside."""
        if not self.folder.is_dir():
            return []
        with os.scandir(self.folder) as entries:
            places = [(entry.name, entry.path) for entry in entries if "." not in entry.name and entry.is_dir()]
        return sorted(
            name for name, path in places if any(os.path.exists(f"{path}/{file}") for file in ("recipe.json", "done"))
        )


def unreadable(place: Path, fault: Exception) -> Damaged:
    """What is wrong with a run's folder, and how to set it aside."""
    what = (str(fault).splitlines() or [type(fault).__name__])[0]
    return Damaged(f"{place} cannot be read ({what}); set it aside with: mv {place} {place}.damaged")


class Run:
    """A run that this process holds, as a context: leaving it by an exception records the failure."""

    def __init__(self, place: Path, claim: Path, recipe: "Recipe") -> None:
        self.place, self.claim, self.recipe = place, claim, recipe
        self.how: dict[str, Any] = {}  # what else its origin should tell, such as the device
        self.records, self.step = True, 0  # whether a fault is this run's own; the last step measured
        self.next = place / f"claim-{int(claim.name.partition('-')[2]) + 1}"
        self.begun, self.over = time.monotonic(), threading.Event()

    def __enter__(self) -> "Run":
        try:
            self.open()
        except BaseException:
            with suppress(OSError):
                (self.claim / "released").touch()
            raise
        threading.Thread(target=self.beat, daemon=True).start()
        return self

    def open(self) -> None:
        (self.place / "failure.txt").unlink(missing_ok=True)
        (self.place / "log.jsonl").unlink(missing_ok=True)  # a former owner writes on where nobody reads
        put(self.place / "recipe.json", self.recipe.json())
        put(self.place / "origin.json", origin() | self.how)
        for part in self.recipe.train + self.recipe.test + self.recipe.select + self.recipe.pattern:
            if part.source and part.name.endswith(".py"):
                (self.place / "source").mkdir(exist_ok=True)
                shutil.copy(Path(part.name).expanduser(), self.place / "source")
        self.log = (self.place / "log.jsonl").open("x")

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        for act in (self.log.close, lambda: self.record(fault), (self.claim / "released").touch):
            try:
                act()
            except OSError:  # a full disk fails again here, and the first fault is the one to report
                if fault is None:
                    raise

    def record(self, fault: BaseException | None) -> None:
        """Keep the traceback of a failure; being stopped or overtaken is none."""
        if self.records and isinstance(fault, Exception) and not isinstance(fault, Lost):
            put(self.place / "failure.txt", "".join(traceback.format_exception(fault)))

    def append(self, measurement: Mapping[str, Any]) -> None:
        """Add a measurement to the log. Raises Lost if another worker holds the run now."""
        self.held()
        self.log.write(json.dumps(measurement) + "\n")
        self.log.flush()
        self.step = measurement["step"]

    def held(self) -> None:
        """Raises Lost if another worker holds the run now."""
        if self.next.exists():
            raise Lost(f"{self.place} was taken over by another worker")

    def keep(self, model: "nn.Module") -> None:
        """Write the model's weights."""
        from safetensors.torch import save_file

        beside = self.place / f".weights-{uuid.uuid4().hex}"
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, beside)
        beside.replace(self.place / "weights.safetensors")

    def release(self) -> None:
        """Give the run up without having begun it."""
        (self.claim / "released").touch()

    def finish(self, model: "nn.Module | None" = None) -> Ended:
        """Mark the run as done with what was measured, its weights kept if given."""
        if model is not None:
            self.keep(model)
        return self.end("solved" if self.step < self.recipe.steps else "finished")

    def end(self, outcome: str, note: str = "") -> Ended:
        """Mark the run as done. Raises Lost if another worker holds it now."""
        self.held()
        os.fsync(self.log.fileno())
        ended = Ended(outcome, round(time.monotonic() - self.begun, 2), note)
        put(self.place / "done", ended._asdict())
        return ended

    def beat(self) -> None:
        while not self.over.wait(BEAT):
            with suppress(OSError):  # of a disk that may come back; the run itself finds out when it writes
                (self.claim / "owner.json").touch()


def alive(claim: Path, *, now: float) -> bool:
    """Whether the worker that made a claim is still at work; `now` is by the file system's clock."""
    if (claim / "released").exists():
        return False
    owner = get(claim / "owner.json")
    if owner["machine"] == machine():
        return born(owner["process"]) == owner["born"]
    return now - (claim / "owner.json").stat().st_mtime < STALE


def numbered(place: Path) -> list[Path]:
    """The claims on a run, oldest first."""
    found = []
    while (claim := place / f"claim-{len(found)}").is_dir():
        found.append(claim)
    return found


def moved(prepared: Path, place: Path) -> bool:
    """Rename a folder unless the place is taken."""
    try:
        prepared.rename(place)
    except OSError:
        if place.exists():
            return False
        raise
    return True


@cache
def machine() -> str:
    """This machine as other workers see it: equal exactly where process numbers mean the same."""
    marks = [Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")]
    boot = marks[0].read_text().strip() if marks[0].exists() else str(uuid.getnode())
    space = os.readlink(marks[1]) if marks[1].is_symlink() else ""
    return f"{socket.gethostname()} {boot} {space}"


def born(process: int) -> str:
    """When a process started, or "" if there is none; tells it from a later one of the same number."""
    status = Path(f"/proc/{process}/stat")
    try:
        state, *further = status.read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else further[18]  # one that has ended is none, even if nobody has asked about it
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"


def origin() -> dict[str, Any]:
    """What made a run, apart from its recipe."""
    return {"begun": datetime.now(UTC).isoformat(timespec="seconds"), **surroundings()}


@cache
def surroundings() -> dict[str, Any]:
    return {
        "commit": commit(),
        "versions": {"bestiary": __version__, "torch": version("torch"), "python": platform.python_version()},
        "host": {"name": socket.gethostname(), "system": platform.platform(), "cores": os.cpu_count()},
    }


def commit() -> str | None:
    """The commit of the source this package runs from, marked if it was changed since."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    described = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None


def put(place: Path, content: Any) -> None:
    """Write text, or anything else as JSON, so that it is there whole or not at all."""
    beside = place.with_name(f".{place.name}-{uuid.uuid4().hex}")
    try:
        with beside.open("w") as file:
            file.write(content if isinstance(content, str) else json.dumps(content, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(place)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def get(place: Path) -> Any:
    return json.loads(place.read_text())


def lines(place: Path) -> list[dict[str, Any]]:
    """The measurements of a log, without a last line that was cut off."""
    if not place.exists():
        return []
    *whole, _ = place.read_text().split("\n")
    found = json.loads(f"[{','.join(whole)}]")  # at once, which takes half the time of one by one
    if len(found) != len(whole):
        raise ValueError(f"{len(whole)} lines hold {len(found)} measurements")
    return found
