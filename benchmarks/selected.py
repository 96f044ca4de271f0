"""Attention that is computed at few positions, or to few, against attention of all to all, as sequences grow.

    python benchmarks/selected.py          forward and backward from 256 to 8,192 tokens; fitted exponent
    python benchmarks/selected.py read     forward alone, without gradients

One thread, one mixer of width 128 with two heads, one sequence, of tokens drawn from 256. The ways take turns; told is
the median of five, in microseconds of the processor's time a token. The exponent is that of the time of a pass, fitted
to all lengths; `last` is that from 4,096 to 8,192.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from _bench import machine

from bestiary.spec import parse
from bestiary.training.train import keep_freed_memory

DIM, LENGTHS, ROUNDS = 128, (256, 512, 1024, 2048, 4096, 8192), 5
WAYS = {
    "full": "attention(heads=2)",
    "sliding, 64": "attention(heads=2, window=64)",
    "random, a quarter": "selected(select='random')",
    "random, most 64": "selected(select='random', most=64)",
    "repeat, most 64": "selected(select='repeat', most=64)",
    "learned, most 64": "selected(most=64)",
    "learned": "selected",
}


def way(text: str, length: int, learn: bool) -> Callable[[], None]:
    torch.manual_seed(0)
    mixer: Any = parse("mixers", text)[0].build(DIM).train(learn)
    x, tokens = torch.randn(1, length, DIM), torch.randint(256, (1, length))
    known = {"tokens": tokens} if mixer.reads_tokens else {}

    def once() -> None:
        with torch.set_grad_enabled(learn):
            y = mixer.parallel(x, **known)
            if learn:
                mixer.zero_grad()
                y.square().mean().backward()

    return once


def processor(once: Callable[[], None]) -> float:
    begun = time.process_time()
    once()
    return time.process_time() - begun


def measure(learn: bool) -> None:
    print(f"microseconds a token, {'forward and backward' if learn else 'forward'}, width {DIM}; {machine()}")
    print(f"  {'attention':20}" + "".join(f"{n:>9,}" for n in LENGTHS) + "   exponent     last")
    spent: dict[str, list[float]] = {name: [] for name in WAYS}
    for n in LENGTHS:
        ways = {name: way(text, n, learn) for name, text in WAYS.items()}
        taken = [{name: processor(once) for name, once in ways.items()} for _ in range(1 + ROUNDS)][1:]
        for name, times in spent.items():
            times.append(statistics.median(one[name] for one in taken) / n * 1e6)
    logs = [math.log(n) for n in LENGTHS]
    for name, times in spent.items():
        slope = statistics.linear_regression(logs, [math.log(t) for t in times]).slope
        last = math.log(times[-1] / times[-2]) / (logs[-1] - logs[-2])
        print(f"  {name:20}" + "".join(f"{t:9.2f}" for t in times) + f"   {1 + slope:8.2f} {1 + last:8.2f}")


if __name__ == "__main__":
    keep_freed_memory()
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case []:
            measure(learn=True)
        case ["read"]:
            measure(learn=False)
        case other:
            sys.exit(f"{other} is neither nothing nor read")
