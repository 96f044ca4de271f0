"""A store of many runs: how long `status`, the table of results, a report and its data take, and one claim.

One short run is trained, and its files are copied to the keys of other seeds. Cold is without the cache of the store,
with the files of the runs in the page cache; warm is with the cache that the cold question left.

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

from bestiary.runs.digests import digest
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
REPORT = (
    "from bestiary.runs.store import Store; from bestiary.report.runs import gather_runs; "
    "s = Store({!r}); gather_runs(s, s.run_keys())"
)
PAGE = (
    "import time; t = time.process_time(); from bestiary.runs.store import Store; from bestiary.report import report; "
    "page = report(Store({!r})).html; from pathlib import Path; status = Path('/proc/self/status').read_text(); "
    "print(time.process_time() - t, float(status.partition('VmHWM:')[2].split()[0]) / 1024, len(page) / 1e6)"
)
ROUNDS = 3
CLAIMS = 200


def train_run(store: Store, recipe: Recipe) -> int:
    """Carry out a run. Returns the number of lines in its log."""
    run = store.claim(recipe)
    assert run is not None
    with run:
        for measurement in train(recipe):
            run.append(measurement._asdict())
        run.end("finished")
    return len(store.read(recipe.key).log)


def copy_run(store: Store, recipe: Recipe, runs: int) -> None:
    """Copy the run to the keys of other seeds, with the recipe and the digests that belong there."""
    first = store.folder / recipe.key
    content, ended = json.loads((first / "recipe.json").read_text()), store.read(recipe.key).ended
    assert ended is not None
    for seed in range(1, runs):
        place = store.folder / recipe.model_copy(update={"seed": seed}).key
        shutil.copytree(first, place)
        (place / "recipe.json").write_text(json.dumps(content | {"seed": seed}, indent=1) + "\n")
        ended = ended._replace(digests={**ended.digests, "recipe.json": digest(place / "recipe.json")})
        ended = ended._replace(digests={**ended.digests, "done": ended.own_digest()})
        (place / "done").write_text(json.dumps(ended._asdict(), indent=1) + "\n")


def seconds(program: str) -> float:
    """How long a program takes in its own process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return time.perf_counter() - start


def print_page(store: Store) -> None:
    """Print CPU seconds, peak memory and the size of the page of a report in its own process, cold and warm."""
    (store.folder / NAME).unlink(missing_ok=True)
    for name in ("cold", "warm"):
        done = subprocess.run([sys.executable, "-c", PAGE.format(str(store.folder))], check=True, capture_output=True)
        taken, most, size = map(float, done.stdout.split())
        print(f"  report, {name:16} {taken:7.2f} CPU s, imports included; peak {most:.0f} MiB; page {size:.2f} MB")


def time_claim(store: Store, recipe: Recipe) -> float:
    """How long it takes to claim a run, to enter it and to end it, without training."""
    start = time.perf_counter()
    run = store.claim(recipe)
    assert run is not None
    with run:
        run.end("diverged")
    return time.perf_counter() - start


def print_times(name: str, times: list[float], *, scale: float = 1.0, unit: str = "s") -> None:
    """Print the median, the least and the greatest of some times."""
    low, middle, high = (scale * value for value in (min(times), median(times), max(times)))
    print(f"  {name:24} {middle:7.2f} {unit:2}  ({low:.2f} to {high:.2f}, {len(times)} rounds)")


def main(runs: int) -> None:
    recipe = clean("attention", train=TASKS, dim=8, steps=60, batch=64, every=10, selection_rows=64, test_rows=64)
    with TemporaryDirectory() as folder:
        store = Store(Path(folder) / "runs")
        lines = train_run(store, recipe)
        copy_run(store, recipe, runs)
        print(f"store: {runs:,} runs that are done, {lines} measurements and 2 test segments each; {machine()}")
        print_times("an empty process", [seconds("") for _ in range(ROUNDS)])
        for name, program in (("data of a report", REPORT), ("bestiary status", STATUS), ("table.results", RESULTS)):
            cold, warm = [], []
            for _ in range(ROUNDS):
                (store.folder / NAME).unlink(missing_ok=True)
                cold.append(seconds(program.format(str(store.folder))))
                warm.append(seconds(program.format(str(store.folder))))
            print_times(f"{name}, cold", cold)
            print_times(f"{name}, warm", warm)
        print_page(store)
        print(f"  the cache has {(store.folder / NAME).stat().st_size / 2**20:.0f} MiB")
        others = [recipe.model_copy(update={"seed": runs + n}) for n in range(CLAIMS)]
        print_times("a claim and its end", [time_claim(store, other) for other in others], scale=1e3, unit="ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 10_000)
