"""Jobs of several runs: trained as one program where they can be, one after another where not, and never lost."""

import errno
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from test_sweep import SMALL, recipes

from bestiary.runs.store import Outcome, Store, list_claims, read_json
from bestiary.runs.table import results
from bestiary.sweep import Event, schedule, sweep
from bestiary.sweep.cost import predict_work
from bestiary.sweep.jobs import Job, JobEvent, make_jobs
from bestiary.sweep.schedule import run_jobs
from bestiary.training.recipe import Recipe, clean


def told(asked: Sequence[Recipe], store: Store, **options: Any) -> list[Event]:
    return [event for event in sweep(asked, store, **options) if event.kind != "measured"]


def sizes(found: Sequence[Job]) -> list[int]:
    return [len(job.recipes) for job in found]


def test_small_recipes_of_one_shape_share_a_job_and_large_ones_come_first() -> None:
    narrow, wide = recipes(6), recipes(6, dim=512, batch=64)
    assert sizes(make_jobs([*narrow, *wide], slots=2, device="cpu", together="auto")) == [1, 1, 1, 1, 1, 1, 6]
    assert sizes(make_jobs([*narrow, *wide], slots=1, device="cuda:0", together="auto")) == [6, 6]
    assert sizes(make_jobs(narrow, slots=2, device="cpu", together="never")) == [1] * 6
    assert sizes(make_jobs(wide, slots=1, device="cpu", together="always")) == [6]
    many = make_jobs(recipes(80), slots=1, device="cpu", together="auto")
    assert sizes(many) == [27, 27, 26]
    assert [recipe for job in many for recipe in job.recipes] == recipes(80)
    cached = recipes(40, batch=64, dim=32, train="mqar(vocab=64, length=32), mqar(vocab=80, length=64)")
    assert sizes(make_jobs(cached, slots=1, device="cpu", together="auto")) == [2] * 20  # 64 x 64 x 32 x 2 = 2^18


@pytest.mark.parametrize("together", ["auto", "never"])
def test_the_longest_runs_come_first_and_equally_long_ones_in_order(together: Any) -> None:
    short, long, wide = recipes(2, dim=64), recipes(2, dim=64, steps=80), recipes(2, dim=128, batch=64)
    asked = [short[0], long[0], wide[0], short[1], long[1], wide[1]]
    jobs = make_jobs(asked, slots=6, device="cpu", together=together)
    assert [recipe for job in jobs for recipe in job.recipes] == [*wide, *long, *short]


def test_stacks_are_divided_until_every_slot_has_work() -> None:
    shapes = [recipes(3, dim=dim) for dim in (8, 12, 16)]
    asked = [recipe for members in shapes for recipe in members]
    one, six, many = (make_jobs(asked, slots=slots, device="cpu", together="auto") for slots in (1, 6, 16))
    assert (sizes(one), len(six), sizes(many)) == ([3, 3, 3], 6, [1] * 9)
    assert sorted(recipe.key for job in six for recipe in job.recipes) == sorted(recipe.key for recipe in asked)
    assert sizes(make_jobs(recipes(6), slots=2, device="cpu", together="always")) == [3, 3]


def test_a_long_stack_is_divided_among_slots_that_would_wait_for_it() -> None:
    stack, singles = recipes(16, steps=400), recipes(3, optimizer="muon")
    jobs = make_jobs([*singles, *stack], slots=2, device="cpu", together="auto")
    assert sizes(jobs) == [8, 8, 1, 1, 1]


GROWING = (
    *({"steps": 41}, {"batch": 17}, {"dim": 9}, {"depth": 3}, {"every": 5}, {"selection_rows": 41}, {"test_rows": 61}),
    {"train": "mqar(vocab=20, length=14, pairs=2)"},
)


@pytest.mark.parametrize("more", GROWING, ids=str)
def test_more_steps_tokens_or_width_are_predicted_to_be_more_work(more: dict[str, Any]) -> None:
    (recipe,), (larger,) = recipes(1), recipes(1, **more)
    assert predict_work(larger) > predict_work(recipe)


def test_segments_of_more_batches_count_for_more_of_the_work() -> None:
    two = ", ".join(f"mqar(vocab=64, length={length}, pairs=2)" for length in (12, 24))
    (short,), (even,), (long,) = (recipes(1, train=two, distinct=counts) for counts in ((3, 1), (1, 1), (1, 3)))
    assert predict_work(short) < predict_work(even) < predict_work(long)


def test_a_stack_is_predicted_to_be_more_work_than_one_and_less_than_its_members_alone() -> None:
    (recipe,) = recipes(1)
    assert predict_work(recipe) < predict_work(recipe, 2) < 2 * predict_work(recipe)


def test_a_sweep_that_goes_on_begins_with_the_longest_run_left(tmp_path: Path) -> None:
    store, executor = Store(tmp_path), Scripted({})
    asked = [clean("attention", **SMALL | {"steps": 10 * (1 + seed)}, seed=seed) for seed in (2, 0, 3, 1)]
    with store.claim(asked[2]) as run:  # pyright: ignore[reportOptionalContextManager]
        run.end("diverged")
    list(sweep(asked, store, executor=executor))
    assert executor.ran == [[2], [1], [0]]


def test_sweeps_that_share_recipes_each_begin_with_long_ones_and_go_on_to_all(tmp_path: Path) -> None:
    asked, ran = [clean("attention", **SMALL | {"steps": 10 * (1 + seed)}, seed=seed) for seed in range(5)], []
    for number in range(2):
        list(sweep(asked, Store(tmp_path), executor=(executor := Scripted({})), part=(number, 2)))
        ran.append(executor.ran)
    assert ran == [[[4], [2], [0], [3], [1]], [[3], [1], [4], [2], [0]]]


@pytest.mark.slow
def test_runs_trained_together_leave_what_they_would_alone(tmp_path: Path) -> None:
    asked, tables = [*recipes(3), *recipes(2, rate=1e-2)], []
    for together in ("always", "never"):
        store = Store(tmp_path / together)
        seen = Counter(event.kind for event in told(asked, store, workers=1, together=together))
        assert seen == {"started": 5, "ended": 5}
        tables.append(results(store, [recipe.key for recipe in asked])[0])
        how = read_json(store.folder / asked[0].key / "origin.json")
        assert how.get("together") == (5 if together == "always" else None)
        assert all(
            (claim / "released").exists() for recipe in asked for claim in list_claims(store.folder / recipe.key)
        )
    one, other = tables
    assert one[["key", "right", "asked", "steps", "outcome"]].equals(
        other[["key", "right", "asked", "steps", "outcome"]]
    )
    assert one["loss"].tolist() == pytest.approx(other["loss"].tolist(), rel=1e-3)


BRANCHING = "y = h * (1 if h.sum().item() > 0 else 2); h = y; return self.out(h), last"
LARGE = """
        import torch
        from torch._C import _functorch as layers
        layer = layers.peek_interpreter_stack()
        if layer is not None and layers.CVmapInterpreterPtr(layer).batchSize() > 1:
            raise torch.OutOfMemoryError("out of memory: tried to allocate 1 EiB")
"""


def mixer(folder: Path, name: str, old: str, new: str) -> str:
    file = folder / f"{name}.py"
    text = Path("examples/my_mixer.py").read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return str(file)


def test_a_mixer_that_vmap_cannot_run_is_announced_and_run_one_by_one(tmp_path: Path) -> None:
    file = mixer(tmp_path, "branching", "return self.out(h), last", BRANCHING)
    asked = [clean(file, **SMALL, seed=seed) for seed in range(3)]
    seen = told(asked, store := Store(tmp_path / "runs"), workers=1)
    assert "3 recipes: vmap: It looks like" in next(event.detail for event in seen if event.kind == "unstacked")
    assert Counter(event.kind for event in seen)["ended"] == 3
    assert all(recipe in store for recipe in asked)
    assert not any(store.failure(recipe.key) for recipe in asked)


def test_a_group_too_large_for_the_memory_is_halved_until_it_fits(tmp_path: Path) -> None:
    file = mixer(tmp_path, "large", "        a = self.rate", LARGE + "        a = self.rate")
    asked = [clean(file, **SMALL, seed=seed) for seed in range(4)]
    seen = told(asked, store := Store(tmp_path / "runs"), workers=1)
    apart = [event.detail for event in seen if event.kind == "unstacked"]
    assert apart == [f"{n} recipes: too large for the memory" for n in (4, 2, 2)]
    assert all(recipe in store for recipe in asked)


def test_a_group_with_a_fault_of_its_own_fails_run_by_run_each_with_its_traceback(tmp_path: Path) -> None:
    file = mixer(tmp_path, "faulty", "        h, last = ", "        assert len(x) < 3, 'no room'\n        h, last = ")
    asked = [clean(file, **SMALL, seed=seed) for seed in range(3)]
    seen = told(asked, store := Store(tmp_path / "runs"), workers=1)
    assert [event.detail for event in seen if event.kind == "failed"] == ["AssertionError: no room"] * 3
    assert all("no room" in (store.failure(recipe.key) or "") for recipe in asked)


@pytest.mark.slow
@pytest.mark.parametrize("together", ["always", "never"])
def test_a_worker_killed_once_costs_nothing(together: Any, tmp_path: Path) -> None:
    asked, store = recipes(4, steps=400), Store(tmp_path)
    events, seen, killed = sweep(asked, store, workers=2, together=together), Counter(), False
    for event in events:
        seen[event.kind] += 1
        if event.kind == "measured" and not killed:
            killed = True
            os.kill(
                read_json(list_claims(store.folder / event.recipe.key)[-1] / "owner.json")["process"], signal.SIGKILL
            )
    assert seen["retried"] == (2 if together == "always" else 1)
    assert (seen["ended"], seen["failed"]) == (4, 0)
    assert all(recipe in store for recipe in asked)
    for recipe in asked:
        log = store.read(recipe.key).log
        assert len({tuple(line[name] for name in ("step", "split", "facet", "value")) for line in log}) == len(log)


@pytest.mark.slow
def test_two_sweeps_on_one_store_at_once_do_every_run_once(tmp_path: Path) -> None:
    asked, store, seen = recipes(8, steps=200), Store(tmp_path), [Counter(), Counter()]

    def one(mine: Counter[str], order: list[Recipe]) -> None:
        mine.update(event.kind for event in told(order, store, workers=1, together="never"))

    threads = [Thread(target=one, args=(seen[0], asked)), Thread(target=one, args=(seen[1], asked[::-1]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen[0]["started"] + seen[1]["started"] == 8
    assert all(len(list_claims(store.folder / recipe.key)) == 1 for recipe in asked)
    assert all(recipe in store for recipe in asked)


class Scripted:
    """An executor of one slot whose workers say what they are told to."""

    def __init__(self, script: dict[str, list[str]]) -> None:
        self.script, self.job, self.ran = script, None, []

    def slots(self) -> int:
        return 1

    def free(self) -> int:
        return self.job is None

    def start(self, job: Job) -> None:
        self.job = job
        self.ran.append([recipe.seed for recipe in job.recipes])

    def poll(self, timeout: float) -> list[JobEvent]:
        if self.job is None:
            time.sleep(min(timeout, 0.05))
            return []
        job, self.job = self.job, None
        key = ",".join(str(recipe.seed) for recipe in job.recipes)
        kind = (self.script.get(key) or ["over"]).pop(0)
        if kind == "disk full":
            return [JobEvent(job, "disk full", None, (errno.EROFS, "/runs"))]
        over = {"over": job.recipes, "died late": job.recipes[:1]}.get(kind, ())
        ended = [JobEvent(job, "ended", recipe, Outcome("finished", 1.0)) for recipe in over]
        kind = kind.removesuffix(" late")
        return [*ended, JobEvent(job, kind, None, "it died" if kind == "died" else "why")]

    def stop(self, job: Job, reason: str) -> None:
        self.script.setdefault("stopped", []).append(reason)

    def close(self) -> None:
        pass


class Hanging(Scripted):
    """An executor whose worker says of each job that it has started, and then no more until it is stopped."""

    reason = ""

    def poll(self, timeout: float) -> list[JobEvent]:
        time.sleep(timeout)
        job = self.job
        if job is None:
            return []
        if self.reason:
            self.job, reason, self.reason = None, self.reason, ""
            return [JobEvent(job, "died", None, reason)]
        return [JobEvent(job, "started", job.recipes[0])] if self.ran.pop(0) else []

    def start(self, job: Job) -> None:
        self.job, self.ran = job, [True, *[False] * 10_000]

    def stop(self, job: Job, reason: str) -> None:
        assert job is self.job
        self.reason = reason


def test_a_worker_without_news_is_ended_and_its_death_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "RETRY_PAUSE", 0.04)
    store, (recipe,) = Store(tmp_path), recipes(1)
    events = list(run_jobs([Job((recipe,))], store, Hanging({}), wait=True, patience=0.2))
    assert [event.kind for event in events] == ["started", "retried"] * 2 + ["started", "failed"]
    assert events[1].detail == "no measurement for 0.2 s"
    assert store.failure(recipe.key) == "no measurement for 0.2 s\n"


def test_without_patience_a_worker_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "RETRY_PAUSE", 0.04)
    executor, (recipe,) = Hanging({}), recipes(1)
    events = run_jobs([Job((recipe,))], Store(tmp_path), executor, wait=True)
    assert next(events).kind == "started"
    stopper = Thread(target=lambda: (time.sleep(1.0), setattr(executor, "reason", "by hand")))
    stopper.start()
    assert next(events).detail == "by hand"
    events.close()
    stopper.join()


@pytest.mark.slow
def test_a_run_that_hangs_costs_its_own_worker_only(tmp_path: Path) -> None:
    file = mixer(tmp_path, "hanging", "h, last = ", "import time; time.sleep(1e4) if len(x) > 2 else None; h, last = ")
    hanging, (other,) = clean(file, **SMALL), recipes(1)
    store = Store(tmp_path / "runs")
    seen = [(e.kind, e.recipe.key) for e in told([hanging, other], store, workers=1, patience=2.0)]
    assert Counter(kind for kind, key in seen if key == hanging.key) == {"started": 3, "retried": 2, "failed": 1}
    assert ("ended", other.key) in seen
    assert store.failure(hanging.key) == "the worker died (no measurement for 2 s)\n"
    assert store.owner(hanging.key) is None


def scripted(folder: Path, script: dict[str, list[str]]) -> tuple[list[list[int]], list[tuple[str, int, Any]]]:
    executor = Scripted(script)
    events = run_jobs([Job(tuple(recipes(4)))], Store(folder), executor, wait=True)
    return executor.ran, [(e.kind, e.recipe.seed, e.detail if e.kind != "ended" else None) for e in events]


def test_a_job_that_kills_its_worker_is_taken_apart_and_only_who_kills_three_fails(tmp_path: Path) -> None:
    ran, seen = scripted(tmp_path, {"0,1,2,3": ["died"], "1": ["died", "died"]})
    assert ran == [[0, 1, 2, 3], [0], [1], [1], [2], [3]]
    assert [x for x in seen if x[0] == "failed"] == [("failed", 1, "it died, 3 times")]
    assert [x[:2] for x in seen if x[0] == "ended"] == [("ended", 0), ("ended", 2), ("ended", 3)]


def test_what_had_ended_before_its_worker_died_is_not_done_again(tmp_path: Path) -> None:
    ran, seen = scripted(tmp_path, {"0,1,2,3": ["died late"]})
    assert ran == [[0, 1, 2, 3], [1], [2], [3]]
    assert Counter(kind for kind, *_ in seen) == {"ended": 4, "retried": 3}


def test_a_disk_that_takes_nothing_ends_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Read-only") as caught:
        scripted(tmp_path, {"0,1,2,3": ["disk full"]})
    assert caught.value.errno == errno.EROFS
