"""A checkpoint of a run of a sweep, as a share of the time between two, and loading one, against a training step.

Two attention layers of width 128, 512 rows of MQAR of length 64 with 4 pairs, vocabulary 8,192. Times are of CPU;
waiting, for the disk and on a busy machine for the processor, is told apart.

    python benchmarks/checkpoint.py [rounds] [folder]
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from _bench import interleaved, machine, ratio, told

from bestiary.runs.store import Store
from bestiary.runs.tensors import read_tensors
from bestiary.sweep.checkpoints import SAVE_EVERY, CheckpointedRun
from bestiary.training.recipe import clean
from bestiary.training.train import batches, keep_freed_memory, new_state, update

RECIPE = clean("attention", dim=128, batch=512, steps=10_000)


def main(rounds: int, folder: Path) -> None:
    keep_freed_memory()
    state, batch = new_state(RECIPE), next(batches(RECIPE))
    claim = Store(folder).claim(RECIPE)
    assert claim is not None
    waited: list[float] = []
    with CheckpointedRun(claim.place, claim.claim, RECIPE) as run:

        def step() -> None:
            state.step += 1
            update(RECIPE, state.model, state.optimizers[0], batch, state.step, "cpu")

        def save() -> None:
            wall, work = time.perf_counter(), time.process_time()
            run.save(state.tensors())
            waited.append(time.perf_counter() - wall - (time.process_time() - work))

        def load() -> None:
            (file,) = run.checkpoint.glob("*.safetensors")
            new_state(RECIPE).load(read_tensors(file))

        taken = interleaved({"step": step, "save": save, "load": load}, rounds=rounds, clock=time.process_time)
        (file,) = run.checkpoint.glob("*.safetensors")
        print(f"{machine()}; {file.stat().st_size / 1e6:.1f} MB a checkpoint")
        run.release()
    print(told(taken))
    wait, steps = statistics.median(waited), ratio(taken, "save", "step")
    shares = [seconds / SAVE_EVERY for seconds in (statistics.median(taken["save"]), wait)]
    most = max(waited)
    print(f"  a checkpoint takes {steps:.2f} of a step, and {wait * 1e3:.0f} ms of waiting ({most * 1e3:.0f} at most)")
    print(f"  at one in {SAVE_EVERY:g} s: {shares[0]:.2%} of the time for work, {shares[1]:.2%} for waiting")


if __name__ == "__main__":
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as place:
        main(rounds, Path(place))
