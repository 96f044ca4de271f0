"""Does a step with products in bfloat16 learn what one in float32 learns? Ten seeds of each, in turns.

Attention on the default task by the default recipe. Prints steps until it stopped, test accuracy and CPU time.

    python benchmarks/precision.py [SEEDS]
"""

import sys
import time
from statistics import mean

import torch
from _bench import machine

from bestiary.training.recipe import clean
from bestiary.training.train import keep_freed_memory, train


def main(seeds: int) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"attention, default recipe; {machine()}")
    found: dict[str, list[tuple[int, float, float]]] = {"float32": [], "bfloat16": []}
    for seed in range(seeds):
        for precision, ends in found.items():
            begun = time.process_time()
            *_, last = (m for m in train(clean("attention", seed=seed, precision=precision)) if not m.facet)
            ends.append((last.step, last.right / last.asked, time.process_time() - begun))
    for precision, ends in found.items():
        steps, shares, seconds = zip(*ends, strict=True)
        print(
            f"  {precision:8} steps {', '.join(map(str, steps))}; accuracy {min(shares):.3f} to {max(shares):.3f};",
            end=" ",
        )
        print(
            f"{1000 * sum(seconds) / sum(steps):.0f} ms of CPU a step with its evaluations, {mean(seconds):.1f} s a run"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
