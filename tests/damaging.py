"""Damage to files: truncated, flipped, emptied, deleted and replaced at many places; and the folder put right again."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

SHARE = float(os.environ.get("HOSTILE", "1"))  # of the counts: CI takes a tenth, `./lab test -m hostile` all
Recorder = Callable[[str, object], None]  # the fixture `record_property`
DEEP = b"[" * 100_000 + b"]" * 100_000


def share_of(count: int) -> int:
    """How many of so many are carried out."""
    return max(1, round(SHARE * count))


class Damage(NamedTuple):
    """What is done to one file of a folder."""

    file: str  # within the folder
    how: str
    apply: Callable[[Path], None]

    def __str__(self) -> str:
        return f"{self.file}: {self.how}"


def damages(folder: Path, rng: Random, *, many: int, files: Callable[[str], bool] = lambda _: True) -> list[Damage]:
    """At least `many` damages, spread evenly over the files of a folder."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    sources = [each(folder, name, rng) for name in names if files(name)]
    found: list[Damage] = []
    while sources and len(found) < many:
        for source in list(sources):
            damage = next(source, None)
            if damage is None:
                sources.remove(source)
            else:
                found.append(damage)
    return found


def each(folder: Path, name: str, rng: Random) -> Iterator[Damage]:
    """Damages to one file without end, those that are made only once first."""
    content = (folder / name).read_bytes()
    once = {
        "deleted": lambda path: path.unlink(),
        "emptied": writer(b""),
        "a folder in its place": in_place(lambda path: path.mkdir()),
        "a link to itself": in_place(lambda path: path.symlink_to(path.name)),
        "a link to nothing": in_place(lambda path: path.symlink_to("nowhere")),
        "one byte too many": writer(content + b"\0"),
        "twice": writer(content * 2),
        "zeros of its size": writer(bytes(len(content))),
        "not UTF-8": writer(b"\xff\xfe" + content),
    }
    if is_json(content):
        for text in ("null", "[]", "3", '"text"', "{}", "[null]", "NaN", '{"": 1}'):
            once[f"replaced by {text}"] = writer(text.encode())
        once["replaced by brackets 100,000 deep"] = writer(DEEP)
        for how, changed in json_changes(json.loads(content), rng):
            once[how] = writer(json.dumps(changed).encode())
    for how, apply in once.items():
        yield Damage(name, how, apply)
    while content:
        at = rng.randrange(len(content))
        bit = rng.randrange(8)
        yield Damage(name, f"bit {bit} of byte {at} flipped", writer(flip(content, at, bit)))
        yield Damage(name, f"cut after {at} bytes", writer(content[:at]))


def is_json(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        return False


def json_changes(value: dict[str, Any], rng: Random) -> Iterator[tuple[str, Any]]:
    """Each field of an object without, renamed, or of another value; and some within."""
    for name, part in value.items():
        rest = {other: kept for other, kept in value.items() if other != name}
        yield f"without {name!r}", rest
        yield f"{name!r} renamed", {**rest, f"{name}_": part}
        for other in rng.sample((None, -1, 10**30, "x", [], {}, [[]], True, 0.5, "../../etc", {"a": {"b": []}}), 3):
            if other != part:
                yield f"{name!r} = {other!r}", {**value, name: other}
        if isinstance(part, dict):
            for how, changed in json_changes(part, rng):
                yield f"in {name!r}: {how}", {**value, name: changed}
        if isinstance(part, list) and part and isinstance(part[0], dict):
            for how, changed in json_changes(part[0], rng):
                yield f"in {name!r}[0]: {how}", {**value, name: [changed, *part[1:]]}


def flip(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


def writer(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def in_place(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


class Folder:
    """A folder that can be put right again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}
        self.folders = {p.relative_to(path) for p in path.rglob("*") if p.is_dir()}

    def restore(self) -> None:
        """Undo every change."""
        for place, folders, names in os.walk(self.path, topdown=False):
            for name in names:
                path = Path(place) / name
                if path.is_symlink() or path.relative_to(self.path) not in self.files:
                    path.unlink()
            for name in folders:
                path = Path(place) / name
                if path.is_symlink():
                    path.unlink()
                elif path.relative_to(self.path) not in self.folders:
                    shutil.rmtree(path)
        for name in self.folders:
            (self.path / name).mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            path = self.path / name
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)


class Findings:
    """What went wrong, each with what shows it."""

    def __init__(self) -> None:
        self.tried, self.refused, self.found = 0, 0, dict[str, list[str]]()

    def note(self, fault: str, shown: str) -> None:
        self.found.setdefault(fault, []).append(shown)

    def __str__(self) -> str:
        ordered = sorted(self.found.items(), key=lambda item: -len(item[1]))
        return "\n".join(f"{len(shown)} x {fault}\n    {min(shown, key=len)}" for fault, shown in ordered)
