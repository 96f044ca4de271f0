"""What was derived from runs that are done, kept in one SQLite file, so that a store of many runs answers at once.

It is never the truth: it can be deleted at any time, and what it lacks is derived anew. Each entry has a seal, a digest
of its text, of the code that made it and of the size and time of the files it was made from; an entry whose seal does
not agree is not believed, whether the run was redone, the code has changed or the file is damaged. Where the file
cannot be read or written (a read-only or full disk, a lock held too long), everything works without it.
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

from bestiary.runs.store import Damaged, Record, Store, unreadable

NAME = ".index.sqlite"
FILES = ("recipe.json", "done", "log.jsonl")  # what a run is read from
SOURCES = (
    "runs/store.py",
    "training/recipe.py",
    "runs/index.py",
    "runs/table.py",
)  # the code that derives, within the package
PATIENCE = 2.0  # seconds to wait for a lock
BATCH = 1000  # runs written in one transaction
BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def derived(
    store: Store, keys: Iterable[str], derive: Callable[[Record], dict[str, Any]], *, part: str
) -> dict[str, Any]:
    """One part of what `derive` makes of each run begun, or the fault of a run that cannot be read, by its key.

    The parts must be JSON. Those of runs that are done come from the index where it has them.
    """
    folder, index = os.fspath(store.folder), store.folder / NAME
    marks = {key: mark for key in keys if (mark := marked(f"{folder}/{key}")) is not None}
    found, fresh, keeps = recalled(index, marks, part=part), [], True
    for key in [key for key in marks if key not in found]:
        try:
            record = store.read(key)
            parts = derive(record)
        except Damaged as fault:
            found[key] = fault
        except (LookupError, TypeError, ValueError, ArithmeticError) as fault:
            found[key] = unreadable(store.folder / key, fault)
        else:
            found[key] = parts[part]
            if record.ended is not None and all(marks[key]):
                fresh.append((key, marks[key], parts))
        if len(fresh) == BATCH:
            keeps, fresh = keeps and kept(index, fresh), []
    if fresh and keeps:
        kept(index, fresh)
    return found


def marked(place: str) -> tuple[str, ...] | None:
    """Time and size of each file that a run is read from, "" for one that is missing; None if none was begun."""
    marks = []
    for name in FILES:
        try:
            seen = os.stat(f"{place}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            marks.append("")
        except OSError as fault:  # it is there, and reading it will tell
            marks.append(str(fault.errno))
        else:
            marks.append(f"{seen.st_mtime_ns} {seen.st_size}")
    return tuple(marks) if marks[0] or marks[1] else None


def recalled(index: Path, marks: dict[str, tuple[str, ...]], *, part: str) -> dict[str, Any]:
    """What the index knows of the runs that stand as marked."""
    known: dict[str, Any] = {}
    ask = "SELECT seal, text FROM derived WHERE key = ? AND part = ?"
    try:
        with closing(sqlite3.connect(f"{index.absolute().as_uri()}?mode=ro", uri=True, timeout=PATIENCE)) as base:
            base.execute("BEGIN")
            for key, mark in marks.items():
                row = base.execute(ask, (key, part)).fetchone()
                if row is not None and row[0] == seal(key, mark, part, row[1]):
                    known[key] = json.loads(row[1])
    except sqlite3.Error as fault:
        discarded(index, fault)
    return known


def kept(index: Path, entries: Sequence[tuple[str, tuple[str, ...], dict[str, Any]]]) -> bool:
    """Whether the parts of these runs could be written into the index."""
    texts = [(key, mark, part, json.dumps(value)) for key, mark, parts in entries for part, value in parts.items()]
    rows = [(key, part, seal(key, mark, part, text), text) for key, mark, part, text in texts]
    for _ in range(2):
        try:
            with closing(sqlite3.connect(index, timeout=PATIENCE)) as base, base:
                base.execute("BEGIN IMMEDIATE")
                base.execute("CREATE TABLE IF NOT EXISTS derived (key, part, seal, text, PRIMARY KEY (key, part))")
                base.executemany("INSERT OR REPLACE INTO derived VALUES (?, ?, ?, ?)", rows)
            return True
        except sqlite3.Error as fault:
            if not discarded(index, fault, broken=(*BROKEN, sqlite3.SQLITE_ERROR)):  # the last: of another layout
                return False
    return False


def discarded(index: Path, fault: sqlite3.Error, *, broken: Sequence[int] = BROKEN) -> bool:
    """Whether a fault is that of a damaged index, which is then deleted."""
    if getattr(fault, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF not in broken:
        return False
    with suppress(OSError):
        index.unlink(missing_ok=True)
        index.with_name(f"{NAME}-journal").unlink(missing_ok=True)
    return True


def seal(key: str, mark: tuple[str, ...], part: str, text: Any) -> str:
    return hashlib.blake2b(f"{code()} {key} {mark} {part} {text}".encode(errors="replace"), digest_size=16).hexdigest()


@cache
def code() -> str:
    """A digest of the source files that what is kept was derived by."""
    places = [Path(__file__).parents[1] / name for name in SOURCES]
    return hashlib.sha256(b"".join(place.read_bytes() for place in places if place.is_file())).hexdigest()
