"""The laws from Python: `check` holds a mixer or a task to them and returns what they say."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bestiary.laws import variants
from bestiary.laws.verdicts import Verdict, verdicts
from bestiary.spec import Spec, is_file, names, nearest, read_specs, trust
from bestiary.spec.choosing import is_task
from bestiary.spec.classes import file_kind
from bestiary.spec.grammar import read_pattern


@dataclass(frozen=True)
class Report:
    """What the laws say of one or several specs; true if no law is broken. Printed, it is what `bestiary check` prints.

    `verdicts` has, for each spec, what each law says: `law`, `fault` (None if it holds), `advice` (it may be broken).
    In `broken` and `advice` the faults of several specs are joined, each behind the spec that it is of.
    """

    verdicts: dict[Spec, tuple[Verdict, ...]]

    @property
    def broken(self) -> dict[str, str]:
        """The laws that are broken, and by what."""
        return self.faults_by_law(advice=False)

    @property
    def advice(self) -> dict[str, str]:
        """What could be better but need not be, by law."""
        return self.faults_by_law(advice=True)

    def faults_by_law(self, *, advice: bool) -> dict[str, str]:
        """What breaks each law that must hold, or each that is `advice`."""
        faults: dict[str, list[str]] = {}
        for found, of_one in self.verdicts.items():
            for verdict in of_one:
                if verdict.fault is not None and verdict.advice == advice:
                    said = verdict.fault if len(self.verdicts) == 1 else f"{found}: {verdict.fault}"
                    faults.setdefault(verdict.law, []).append(said)
        return {law: "; ".join(said) for law, said in faults.items()}

    def __bool__(self) -> bool:
        return not self.broken

    def __str__(self) -> str:
        count = sum(v.broken for of_one in self.verdicts.values() for v in of_one)
        parts = [line for found, of_one in self.verdicts.items() for line in (str(found), *(f"  {v}" for v in of_one))]
        return "\n".join([*parts, summary(count)])

    __repr__ = __str__


def summary(broken: int) -> str:
    """The last line of a report."""
    return f"{broken} law{'' if broken == 1 else 's'} broken" if broken else "every law holds"


def check(target: str | type | Spec | Sequence[str | type | Spec]) -> Report:
    """Hold mixers or tasks to the laws: a pattern as text, a file, a class or a spec, or a list of those.

    What is given without options is also checked under the options that it asks for (its `variants`). Raises
    LookupError for an unknown name, TypeError or ValueError for options that cannot be, ValueError if nothing is given.

    >>> bool(check("lru"))
    True
    """
    specs = [found for one in target_specs(target) for found in under_variants(one)]
    if not specs:
        raise ValueError("nothing to check: name a mixer or a task")
    return Report({found: tuple(verdicts(found)) for found in dict.fromkeys(specs)})


def under_variants(one: Spec) -> tuple[Spec, ...]:
    """A spec with options as it is; one without also with those that it asks to be checked under."""
    return (one,) if one.changed else tuple(variants(one.kind, one.name))


def target_specs(
    target: str | type | Spec | Sequence[str | type | Spec], *, others: Sequence[str] = ()
) -> tuple[Spec, ...]:
    """The specs that are meant; an error about a name may point to `others`. Raises LookupError or ValueError."""
    if isinstance(target, Spec):
        return (target,)
    if isinstance(target, type):
        return read_specs("tasks" if is_task(target) else "mixers", target)
    if isinstance(target, str):
        return read_specs(kind_of(first_name(target), others), target)
    return tuple(found for one in target for found in target_specs(one))


def first_name(text: str) -> str:
    """The name that a pattern begins with, or a word that cannot be one, as a mistyped name. Raises ValueError."""
    try:
        return read_pattern(text)[0].name
    except ValueError:
        if re.fullmatch(r"[\w-]+", text):
            return text
        raise


def kind_of(name: str, others: Sequence[str]) -> str:
    """Whether a name is that of a mixer or of a task. Raises LookupError."""
    if is_file(name):
        trust(name)
        return file_kind(name)
    for kind in ("mixers", "tasks"):
        if name in names(kind):
            return kind
    raise LookupError(f"nothing is called {name!r} {nearest(name, [*names('mixers'), *names('tasks'), *others])}")
