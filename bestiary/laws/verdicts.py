"""What the laws say of one mixer or task: each law holds, is broken, or is advice alone."""

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import torch

from bestiary.laws._law import CLOSE, DIM, Broken, Law, tolerance
from bestiary.laws.mixers import MIXER_LAWS, SAME_SHAPES, TIME, build_perturbed, random_inputs
from bestiary.laws.tasks import TASK_LAWS
from bestiary.mixers._form import error_text, form_fault, order_fault
from bestiary.mixers._own import lowest_precision
from bestiary.mixers._wrap import Carrying, Rereading
from bestiary.spec import Spec, is_own, locate

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}  # how far numbers computed so may differ
HINTS = {  # by what a mixer may fail on the inputs of the laws but not on shorter ones, or not in float32
    torch.float32: f"the laws need {TIME} positions",
    torch.float64: "the laws compute in float64: create tensors with dtype=x.dtype",
}
OWN_ADVICE = {"options"}  # laws that are advice for a user's own class
WRAPPED_ADVICE = {"no dead state", "stacking"}  # and for a module that was not written as a mixer


class Verdict(NamedTuple):
    """What one law says."""

    law: str
    fault: str | None  # what breaks it; None if it holds
    advice: bool = False  # whether it may be broken

    @property
    def broken(self) -> bool:
        """Whether the law is broken and must not be."""
        return self.fault is not None and not self.advice

    def __str__(self) -> str:
        mark = "ok" if self.fault is None else "advice" if self.advice else "BROKEN"
        return f"{mark:6}  {self.law}" + (f": {self.fault}" if self.fault else "")


def verdicts(checked: Spec) -> Iterator[Verdict]:
    """What each law says. If the form of a user's own mixer is wrong, that is the one verdict, and no law is run."""
    own = checked.kind == "mixers" and is_own(locate(checked.kind, checked.name))
    if own and (fault := own_fault(checked)):
        yield Verdict("form", fault)
        return
    advice, close = OWN_ADVICE if is_own(locate(checked.kind, checked.name)) else set[str](), CLOSE
    if own:
        mixer = build_perturbed(checked)
        advice = advice | WRAPPED_ADVICE if isinstance(mixer, Rereading | Carrying) else advice
        close = ROUNDING.get(lowest_precision(mixer, random_inputs()) or torch.float64, CLOSE)
    if close != CLOSE:
        kind = next(str(kind).removeprefix("torch.") for kind, by in ROUNDING.items() if by == close)
        told = f"it computes in {kind} inside, so numbers are held to the laws to {close:g} and not to {CLOSE:g}"
        told += f", to causality to {SAME_SHAPES:g}" if close > SAME_SHAPES else ""
        yield Verdict("precision", told, advice=True)
    for name, law in (MIXER_LAWS if checked.kind == "mixers" else TASK_LAWS).items():
        with tolerance(close):
            fault = fault_of(law, checked)
        yield Verdict(name, fault, advice=name in advice)


def fault_of(law: Law, checked: Spec) -> str | None:
    """What breaks a law, or None."""
    try:
        law(checked)
    except Broken as broken:
        return str(broken)
    except Exception as fault:  # anything at all may be wrong with a user's code, and is the verdict
        return f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else 'no message'}"
    return None


def own_fault(checked: Spec) -> str:
    """What is wrong with the form of a user's own mixer, in one sentence; empty if nothing is."""
    try:
        mixer = checked.build(DIM)
    except Exception as fault:  # as above
        said = (str(fault).strip() or "no message").splitlines()[0]
        named = locate(checked.kind, checked.name).__name__
        return said if isinstance(fault, ValueError) else f"{named}({DIM}) raises {type(fault).__name__}: {said}"
    if fault := form_fault(mixer, DIM, errors=True):
        return fault
    with suppress(Exception):  # of an input that it does not take; the laws say so
        if fault := order_fault(mixer, DIM):
            return fault
    for dtype, hint in HINTS.items():
        perturbed, x = build_perturbed(checked, dtype=dtype), random_inputs(dtype=dtype)
        try:
            perturbed(x)
        except Exception as fault:  # as above
            return f"{error_text(mixer, x, fault)}; {hint}"
    return ""
