"""The options of a class: its constructor's parameters, beyond the width, with their types and defaults.

Classes of the package take keyword-only options with types and defaults. A user's own class may be more casual: an
option may also be given by place, and one without a type has that of its default. A default that no file could store,
such as a function, is left as it is, and is no option.
"""

import inspect
from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from bestiary.spec.choosing import is_task
from bestiary.spec.loading import as_tuples, locate, nearest, shortened

PLAIN = (bool, int, float, str)  # the types of values that are stored


def schema(kind: str, name: str) -> dict[str, tuple[Any, Any]]:
    """Type and default of each option."""
    return signature(locate(kind, name))


@cache
def signature(cls: type) -> dict[str, tuple[Any, Any]]:
    """Type and default of each option of a class."""
    types, hints = validators(cls), read_hints(cls)
    defaults = {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.name in types}
    return {
        name: (hints.get(name, type(default)), types[name].validate_python(as_tuples(default)))
        for name, default in defaults.items()
    }


@cache
def validators(cls: type) -> dict[str, Any]:
    """What checks each option of a class. Raises TypeError for an option without a type or a default."""
    hints, parameters = read_hints(cls), list(inspect.signature(cls).parameters.values())
    if is_own(cls):
        return own_validators(cls, parameters, hints)
    if fault := signature_fault(cls):
        raise TypeError(fault)
    options = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    strict = ConfigDict(strict=True, allow_inf_nan=False)
    return {option.name: TypeAdapter(hints[option.name], config=strict) for option in options}


def signature_fault(cls: type) -> str:
    """The first option of a class that is not keyword-only, with a type and a default; empty if there is none."""
    hints, parameters = read_hints(cls), list(inspect.signature(cls).parameters.values())
    for given in parameters[0 if is_task(cls) else 1 :]:
        if given.kind is given.POSITIONAL_OR_KEYWORD and given.default is not given.empty:
            return f"option {given.name!r} of {cls.__name__} must be keyword-only: put `*, ` before it"
    for option in parameters:
        if option.kind is option.KEYWORD_ONLY and (option.default is option.empty or option.name not in hints):
            return f"option {option.name!r} of {cls.__name__} needs a type and a default"
    return ""


def read_hints(cls: type) -> dict[str, Any]:
    """The annotations of a constructor; none where a user's own cannot be resolved."""
    try:
        return get_type_hints(cls.__init__, include_extras=True)
    except (NameError, TypeError, AttributeError):
        if is_own(cls):
            return {}
        raise


def is_own(cls: type) -> bool:
    """Whether a class is a user's own, and not one of this package."""
    return cls.__module__.partition(".")[0] != "bestiary"


def own_validators(cls: type, parameters: list[inspect.Parameter], hints: dict[str, Any]) -> dict[str, Any]:
    """What checks the options of a user's own class. Raises TypeError if it cannot be built from a width alone."""
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not is_task(cls):
        check_width(cls, parameters)
        named = [p for p in named if p is not parameters[0]]
    for given in named:
        if given.default is given.empty:
            missing = (
                "a type and a default" if given.kind is given.KEYWORD_ONLY else "a default: only the width has none"
            )
            raise TypeError(f"option {given.name!r} of {cls.__name__} needs {missing}")
    return {p.name: own_validator(p.default, hints.get(p.name)) for p in named if is_plain(p.default)}


def check_width(cls: type, parameters: list[inspect.Parameter]) -> None:
    """Raises TypeError unless the first thing that a constructor takes may be a width."""
    first = parameters[0] if parameters else None
    wanted = "write def __init__(self, dim), with options as in def __init__(self, dim, *, heads: int = 4)"
    inherited = cls.__init__.__qualname__ == "Module.__init__"  # takes anything and refuses it
    if first is None or inherited or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
        raise TypeError(f"{cls.__name__}.__init__ takes no width: {wanted}")
    if first.name in ("config", "cfg", "args"):
        raise TypeError(
            f"{cls.__name__}.__init__ takes {first.name!r} and not a width: write a class whose __init__(self, dim) "
            "makes the one and builds the other"
        )


def is_plain(value: Any) -> bool:
    """Whether a value can be stored as JSON and compared."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in PLAIN


def check_plain(value: Any) -> Any:
    """The value, if it can be stored. Raises ValueError."""
    if not is_plain(value):
        raise ValueError("Input should be a number, a text, None, or a list of those")
    return value


def own_validator(default: Any, hint: Any) -> Any:
    """What checks an option of a user's own class: its annotation if it has one that its default fits."""
    config = ConfigDict(strict=True, allow_inf_nan=False)
    for kind in (hint, None if default is None else type(as_tuples(default))):
        try:
            found = None if kind is None else TypeAdapter(kind, config=config)
            if found is not None:
                found.validate_python(as_tuples(default))
                return found
        except (ValidationError, PydanticSchemaGenerationError):
            pass
    return TypeAdapter(Annotated[Any, AfterValidator(check_plain)])


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
