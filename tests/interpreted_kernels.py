"""The kernels of flash-linear-attention in Triton's interpreter on the CPU, against ours: a line for each kind.

Run in a process of its own with TRITON_INTERPRET=1, by test_fla_kernels.py. What the interpreter lacks is mended here:
it cannot tune, so each kernel takes its first configuration; its loop counters are plain integers; and `gather` is
bound before the interpreter replaces it.
"""

# pyright: reportMissingImports=false
import builtins
import json
import sys
import warnings
from collections.abc import Iterator
from typing import Any

warnings.simplefilter("ignore")

import fla.ops.generalized_delta_rule  # noqa: E402
import fla.ops.gla  # noqa: E402
import fla.ops.simple_gla  # noqa: E402, F401
import torch  # noqa: E402
import triton.language as tl  # noqa: E402
from test_recurrence import HEADS, KEY, KINDS, VALUE, drive, leaves_of  # noqa: E402
from triton.runtime.autotuner import Autotuner  # noqa: E402

from bestiary.ops import _fla  # noqa: E402
from bestiary.ops.recurrence import run  # noqa: E402

TIME = 70  # more than one chunk of the kernels, and no multiple of it


class Counter(int):
    """A loop counter that can be asked for another type, as in a compiled kernel."""

    def to(self, *_: Any) -> "Counter":
        return self


def count(*bounds: Any) -> Iterator[Counter]:
    """`range`, also of the interpreter's numbers, which are arrays of one element."""
    return map(
        Counter, builtins.range(*(int(x.handle.data.item()) if hasattr(x, "handle") else int(x) for x in bounds))
    )


def take_first_configuration(tuner: Any, *given: Any, **named: Any) -> Any:
    """A kernel that would be tuned, in the first of its configurations."""
    config = tuner.configs[0]
    tuner.nargs = dict(zip(tuner.arg_names, given, strict=False))
    if config.pre_hook:
        config.pre_hook({**tuner.nargs, **named, **config.all_kwargs()})
    return tuner.fn.run(*given, **named, **config.all_kwargs())


def mend_interpreter() -> None:
    """Let the package's kernels run in the interpreter."""
    Autotuner.run = take_first_configuration
    for name, module in list(sys.modules.items()):
        if name.startswith("fla.ops") and module is not None:
            vars(module)["range"] = count
            if getattr(module, "gather", None) is tl.gather:
                vars(module)["gather"] = lambda *given, **named: tl.gather(*given, **named)


def errors(kind: str) -> dict[str, float]:
    """The relative errors of outputs, state and gradients."""
    given = drive(kind, 1.0, time=TIME).map(lambda x: x.float().detach().clone().requires_grad_())
    state = torch.randn(len(given.q), HEADS, KEY, VALUE, requires_grad=True)
    found, wanted = _fla.run(given, state), run(given, state, backend="torch")
    back = [torch.randn_like(x) for x in wanted]
    leaves = [*leaves_of(given), state]
    one, two = (torch.autograd.grad(out, leaves, back) for out in (found, wanted))
    pairs = {"y": (found[0], wanted[0]), "state": (found[1], wanted[1])}
    pairs |= {f"gradient {i}": pair for i, pair in enumerate(zip(one, two, strict=True))}
    return {name: ((a - b).norm() / b.norm().clamp(min=1e-6)).item() for name, (a, b) in pairs.items()}


if __name__ == "__main__":
    mend_interpreter()
    torch.manual_seed(0)
    for kind in KINDS:
        sys.stdout.write(json.dumps({"kind": kind, **errors(kind)}) + "\n")
