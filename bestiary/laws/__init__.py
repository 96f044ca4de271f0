"""What every mixer and every task must satisfy. CI and `bestiary check` run the same laws."""

from collections.abc import Iterator

from bestiary.laws._law import Broken, Law
from bestiary.laws.mixers import MIXER_LAWS
from bestiary.laws.tasks import TASK_LAWS
from bestiary.laws.verdicts import Verdict, verdicts
from bestiary.spec import Spec, locate, spec
from bestiary.spec.grammar import read_pattern

__all__ = ["MIXER_LAWS", "TASK_LAWS", "Broken", "Law", "Verdict", "check", "variants", "verdicts"]


def check(checked: Spec) -> Iterator[tuple[str, str | None]]:
    """Each law's name, and what breaks it or None; advice counts as broken here."""
    for verdict in verdicts(checked):
        yield verdict.law, verdict.fault


def variants(kind: str, name: str) -> Iterator[Spec]:
    """A mixer or task with its defaults, and with the options under which it asks to be checked."""
    for options in ("", *getattr(locate(kind, name), "variants", ())):
        yield spec(kind, name, **read_pattern(f"named({options})")[0].options)
