"""The short convolution: native kernels against PyTorch's grouped convolution, and against a Fourier transform.

    python benchmarks/convolution.py

Forward and backward, the processor's time on one thread, the ways in turns. `SLIDES` of bestiary/ops/convolution.py is
chosen by it: `products` is what it is compared with.
"""

import statistics
import time
from collections.abc import Callable

import torch
from _bench import interleaved, machine, ratio
from torch import Tensor

from bestiary.ops import convolution
from bestiary.ops.backend import use
from bestiary.training.train import keep_freed_memory

SHORT = ((64, 64, 192, 4), (16, 256, 128, 4), (16, 256, 384, 4), (1, 4096, 256, 4), (512, 64, 64, 3))
LONG = ((128, 32, 128, 32), (16, 256, 128, 16), (16, 256, 128, 32), (16, 256, 128, 64), (16, 256, 128, 128))
LONG += ((4, 1024, 128, 64), (4, 1024, 128, 256), (1024, 64, 64, 64), (64, 64, 64, 64), (64, 128, 64, 128))
LONG += ((16, 256, 64, 256),)  # batch, time, channels, taps


def compare(sizes: tuple[tuple[int, int, int, int], ...], other: str, way: Callable[[Tensor, Tensor], Tensor]) -> None:
    names = f"  {'batch':>6}{'time':>6}{'channels':>9}{'taps':>6}{'products':>10}"
    print(f"{names}{other + ' ms':>14}{'native ms':>11}{'ratio':>7}")
    for batch, length, channels, taps in sizes:
        x, filter = torch.randn(batch, length, channels, requires_grad=True), torch.randn(taps, channels)
        filter.requires_grad_()

        def once(
            convolve: Callable[[Tensor, Tensor], Tensor], x: Tensor = x, filter: Tensor = filter
        ) -> tuple[Tensor, ...]:
            y = convolve(x, filter)
            return torch.autograd.grad(y, (x, filter), y.detach())

        ways = {other: lambda once=once: once(way), "native": lambda once=once: once(convolution.slide)}
        taken = interleaved(ways, rounds=9, clock=time.process_time)
        cells = [statistics.median(taken[name]) * 1e3 for name in ways]
        products = (taps * length - taps * (taps - 1) / 2) / (length + taps - 1)
        sizes_text = f"  {batch:6}{length:6}{channels:9}{taps:6}{products:10.1f}"
        print(f"{sizes_text}{cells[0]:14.2f}{cells[1]:11.2f}{ratio(taken, other, 'native'):7.2f}", flush=True)


if __name__ == "__main__":
    keep_freed_memory()
    torch.set_num_threads(1)
    use("torch")
    print(f"the short convolution, forward and backward; {machine()}")
    compare(SHORT, "torch", convolution.short)
    convolution.SLIDES = 0
    compare(LONG, "transform", convolution.long)
