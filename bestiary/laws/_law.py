"""What laws share: how one is broken, and the law of options, which holds for mixers and tasks alike."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from bestiary.spec import Spec, is_own, locate, schema, spec
from bestiary.spec.options import signature_fault

DIM = 64  # the width at which mixers are checked
CLOSE = 1e-8  # how far two ways to the same number may differ in float64, relative to 1 and the largest
TOLERANCE: ContextVar[float] = ContextVar("tolerance", default=CLOSE)  # another where a module computes in less

Law = Callable[[Spec], None]


class Broken(Exception):
    """A law does not hold."""


@contextmanager
def tolerance(close: float) -> Iterator[None]:
    """In here numbers may differ by so much."""
    before = TOLERANCE.set(close)
    try:
        yield
    finally:
        TOLERANCE.reset(before)


def options(checked: Spec) -> None:
    """Wrong names and types are refused when the spec is made, wrong values when it is built, in one line."""
    known, cls = schema(checked.kind, checked.name), locate(checked.kind, checked.name)
    if is_own(cls) and (fault := signature_fault(cls)):
        raise Broken(fault)
    check_refusal(
        lambda: spec(checked.kind, checked.name, no_such_option=1), TypeError, "an option that does not exist"
    )
    for name, (_, default) in known.items():
        check_refusal(
            lambda name=name: spec(checked.kind, checked.name, **{name: object()}),
            TypeError,
            f"{name}=object()",
        )
        if isinstance(default, int) and not isinstance(default, bool):
            for value in (-1, 0, 1, 7):
                try_option(checked, name, value)


def check_refusal(call: Callable[[], Any], wanted: type[Exception], what: str) -> None:
    """Raises Broken unless the call raises `wanted` with a message of one line."""
    try:
        call()
    except wanted as fault:
        if "\n" in str(fault):
            raise Broken(f"the message about {what} has more than one line") from None
    else:
        raise Broken(f"{what} is accepted")


def try_option(checked: Spec, name: str, value: int) -> None:
    """Build with a value that may be wrong: it works, or a TypeError or ValueError says so."""
    given = (DIM,) if checked.kind == "mixers" else ()
    try:
        with torch.device("meta"):
            spec(checked.kind, checked.name, **{**dict(checked.options), name: value}).build(*given)
    except (TypeError, ValueError) as fault:
        if "\n" in str(fault):
            raise Broken(f"the message about {name}={value} has more than one line") from None
    except Exception as fault:
        raise Broken(f"{name}={value} raises {type(fault).__name__} instead of a ValueError") from None
