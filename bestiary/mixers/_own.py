"""What a user's own file may hold in place of a mixer: any module that maps (batch, time, dim) to the same shape.

A module `forward(x) -> y` becomes a mixer that rereads its input (`Rereading`); one that takes and returns a state,
`forward(x, state=None) -> (y, state)`, becomes one as it is (`Carrying`). What cannot become one is refused in one
sentence.
"""

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bestiary.mixers._form import form_fault
from bestiary.mixers._mixer import Mixer
from bestiary.mixers._wrap import Carrying, Rereading

STATE_NAMES = {  # what the second argument of a module is called if it is a state
    *("state", "states", "cache", "hx", "hidden", "hidden_state", "past", "carry", "memory", "mem", "h", "h0"),
    *("init_state", "initial_state", "prev_state", "recurrent_state"),
}
TRIED: set[tuple[type, str, bool]] = set()  # classes, how they are named, and whether on the meta device
ANNOUNCED: set[type] = set()  # what was said in this process


def as_mixer(built: Any, label: str, dim: int = 0) -> Mixer:
    """What a user's class has built for the width `dim`, as a mixer; `label` is how the user names it.

    Announces once if it rereads its input, in the log "bestiary". Raises ValueError if it cannot be a mixer.
    """
    if not isinstance(built, nn.Module):
        name = type(built).__name__
        raise ValueError(f"{name} is no module: make it a subclass of bestiary.Mixer or torch.nn.Module")
    if fault := call_fault(built):
        raise ValueError(fault)
    mixer = built if isinstance(built, Mixer) else Carrying(built) if carries_state(built) else Rereading(built)
    tried = type(built), label, any(weight.is_meta for weight in mixer.parameters())
    if dim and tried not in TRIED:
        if fault := form_fault(mixer, dim):
            raise ValueError(fault)
        TRIED.add(tried)
    if isinstance(mixer, Rereading) and type(built) not in ANNOUNCED:
        ANNOUNCED.add(type(built))
        logging.getLogger("bestiary").warning(rereading_note(label, dim))
    return mixer


def rereading_note(label: str, dim: int) -> str:
    """What it costs that a module has no state of its own, in one line."""
    return (
        f"{label} has no state of its own and rereads its input: its state is all the inputs so far, which grows with "
        f"the length ({dim} numbers a token), and a decoded token costs a pass over all of them"
    )


def carries_state(module: nn.Module) -> bool:
    """Whether the second argument of a module's `forward` is a state that may be left out."""
    given = parameters(module.forward)[1:2]
    return bool(given) and given[0].name in STATE_NAMES and given[0].default is None


def call_fault(module: nn.Module) -> str:
    """Why `forward` cannot be called as a mixer's, by its arguments; empty if it can."""
    name, given = type(module).__name__, parameters(module.forward)
    if isinstance(module, Rereading):
        return "" if len(parameters(module.read)) == 1 else f"{name}.read must take x alone: write read(self, x)"
    if type(module).forward in (nn.Module.forward, Mixer.forward):
        return f"{name} has no forward: write forward(self, x, state=None) that returns (y, state), or forward(self, x)"
    if not given:
        return f"forward of {name} takes no input: write forward(self, x, state=None), or forward(self, x)"
    needed = [p.name for p in given[1:] if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if isinstance(module, Mixer):
        if len(given) < 2 or given[1].kind is inspect.Parameter.KEYWORD_ONLY:
            return (
                f"forward of {name} takes no state: write forward(self, x, state=None) and return (y, state), or wrap "
                "it in Rereading"
            )
        return f"forward of {name} needs {', '.join(needed)}: write forward(self, x, state=None)" if needed else ""
    if len(needed) == 1 and needed[0] in STATE_NAMES:
        return f"forward of {name} needs {needed[0]}, which is None at the start: write {needed[0]}=None"
    if needed:
        return (
            f"forward of {name} needs {', '.join(needed)} beside x: call it in read(self, x) of a subclass of Rereading"
        )
    return ""


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a method, without `self`."""
    return list(inspect.signature(function).parameters.values())


def lowest_precision(mixer: Mixer, x: Tensor) -> torch.dtype | None:
    """The least precise type of numbers that a mixer turns its float64 inputs into; None if it keeps to float64."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found: set[torch.dtype] = set()

    class Watch(TorchDispatchMode):
        """Notes the types that float64 is cast to."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            out = func(*args, **(kwargs or {}))
            cast = isinstance(out, Tensor) and out.is_floating_point() and out.dtype.itemsize < 8
            if cast and any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args):
                found.add(out.dtype)
            return out

    with torch.no_grad(), Watch():
        mixer(x)
    return min(found, key=lambda kind: kind.itemsize, default=None)
