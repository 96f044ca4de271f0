"""From names to classes: files of the package, of installed packages, and of the user, who must have named them."""

import hashlib
import importlib
import inspect
import os
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
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

PACKAGE = Path(__file__).parents[1]
FEW = 12  # names that an error message lists

TRUSTED: dict[tuple[str, str], Path] = {}  # the files that the user has named, by stem and digest: the only ones run
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


def trust(name: Path | str) -> str:
    """Let a file of one's own be run, as what the user has named; its digest. Raises LookupError if there is none."""
    path = file_path(str(name))
    version = digest(path)
    TRUSTED.pop((path.stem, version), None)  # the last to be named stands last
    TRUSTED[path.stem, version] = path.resolve()
    return version


def named_version(name: str) -> str:
    """The digest of a file when the user named it, found by its path without reading it. Raises LookupError."""
    path = Path(os.path.expanduser(name))
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
    """The one public class of this name and version. Raises LookupError or ValueError."""
    if not name.endswith(".py"):
        found, present = load(kind, name), source(kind, name)
        if present != version:
            made_with, here = version or "bestiary", present or "bestiary"
            raise ValueError(f"this was made with the {name} of {made_with}, not with that of {here}")
        return only_class(found)
    return only_class(load_named(kind, name, version))


def load_named(kind: str, name: str, version: str) -> ModuleType:
    """The file that the user has named and that has this stem and digest. Raises LookupError or ValueError."""
    stem = Path(name).stem
    path = TRUSTED.get((stem, version))
    if path is not None:
        return load_file(kind, file_path(str(path)), version)
    if any(other == stem for other, _ in TRUSTED):
        raise ValueError(f"{stem}.py has changed since this was made with it")
    raise unnamed(name)


def schema(kind: str, name: str) -> dict[str, tuple[Any, Any]]:
    """Type and default of each option."""
    return signature(locate(kind, name))


@cache
def signature(cls: type) -> dict[str, tuple[Any, Any]]:
    """Type and default of each option of a class."""
    types = validators(cls)
    hints = get_type_hints(cls.__init__, include_extras=True)
    defaults = {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.name in types}
    return {name: (hints[name], types[name].validate_python(default)) for name, default in defaults.items()}


@cache
def validators(cls: type) -> dict[str, Any]:
    """What checks each option of a class. Raises TypeError for an option without a type or a default."""
    hints = get_type_hints(cls.__init__, include_extras=True)
    parameters = list(inspect.signature(cls).parameters.values())
    options = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    for given in parameters:
        if given.kind is given.POSITIONAL_OR_KEYWORD and given.default is not given.empty:
            raise TypeError(f"option {given.name!r} of {cls.__name__} must be keyword-only: put `*, ` before it")
    for option in options:
        if option.default is option.empty or option.name not in hints:
            raise TypeError(f"option {option.name!r} of {cls.__name__} needs a type and a default")
    strict = ConfigDict(strict=True, allow_inf_nan=False)
    return {option.name: TypeAdapter(hints[option.name], config=strict) for option in options}


def check(cls: type, name: str, option: str, value: Any) -> Any:
    """The value of an option, checked. Raises TypeError for an unknown option or a wrong value."""
    known = validators(cls)
    if option not in known:
        raise TypeError(f"{name} has no option {option!r} {nearest(option, known)}")
    try:
        return known[option].validate_python(as_tuples(value))
    except ValidationError as error:
        wanted = "; ".join(dict.fromkeys(detail["msg"].removeprefix("Value error, ") for detail in error.errors()))
        raise TypeError(f"{name}({option}={shortened(value)}): {wanted}") from None


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
    if name.endswith(".py"):
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
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != version:
        raise ValueError(f"{path} has changed since this was made with it")
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


def only_class(found: ModuleType | type) -> type:
    """The one public class that a module defines. Raises LookupError."""
    if isinstance(found, type):
        return found
    public = {name: c for name, c in inspect.getmembers(found, inspect.isclass) if not name.startswith("_")}
    own = [c for c in public.values() if c.__module__ == found.__name__]
    if len(own) != 1:
        given = ", ".join(c.__name__ for c in own) or "none"
        hint = "; an experiment is run by `bestiary run`" if hasattr(found, "recipes") else ""
        raise LookupError(f"{found.__file__} must define one public class (others as _Name), it defines {given}{hint}")
    return own[0]


def source(kind: str, name: str) -> str:
    """What else a build depends on: the digest of a user's file, the version of a package, or nothing."""
    if name.endswith(".py"):
        return named_version(name)
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
