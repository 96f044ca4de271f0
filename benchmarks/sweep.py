"""What it costs to schedule a run, and how busy the cores are while an experiment is carried out.

    python benchmarks/sweep.py [recipes [workers]]           # trivial recipes, against training them in a loop
    python benchmarks/sweep.py EXPERIMENT [scale [options]]  # `bestiary run EXPERIMENT` in a new store, watched

Trivial recipes are one step of one row. Overhead is the wall time of the sweep times its workers, less the time that
the same recipes take in a plain loop of one process (the mean of before and after), for each run.

An experiment is carried out by the command, from its start to its last figure. The first number is the share of the
cores' time in which a worker had a run, from the files of the runs: it does not depend on what else the machine does.
The second is the share of the cores' time that all processes of the command used; on a shared machine it is smaller.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

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


class Span(NamedTuple):
    """When a worker was at work, in seconds by the file system's clock."""

    begun: float
    ended: float


def watch_experiment(name: str, scale: str, options: Sequence[str]) -> None:
    """Carry out an experiment by the command, and print how busy it kept the cores."""
    with tempfile.TemporaryDirectory() as folder:
        places = ["--store", f"{folder}/runs", "--figures", f"{folder}/figures"]
        command = [sys.executable, "-m", "bestiary.cli", "run", name, "--scale", scale, *places, *options]
        begun, used = time.time(), {}
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
            while process.poll() is None:
                used |= processor_seconds(process.pid)
                time.sleep(0.2)
        ended = time.time()
        assert process.returncode == 0, f"exit code {process.returncode}"
        workers = worker_spans(Path(folder) / "runs")
    every = [span for spans in workers.values() for span in spans]
    first, last = min(span.begun for span in every), max(span.ended for span in every)
    full = min(max(span.ended for span in spans) for spans in workers.values())  # until then nobody was out of work
    if len(workers) < cores():
        full = first
    wall, occupied = ended - begun, sum(span.ended - span.begun for span in every)
    print(f"sweep: run {' '.join([name, '--scale', scale, *options])}, {cores()} cores; {machine()}")
    print(f"  {wall:.1f} s: {first - begun:.1f} s until the first run began, {ended - last:.1f} s after the last")
    print(f"  a worker had a run in {occupied / wall / cores():.1%} of the cores' time", end="")
    print(f", {occupied / (last - first) / cores():.1%} between the first run and the last")
    print(f"  fewer workers than cores had runs in the last {last - full:.1f} s of the runs")
    print(f"  runs without start-up and gaps: {occupied / cores():.1f} s")
    print(f"  processor time of all processes: {sum(used.values()) / wall / cores():.1%} of the cores' time")


def processor_seconds(group: int) -> dict[int, float]:
    """The processor time that each process of a group has used so far, by its number."""
    used = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[2]) == group:
            used[int(place.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def worker_spans(store: Path) -> dict[int, list[Span]]:
    """When each worker had a run, by the worker's process; the runs of a stack are at work at the same time."""
    spans: dict[int, list[Span]] = defaultdict(list)
    for done in store.glob("*/done"):
        owner = json.loads((done.parent / "claim-0" / "owner.json").read_text())
        spans[owner["process"]].append(Span((done.parent / "origin.json").stat().st_mtime, done.stat().st_mtime))
    return {process: join_spans(found) for process, found in spans.items()}


def join_spans(spans: Iterable[Span]) -> list[Span]:
    """The spans in order, those that overlap as one."""
    joined: list[Span] = []
    for span in sorted(spans):
        if joined and span.begun <= joined[-1].ended:
            joined[-1] = Span(joined[-1].begun, max(joined[-1].ended, span.ended))
        else:
            joined.append(span)
    return joined


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
    given = sys.argv[1:]
    if given and not given[0].isdecimal():
        watch_experiment(given[0], given[1] if len(given) > 1 else "small", given[2:])
    else:
        main(int(given[0]) if given else 2000, int(given[1]) if len(given) > 1 else cores())
