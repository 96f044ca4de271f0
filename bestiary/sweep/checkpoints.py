"""Checkpoints of the runs of a sweep: a run that is interrupted goes on from its last one.

The folder `checkpoint` of a run holds `last.json`, the record, and a safetensors file named after the claim and the
step, which the record names. So a worker that has lost its claim without noticing writes no file that its successor
relies on.
"""

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.runs.digests import check
from bestiary.runs.files import FAULTS, read_record, reason
from bestiary.runs.record import read_log
from bestiary.runs.resuming import RECORD, ResumableRun, check_record
from bestiary.runs.store import Run
from bestiary.runs.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from bestiary.training.recipe import Recipe

SAVE_EVERY = 120.0  # seconds between two checkpoints of a run, so that a short one writes none
SHARE = 50  # at most one part in so many of the time is spent on writing them


class CheckpointedRun(ResumableRun):
    """A run of a sweep. When it is entered, its log ends where its last checkpoint does, or is empty."""

    def __init__(self, place: Path, claim: Path, recipe: "Recipe") -> None:
        super().__init__(place, claim, recipe)
        self.last: dict[str, Any] | None = None  # the record of the checkpoint that it goes on from
        self.note = ""  # why a checkpoint that is there cannot be used
        self.find_checkpoint()

    @property
    def first(self) -> int:
        """The step that it goes on from, 0 if it starts from the beginning."""
        return 0 if self.last is None else self.last["step"]

    def find_checkpoint(self) -> None:
        """Look for a checkpoint, and check it; if it cannot be used, note why."""
        path = self.checkpoint / RECORD
        if os.path.lexists(path):
            try:
                record = read_record(path)
                self.check_checkpoint(record, path)
                self.last = record
            except FAULTS as fault:
                self.note = f"{path}: {fault.strerror}" if isinstance(fault, OSError) else reason(fault)

    def check_checkpoint(self, record: Mapping[str, Any], path: Path) -> None:
        """Raises ValueError unless the run can go on from this record."""
        check_record(record, path)
        if self.checkpoint.is_symlink():
            raise ValueError(f"{self.checkpoint} is a link")
        if record.get("key") != self.recipe.key:
            raise ValueError(f"{path} is the checkpoint of another run")
        seconds, origins, files = (record.get(name) for name in ("seconds", "origins", "files"))
        if not isinstance(seconds, float) or not 0 <= seconds < math.inf or not isinstance(origins, list):
            raise ValueError(f"{path} is damaged: it does not say how the run came so far")
        if not files or not 1 <= record["step"] <= self.recipe.steps:
            raise ValueError(f"{path} is damaged: it names no file, or a step that the run does not have")
        self.check_log(record)
        for name, digest in files.items():
            if not (self.checkpoint / name).is_file():
                raise ValueError(f"{self.checkpoint / name} is missing")
            check(self.checkpoint / name, digest)

    def reset_log(self) -> None:
        """Cut the log back to the last checkpoint, or delete it if there is none."""
        if self.last is None:
            Run.reset_log(self)
            return
        self.cut_log(self.last["log"])
        self.seconds_before = self.last["seconds"]
        self.details = self.details | {"earlier": self.last["origins"]}

    def measurements(self) -> list[dict[str, Any]]:
        """What the log holds of the time before the checkpoint."""
        return [] if self.last is None else read_log(self.place, {}, done=False)

    def saved_tensors(self) -> "dict[str, Tensor] | None":
        """The state of training to go on from; None to start from the beginning. Raises ValueError."""
        if self.last is None:
            return None
        found = {}
        for name in self.last["files"]:
            found |= read_tensors(self.checkpoint / name)
        return found

    def check_step(self, step: int) -> None:
        """Raises ValueError if the state that was saved is not that after the step of the record."""
        if step != self.first:
            raise ValueError(f"{self.checkpoint} is damaged: its state is that of step {step}, not {self.first}")

    def start_over(self, why: str) -> None:
        """Leave the checkpoint unused, and empty the log."""
        self.last, self.note, self.seconds_before = None, why, 0.0
        self.details = {name: value for name, value in self.details.items() if name != "earlier"}
        self.remove_checkpoint()
        self.truncate_log(0)
        self.write_origin()

    def save(self, tensors: "Mapping[str, Tensor]") -> None:
        """Write the state of training as a checkpoint, and remove the one before.

        Raises ClaimLost if another worker holds the run now.
        """
        self.flush_log()
        step = int(tensors["step"])
        name = f"{self.claim.name}-step-{step}.safetensors"
        try:
            self.checkpoint.mkdir(exist_ok=True)
            alone = {slot: tensor.detach().clone() for slot, tensor in tensors.items()}  # they may share memory
            files = {name: write_tensors(self.checkpoint / name, alone)}
            record = {"key": self.recipe.key, "step": step, "origins": self.origins(step), "files": files}
            self.write_checkpoint(record)
            for old in self.checkpoint.iterdir():
                if old.name not in (name, RECORD) and old.name.startswith(("claim-", ".")):
                    old.unlink(missing_ok=True)
        except OSError:
            self.check_held()  # a successor that has removed the folder is no fault of the disk
            raise


class Timer:
    """Says when a checkpoint is due: `SAVE_EVERY` seconds after the last, or later if they take long to write."""

    def __init__(self) -> None:
        self.next = time.monotonic() + SAVE_EVERY

    def is_due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self.next

    def __enter__(self) -> None:
        """A checkpoint is being written."""
        self.begun = time.monotonic()

    def __exit__(self, *_: object) -> None:
        now = time.monotonic()
        self.next = now + max(SAVE_EVERY, (now - self.begun) * SHARE)
