"""Stores full of runs that nobody trained, and disks that refuse to be written."""

import subprocess
from functools import cache
from pathlib import Path

import pytest

from bestiary.runs.store import Store
from bestiary.training.recipe import Recipe, clean

LINE = {"step": 1, "split": "test", "segment": 0, "facet": "", "value": 0, "loss": 1.0, "right": 1, "asked": 2}
READ_ONLY = "mount --bind '{store}' '{store}' && mount -o remount,bind,ro '{store}' && exec \"$@\""
FULL = """
mkdir '{store}.full' && mount -t tmpfs -o size=1m none '{store}.full' && cp -r '{store}/.' '{store}.full'
mount --move '{store}.full' '{store}'
cat /dev/zero > '{store}/.zeros' 2> /dev/null
"$@" && ls -lA '{store}'
"""


def add_finished_run(store: Store, recipe: Recipe, *, right: int = 1, outcome: str = "finished") -> None:
    """A run as training leaves it; one that diverged has no test lines."""
    run = store.claim(recipe)
    assert run is not None
    with run:
        for step in (1, 2):
            look = {"step": step, "split": "selection", "loss": 0.1 + step, "asked": 3}
            run.append(LINE | look | {"right": 1 + 2 * (recipe.seed % 2)})
        for segment in range(len(recipe.test) if outcome != "diverged" else 0):
            extra = {"rows": 7, "whole": 2, "score": 1 / 3}
            run.append(LINE | {"step": 2, "segment": segment, "right": right, "extra": extra})
        run.end(outcome)


def fill_store(store: Store, many: int) -> Store:
    """`many` runs that are done, the last of which diverged, one that failed and one that was interrupted."""
    tasks = "mqar(vocab=20, length=12, pairs=2), parity(length=8)"
    for seed in range(many):
        made = clean("attention", dim=8, seed=seed, test=tasks) if seed % 3 else clean("attention", dim=8, seed=seed)
        add_finished_run(store, made, outcome="diverged" if seed == many - 1 else "finished")
    for dim, fault in ((3, ZeroDivisionError("nothing to divide by")), (5, KeyboardInterrupt())):
        run = store.claim(clean("attention", dim=dim))
        assert run is not None
        with pytest.raises(type(fault)), run:
            raise fault
    return store


def run_on_other_disk(folder: Path, *command: str, disk: str = READ_ONLY) -> "subprocess.CompletedProcess[str]":
    """Run a command that finds a folder on another disk, as only it sees it; skips where that is not permitted."""
    if not can_mount():
        pytest.skip("this machine lets nobody mount a disk for one process")
    script = disk.format(store=folder)
    ran = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", *command]
    return subprocess.run(ran, capture_output=True, text=True, check=False)


@cache
def can_mount() -> bool:
    probe = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
