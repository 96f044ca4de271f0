"""What every mixer and every task must satisfy. CI and `bestiary check` run the same laws."""

from collections.abc import Iterator

from bestiary.laws._law import Broken, Law
from bestiary.laws.mixers import MIXER_LAWS
from bestiary.laws.tasks import TASK_LAWS
from bestiary.spec import Spec, locate, spec
from bestiary.spec.grammar import read_pattern

__all__ = ["MIXER_LAWS", "TASK_LAWS", "Broken", "Law", "check", "variants"]


def check(checked: Spec) -> Iterator[tuple[str, str | None]]:
    """Each law's name, and what breaks it or None."""
    for name, law in (MIXER_LAWS if checked.kind == "mixers" else TASK_LAWS).items():
        try:
            law(checked)
        except Broken as broken:
            yield name, str(broken)
        except Exception as fault:  # anything at all may be wrong with a user's code, and is the verdict
            yield (
                name,
                f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else 'no message'}",
            )
        else:
            yield name, None


def variants(kind: str, name: str) -> Iterator[Spec]:
    """A mixer or task with its defaults, and with the options under which it asks to be checked."""
    for options in ("", *getattr(locate(kind, name), "variants", ())):
        yield spec(kind, name, **read_pattern(f"named({options})")[0].options)
