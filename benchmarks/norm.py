"""Norms of rows, and the streams of a short convolution: kernels against PyTorch's operations.

    python benchmarks/norm.py

Forward and backward, the processor's time on one thread, the ways in turns. `LEAST` of bestiary/ops/norm.py is chosen
by it. The streams are compared with what they were before: the kernel of the convolution, SiLU, and a split.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from _bench import interleaved, machine, ratio
from torch import Tensor
from torch.nn import functional as F

from bestiary.ops import convolution, norm
from bestiary.ops.backend import Backend
from bestiary.training.train import keep_freed_memory

ROWS = ((64, 64, 8, 16), (64, 64, 1, 128), (16, 256, 4, 64), (64, 32, 2, 16), (16, 32, 1, 32), (8, 16, 2, 16))
ROWS += ((1, 32, 2, 16), (1, 1, 8, 16))
STREAMS = ((64, 64, (128, 128, 128)), (16, 256, (128, 128, 256)), (64, 32, (64, 64, 64)), (1, 4096, (256, 16, 16)))
Way = Callable[[], object]


def measured(ways: dict[str, Way], numbers: int) -> tuple[float, float, float]:
    """Milliseconds of a call of both ways, and their ratio, of calls that are repeated where they are short."""
    often = max(1, min(200, 2**20 // numbers))

    def repeated(way: Way) -> Way:
        return lambda: [way() for _ in range(often)]

    taken = interleaved({name: repeated(way) for name, way in ways.items()}, rounds=9, clock=time.process_time)
    slow, fast = ways
    return *(statistics.median(taken[name]) * 1e3 / often for name in ways), ratio(taken, slow, fast)


def once(way: Callable[..., Tensor | Sequence[Tensor]], *given: Tensor) -> Way:
    """A call forward and backward."""

    def call() -> object:
        found = way(*given)
        outputs = [found] if isinstance(found, Tensor) else list(found)
        return torch.autograd.grad(outputs, given, [y.detach() for y in outputs])

    return call


def norms() -> None:
    print(f"  {'batch':>5}{'time':>6}{'heads':>6}{'width':>6}{'':>12}{'torch ms':>10}{'native ms':>11}{'ratio':>7}")
    for shape in ROWS:
        x, gate = (torch.randn(shape, requires_grad=True) for _ in range(2))
        weight = torch.ones(shape[-1], requires_grad=True)

        def unit(backend: Backend, x: Tensor = x) -> Way:
            return once(lambda x: norm.normalize(x, backend=backend), x)

        def gated(backend: Backend, x: Tensor = x, weight: Tensor = weight, gate: Tensor = gate) -> Way:
            return once(lambda x, w, z: norm.rms(x, w, z, epsilon=1e-5, backend=backend), x, weight, gate)

        for name, make in {"unit": unit, "rms, gated": gated}.items():
            cells = measured({"torch": make("torch"), "native": make("native")}, math.prod(shape))
            sizes = "".join(f"{size:6}" for size in shape[1:])
            print(f"  {shape[0]:5}{sizes}{name:>12}{cells[0]:10.3f}{cells[1]:11.3f}{cells[2]:7.2f}", flush=True)


def streams() -> None:
    print(f"  {'batch':>5}{'time':>6}{'widths':>18}{'apart ms':>10}{'native ms':>11}{'ratio':>7}")
    for batch, length, widths in STREAMS:
        x, filter = torch.randn(batch, length, sum(widths)), torch.randn(4, sum(widths))
        given = [z.requires_grad_() for z in (x, filter)]

        def apart(x: Tensor, filter: Tensor, widths: tuple[int, ...] = widths) -> Sequence[Tensor]:
            return F.silu(convolution.short(x, filter)).split(widths, dim=-1)

        def together(x: Tensor, filter: Tensor, widths: tuple[int, ...] = widths) -> Sequence[Tensor]:
            return convolution.streams(x, filter, None, None, widths)

        cells = measured({"apart": once(apart, *given), "native": once(together, *given)}, x.numel())
        print(f"  {batch:5}{length:6}{widths!s:>18}{cells[0]:10.3f}{cells[1]:11.3f}{cells[2]:7.2f}", flush=True)


if __name__ == "__main__":
    keep_freed_memory()
    torch.set_num_threads(1)
    print(f"norms and streams, forward and backward; {machine()}")
    norms()
    streams()
