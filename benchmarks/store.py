"""A store of many runs: how long its questions take as whole processes, and a claim with its end.

One short run is trained and its files are written under the keys of other seeds. Cold is without the index, with the
files of the runs in the page cache; warm is with the index that the cold question left.

python benchmarks/store.py [RUNS]
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from _bench import machine

from bestiary.runs.index import NAME
from bestiary.runs.store import Store
from bestiary.training.recipe import Recipe, clean
from bestiary.training.train import train

TASKS = "mqar(length=16, pairs=2, vocab=64), mqar(length=32, pairs=4, vocab=64)"
STATUS = "from bestiary.cli import main; import sys; sys.argv = ['bestiary', 'status', '--store', {!r}]; main()"
RESULTS = (
    "from bestiary.runs.store import Store; from bestiary.runs.table import results; "
    "s = Store({!r}); results(s, s.run_keys())"
)
ROUNDS = 3
CLAIMS = 200


def trained(store: Store, recipe: Recipe) -> int:
    """Carry out a run; how many lines its log has."""
    run = store.claim(recipe)
    assert run is not None
    with run:
        for measurement in train(recipe):
            run.append(measurement._asdict())
        run.end("finished")
    return len(store.read(recipe.key).log)


def copied(store: Store, recipe: Recipe, runs: int) -> None:
    """The run under the keys of other seeds, each folder with the same files as the real one."""
    first = store.folder / recipe.key
    content = json.loads((first / "recipe.json").read_text())
    for seed in range(1, runs):
        place = store.folder / recipe.model_copy(update={"seed": seed}).key
        shutil.copytree(first, place)
        (place / "recipe.json").write_text(json.dumps(content | {"seed": seed}, indent=1) + "\n")


def seconds(program: str) -> float:
    """How long a program takes as a process of its own."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return time.perf_counter() - begun


def claimed(store: Store, recipe: Recipe) -> float:
    """How long it takes to claim a run, to enter it and to end it, without training."""
    begun = time.perf_counter()
    run = store.claim(recipe)
    assert run is not None
    with run:
        run.end("finished")
    return time.perf_counter() - begun


def told(name: str, taken: list[float], *, scale: float = 1.0, unit: str = "s") -> None:
    low, middle, high = (scale * value for value in (min(taken), median(taken), max(taken)))
    print(f"  {name:24} {middle:7.2f} {unit:2}  ({low:.2f} to {high:.2f}, {len(taken)} rounds)")


def main(runs: int) -> None:
    recipe = clean("attention", train=TASKS, dim=8, steps=60, batch=64, every=10, selection_rows=64, test_rows=64)
    with TemporaryDirectory() as folder:
        store = Store(Path(folder) / "runs")
        lines = trained(store, recipe)
        copied(store, recipe, runs)
        print(f"store: {runs:,} runs that are done, {lines} measurements and 2 test segments each; {machine()}")
        told("an empty process", [seconds("") for _ in range(ROUNDS)])
        for name, program in (("bestiary status", STATUS), ("table.results", RESULTS)):
            cold, warm = [], []
            for _ in range(ROUNDS):
                (store.folder / NAME).unlink(missing_ok=True)
                cold.append(seconds(program.format(str(store.folder))))
                warm.append(seconds(program.format(str(store.folder))))
            told(f"{name}, cold", cold)
            told(f"{name}, warm", warm)
        print(f"  the index has {(store.folder / NAME).stat().st_size / 2**20:.0f} MiB")
        others = [recipe.model_copy(update={"seed": runs + n}) for n in range(CLAIMS)]
        told("a claim and its end", [claimed(store, other) for other in others], scale=1e3, unit="ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 10_000)
