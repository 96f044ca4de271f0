"""What it costs to schedule a run: trivial recipes by the local executor, against training them in a loop.

Each recipe is one step of one row. Overhead is the wall time of the sweep times its workers, less the time that the
same recipes take in a plain loop of one process (the mean of before and after), for each run.

    python benchmarks/sweep.py [recipes [workers]]
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice

import torch
from _bench import machine

from bestiary.runs.store import Store
from bestiary.sweep import cores, sweep
from bestiary.sweep.jobs import Together
from bestiary.training.recipe import Recipe, clean
from bestiary.training.train import train

TRIVIAL = {"train": "mqar(vocab=8, length=4, pairs=1)", "dim": 4, "depth": 1, "steps": 1, "batch": 1, "every": 1}


def recipes(count: int) -> list[Recipe]:
    return [clean("short_conv", **TRIVIAL, selection_rows=1, test_rows=1, seed=seed) for seed in range(count)]


def alone(given: Sequence[Recipe]) -> float:
    """Seconds a run in a plain loop."""
    begun = time.perf_counter()
    for recipe in given:
        list(train(recipe))
    return (time.perf_counter() - begun) / len(given)


def swept(given: Sequence[Recipe], workers: int, together: Together) -> tuple[float, float]:
    """Seconds until the first run ended, and of the others."""
    with tempfile.TemporaryDirectory() as folder:
        events = (e for e in sweep(given, Store(folder), workers=workers, together=together) if e.kind == "ended")
        begun = time.perf_counter()
        list(islice(events, workers))
        first = time.perf_counter()
        ended = sum(1 for _ in events)
        assert ended + workers == len(given)
        return first - begun, time.perf_counter() - first


def main(count: int, workers: int) -> None:
    torch.set_num_threads(1)
    given = recipes(count)
    alone(given[:20])
    print(f"sweep: {count} trivial recipes, {workers} workers; {machine()}")
    for together in ("never", "always"):
        before = alone(given[:200])
        start, rest = swept(given, workers, together)
        plain = (before + alone(given[:200])) / 2
        each = rest / (count - workers)
        print(
            f"  together {together:6}  start {start:.1f} s, then {each * 1e3:.1f} ms a run of {workers} workers; "
            f"in a loop {plain * 1e3:.1f} ms; overhead {(each * workers - plain) * 1e3:.1f} ms"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000, int(sys.argv[2]) if len(sys.argv) > 2 else cores())
