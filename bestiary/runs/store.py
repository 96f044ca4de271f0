"""Runs on disk, append only. Does not import torch.

    runs/<key>/recipe.json          the recipe, with every option filled in
               source/              copies of the user's own files that the recipe names
               origin.json          versions, host and start time of the current attempt
               claim-0/             one folder for each attempt; the last one owns the run
               log.jsonl            one measurement a line
               weights.safetensors  the trained weights, if they were kept
               failure.txt          the traceback of the last attempt, if it failed
               done                 how the run ended; written last

A worker claims a run by renaming a prepared folder to the next free claim. On any file system only one worker
succeeds. A claim is alive while its process is alive on this machine, or while its heartbeat is fresh on another. When
a claim is dead, the next worker makes a new one and the run starts over. Every file but the log is written under
another name and then renamed, so that no reader sees half of it. If the log ends in half a line, that line is ignored.
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

STALE_AFTER = 600.0  # seconds without a heartbeat after which a claim from another machine is dead
HEARTBEAT = 15.0  # seconds between heartbeats


class DamagedRun(Exception):
    """A run's folder cannot be read, or does not hold what it says."""


class ClaimLost(Exception):
    """Another worker has taken over this run."""


class Outcome(NamedTuple):
    """How a run ended."""

    outcome: str  # "solved" (stopped early), "finished" or "diverged"
    seconds: float
    note: str = ""


class Record(NamedTuple):
    """A run as it is on disk: its recipe, how it ended (None if it has not) and its measurements."""

    key: str
    recipe: dict[str, Any]
    ended: Outcome | None
    log: list[dict[str, Any]]


class Store:
    """A folder of runs, shared by any number of workers without a server."""

    def __init__(self, folder: Path | str = "runs") -> None:
        self.folder = Path(folder)

    def __contains__(self, recipe: "Recipe") -> bool:
        """Whether the run is done."""
        return (self.folder / recipe.key / "done").is_file()

    def claim(self, recipe: "Recipe") -> "Run | None":
        """The run, ready to be carried out; None if it is done or another worker has it."""
        if recipe in self:
            return None
        place = self.folder / recipe.key
        place.mkdir(parents=True, exist_ok=True)
        claims = list_claims(place)
        prepared, claim = place / f".claim-{uuid.uuid4().hex}", place / f"claim-{len(claims)}"
        try:
            prepared.mkdir()
            write_file(prepared / "owner.json", owner_of_this_process())
            if not (claims and is_alive(claims[-1], now=prepared.stat().st_mtime)) and try_rename(prepared, claim):
                if recipe not in self:
                    return Run(place, claim, recipe)
                (claim / "released").touch()
        finally:
            shutil.rmtree(prepared, ignore_errors=True)
        return None

    def owner(self, key: str) -> str | None:
        """The host and process that is carrying out a run now; None if nobody is."""
        claims = list_claims(self.folder / key)
        if not claims or not is_alive(claims[-1], now=time.time()):
            return None
        owner = read_json(claims[-1] / "owner.json")
        return f"{owner['machine'].split(' ')[0]}, process {owner['process']}"

    def record_death(self, key: str, reason: str, *, last: bool) -> None:
        """Record that the worker of a run died; if this was the last try, also as the failure of the run."""
        place = self.folder / key
        if claims := list_claims(place):
            write_file(claims[-1] / "died", reason + "\n")
        if last and place.is_dir():
            write_file(place / "failure.txt", reason + "\n")

    def failure(self, key: str, *, since: float = 0.0) -> str | None:
        """The traceback of the last attempt, if it failed after `since` (seconds by the file system's clock)."""
        place = self.folder / key / "failure.txt"
        try:
            return place.read_text() if place.stat().st_mtime >= since else None
        except FileNotFoundError:
            return None

    def read(self, key: str) -> Record:
        """A run's recipe, outcome and measurements. Raises DamagedRun if they cannot be read."""
        place = self.folder / key
        try:
            done = read_json(place / "done") if (place / "done").is_file() else None
            ended = None if done is None else Outcome(**done)
            return Record(key, read_json(place / "recipe.json"), ended, read_log(place / "log.jsonl"))
        except (OSError, ValueError, TypeError) as fault:
            raise damaged_run(place, fault) from None

    def run_keys(self) -> list[str]:
        """The keys of all runs that were started, in order. Folders with a dot in their name are set aside."""
        if not self.folder.is_dir():
            return []
        with os.scandir(self.folder) as entries:
            places = [(entry.name, entry.path) for entry in entries if "." not in entry.name and entry.is_dir()]
        return sorted(
            name for name, path in places if any(os.path.exists(f"{path}/{file}") for file in ("recipe.json", "done"))
        )


def damaged_run(place: Path, fault: Exception) -> DamagedRun:
    """The error that says what is wrong with a run's folder, and how to set it aside."""
    reason = (str(fault).splitlines() or [type(fault).__name__])[0]
    return DamagedRun(f"{place} cannot be read ({reason}); set it aside with: mv {place} {place}.damaged")


class Run:
    """A run that this process has claimed, as a context manager that records an exception as the run's failure."""

    def __init__(self, place: Path, claim: Path, recipe: "Recipe") -> None:
        self.place, self.claim, self.recipe = place, claim, recipe
        self.details: dict[str, Any] = {}  # more for origin.json, such as the device
        self.records_failure = True  # whether an exception is this run's own
        self.step = 0  # of the last measurement
        self.next = place / f"claim-{int(claim.name.partition('-')[2]) + 1}"
        self.start_time, self.stopped = time.monotonic(), threading.Event()

    def __enter__(self) -> "Run":
        try:
            self.open()
        except BaseException:
            with suppress(OSError):
                (self.claim / "released").touch()
            raise
        threading.Thread(target=self.send_heartbeats, daemon=True).start()
        return self

    def open(self) -> None:
        """Write recipe and origin, and start an empty log."""
        (self.place / "failure.txt").unlink(missing_ok=True)
        (self.place / "log.jsonl").unlink(missing_ok=True)  # a former owner may go on writing, but nobody reads it
        write_file(self.place / "recipe.json", self.recipe.json())
        write_file(self.place / "origin.json", origin() | self.details)
        for part in self.recipe.train + self.recipe.test + self.recipe.select + self.recipe.pattern:
            if part.source and part.name.endswith(".py"):
                (self.place / "source").mkdir(exist_ok=True)
                shutil.copy(Path(part.name).expanduser(), self.place / "source")
        self.log = (self.place / "log.jsonl").open("x")

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        for act in (self.log.close, lambda: self.record_failure(fault), (self.claim / "released").touch):
            try:
                act()
            except OSError:  # a full disk fails here again; the first exception is the one to report
                if fault is None:
                    raise

    def record_failure(self, fault: BaseException | None) -> None:
        """Keep the traceback of a failure; being stopped or losing the claim is not one."""
        if self.records_failure and isinstance(fault, Exception) and not isinstance(fault, ClaimLost):
            write_file(self.place / "failure.txt", "".join(traceback.format_exception(fault)))

    def append(self, measurement: Mapping[str, Any]) -> None:
        """Add a measurement to the log. Raises ClaimLost if another worker holds the run now."""
        self.check_held()
        self.log.write(json.dumps(measurement) + "\n")
        self.log.flush()
        self.step = measurement["step"]

    def check_held(self) -> None:
        """Raises ClaimLost if another worker holds the run now."""
        if self.next.exists():
            raise ClaimLost(f"{self.place} was taken over by another worker")

    def save_weights(self, model: "nn.Module") -> None:
        """Write the model's weights."""
        from safetensors.torch import save_file

        beside = self.place / f".weights-{uuid.uuid4().hex}"
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, beside)
        beside.replace(self.place / "weights.safetensors")

    def release(self) -> None:
        """Give up the claim, so that another worker may take the run."""
        (self.claim / "released").touch()

    def finish(self, model: "nn.Module | None" = None) -> Outcome:
        """Mark the run as done, as solved if it stopped early. Writes the weights of the model, if one is given."""
        if model is not None:
            self.save_weights(model)
        return self.end("solved" if self.step < self.recipe.steps else "finished")

    def end(self, outcome: str, note: str = "") -> Outcome:
        """Mark the run as done. Raises ClaimLost if another worker holds it now."""
        self.check_held()
        os.fsync(self.log.fileno())
        ended = Outcome(outcome, round(time.monotonic() - self.start_time, 2), note)
        write_file(self.place / "done", ended._asdict())
        return ended

    def send_heartbeats(self) -> None:
        """Touch the claim every few seconds until the run is over."""
        while not self.stopped.wait(HEARTBEAT):
            with suppress(OSError):  # the disk may come back; if not, the run fails when it writes
                (self.claim / "owner.json").touch()


def is_alive(claim: Path, *, now: float) -> bool:
    """Whether the worker that made a claim is still at work; `now` is in seconds by the file system's clock."""
    if (claim / "released").exists():
        return False
    owner = read_json(claim / "owner.json")
    if owner["machine"] == machine():
        return process_start(owner["process"]) == owner["born"]
    return now - (claim / "owner.json").stat().st_mtime < STALE_AFTER


def list_claims(place: Path) -> list[Path]:
    """The claims on a run, oldest first."""
    claims = []
    while (claim := place / f"claim-{len(claims)}").is_dir():
        claims.append(claim)
    return claims


def try_rename(prepared: Path, place: Path) -> bool:
    """Rename a folder, unless the new name is taken; whether it was renamed."""
    try:
        prepared.rename(place)
    except OSError:
        if place.exists():
            return False
        raise
    return True


def owner_of_this_process() -> dict[str, Any]:
    """What owner.json says of this process."""
    return {"machine": machine(), "process": os.getpid(), "born": process_start(os.getpid())}


@cache
def machine() -> str:
    """A name for this machine: equal for two processes exactly if process numbers mean the same to both."""
    boot_id, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    boot = boot_id.read_text().strip() if boot_id.exists() else str(uuid.getnode())
    space = os.readlink(namespace) if namespace.is_symlink() else ""
    return f"{socket.gethostname()} {boot} {space}"


def process_start(process: int) -> str:
    """When a process started, "" if it does not run; tells it from a later process with the same number."""
    status = Path(f"/proc/{process}/stat")
    try:
        state, *fields = status.read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]  # a zombie has ended
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
    """What produced a run, apart from its recipe: start time, commit, versions and host."""
    return {"begun": datetime.now(UTC).isoformat(timespec="seconds"), **environment()}


@cache
def environment() -> dict[str, Any]:
    """Commit, versions and host, looked up once."""
    return {
        "commit": commit(),
        "versions": {"bestiary": __version__, "torch": version("torch"), "python": platform.python_version()},
        "host": {"name": socket.gethostname(), "system": platform.platform(), "cores": os.cpu_count()},
    }


def commit() -> str | None:
    """The commit of this package's source, with "-dirty" if it was changed since; None outside a git checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    result = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or None


def write_file(place: Path, content: Any) -> None:
    """Write text, or anything else as JSON. After a crash the file is there whole or not at all."""
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


def read_json(place: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(place.read_text())


def read_log(place: Path) -> list[dict[str, Any]]:
    """The measurements of a log; a last line that was cut off is left out."""
    if not place.exists():
        return []
    *lines, _ = place.read_text().split("\n")
    measurements = json.loads(f"[{','.join(lines)}]")  # all at once takes half the time of one by one
    if len(measurements) != len(lines):
        raise ValueError(f"{len(lines)} lines hold {len(measurements)} measurements")
    return measurements
