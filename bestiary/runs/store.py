"""Runs on disk, append only. Does not import torch.

    runs/<key>/recipe.json          the recipe, with every option filled in
               source/              copies of the user's own files that the recipe names
               origin.json          versions, host and start time of the current attempt
               claim-0/             one folder for each attempt; the last one owns the run
               log.jsonl            one measurement a line
               checkpoint/          what a run that was interrupted goes on from, if it got that far
               weights.safetensors  the trained weights, if they were kept
               failure.txt          the traceback of the last attempt, if it failed
               done                 how the run ended; written last

A worker claims a run before it carries it out (see `claims`). When a claim is dead, the next worker makes a new one
and the run goes on from its last checkpoint, its log cut back to it, or starts over if there is none. Every file but
the log is written under another name and then renamed, so that no reader sees half of it. If the log ends in half a
line, that line is ignored.
`done` holds the digests of the other files, which are checked when they are read.
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
from typing import TYPE_CHECKING, Any, TypeVar

from bestiary._version import __version__
from bestiary.runs.claims import (
    claim_number,
    is_alive,
    list_claims,
    machine,
    owner_of_this_process,
    process_start,
    read_owner,
    try_rename,
)
from bestiary.runs.digests import digest
from bestiary.runs.files import FAULTS, read_bytes, read_json, reason, write_file
from bestiary.runs.record import KEPT, DamagedRun, Outcome, Record, damaged_run, read_record, verified
from bestiary.runs.tensors import disk_errors
from bestiary.spec import all_parts, file_content, is_file, split_file

if TYPE_CHECKING:
    from torch import nn

    from bestiary.training.recipe import Recipe

__all__ = [
    "ClaimLost",
    "DamagedRun",
    "Outcome",
    "Record",
    "Run",
    "Store",
    "damaged_run",
    "environment",
    "is_alive",
    "list_claims",
    "machine",
    "origin",
    "process_start",
    "read_json",
    "try_rename",
    "verified",
    "write_file",
]
HEARTBEAT = 15.0  # seconds between heartbeats
WEIGHTS = "weights.safetensors"
CHECKPOINT = "checkpoint"

Held = TypeVar("Held", bound="Run")


class ClaimLost(Exception):
    """Another worker has taken over this run."""


class Store:
    """A folder of runs, shared by any number of workers without a server."""

    def __init__(self, folder: Path | str = "runs") -> None:
        self.folder = Path(folder)

    def __contains__(self, recipe: "Recipe") -> bool:
        """Whether the run is done."""
        return os.path.isfile(self.folder / recipe.key / "done")  # False where the folder may not be looked into

    def claim(self, recipe: "Recipe") -> "Run | None":
        """The run, ready to be carried out; None if it is done or another worker has it.

        Raises DamagedRun if the folder of the run, or a former claim in it, is damaged.
        """
        if recipe in self:
            return None
        place = self.folder / recipe.key
        if os.path.lexists(place) and not place.is_dir():
            raise damaged_run(place, "it is no folder")
        place.mkdir(parents=True, exist_ok=True)
        claims = list_claims(place)
        number = claim_number(claims[-1]) + 1 if claims else 0
        prepared, claim = place / f".claim-{uuid.uuid4().hex}", place / f"claim-{number}"
        try:
            prepared.mkdir()
            write_file(prepared / "owner.json", {**owner_of_this_process(), "claim": prepared.name})
            if not (claims and is_alive(claims[-1], now=prepared.stat().st_mtime)) and try_rename(prepared, claim):
                if recipe not in self:
                    return Run(place, claim, recipe)
                (claim / "released").touch()
        finally:
            shutil.rmtree(prepared, ignore_errors=True)
        return None

    def owner(self, key: str) -> str | None:
        """The host and process that is carrying out a run now; None if nobody is. Raises DamagedRun."""
        claims = list_claims(self.folder / key)
        if not claims or not is_alive(claims[-1], now=time.time()):
            return None
        owner = read_owner(claims[-1])
        return f"{owner['machine'].split(' ')[0]}, process {owner['process']}"

    def silence(self, key: str) -> float:
        """Seconds since the last measurement of a run that is being carried out, or since it was claimed."""
        place = self.folder / key
        times = [0.0]
        for sign in (place / "log.jsonl", *list_claims(place)[-1:]):
            with suppress(OSError):
                times.append(sign.stat().st_mtime)
        return time.time() - max(times)

    def record_death(self, recipe: "Recipe", line: str, *, last: bool) -> None:
        """Record that the worker of a run died; if this was the last try, also as the failure of the run."""
        place = self.folder / recipe.key
        with suppress(DamagedRun):
            for claim in list_claims(place)[-1:]:
                write_file(claim / "died", line + "\n")
        if last:
            self.record_failure(recipe, line)

    def record_failure(self, recipe: "Recipe", text: str) -> None:
        """Record why a run failed. If its worker never got as far as to claim it, this starts its folder."""
        place = self.folder / recipe.key
        place.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(place / "recipe.json"):
            write_file(place / "recipe.json", recipe.json())
        write_file(place / "failure.txt", text + "\n")

    def failure(self, key: str, *, since: float = 0.0) -> str | None:
        """The traceback of the last attempt, if it failed after `since` (seconds by the file system's clock)."""
        place = self.folder / key
        try:
            text = read_bytes(place / "failure.txt").decode(errors="replace")
            return text if (place / "failure.txt").stat().st_mtime >= since else None
        except FileNotFoundError:
            return None
        except FAULTS as fault:
            raise damaged_run(place, f"failure.txt: {reason(fault)}") from None

    def read(self, key: str) -> Record:
        """A run's recipe, outcome and measurements. Raises DamagedRun if anything is wrong with them."""
        return read_record(f"{self.folder}/{key}")

    def run_keys(self) -> list[str]:
        """The keys of all runs that were started, in order. Folders with a dot in their name are set aside."""
        if not self.folder.is_dir():
            return []
        with os.scandir(self.folder) as entries:
            return sorted(entry.name for entry in entries if "." not in entry.name and is_run(entry))


def is_run(entry: os.DirEntry[str]) -> bool:
    """Whether a run was started in this folder, or it cannot be told since the folder is damaged."""
    try:
        return entry.is_dir() and any(os.path.lexists(f"{entry.path}/{file}") for file in ("recipe.json", "done"))
    except OSError:
        return True


class Run:
    """A run that this process has claimed, as a context manager that records an exception as the run's failure."""

    def __init__(self, place: Path, claim: Path, recipe: "Recipe") -> None:
        self.place, self.claim, self.recipe = place, claim, recipe
        self.details: dict[str, Any] = {}  # more for origin.json, such as the device
        self.records_failure = True  # whether an exception is this run's own
        self.step = 0  # of the last measurement
        self.kept: list[str] = list(KEPT)  # files whose digests will be recorded
        self.next = place / f"claim-{claim_number(claim) + 1}"
        self.origin: dict[str, Any] = {}  # what origin.json says
        self.seconds_before = 0.0  # that earlier attempts took to where this one goes on
        self.start_time, self.stopped = time.monotonic(), threading.Event()

    @property
    def seconds(self) -> float:
        """How long the run has taken so far; of earlier attempts, only what it goes on from counts."""
        return self.seconds_before + time.monotonic() - self.start_time

    def __enter__(self: Held) -> Held:
        try:
            self.open()
        except BaseException as fault:
            with suppress(OSError):
                self.record_failure(fault)
            with suppress(OSError):
                (self.claim / "released").touch()
            raise
        threading.Thread(target=self.send_heartbeats, daemon=True).start()
        return self

    def open(self) -> None:
        """Write recipe and origin, and open the log; what an earlier attempt has left is deleted."""
        for name in ("failure.txt", WEIGHTS):  # a run that is not done has no weights
            (self.place / name).unlink(missing_ok=True)
        shutil.rmtree(self.place / "source", ignore_errors=True)
        self.reset_log()  # before the origin, whose change tells others that the log is that of a new attempt
        write_file(self.place / "recipe.json", self.recipe.json())
        self.write_origin()
        self.copy_sources()
        self.log = (self.place / "log.jsonl").open("a")

    def copy_sources(self) -> None:
        """Write what the files of the user's own that the recipe names held when they were named.

        The second of one name has a part of its digest in its name. Raises ValueError, LookupError or OSError.
        """
        from bestiary.training.recipe import SPECS

        parts = all_parts(part for field in SPECS for part in getattr(self.recipe, field, ()))
        files = [(split_file(part.name)[0], part.source) for part in parts if part.source and is_file(part.name)]
        for file, known in dict.fromkeys(files):
            copy, content = self.place / "source" / Path(file).name, file_content(file, known)
            copy.parent.mkdir(exist_ok=True)
            if copy.exists() and copy.read_bytes() != content:
                copy = copy.with_stem(f"{copy.stem}-{known[:8]}")
            copy.write_bytes(content)

    def reset_log(self) -> None:
        """Delete the log and the checkpoint that an earlier attempt has left."""
        self.remove_checkpoint()
        (self.place / "log.jsonl").unlink(missing_ok=True)  # a former owner may go on writing it, but nobody reads it

    def remove_checkpoint(self) -> None:
        """Remove what the run could go on from."""
        place = self.place / CHECKPOINT
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)

    def write_origin(self) -> None:
        """Record what produces this run."""
        self.origin = origin() | self.details
        write_file(self.place / "origin.json", self.origin)

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
        """Write the model's weights. Raises ClaimLost if another worker holds the run now."""
        from safetensors.torch import save_file

        beside = self.place / f".weights-{uuid.uuid4().hex}"
        try:
            beside.touch()
            mode = beside.stat().st_mode  # as the umask has it; `save_file` lets only the owner read
            with disk_errors(beside):
                alone = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
                save_file({name: tensor.contiguous() for name, tensor in alone.items()}, beside)  # none share memory
            beside.chmod(mode)
            self.check_held()
            beside.replace(self.place / WEIGHTS)
        finally:
            beside.unlink(missing_ok=True)
        self.kept.append(WEIGHTS)

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
        digests = {file: digest(self.place / file) for file in dict.fromkeys(self.kept)}
        ended = Outcome(outcome, round(self.seconds, 2), note, digests)
        ended = ended._replace(digests=digests | {"done": ended.own_digest()})
        write_file(self.place / "done", ended._asdict())
        return ended

    def send_heartbeats(self) -> None:
        """Touch the claim every few seconds until the run is over."""
        while not self.stopped.wait(HEARTBEAT):
            with suppress(OSError):  # the disk may come back; if not, the run fails when it writes
                (self.claim / "owner.json").touch()


def origin() -> dict[str, Any]:
    """What produced a run, apart from its recipe: start time, commit, versions and host."""
    return {"begun": datetime.now(UTC).isoformat(timespec="seconds"), **environment()}


@cache
def environment() -> dict[str, Any]:
    """Commit, versions and host, looked up once."""
    host = {"name": socket.gethostname(), "system": platform.platform(), "processor": processor()}
    return {
        "commit": commit(),
        "versions": {"bestiary": __version__, "torch": version("torch"), "python": platform.python_version()},
        "host": host | {"cores": os.cpu_count()},
    }


def processor() -> str:
    """The model of this machine's processor, as far as the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of this package's source, with "-dirty" if it was changed since; None outside a git checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    result = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or None
