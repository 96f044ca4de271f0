"""Which class of a file is meant, when the file defines several."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

BASES = {  # of what is built of each kind, those that are looked for first standing first; torch need not be loaded
    "mixers": (("bestiary.mixers._mixer", "Mixer"), ("torch.nn.modules.module", "Module")),
    "tasks": (("bestiary.tasks._task", "Task"),),
}


def choose_class(kind: str, found: ModuleType | type, chosen: str = "") -> type:
    """The class of a module that is named `chosen`, or the one that it defines of this kind. Raises LookupError."""
    if isinstance(found, type):
        return found
    file = str(found.__file__)
    own = own_classes(found)
    if chosen:
        cls = getattr(found, chosen, None)
        if not isinstance(cls, type):
            raise LookupError(f"{file} has no class {chosen!r}; it defines {class_names(own)}")
        return cls
    candidates = own
    for some in (own, *narrowed(kind, own)):
        if len(some) == 1:
            return some[0]
        candidates = some or candidates
    hint = "; an experiment is run by `bestiary run`" if hasattr(found, "recipes") else ""
    hint = f": name the one you mean, as in {Path(file).name}:{candidates[0].__name__}" if candidates else hint
    raise LookupError(
        f"{file} must define one public class (others as _Name), it defines {class_names(candidates)}{hint}"
    )


def narrowed(kind: str, own: list[type]) -> Iterator[list[type]]:
    """Fewer and fewer of the classes that may be meant: those derived from the bases of the kind, and fit to build."""
    for base in BASES.get(kind, ()):
        derived = [cls for cls in own if is_derived(cls, base)]
        if derived:
            yield derived
            if kind == "mixers":
                yield [cls for cls in derived if first_parameter(cls) == "dim"]
            return


def own_classes(module: ModuleType) -> list[type]:
    """The public classes that a module itself defines."""
    public = {name: c for name, c in inspect.getmembers(module, inspect.isclass) if not name.startswith("_")}
    return [c for c in public.values() if c.__module__ == module.__name__]


def class_names(classes: list[type]) -> str:
    """The names of classes, for an error message."""
    return ", ".join(cls.__name__ for cls in classes) or "none"


def is_derived(cls: type, base: tuple[str, str]) -> bool:
    """Whether a class has a base of this module and name; the module need not be loaded."""
    return any((parent.__module__, parent.__name__) == base for parent in cls.__mro__)


def is_task(cls: type) -> bool:
    """Whether a class is one of tasks."""
    return is_derived(cls, BASES["tasks"][0])


def first_parameter(cls: type) -> str:
    """The name of what the constructor takes first, empty if nothing."""
    try:
        parameters = list(inspect.signature(cls).parameters.values())
    except (TypeError, ValueError):
        return ""
    first = parameters[0] if parameters else None
    return (
        first.name if first is not None and first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD) else ""
    )
