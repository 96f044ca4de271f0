"""A training step that computes logits where something is asked, with products in float32 and in bfloat16, against
the same step with logits everywhere.

Two attention layers of width 64 without channel mixing, 512 rows of MQAR of length 64 with 4 pairs, vocabulary
8,192. Prints the ratios, the share of this machine's float32 matrix rate that the step reaches, and the peak memory
of a process that does nothing else.

    python benchmarks/step.py [rounds]
"""

import statistics
import sys
import time

import torch
from _bench import alone, interleaved, machine, peak, ratio, told
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bestiary.lm.speed import measure_matmul_flops
from bestiary.tasks._task import SILENT
from bestiary.training.recipe import Recipe, clean
from bestiary.training.train import batches, decay_groups, keep_freed_memory, update

RECIPE = clean("attention", batch=512, steps=10_000)


def main(rounds: int) -> None:
    keep_freed_memory()
    model, batch, half = RECIPE.build(), next(batches(RECIPE)), RECIPE.model_copy(update={"precision": "bfloat16"})
    optimizer = torch.optim.AdamW(decay_groups(RECIPE, model), lr=RECIPE.rate, fused=True)

    def asked(recipe: Recipe = RECIPE) -> None:
        update(recipe, model, optimizer, batch, 1, "cpu")

    def everywhere() -> None:
        logits = model.parallel(batch.tokens).flatten(0, 1)
        loss = F.cross_entropy(logits, batch.targets.flatten(), ignore_index=SILENT)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    if rounds == 0:  # alone in a process, for its memory
        for _ in range(5):
            asked()
        print(peak())
        return
    print(f"step: batch 512 x 64, width 64, vocabulary 8192, two attention layers; {machine()}")
    ways = {"logits where asked": asked, "the same in bfloat16": lambda: asked(half), "logits everywhere": everywhere}
    taken = interleaved(ways, rounds=rounds, clock=time.process_time)
    print(told(taken))
    with FlopCounterMode(display=False) as counter:
        asked()
    speed, rate = (
        counter.get_total_flops() / statistics.median(taken["logits where asked"]),
        measure_matmul_flops(torch.get_num_threads(), 2048),
    )
    print(f"  everywhere / where asked: {ratio(taken, 'logits everywhere', 'logits where asked'):.1f}")
    print(f"  bfloat16 / float32: {ratio(taken, 'the same in bfloat16', 'logits where asked'):.2f}")
    print(
        f"  {speed / 1e9:.0f} of {rate / 1e9:.0f} GFLOP/s in matrix products: {speed / rate:.0%} of the machine's rate"
    )
    print(f"  peak memory of the step alone: {alone(__file__, '0'):.0f} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
