"""What is wrong with the form of what a module takes and returns, in one sentence, found by trying it."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bestiary.mixers._wrap import Carrying, Rereading

ROWS, TIME = 2, 5  # of the input that a module is tried on
STATE = "a state is made of tensors, in tuples or lists"


def form_fault(module: nn.Module, dim: int, *, errors: bool = False) -> str:
    """What is wrong with the output and the state of a mixer of this width, in one sentence; empty if nothing is.

    What the module itself raises is passed over, unless `errors` are asked for: on the meta device and for odd widths
    it may have reasons that have nothing to do with its form.
    """
    with set_up(module) as device, torch.device(device):
        x = trial_input(dim)
        try:
            given = output_of(module, x)
        except Exception as fault:  # anything may be raised by a user's code
            return error_text(module, x, fault) if errors else ""
    name = wrapped_name(module)
    if isinstance(module, Rereading):
        return output_fault(name, given, x)
    if isinstance(given, Tensor):
        return f"forward(x) of {name} returns one tensor; return (y, state), or wrap it in Rereading"
    if not isinstance(given, tuple):
        return f"forward(x) of {name} returns {a(given)}; return (y, state)"
    if len(given) != 2:
        return f"forward(x) of {name} returns {len(given)} things; return two, (y, state)"
    wrong = [leaf for leaf in leaves(given[1]) if not isinstance(leaf, Tensor | int | None)]
    return output_fault(name, given[0], x) or (f"the state of {name} holds {a(wrong[0])}; {STATE}" if wrong else "")


def output_of(module: nn.Module, x: Tensor) -> Any:
    """What a mixer returns, or what the module of one that rereads returns."""
    return module.read(x) if isinstance(module, Rereading) else module(x)


def output_fault(name: str, y: Any, x: Tensor) -> str:
    """What is wrong with an output."""
    if isinstance(y, tuple | list) and not hasattr(y, "keys"):
        return (
            f"forward(x) of {name} returns {len(y)} things: return y alone; if one of them is a state, return "
            "(y, state) and take it as forward(self, x, state=None)"
        )
    if not isinstance(y, Tensor):
        return f"forward(x) of {name} returns {a(y)}; return a tensor of the shape of x, (batch, time, dim)"
    if y.shape == x.shape:
        kind = str(y.dtype).removeprefix("torch.")
        return "" if y.is_floating_point() else f"forward(x) of {name} returns {kind} numbers; return real ones"
    shapes = f"an input of shape {tuple(x.shape)} gives an output of shape {tuple(y.shape)}"
    if y.shape == x.transpose(0, 1).shape or y.shape == x.transpose(1, 2).shape:
        return f"{name}: {shapes}; its axes are in another order than (batch, time, dim)"
    return f"{name}: {shapes}; both must be (batch, time, dim)"


def order_fault(module: nn.Module, dim: int) -> str:
    """Whether a module takes (time, batch, dim): rows see earlier rows, and positions do not see each other."""
    with set_up(module) as device, torch.device(device):
        x = trial_input(dim)
        rows, times = x.clone(), x.clone()
        rows[0] += 1
        times[:, 0] += 1
        plain, by_row, by_time = (first(output_of(module, given)) for given in (x, rows, times))
    if not torch.equal(plain[1], by_row[1]) and torch.equal(plain[:, 1:], by_time[:, 1:]):
        return (
            f"{wrapped_name(module)} mixes the rows of a batch and not the positions: it takes (time, batch, dim); say "
            "batch_first=True, or transpose before and after"
        )
    return ""


def first(given: Any) -> Tensor:
    """The output without the state."""
    return given[0] if isinstance(given, tuple) else given


def trial_input(dim: int) -> Tensor:
    """Numbers of the shape (ROWS, TIME, dim), drawn without a generator."""
    return torch.linspace(-1, 1, ROWS * TIME * dim).reshape(ROWS, TIME, dim).sin()


@contextmanager
def set_up(module: nn.Module) -> Iterator[torch.device]:
    """A module ready to be tried, without gradients, dropout and effects on the generator; yields its device."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    weight = next(module.parameters(), None)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield torch.empty(0).device if weight is None else weight.device
    finally:
        for part, was in training.items():
            part.training = was


def error_text(module: nn.Module, x: Tensor, fault: Exception) -> str:
    """What a module raised, and what it may want."""
    said = (str(fault).strip() or "no message").splitlines()[0]
    text = f"{wrapped_name(module)} on an input of shape {tuple(x.shape)} raises {type(fault).__name__}: {said}"
    if type(module) is not Rereading or module.module is None:
        return text
    given = list(inspect.signature(module.module.forward).parameters.values())[1:]
    wanted = [p.name for p in given if p.default is None]
    hint = f"; it also takes {', '.join(wanted)}: give them in read(self, x) of a subclass of Rereading"
    return text + (hint if wanted else "")


def wrapped_name(module: nn.Module) -> str:
    """The name of the user's class."""
    inner = module.module if type(module) in (Rereading, Carrying) else module
    return type(inner).__name__


def leaves(state: Any) -> Iterator[Any]:
    """The parts of a state that are no tuples or lists."""
    if isinstance(state, tuple | list):
        for part in state:
            yield from leaves(part)
    else:
        yield state


def a(value: Any) -> str:
    """A value by its type: `a dict`, `an Output`."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
