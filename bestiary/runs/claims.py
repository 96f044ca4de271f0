"""Claims on a run: folders claim-0, claim-1, ... of which the last owns it, and whether their workers are alive.

A worker makes a claim by renaming a prepared folder to the next free name. On any file system only one worker
succeeds. A claim is alive while its process is alive on this machine, or while its heartbeat is fresh on another.
Where the system does not say when a process started, both must be so on this machine.
"""

import os
import socket
import uuid
from functools import cache
from pathlib import Path
from typing import Any

from bestiary.runs.files import FAULTS, read_fields, reason
from bestiary.runs.record import damaged_run

STALE_AFTER = 600.0  # seconds without a heartbeat after which a claim from another machine is dead
RUNS = "alive"  # what is known of a process where the system does not say when it started


def list_claims(place: Path) -> list[Path]:
    """The claims on a run, oldest first. Raises DamagedRun if one of them is no folder."""
    try:
        with os.scandir(place) as entries:
            numbers = {entry.name[6:]: entry for entry in entries if entry.name.startswith("claim-")}
            found = sorted((int(number), entry.is_dir()) for number, entry in numbers.items() if number.isdecimal())
    except FileNotFoundError:
        return []
    except OSError as fault:
        raise damaged_run(place, fault) from None
    for number, is_folder in found:
        if not is_folder:
            raise damaged_run(place, f"claim-{number}: it is no folder")
    return [place / f"claim-{number}" for number, _ in found]


def claim_number(claim: Path) -> int:
    """The number in a claim's name."""
    return int(claim.name.partition("-")[2])


def is_alive(claim: Path, *, now: float) -> bool:
    """Whether the worker that made a claim is still at work; `now` is in seconds by the file system's clock.

    Raises DamagedRun if the claim does not say whose it is, or its last heartbeat lies in the future.
    """
    if (claim / "released").exists():
        return False
    owner = read_owner(claim)
    if owner["machine"] == machine():
        start = process_start(owner["process"])
        if start != owner["born"]:
            return False
        if start != RUNS:  # it is that process, and no later one of the same number
            return True
    silence = now - (claim / "owner.json").stat().st_mtime
    if silence < -STALE_AFTER:
        raise damaged_run(claim.parent, f"{claim.name}/owner.json: its heartbeat is {-silence:.0f} s in the future")
    return silence < STALE_AFTER


def read_owner(claim: Path) -> dict[str, Any]:
    """The machine and process that made a claim. Raises DamagedRun if it does not say."""
    try:
        return read_fields(claim / "owner.json", machine=str, process=int, born=str)
    except FAULTS as fault:
        raise damaged_run(claim.parent, f"{claim.name}/{reason(fault)}") from None


def owner_of_this_process() -> dict[str, Any]:
    """What owner.json says of this process."""
    return {"machine": machine(), "process": os.getpid(), "born": process_start(os.getpid())}


def try_rename(prepared: Path, place: Path) -> bool:
    """Rename a folder, unless the new name is taken; whether it was renamed."""
    try:
        prepared.rename(place)
    except OSError:
        if place.exists():
            return holds_claim(place, prepared.name)
        raise
    return True


def holds_claim(place: Path, name: str) -> bool:
    """Whether a claim was prepared under this name: NFS may say that a folder was not renamed although it was."""
    try:
        return read_fields(place / "owner.json", claim=str)["claim"] == name
    except FAULTS:
        return False


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
    except (ProcessLookupError, OverflowError):
        return ""
    except PermissionError:
        pass
    return RUNS
