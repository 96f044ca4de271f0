"""A cache of what was computed from finished runs, in one SQLite file, so that a large store answers at once.

It can be deleted at any time; what it lacks is computed again. Each entry has a seal: a digest of its text, of the code
that computed it, and of the size and time of the files it was computed from. An entry whose seal does not agree is
ignored, whether the run was redone, the code has changed or the cache is damaged. Where the cache cannot be read or
written (a read-only or full disk, a lock held too long), everything works without it.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any

from bestiary.runs.files import FAULTS, no_collections
from bestiary.runs.record import DamagedRun, Record, damaged_run
from bestiary.runs.store import Store

NAME = ".index.sqlite"
FILES = ("recipe.json", "done", "log.jsonl", "origin.json")  # what a run is read from
SOURCES = (
    "runs/record.py",
    "runs/store.py",
    "training/recipe.py",
    "runs/index.py",
    "runs/table.py",
    "runs/health.py",
)  # the code that computes the entries, within the package
LOCK_TIMEOUT = 2.0  # seconds to wait for a lock
BATCH = 1000  # runs written in one transaction
BROKEN_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@no_collections()
def cached_parts(
    store: Store, keys: Iterable[str], compute: Callable[[Record], dict[str, Any]], *, part: str
) -> dict[str, Any]:
    """By key, one part of what `compute` returns for each run that was started, or a DamagedRun.

    The parts must be JSON. Those of finished runs come from the cache where it has them.
    """
    folder, index = os.fspath(store.folder), store.folder / NAME
    stamps = {key: stamp for key in keys if (stamp := file_stamps(f"{folder}/{key}")) is not None}
    found, new, writable = look_up(index, stamps, part=part), [], True
    for key in [key for key in stamps if key not in found]:
        try:
            record = store.read(key)
            parts = compute(record)
        except DamagedRun as fault:
            found[key] = fault
        except FAULTS as fault:
            found[key] = damaged_run(store.folder / key, fault)
        else:
            found[key] = parts[part]
            if record.ended is not None and all(stamps[key][:3]):
                new.append((key, stamps[key], parts))
        if len(new) == BATCH:
            writable, new = writable and save(index, new), []
    if new and writable:
        save(index, new)
    return found


def file_stamps(place: str) -> tuple[str, ...] | None:
    """Time and size of each file that a run is read from, "" for one that is missing; None if there is no such run."""
    stamps = []
    for name in FILES:
        try:
            status = os.stat(f"{place}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            stamps.append("link" if os.path.islink(f"{place}/{name}") else "")
        except OSError as fault:  # it exists; reading it will say what is wrong
            stamps.append(str(fault.errno))
        else:
            stamps.append(f"{status.st_mtime_ns} {status.st_size}")
    return tuple(stamps) if stamps[0] or stamps[1] else None


def look_up(index: Path, stamps: dict[str, tuple[str, ...]], *, part: str) -> dict[str, Any]:
    """What the cache holds for runs whose files have these stamps."""
    known: dict[str, Any] = {}
    query = "SELECT seal, text FROM derived WHERE key = ? AND part = ?"
    try:
        with closing(sqlite3.connect(f"{index.absolute().as_uri()}?mode=ro", uri=True, timeout=LOCK_TIMEOUT)) as base:
            base.execute("BEGIN")
            for key, stamp in stamps.items():
                row = base.execute(query, (key, part)).fetchone()
                if row is not None and row[0] == seal(key, stamp, part, row[1]):
                    known[key] = json.loads(row[1])
    except sqlite3.Error as fault:
        discard_if_broken(index, fault)
    return known


def save(index: Path, entries: Sequence[tuple[str, tuple[str, ...], dict[str, Any]]]) -> bool:
    """Write the parts of these runs into the cache; whether that was possible."""
    texts = [(key, stamp, part, json.dumps(value)) for key, stamp, parts in entries for part, value in parts.items()]
    rows = [(key, part, seal(key, stamp, part, text), text) for key, stamp, part, text in texts]
    for _ in range(2):
        try:
            with closing(sqlite3.connect(index, timeout=LOCK_TIMEOUT)) as base, base:
                base.execute("BEGIN IMMEDIATE")
                base.execute("CREATE TABLE IF NOT EXISTS derived (key, part, seal, text, PRIMARY KEY (key, part))")
                base.executemany("INSERT OR REPLACE INTO derived VALUES (?, ?, ?, ?)", rows)
            return True
        except sqlite3.Error as fault:
            broken = (*BROKEN_CODES, sqlite3.SQLITE_ERROR)  # the last: its tables are others
            if not discard_if_broken(index, fault, broken=broken):
                return False
    return False


def discard_if_broken(index: Path, fault: sqlite3.Error, *, broken: Sequence[int] = BROKEN_CODES) -> bool:
    """Delete the cache if it is damaged; whether it was."""
    if getattr(fault, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF not in broken:
        return False
    with suppress(OSError):
        index.unlink(missing_ok=True)
        index.with_name(f"{NAME}-journal").unlink(missing_ok=True)
    return True


def seal(key: str, stamp: tuple[str, ...], part: str, text: Any) -> str:
    """The digest that an entry must have to be believed."""
    content = f"{code_digest()} {key} {stamp} {part} {text}"
    return hashlib.blake2b(content.encode(errors="replace"), digest_size=16).hexdigest()


@cache
def code_digest() -> str:
    """A digest of the source files that compute the entries."""
    places = [Path(__file__).parents[1] / name for name in SOURCES]
    return hashlib.sha256(b"".join(place.read_bytes() for place in places if place.is_file())).hexdigest()
