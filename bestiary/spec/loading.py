"""From names to classes: files of the package, of installed packages, and of the user, who must have named them."""

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from bestiary.spec.choosing import choose_class

PACKAGE = Path(__file__).parents[1]
FEW = 12  # names that an error message lists
IN_FILE = re.compile(r"(.*\.py)(?::([^\W\d]\w*))?", re.DOTALL)  # a file, and a class in it

LIVE: dict[tuple[str, str, str], type] = {}  # classes that were given as such, by kind, plain name and version
TRUSTED: dict[tuple[str, str], Path] = {}  # the files that the user has named, by stem and digest: the only ones run
CONTENT: dict[str, bytes] = {}  # what these files held, by digest: they may change while a sweep goes on
READING: ContextVar[bool] = ContextVar("reading", default=False)  # whether text is data, and not what the user typed


@contextmanager
def reading_data() -> Iterator[None]:
    """In here text comes from data: a file that it names is run only if the user has named the same."""
    before = READING.set(True)
    try:
        yield
    finally:
        READING.reset(before)


def names(kind: str) -> list[str]:
    """Every name of a kind, built in or installed, without importing any of them."""
    built_in = {file.stem for file in (PACKAGE / kind).glob("[!_]*.py")}
    return sorted(built_in | {entry.name for entry in entry_points(group=f"bestiary.{kind}")})


def is_file(name: str) -> bool:
    """Whether a name is that of a user's file, or of a class in one: `my.py`, `my.py:Mine`."""
    return IN_FILE.fullmatch(name) is not None


def split_file(name: str) -> tuple[str, str]:
    """The file that a name begins with and the class that it may end with: `my.py:Mine` as ("my.py", "Mine")."""
    found = IN_FILE.fullmatch(name)
    return (found[1], found[2] or "") if found else (name, "")


def plain_name(name: str) -> str:
    """A name without the folder of its file: `here/my.py:Mine` as `my:Mine`, `here/my.py` as `my`."""
    file, chosen = split_file(name)
    return f"{Path(file).stem}:{chosen}" if chosen else Path(file).stem


def trust(name: Path | str) -> str:
    """Let a file of one's own be run, as what the user has named; its digest. Raises LookupError if there is none."""
    path = file_path(split_file(str(name))[0])
    content = path.read_bytes()
    version = hashlib.sha256(content).hexdigest()
    CONTENT[version] = content
    TRUSTED.pop((path.stem, version), None)  # the last to be named stands last
    TRUSTED[path.stem, version] = path.resolve()
    return version


def named_version(name: str) -> str:
    """The digest of a file when the user named it, found by its path without reading it. Raises LookupError."""
    path = Path(os.path.expanduser(split_file(name)[0]))
    for (stem, version), place in reversed(TRUSTED.items()):
        if stem == path.stem and place == path.resolve():
            return version
    raise unnamed(name)


def unnamed(name: str) -> LookupError:
    """What is said of a file that data names and the user does not."""
    return LookupError(f"{shortened(name)} is a file of code, run only if you name it, as with --trust-files FILE")


def file_path(name: str, *, missing_ok: bool = False) -> Any:
    """The path of a user's Python file. Raises LookupError if there is none, or returns None if that is no fault."""
    path = Path(os.path.expanduser(name))
    try:
        if path.suffix == ".py" and path.is_file():
            return path
    except (OSError, ValueError):  # too long, or with a null character: no file has such a name
        pass
    if missing_ok:
        return None
    raise LookupError(f"there is no file {shortened(name)}" + ("" if path.suffix == ".py" else ": it must end in .py"))


def locate(kind: str, name: str) -> type:
    """The class of a name; of a file, if the user has named it before. Raises LookupError."""
    return find_class(kind, name, source(kind, name))


def find_class(kind: str, name: str, version: str) -> type:
    """The class of this name and version. Raises LookupError or ValueError."""
    if (live := LIVE.get((kind, plain_name(name), version))) is not None:
        return live
    if name.startswith("<"):
        raise LookupError(
            f"{name[1:-1]} is known only where it was defined, as in a notebook: put it in a file of its own"
        )
    if not is_file(name):
        found, present = load(kind, name), source(kind, name)
        if present != version:
            made_with, here = version or "bestiary", present or "bestiary"
            raise ValueError(f"this was made with the {name} of {made_with}, not with that of {here}")
        return choose_class(kind, found)
    return choose_class(kind, load_named(kind, name, version), split_file(name)[1])


def load_named(kind: str, name: str, version: str) -> ModuleType:
    """The file that the user has named and that has this stem and digest. Raises LookupError or ValueError."""
    stem = Path(split_file(name)[0]).stem
    path = TRUSTED.get((stem, version))
    if path is not None:
        return load_file(kind, file_path(str(path)), version)
    if any(other == stem for other, _ in TRUSTED):
        raise ValueError(f"{stem}.py has changed since this was made with it")
    raise unnamed(name)


def as_tuples(value: Any) -> Any:
    """The value with its lists as tuples, so that specs can be compared and hashed."""
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown word: the nearest one, and all of a few."""
    every = sorted(known)
    close = get_close_matches(word[:100], every, n=1)
    if close and len(every) > FEW:
        return f"(did you mean {close[0]!r}?)"
    return f"among {every}" + (f"; did you mean {close[0]!r}?" if close else "")


def load(kind: str, name: str) -> ModuleType | type:
    """The module of a name, or the class that an installed package gives for it. Raises LookupError.

    A file is run only if the user has named it; that of an experiment is named by asking for it, as no data names one.
    """
    if is_file(name):
        return load_named(kind, name, trust(name) if kind == "experiments" else named_version(name))
    if is_built_in(kind, name):
        return importlib.import_module(f"bestiary.{kind}.{name}")
    if (entry := plugin(kind, name)) is not None:
        return entry.load()
    close = get_close_matches(name[:100], names(kind), n=1)
    hints = [f"did you mean {close[0]!r}?"] if close else []
    hints += [f"`bestiary list {kind}` names them all"]
    hints += [f"a file of your own is ./{name}.py"] if len(name) < 100 and name.isidentifier() else []
    raise LookupError(f"no {kind.removesuffix('s')} {shortened(name)} ({'; '.join(hints)})")


def is_built_in(kind: str, name: str) -> bool:
    """Whether the package itself has a file of this name."""
    return (
        len(name) < 100
        and name.isidentifier()
        and not name.startswith("_")
        and (PACKAGE / kind / f"{name}.py").is_file()
    )


@cache
def load_file(kind: str, path: Path, version: str) -> ModuleType:
    """A user's file of this digest as a module, run once. Raises ValueError if it has changed since."""
    content = read_version(path, version)
    name = f"bestiary_{kind}_{path.stem}_{version[:12]}"
    described = spec_from_file_location(name, path)
    if described is None:
        raise LookupError(f"{path} is no Python file")
    module = sys.modules[name] = module_from_spec(described)
    try:
        exec(compile(content, path, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def read_version(path: Path, version: str) -> bytes:
    """What a user's file holds, which must have this digest. Raises ValueError if it has changed since."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != version:
        raise ValueError(f"{path} has changed since this was made with it")
    CONTENT[version] = content
    return content


def file_content(name: str, version: str) -> bytes:
    """What a user's file held when it had this digest. Raises LookupError or ValueError if that is not known now."""
    return CONTENT[version] if version in CONTENT else read_version(file_path(name), version)


def source(kind: str, name: str) -> str:
    """What else a build depends on: the digest of a user's file, the version of a package, or nothing."""
    if is_file(name):
        return named_version(name)
    if name.startswith("<"):
        return next((version for of, known, version in reversed(LIVE) if (of, known) == (kind, name)), "")
    entry = None if is_built_in(kind, name) else plugin(kind, name)
    return f"{entry.dist.name} {entry.dist.version}" if entry is not None and entry.dist is not None else ""


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plugin(kind: str, name: str) -> EntryPoint | None:
    """The entry point of an installed package that has this name."""
    return next(iter(entry_points(group=f"bestiary.{kind}", name=name)), None)


def shortened(value: Any) -> str:
    """A value as Python writes it, without the middle of a long one."""
    try:
        written = repr(value)
    except (RecursionError, ValueError):  # deep, or a number of thousands of digits
        return "a value that is too large to show"
    return written if len(written) <= 160 else f"{written[:100]} ... {written[-40:]}"
