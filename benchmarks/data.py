"""Drawing MQAR: 100,000 rows at two sizes, and the memory beyond what is returned.

python benchmarks/data.py
"""

import sys
import time

from _bench import machine, peak

from bestiary.tasks._task import stream
from bestiary.tasks.mqar import MQAR

ROWS = 100_000


def main(mode: str) -> None:
    print(f"data: {ROWS:,} rows of MQAR, mode {mode}; {machine()}")
    for length, pairs in ((64, 4), (1024, 256)):
        task = MQAR(length=length, pairs=pairs, mode=mode)
        task.sample(1000, stream("warm"))
        before, begun = peak(), time.perf_counter()
        batch = task.sample(ROWS, stream("train"))
        taken = time.perf_counter() - begun
        parts = [batch.tokens, batch.targets, *batch.facets.values()]
        size = sum(part.untyped_storage().nbytes() for part in parts) / 2**20
        print(
            f"  length {length}, {pairs} pairs: {taken:.2f} s; the batch has {size:.0f} MiB, "
            f"the process grew by {peak() - before:.0f} MiB"
        )
        del batch, parts


if __name__ == "__main__":
    for chosen in sys.argv[1:] or ("clean", "paper"):
        main(chosen)
