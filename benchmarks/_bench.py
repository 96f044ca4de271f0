"""Timing two ways to the same thing in turns, so that their ratio holds on a busy machine."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def interleaved(
    ways: dict[str, Callable[[], Any]], *, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each call, after one that warms up, the ways taking turns."""
    for way in ways.values():
        way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = clock()
            way()
            taken[name].append(clock() - begun)
    return taken


def told(taken: dict[str, list[float]]) -> str:
    """Median, least and most of each way, in milliseconds."""
    return "\n".join(
        f"  {name:28} {statistics.median(t) * 1e3:9.1f} ms  ({min(t) * 1e3:.1f} to {max(t) * 1e3:.1f}, {len(t)} rounds)"
        for name, t in taken.items()
    )


def ratio(taken: dict[str, list[float]], slow: str, fast: str) -> float:
    """How many times longer one way takes, the median over rounds."""
    return statistics.median(a / b for a, b in zip(taken[slow], taken[fast], strict=True))


def alone(program: str, *arguments: str) -> float:
    """What a benchmark run again with these arguments, in a process of its own, prints as its last line."""
    done = subprocess.run([sys.executable, program, *arguments], check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def peak() -> float:
    """The most memory this process has held, in MiB; unlike ru_maxrss it does not count what its parent held."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) / 1024


def machine() -> str:
    return (
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU {torch.backends.cpu.get_cpu_capability()}"
    )
