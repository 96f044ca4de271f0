"""Drawing MQAR: 100,000 rows at two sizes, and the memory beyond what is returned.

python benchmarks/data.py
"""

import subprocess
import sys
import time

from _bench import machine, peak

from bestiary.tasks._task import stream
from bestiary.tasks.mqar import MQAR

ROWS = 100_000


def main(mode: str, length: int, pairs: int) -> None:
    task = MQAR(length=length, pairs=pairs, mode=mode)
    task.sample(1000, stream("warm"))
    before, begun = peak(), time.perf_counter()
    batch = task.sample(ROWS, stream("train"))
    taken = time.perf_counter() - begun
    parts = [batch.tokens, batch.targets, *batch.facets.values()]
    size = sum(part.untyped_storage().nbytes() for part in parts) / 2**20
    print(
        f"  mode {mode}, length {length}, {pairs} pairs: {taken:.2f} s; the batch has {size:.0f} MiB, "
        f"the process grew by {peak() - before:.0f} MiB"
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        main(sys.argv[1], *map(int, sys.argv[2:]))
    else:
        print(f"data: {ROWS:,} rows of MQAR, each line in a process of its own; {machine()}", flush=True)
        for mode in ("clean", "paper"):
            for length, pairs in ((64, 4), (1024, 256)):  # the most that a process has held never falls
                subprocess.run([sys.executable, __file__, mode, str(length), str(pairs)], check=True)
