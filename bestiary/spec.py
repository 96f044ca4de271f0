"""Names for things that can be built: a file, and keyword options for the one class it defines.

The folder is the registry: `bestiary/mixers/attention.py` is the mixer `attention`. The signature is the
schema: the keyword-only arguments of the one public class are the options, checked by name and by type.
A file of your own is named by its path, `./my_mixer.py`; an installed package adds names through the entry
entry groups `bestiary.mixers` and `bestiary.tasks`.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_type_hints

from annotated_types import Ge, Gt
from pydantic import BeforeValidator, ConfigDict, InstanceOf, TypeAdapter, ValidationError

PACKAGE = Path(__file__).parent

Positive = Annotated[int, Gt(0)]
Natural = Annotated[int, Ge(0)]

QUOTED_OR_PATH = re.compile(r"""'[^']*'|"[^"]*"|[\w./~+-]*[\w-]\.py(?=\s*(?:[(,]|$))""")


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
    source: str = ""  # what else the build depends on: the hash of a user's file, the version of a package

    def build(self, *arguments: Any) -> Any:
        """The object itself; `arguments` are the positional ones of its class (a mixer's width)."""
        return locate(self.kind, self.name)(*arguments, **dict(self.options))

    def __str__(self) -> str:
        written = {option: ", ".join(map(str, v)) if is_pattern(v) else v for option, v in self.options}
        given = ", ".join(f"{option}={written[option]!r}" for option in written if option in self.changed)
        return f"{self.name}({given})" if given else self.name

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two specs the same, wherever a user's file lies, as JSON."""
        name = Path(self.name).stem if self.source else self.name
        return {"name": name, "options": self.options_json(lambda part: part.identity), "source": self.source}

    @property
    def stored(self) -> dict[str, Any]:
        """As JSON from which `read_specs` makes the spec again."""
        options = self.options_json(lambda part: part.stored)
        return {"text": str(self), "name": self.name, "options": options, "source": self.source}

    def options_json(self, write: Callable[["Spec"], Any]) -> dict[str, Any]:
        """The options, specs within them written as JSON."""
        return {name: [write(s) for s in value] if is_pattern(value) else value for name, value in self.options}

    @property
    def key(self) -> str:
        """A short name, equal exactly for equal builds."""
        return hashlib.sha256(json.dumps([self.kind, self.identity]).encode()).hexdigest()[:12]


def is_pattern(value: Any) -> bool:
    """Whether an option's value is made of specs."""
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], Spec)


def spec(kind: str, name: str, **options: Any) -> Spec:
    """A checked spec. Raises LookupError for an unknown name, TypeError for an unknown or wrong option."""
    defaults = {option: default for option, (_, default) in schema(kind, name).items()}
    checked = {option: check(kind, name, option, value) for option, value in options.items()}
    changed = tuple(sorted(option for option, value in checked.items() if value != defaults[option]))
    return Spec(kind, name, tuple(sorted((defaults | checked).items())), changed, source(kind, name))


def parse(kind: str, text: str) -> tuple[Spec, ...]:
    """Read `3*gated_delta, attention(window=64), ./mine.py(size=2), mqar.mamba2(pairs=8)`. Nothing is evaluated."""
    return parse_anew(kind, text) if ".py" in text else parse_cached(kind, text)


def parse_anew(kind: str, text: str) -> tuple[Spec, ...]:
    """`parse`, anew: a user's file may have changed."""
    paths: list[str] = []

    def placeholder(found: re.Match[str]) -> str:
        if found[0][0] in "'\"":
            return found[0]
        paths.append(found[0])
        return f"_path{len(paths) - 1}"

    plain = QUOTED_OR_PATH.sub(placeholder, text)

    def one_spec(written: ast.expr, options: dict[str, Any]) -> Spec:
        name, _, preset = ast.unparse(written).partition(".")
        name = paths[int(name[5:])] if name.startswith("_path") else name
        return spec(kind, name, **((preset_options(kind, name, preset) if preset else {}) | options))

    def items(node: ast.expr) -> tuple[Spec, ...]:
        match node:
            case ast.Tuple(elts=parts):
                return tuple(found for part in parts for found in items(part))
            case ast.BinOp(left=ast.Constant(value=int(times)), op=ast.Mult(), right=part) if times > 0:
                return times * items(part)
            case ast.Name() | ast.Attribute(value=ast.Name()):
                return (one_spec(node, {}),)
            case ast.Call(
                func=ast.Name() | ast.Attribute(value=ast.Name()) as called,
                args=[] | [ast.Constant(value=str())] as first,
                keywords=options,
            ) if all(o.arg for o in options):
                given = {str(o.arg): literal(o.value) for o in options}
                return (one_spec(called, {"mixers": literal(first[0])} | given if first else given),)  # serial('a, b')
            case _:
                raise ValueError(f"{ast.unparse(node)!r} is none of name, name(option=value), 3*name")

    def literal(node: ast.expr) -> Any:
        try:
            return ast.literal_eval(node)
        except ValueError:
            raise ValueError(f"{ast.unparse(node)!r} is not a value; quote text as in filler='zero'") from None

    try:
        return items(ast.parse(plain.strip(), mode="eval").body)
    except (SyntaxError, ValueError) as error:
        hint = error if isinstance(error, ValueError) else "write name, name(option=value) or 3*name, between commas"
        raise ValueError(f"cannot read {text!r}: {hint}") from None


parse_cached = cache(parse_anew)


def preset_options(kind: str, name: str, preset: str) -> dict[str, Any]:
    """The options that a task's preset stands for. Raises LookupError."""
    presets = getattr(locate(kind, name), "presets", {})
    if preset not in presets:
        raise LookupError(f"{name} has no preset {preset!r} {nearest(preset, presets)}")
    (found,) = parse(kind, f"{name}({presets[preset]})")
    return dict(found.options)


def read_specs(kind: str, given: Any) -> tuple[Spec, ...]:
    """Specs from specs, from their text, or from the JSON that they are stored as."""
    if isinstance(given, str):
        return parse(kind, given)
    if isinstance(given, Spec):
        return (given,)
    if not isinstance(given, list | tuple):
        raise ValueError(f"{given!r} is no {kind.removesuffix('s')}, nor a list or a text of some")
    return tuple(part for item in given for part in read_item(kind, item))


def read_item(kind: str, item: Any) -> tuple[Spec, ...]:
    """The specs of one item of a list: a spec, a text, or the JSON of one."""
    if not isinstance(item, dict):
        return (item,) if isinstance(item, Spec) else parse(kind, item)
    found = spec(kind, item["name"], **item["options"])
    if found.source != item["source"]:
        raise ValueError(f"{found.name} has changed since this recipe was made from it")
    return (found,)


Tasks = Annotated[tuple[InstanceOf[Spec], ...], BeforeValidator(lambda given: read_specs("tasks", given))]
Mixers = Annotated[tuple[InstanceOf[Spec], ...], BeforeValidator(lambda given: read_specs("mixers", given))]


def names(kind: str) -> list[str]:
    """Every name of a kind, built in or installed, without importing any of them."""
    built_in = {file.stem for file in (PACKAGE / kind).glob("[!_]*.py")}
    return sorted(built_in | {entry.name for entry in entry_points(group=f"bestiary.{kind}")})


def locate(kind: str, name: str) -> type:
    """The one public class that a file defines."""
    return only_class(load(kind, name))


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
    options = [p for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option.default is option.empty or option.name not in hints:
            raise TypeError(f"option {option.name!r} of {cls.__name__} needs a type and a default")
    return {option.name: TypeAdapter(hints[option.name], config=ConfigDict(strict=True)) for option in options}


def check(kind: str, name: str, option: str, value: Any) -> Any:
    """The value of an option, checked. Raises TypeError for an unknown option or a wrong value."""
    known = schema(kind, name)
    if option not in known:
        raise TypeError(f"{name} has no option {option!r} {nearest(option, known)}")
    try:
        return validators(locate(kind, name))[option].validate_python(as_tuples(value))
    except ValidationError as error:
        wanted = "; ".join(dict.fromkeys(detail["msg"] for detail in error.errors()))
        raise TypeError(f"{name}({option}={value!r}): {wanted}") from None


def as_tuples(value: Any) -> Any:
    """The value with its lists as tuples, so that specs can be compared and hashed."""
    return tuple(as_tuples(part) for part in value) if isinstance(value, list | tuple) else value


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown word."""
    close = get_close_matches(word, list(known), n=1)
    return f"among {sorted(known)}" + (f"; did you mean {close[0]!r}?" if close else "")


def load(kind: str, name: str) -> ModuleType | type:
    """The module of a name, or the class that an installed package gives for it. Raises LookupError."""
    if name.endswith(".py"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise LookupError(f"there is no file {name!r}")
        return load_file(kind, path.resolve(), digest(path))
    if is_built_in(kind, name):
        return importlib.import_module(f"bestiary.{kind}.{name}")
    if (entry := plugin(kind, name)) is not None:
        return entry.load()
    raise LookupError(
        f"no {kind.removesuffix('s')} {name!r} {nearest(name, names(kind))} (a file of your own is ./{name}.py)"
    )


def is_built_in(kind: str, name: str) -> bool:
    """Whether the package itself has a file of this name."""
    return name.isidentifier() and not name.startswith("_") and (PACKAGE / kind / f"{name}.py").is_file()


@cache
def load_file(kind: str, path: Path, version: str) -> ModuleType:
    """A user's file as a module, run once for each version of it."""
    name = f"bestiary_{kind}_{path.stem}_{version[:12]}"
    described = importlib.util.spec_from_file_location(name, path)
    if described is None or described.loader is None:
        raise LookupError(f"{path} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


def only_class(found: ModuleType | type) -> type:
    """The one public class that a module defines. Raises LookupError."""
    if isinstance(found, type):
        return found
    public = {name: c for name, c in inspect.getmembers(found, inspect.isclass) if not name.startswith("_")}
    own = [c for c in public.values() if c.__module__ == found.__name__]
    if len(own) != 1:
        given = ", ".join(c.__name__ for c in own) or "none"
        raise LookupError(f"{found.__file__} must define one public class (others as _Name), it defines {given}")
    return own[0]


def source(kind: str, name: str) -> str:
    """What else a build depends on: the digest of a user's file, the version of a package, or nothing."""
    if name.endswith(".py"):
        return digest(Path(name).expanduser())
    entry = None if is_built_in(kind, name) else plugin(kind, name)
    return f"{entry.dist.name} {entry.dist.version}" if entry is not None and entry.dist is not None else ""


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plugin(kind: str, name: str) -> EntryPoint | None:
    """The entry point of an installed package that has this name."""
    return next(iter(entry_points(group=f"bestiary.{kind}", name=name)), None)
