"""Many small models trained as one program, against one after another and against processes.

Two layers, MQAR of 32 tokens and 4 pairs with a vocabulary of 64; models differ in rate and seed. A round lets each way
do its share in turn: one process training one model after another, one process training the stack, and the same with
a process on every core. Prints models times steps a second, and the ratio of a stack to one after another, median over
rounds, with least and most; `auto` is how many of such models a sweep stacks.

    python benchmarks/together.py [rounds [device]]
"""

import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from _bench import machine

from bestiary.sweep import cores
from bestiary.sweep.jobs import stack_size
from bestiary.training.recipe import Recipe, clean
from bestiary.training.together import Stack, stacked_batches
from bestiary.training.train import batches, decay_groups, keep_freed_memory, update

WIDTHS = (16, 32, 64, 128)
PATTERNS = ("attention", "base_conv, gated_delta(heads=1)")
SIZES = ((16, 32), (64, 4))  # rows of a batch, models


def recipes(pattern: str, dim: int, batch: int, count: int) -> list[Recipe]:
    task = "mqar(vocab=64, length=32, pairs=4)"
    return [clean(pattern, train=task, dim=dim, batch=batch, rate=1e-3 * (1 + i), seed=i % 3) for i in range(count)]


def ways(pattern: str, dim: int, batch: int, count: int, device: str) -> dict[str, Callable[[int], None]]:
    """So many steps of all models, one after another or as one; a few models of the first way stand for all."""
    made = recipes(pattern, dim, batch, count)
    group = Stack(made, [recipe.build().to(device) for recipe in made])
    stacked = stacked_batches(group)
    few = []
    for recipe in made[:4]:
        model = recipe.build().to(device)
        adam = torch.optim.AdamW(decay_groups(recipe, model), lr=recipe.rate, fused=True)
        few.append((recipe, model, adam, batches(recipe)))

    def alone(steps: int) -> None:
        for i in range(steps * count):
            recipe, model, adam, drawn = few[i % len(few)]
            seen = update(recipe, model, adam, next(drawn), 1, device)
        seen.tolist()

    def together(steps: int) -> None:
        for _ in range(steps):
            seen = group.update(next(stacked), 1)
        seen.tolist()

    return {"alone": alone, "together": together}


def serve(line: Connection, *given: Any) -> None:
    """Do what is asked for, in a process of its own."""
    torch.set_num_threads(1)
    keep_freed_memory()
    found = ways(*given)
    for way in found.values():
        way(5 if given[-1] != "cpu" else 1)
    line.send("ready")
    while (asked := line.recv()) is not None:
        name, steps = asked
        found[name](steps)
        line.send("done")


def measured(rounds: int, *given: Any) -> dict[tuple[str, int], list[float]]:
    """Models times steps a second of each way in one process and in one for each core."""
    context, lines = get_context("spawn"), []
    for _ in range(cores() if given[-1] == "cpu" else 1):
        ours, theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, *given), daemon=True).start()
        lines.append(ours)
    for line in lines:
        line.recv()
    count, steps = given[3], 2 if given[-1] == "cpu" else 20
    taken: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for processes in dict.fromkeys((1, len(lines))):
            for name in ("alone", "together"):
                begun = time.perf_counter()
                for line in lines[:processes]:
                    line.send((name, steps))
                for line in lines[:processes]:
                    line.recv()
                speed = processes * count * steps / (time.perf_counter() - begun)
                taken.setdefault((name, processes), []).append(speed)
    for line in lines:
        line.send(None)
    return taken


def main(rounds: int, device: str) -> None:
    print(f"together: models x steps a second, {device}; {machine()}")
    for pattern in PATTERNS:
        for batch, count in SIZES:
            print(f"{pattern}, {count} models of batch {batch} x 32")
            for dim in WIDTHS:
                taken = measured(rounds, pattern, dim, batch, count, device)
                best = stack_size(recipes(pattern, dim, batch, 1)[0], device)
                for processes in dict.fromkeys(n for _, n in taken):
                    alone, whole = taken["alone", processes], taken["together", processes]
                    ratios = [b / a for a, b in zip(alone, whole, strict=True)]
                    told = f"alone {statistics.median(alone):7.0f}   together {statistics.median(whole):7.0f}"
                    told += f"   x {statistics.median(ratios):.2f} ({min(ratios):.1f} to {max(ratios):.1f})"
                    print(f"  width {dim:3}, processes {processes}   {told}   auto: {best}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, sys.argv[2] if len(sys.argv) > 2 else "cpu")
