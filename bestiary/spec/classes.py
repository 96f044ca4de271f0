"""Names for classes that are given as such, and not by the name or the file that they come from."""

import hashlib
import inspect
import sys
from pathlib import Path
from types import FunctionType

from bestiary.spec.choosing import is_task, narrowed, own_classes
from bestiary.spec.loading import LIVE, digest, is_built_in, locate, plain_name, trust

PLAIN = bool | int | float | str | bytes | None
FIRST_SEEN: dict[type, str] = {}  # the digests of files when their classes were first given


def class_name(kind: str, cls: type) -> tuple[str, str]:
    """The name and the version of a class, by which this process finds it again, and others too if it has a file.

    Raises ValueError if its file has changed since the class was first given.
    """
    short = cls.__module__.rpartition(".")[2]
    if cls.__module__ == f"bestiary.{kind}.{short}" and is_built_in(kind, short):
        return short, ""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None) if module is not None else None
    if module is None or file is None or not file.endswith(".py") or getattr(module, cls.__name__, None) is not cls:
        name = f"<{cls.__name__}>"
        version = hashlib.sha256(source_text(cls).encode()).hexdigest()
    else:
        version = digest(Path(file))
        if FIRST_SEEN.setdefault(cls, version) != version:
            raise ValueError(f"{file} has changed since {cls.__name__} was loaded from it; load it again")
        trust(file)
        alone = any(some == [cls] for some in (own_classes(module), *narrowed(kind, own_classes(module))))
        name = file if alone else f"{file}:{cls.__name__}"
    LIVE[kind, plain_name(name), version] = cls
    return name, version


def source_text(cls: type) -> str:
    """What tells a class without a file from others: its source where that is known, otherwise the class itself.

    That is the source of its functions and the values that they have from where they were defined, the values of its
    attributes, both of its bases that have no file either, and the names of its other bases.
    """
    try:
        return "".join(map(base_text, cls.__mro__))
    except (OSError, TypeError, ValueError, RecursionError):
        return f"{cls.__qualname__} {id(cls)}"


def base_text(cls: type) -> str:
    """The name of a class that has a file, all that belongs to another. Raises OSError, TypeError or ValueError."""
    if has_file(cls):
        return f"{cls.__module__}.{cls.__qualname__}\n"
    return "".join(member_text(name, value) for name, value in vars(cls).items())


def has_file(cls: type) -> bool:
    """Whether a class comes from a file or from Python itself, and not from a session or a function."""
    return (
        cls.__module__ == "builtins"
        or getattr(sys.modules.get(cls.__module__), cls.__name__, None) is cls
        and hasattr(sys.modules[cls.__module__], "__file__")
    )


def member_text(name: str, value: object) -> str:
    """A member of a class: the source of its functions, or its value."""
    if isinstance(value, property):
        return "".join(member_text(f"{name}.{part}", getattr(value, part)) for part in ("fget", "fset", "fdel"))
    function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
    if inspect.isfunction(function):
        return f"{name}: {type(value).__name__}\n{function_text(function)}"
    return "" if name.startswith("__") or name == "_abc_impl" else f"{name} = {value_text(value)}\n"


def function_text(function: FunctionType) -> str:
    """The source of a function, its defaults, and the values that it has from the functions around it."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    around = {name: cell.cell_contents for name, cell in cells if name != "__class__"}
    values = [function.__defaults__, function.__kwdefaults__, around]
    return inspect.getsource(function.__code__) + value_text(values) + "\n"  # of a wrapper, not what it wraps


def value_text(value: object) -> str:
    """A value as text that tells it from others. Raises TypeError for one of which no text is known to do that."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{value_text(key)}: {value_text(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple | set | frozenset):
        texts = [value_text(item) for item in value]
        return f"{type(value).__name__}({', '.join(texts if isinstance(value, list | tuple) else sorted(texts))})"
    if inspect.isfunction(value):
        return function_text(value)
    if isinstance(value, type) and has_file(value):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(f"{type(value).__name__} is no plain value")


def file_kind(name: str) -> str:
    """Whether a file that the user has named, or a class in it, is of mixers or of tasks. Raises LookupError."""
    try:
        return "tasks" if is_task(locate("mixers", name)) else "mixers"
    except LookupError:
        try:
            locate("tasks", name)
        except LookupError:
            pass
        else:
            return "tasks"
        raise
