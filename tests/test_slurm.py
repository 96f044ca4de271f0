"""Sweeps on Slurm, carried out by submitit's executor for one machine."""

import os
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from test_sweep import SMALL, recipes

from bestiary.runs.store import Store, list_claims, read_json
from bestiary.runs.table import results
from bestiary.sweep import Event, sweep
from bestiary.sweep.jobs import Job, JobEvent, WorkerConfig
from bestiary.sweep.slurm import file_system_time, parse_options, slurm_sweep
from bestiary.sweep.work import work
from bestiary.training.recipe import Recipe, clean


def jobs(folder: Path) -> list[int]:
    """The processes of the jobs that submitit started for a store."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if "submitit.core._submit" in command and str(folder / ".slurm") in command:
            found.append(int(place.name))
    return found


def family(process: int) -> list[int]:
    """A process and all that it has started, first those without children of their own."""
    parents: dict[int, int] = {}
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
    children = [child for child, parent in parents.items() if parent == process]
    return [*(member for child in children for member in family(child)), process]


def table(store: Store, asked: list[Recipe]) -> Any:
    return results(store, [recipe.key for recipe in asked])[0].drop(columns="seconds")


def test_options_are_read_with_their_commas() -> None:
    assert parse_options("partition=gpu,timeout_min=60,exclude=n1,n2,jobs=8,mem_gb=1.5,setup=module load x") == {
        "partition": "gpu",
        "timeout_min": 60,
        "exclude": "n1,n2",
        "jobs": 8,
        "mem_gb": 1.5,
        "setup": ["module load x"],
    }
    with pytest.raises(ValueError, match="'gpu' is not an option of Slurm; write name=value"):
        parse_options("gpu,jobs=2")


def test_the_folder_of_jobs_which_holds_pickles_is_for_its_user_alone(tmp_path: Path) -> None:
    file_system_time(tmp_path / "runs" / ".slurm")
    assert (tmp_path / "runs" / ".slurm").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "runs").stat().st_mode & 0o777 != 0o700


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("jobs=0,cluster=local", "jobs=0 is not a number of Slurm jobs"),
        ("cluster=local,partion=gpu", "Slurm: Unknown argument 'partion' for executor 'slurm'"),
        ("cluster=local,timeout_min=soon", 'Slurm: Parameter "timeout_min" expected type'),
        ("cluster=local,nodes=2", "nodes=2: each job is one process on one node; for more of them give jobs="),
        ("cluster=cloud", "Slurm: AutoExecutor doesn't know any executor named cloud"),
    ],
)
def test_an_option_that_is_not_allowed_is_told_at_once(options: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told) as fault:
        slurm_sweep(recipes(1), Store(tmp_path), options)
    assert "\n" not in str(fault.value)


@pytest.mark.slow
def test_jobs_share_a_sweep_and_change_no_number(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    text = Path("examples/my_mixer.py").read_text()
    bad.write_text(text.replace("h, last = ", "assert len(x) < 3, 'no room'; h, last = "))
    asked, store, plain = recipes(6, steps=60), Store(tmp_path / "slurm"), Store(tmp_path / "local")
    for _ in sweep(asked, plain, together="never"):
        pass
    failing = clean(str(bad), **SMALL)
    seen = list(slurm_sweep([failing, *asked], store, "cluster=local,jobs=2", workers=1, together="never"))
    kinds = Counter(event.kind for event in seen)
    assert (kinds["ended"], kinds["failed"], kinds["retried"]) == (6, 1, 0)
    assert next(event for event in seen if event.kind == "failed").detail == "AssertionError: no room"
    assert kinds["measured"] == 6 * (6 + 6 + 1)
    assert table(store, asked).equals(table(plain, asked))
    hosts = {read_json(list_claims(store.folder / recipe.key)[-1] / "owner.json")["process"] for recipe in asked}
    assert len(hosts) == 2
    assert not list(slurm_sweep(asked, store, "cluster=local"))


def test_what_failed_since_the_sweep_began_is_not_tried_again(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    text = Path("examples/my_mixer.py").read_text()
    bad.write_text(text.replace("h, last = ", "assert len(x) < 3, 'no room'; h, last = "))
    recipe, store = clean(str(bad), **SMALL), Store(tmp_path / "runs")
    for since, kinds in ((None, ["started", "failed", "over"]), (0.0, ["failed", "over"])):
        told: list[JobEvent] = []
        work(Job((recipe,)), WorkerConfig(str(store.folder), since=since), "cpu", told.append)
        assert [one.kind for one in told] == kinds
        assert told[-2].detail == "AssertionError: no room"
    work(Job((recipe,)), WorkerConfig(str(store.folder), since=time.time() + 60), "cpu", told.append)
    assert len(list_claims(store.folder / recipe.key)) == 2


@pytest.mark.slow
def test_what_a_killed_job_left_undone_is_submitted_again(tmp_path: Path) -> None:
    asked, store, plain = recipes(4, steps=100), Store(tmp_path / "slurm"), Store(tmp_path / "local")
    for _ in sweep(asked, plain, together="never"):
        pass
    seen: list[Event] = []
    for event in slurm_sweep(asked, store, "cluster=local", workers=1, together="never"):
        seen.append(event)
        if event.kind == "ended" and sum(one.kind == "ended" for one in seen) == 1:
            (job,) = jobs(store.folder)
            os.kill(job, signal.SIGKILL)
    kinds = Counter(event.kind for event in seen)
    assert (kinds["ended"], kinds["failed"]) == (4, 0)
    assert "its Slurm job died" in {event.detail for event in seen if event.kind == "retried"}
    assert table(store, asked).equals(table(plain, asked))
    assert Counter(event.recipe.key for event in seen if event.kind == "ended") == {recipe.key: 1 for recipe in asked}


@pytest.mark.slow
def test_a_preempted_job_is_queued_again_by_itself(tmp_path: Path) -> None:
    asked, store = recipes(3, steps=100), Store(tmp_path)
    seen: list[Event] = []
    first: list[int] = []
    for event in slurm_sweep(asked, store, "cluster=local", workers=1, together="never"):
        seen.append(event)
        if event.kind == "measured" and not first:
            first = jobs(tmp_path)
            for process in family(first[0]):  # Slurm signals all that a job has started
                os.kill(process, signal.SIGUSR2)
    kinds = Counter(event.kind for event in seen)
    assert (kinds["ended"], kinds["failed"]) == (3, 0)
    assert "its Slurm job died" not in [event.detail for event in seen if event.kind == "retried"]
    assert all((claim / "released").exists() for recipe in asked for claim in list_claims(tmp_path / recipe.key))


@pytest.mark.slow
def test_closing_the_sweep_cancels_its_jobs_and_releases_their_runs(tmp_path: Path) -> None:
    asked, store = recipes(2, steps=100_000), Store(tmp_path)
    events = slurm_sweep(asked, store, "cluster=local,jobs=2", workers=1, together="never")
    for event in events:
        if event.kind == "measured" and all(store.owner(recipe.key) for recipe in asked):
            break
    assert len(jobs(tmp_path)) == 2
    events.close()
    until = time.monotonic() + 5
    while (jobs(tmp_path) or any(store.owner(recipe.key) for recipe in asked)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not jobs(tmp_path)
    assert all(store.owner(recipe.key) is None for recipe in asked)
