"""Names for things that can be built: a file, and keyword options for the one class it defines.

The folder is the registry: `bestiary/mixers/attention.py` is the mixer `attention`. The signature is the
schema: the keyword-only arguments of the one public class are the options, checked by name and by type.
A file of your own is named by its path, `./my_mixer.py`; an installed package adds names through the entry
point groups `bestiary.mixers` and `bestiary.tasks`.

A file of your own is run only if you have named it: in a pattern that you typed, or to `trust`. A path that comes
with data, such as a stored recipe, is never run: specs read from there keep their options as they were stored, and
are built from the file that you named, if that has the same content.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from pydantic import BeforeValidator, InstanceOf

from bestiary.spec.classes import class_name
from bestiary.spec.grammar import LAYERS, PATH, read_pattern
from bestiary.spec.loading import (
    READING,
    TRUSTED,
    as_tuples,
    file_content,
    file_path,
    find_class,
    is_file,
    load,
    locate,
    named_version,
    names,
    nearest,
    plain_name,
    reading_data,
    shortened,
    source,
    split_file,
    trust,
)
from bestiary.spec.options import check, is_own, schema, signature

__all__ = [
    "LAYERS",
    "Depth",
    "Mixers",
    "Natural",
    "Pattern",
    "Positive",
    "Spec",
    "Tasks",
    "all_parts",
    "file_content",
    "is_file",
    "is_own",
    "is_pattern",
    "load",
    "locate",
    "names",
    "nearest",
    "parse",
    "plain_name",
    "read_specs",
    "reading_data",
    "schema",
    "spec",
    "split_file",
    "trust",
]

NESTED = 16  # how deep patterns may stand within patterns

Positive = Annotated[int, Gt(0), Le(2**53)]  # above, a number is not exact in the JSON of others
Natural = Annotated[int, Ge(0), Le(2**53)]
Depth = Annotated[int, Gt(0), Le(LAYERS)]

NESTING: ContextVar[int] = ContextVar("nesting", default=0)


@dataclass(frozen=True)
class Spec:
    """What to build, every option written out, so that equal specs are the same build.

    >>> print(spec("mixers", "attention", heads=2, window=None))
    attention(heads=2)
    """

    kind: str
    name: str
    options: tuple[tuple[str, Any], ...]
    changed: tuple[str, ...] = ()  # the options that differ from their defaults
    source: str = ""  # what else the build depends on: the digest of a user's file, the version of a package
    named: bool = field(default=False, compare=False, repr=False)  # by the user, so that workers may run its file
    unwritten: tuple[str, ...] = field(default=(), compare=False, repr=False)  # later options at their defaults

    def build(self, *arguments: Any) -> Any:
        """The object itself; `arguments` are the positional ones of its class (a mixer's width).

        Raises LookupError for a file that nobody has named, ValueError for one that has changed since.
        """
        if self.named:
            file = split_file(self.name)[0]
            TRUSTED.setdefault((Path(file).stem, self.source), file_path(file).resolve())
        cls = find_class(self.kind, self.name, self.source)
        try:
            built = cls(*arguments, **dict(self.options))
        except AssertionError as fault:  # by which modules of PyTorch refuse a width
            raise ValueError(f"{self} at {', '.join(map(str, arguments))}: {fault}") from fault
        return built if self.kind != "mixers" or not is_own(cls) else adapt(built, str(self), *arguments)

    def __str__(self) -> str:
        written = {option: ", ".join(map(str, v)) if is_pattern(v) else v for option, v in self.options}
        given = ", ".join(f"{option}={written[option]!r}" for option in written if option in self.changed)
        name = repr(self.name) if is_file(self.name) and not PATH.fullmatch(self.name) else self.name
        return f"{name}({given})" if given else name

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two specs the same, wherever a user's file lies, as JSON."""
        name = plain_name(self.name) if self.source else self.name
        return {"name": name, "options": self.options_json(lambda part: part.identity), "source": self.source}

    @property
    def stored(self) -> dict[str, Any]:
        """As JSON from which `read_specs` makes the spec again."""
        options = self.options_json(lambda part: part.stored)
        return {"text": str(self), "name": self.name, "options": options, "source": self.source}

    def options_json(self, write: Callable[["Spec"], Any]) -> dict[str, Any]:
        """The options, specs within them written as JSON.

        Left out are those that a class names in `later_options`, at their defaults: what was made before the class had
        them keeps its key.
        """
        written = [(name, value) for name, value in self.options if name not in self.unwritten]
        return {name: [write(s) for s in value] if is_pattern(value) else value for name, value in written}

    @property
    def key(self) -> str:
        """A short name, equal exactly for equal builds."""
        return hashlib.sha256(json.dumps([self.kind, self.identity]).encode()).hexdigest()[:12]


def is_pattern(value: Any) -> bool:
    """Whether an option's value is made of specs."""
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], Spec)


def spec(kind: str, name: str | type, **options: Any) -> Spec:
    """A checked spec of a name, a file or a class. Raises LookupError or TypeError for what is unknown or wrong."""
    if isinstance(name, type):
        return class_spec(kind, name, **options)
    if is_file(name):
        version = named_version(name) if READING.get() else trust(name)
        return checked(kind, shortest_name(kind, name, version), options, version)
    return checked(kind, name, options, source(kind, name))


def checked(kind: str, name: str, options: Mapping[str, Any], version: str) -> Spec:
    """The spec of a class that may be loaded, its options checked."""
    cls = find_class(kind, name, version)
    defaults = {option: default for option, (_, default) in signature(cls).items()}
    given = {option: check(cls, name, option, value) for option, value in options.items()}
    changed = tuple(sorted(option for option, value in given.items() if value != defaults[option]))
    unwritten = tuple(option for option in getattr(cls, "later_options", ()) if option not in changed)
    every = tuple(sorted((defaults | given).items()))
    return Spec(kind, name, every, changed, version, is_file(name), unwritten)


def shortest_name(kind: str, name: str, version: str) -> str:
    """The name of a class in a file, without the class if the file alone means the same."""
    file, chosen = split_file(name)
    if not chosen:
        return name
    try:
        only = find_class(kind, file, version)
    except LookupError:
        return name
    return file if only is find_class(kind, name, version) else name


def class_spec(kind: str, cls: type, **options: Any) -> Spec:
    """The spec of a class: of one of ours, of one in a file, or of one that lives in this process alone."""
    name, version = class_name(kind, cls)
    return checked(kind, name, options, version)


def adapt(built: Any, label: str, *arguments: Any) -> Any:
    """What a user's class has built, as a mixer. Raises ValueError if it cannot be one."""
    return import_module("bestiary.mixers._own").as_mixer(built, label, *arguments)


def parse(kind: str, text: str) -> tuple[Spec, ...]:
    """Read `3*gated_delta, attention(window=64), ./mine.py(size=2), mqar.mamba2(pairs=8)`. Nothing is evaluated.

    A path with other characters than letters, digits and `_./~+-` stands in quotes, as in
    `"my mixers/a b.py"(size=2)`, with the escapes of Python; as the whole of a pattern it needs none.
    A file that is named here is run, except within `reading_data`.
    """
    return parse_anew(kind, text) if ".py" in text or "\\" in text else parse_cached(kind, text)


def parse_anew(kind: str, text: str) -> tuple[Spec, ...]:
    """`parse`, anew: a user's file may have changed."""
    known: dict[int, Spec] = {}  # parts that are repeated are made once
    calls = read_pattern(text)
    for call in calls:
        if id(call) not in known:
            options = preset_options(kind, call.name, call.preset) if call.preset else {}
            known[id(call)] = spec(kind, call.name, **(options | call.options))
    return bounded(tuple(known[id(call)] for call in calls))


parse_cached = cache(parse_anew)


def bounded(found: tuple[Spec, ...]) -> tuple[Spec, ...]:
    """The specs, if they are not more than can be built. Raises ValueError."""
    count, left = 0, list(found)
    while left:
        count += 1
        if count > LAYERS:
            raise ValueError(f"a pattern has more than {LAYERS:,} layers, those within others included")
        left += [part for _, value in left.pop().options if is_pattern(value) for part in value]
    return found


def all_parts(pattern: Iterable[Spec]) -> Iterator[Spec]:
    """The specs of a pattern, and those within their options."""
    for part in pattern:
        yield part
        yield from all_parts(inner for _, value in part.options if is_pattern(value) for inner in value)


def preset_options(kind: str, name: str, preset: str) -> dict[str, Any]:
    """The options that a task's preset stands for. Raises LookupError."""
    plain = spec(kind, name)
    presets = getattr(find_class(kind, name, plain.source), "presets", {})
    if preset not in presets:
        raise LookupError(f"{name} has no preset {preset!r} {nearest(preset, presets)}")
    (found,) = parse(kind, f"{plain}({presets[preset]})")
    return dict(found.options)


def read_specs(kind: str, given: Any) -> tuple[Spec, ...]:
    """Specs from specs, from their text, or from the JSON that they are stored as. Raises ValueError, LookupError."""
    if isinstance(given, Spec | type):
        given = [given]
    if not isinstance(given, list | tuple | str):
        raise ValueError(f"{shortened(given)} is no {kind.removesuffix('s')}, nor a list or a text of some")
    before = NESTING.set(NESTING.get() + 1)
    try:
        if NESTING.get() > NESTED:
            raise ValueError(f"patterns stand within patterns more than {NESTED} deep")
        items = [given] if isinstance(given, str) else given
        return bounded(tuple(part for item in items for part in read_item(kind, item)))
    except RecursionError:
        raise ValueError("a pattern is nested too deep") from None
    finally:
        NESTING.reset(before)


def read_item(kind: str, item: Any) -> tuple[Spec, ...]:
    """The specs of one item of a list: a spec, a text, or the JSON of one."""
    if isinstance(item, Spec):
        if item.kind != kind:
            raise ValueError(f"{item} is one of the {item.kind}, and {kind} are wanted here")
        return (item,)
    if isinstance(item, type):
        return (class_spec(kind, item),)
    if isinstance(item, str):
        return parse(kind, item)
    match item:
        case {"name": str(), "options": dict(), "source": str()}:
            with reading_data():
                return (read_stored(kind, item["name"], item["options"], item["source"], str(item.get("text", ""))),)
    raise ValueError(f"{shortened(item)} is no {kind.removesuffix('s')} as they are stored")


def read_stored(kind: str, name: str, options: dict[str, Any], version: str, text: str) -> Spec:
    """A spec as it was made before: with the same file or package it is checked, otherwise taken as it stands."""
    if is_file(name):
        if not version:
            raise ValueError(f"{shortened(name)} is stored without the digest of the file")
        file, chosen = split_file(name)
        path = TRUSTED.get((Path(file).stem, version))
        if path is not None:
            here = file_path(file, missing_ok=True)  # it keeps the name that it was stored by, if that is the same file
            same = here is not None and here.resolve() == path
            return checked(kind, name if same else f"{path}:{chosen}" if chosen else str(path), options, version)
    elif not version or version == source(kind, name):
        return checked(kind, name, options, version)
    values = {o: read_specs(kind, v) if is_stored_pattern(v) else as_tuples(v) for o, v in options.items()}
    try:
        changed = tuple(sorted(values.keys() & {option for call in read_pattern(text) for option in call.options}))
    except ValueError:
        changed = tuple(sorted(values))
    return Spec(kind, name, tuple(sorted(values.items())), changed, version)


def is_stored_pattern(value: Any) -> bool:
    """Whether an option was stored as specs."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) and "source" in v for v in value)


Pattern = str | Spec | type | Sequence[str | Spec | type]  # what mixers may be given as: text, specs, classes
Tasks = Annotated[tuple[InstanceOf[Spec], ...], BeforeValidator(lambda given: read_specs("tasks", given))]
Mixers = Annotated[tuple[InstanceOf[Spec], ...], BeforeValidator(lambda given: read_specs("mixers", given))]
