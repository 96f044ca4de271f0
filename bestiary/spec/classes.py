"""Names for classes that are given as such, and not by the name or the file that they come from."""

import hashlib
import inspect
import sys
from pathlib import Path

from bestiary.spec.choosing import is_task, narrowed, own_classes
from bestiary.spec.loading import LIVE, digest, is_built_in, locate, plain_name, trust

PLAIN = bool | int | float | str | bytes | tuple | frozenset | None
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

    That is the source of its functions, the values of its attributes, and both of its bases that have no file either.
    """
    own = [cls, *(base for base in cls.__mro__[1:] if not has_file(base))]
    try:
        return "".join(member_text(name, value) for base in own for name, value in vars(base).items())
    except (OSError, TypeError):
        return f"{cls.__qualname__} {id(cls)}"


def has_file(cls: type) -> bool:
    """Whether a class comes from a file or from Python itself, and not from a session or a function."""
    return (
        cls.__module__ == "builtins"
        or getattr(sys.modules.get(cls.__module__), cls.__name__, None) is cls
        and hasattr(sys.modules[cls.__module__], "__file__")
    )


def member_text(name: str, value: object) -> str:
    """The source of a function of a class, whatever wraps it, or the value of a plain attribute."""
    function = getattr(value, "__func__", getattr(value, "fget", value))
    if inspect.isfunction(function):
        return inspect.getsource(function)
    return f"{name} = {value!r}\n" if isinstance(value, PLAIN) and not name.startswith("__") else ""


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
