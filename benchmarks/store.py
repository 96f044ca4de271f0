"""A store of many runs: how long `status`, the table of results, a report and its data take, and one claim.

One short run is trained, and its files are copied to the keys of other seeds. Cold is without the cache of the store,
with the files of the runs in the page cache; warm is with the cache that the cold question left.

Digests: the same runs lie in two stores, with their digests and without, as version 0.1 left them; both are asked in
turns in one process. Given a folder with the source of version 0.1 or any commit of its time (`git archive`), its
`status` and data of a report are also timed against those of now, on the store without digests for it and with them
for now, in processes that take turns.

python benchmarks/store.py [RUNS [FOLDER]]
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from _bench import interleaved, machine, ratio, told

from bestiary.report.runs import gather_runs
from bestiary.runs.digests import digest
from bestiary.runs.index import NAME
from bestiary.runs.store import Store
from bestiary.runs.table import run_states
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
OLD_REPORT = (
    "from bestiary.store import Store; from bestiary.report.runs import gather; s = Store({!r}); gather(s, s.begun())"
)
PAGE = (
    "import time; t = time.process_time(); from bestiary.runs.store import Store; from bestiary.report import report; "
    "page = report(Store({!r})).html; from pathlib import Path; status = Path('/proc/self/status').read_text(); "
    "print(time.process_time() - t, float(status.partition('VmHWM:')[2].split()[0]) / 1024, len(page) / 1e6)"
)
ROUNDS = 3
TURNS = 7  # rounds of what is compared
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


def link_without_digests(store: Store, folder: Path) -> Store:
    """A store of the same runs, as links to the same files, but without digests."""
    for key in store.run_keys():
        (folder / key).mkdir(parents=True)
        for name in ("recipe.json", "origin.json", "log.jsonl"):
            (folder / key / name).hardlink_to(store.folder / key / name)
        done = json.loads((store.folder / key / "done").read_text())
        done.pop("digests")
        (folder / key / "done").write_text(json.dumps(done, indent=1) + "\n")
    return Store(folder)


def seconds(program: str) -> float:
    """How long a program takes in its own process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return time.perf_counter() - start


def cpu_seconds(program: str, source: Path) -> float:
    """How long the processor works on a program that uses the package in a folder."""
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(source)}
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=source, env=environment)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    return end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime


def compare(ways: dict[str, Callable[[], Any]], *, clock: Callable[[], float] = time.process_time) -> None:
    """Print how much longer the second of two ways takes than the first, the median over rounds in turns."""
    taken = interleaved(ways, rounds=TURNS, clock=clock)
    first, second = ways
    print(told(taken))
    print(f"    {second} / {first}: {ratio(taken, second, first):.2f}")


def compare_digests(store: Store, plain: Store) -> None:
    """What checking digests costs `status` and a report, cold and warm."""

    def ask(question: Callable[[Store], Any], asked: Store, *, cold: bool) -> None:
        if cold:
            (asked.folder / NAME).unlink(missing_ok=True)
        question(asked)

    questions: dict[str, Callable[[Store], Any]] = {
        "states": run_states,
        "report": lambda asked: gather_runs(asked, asked.run_keys()),
    }
    for name, question in questions.items():
        for cold in (True, False) if name == "states" else (True,):  # a report does not use the cache
            print("  data of a report" if name == "report" else f"  status, {'cold' if cold else 'warm'}")
            compare({
                "without digests": partial(ask, question, plain, cold=cold),
                "with digests": partial(ask, question, store, cold=cold),
            })  # fmt: skip


def compare_versions(store: Store, plain: Store, before: Path) -> None:
    """What `status` and the data of a report take now and before, each in processes of their own."""
    now = Path(__file__).parents[1]
    for name, old, new in (("status", STATUS, STATUS), ("data of a report", OLD_REPORT, REPORT)):
        for cold in (True, False) if name == "status" else (True,):
            print(f"  {name}, {'cold' if cold else 'warm'}, as a process, seconds of work")
            taken: dict[str, list[float]] = {"before": [], "now": []}
            for _ in range(TURNS + 1):
                for way, program, asked, source in (("before", old, plain, before), ("now", new, store, now)):
                    for index in asked.folder.glob(".index*") if cold else ():
                        index.unlink()
                    taken[way].append(cpu_seconds(program.format(str(asked.folder)), source))
            taken = {way: times[1:] for way, times in taken.items()}
            print(told(taken))
            print(f"    now / before: {ratio(taken, 'now', 'before'):.2f}")


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


def main(runs: int, before: Path | None = None) -> None:
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
        plain = link_without_digests(store, Path(folder) / "plain")
        compare_digests(store, plain)
        if before is not None:
            compare_versions(store, plain, before)
        run_states(store)  # which writes the cache
        print(f"  the cache has {(store.folder / NAME).stat().st_size / 2**20:.1f} MiB")
        others = [recipe.model_copy(update={"seed": runs + n}) for n in range(CLAIMS)]
        print_times("a claim and its end", [time_claim(store, other) for other in others], scale=1e3, unit="ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 10_000, Path(sys.argv[2]).absolute() if sys.argv[2:] else None)
