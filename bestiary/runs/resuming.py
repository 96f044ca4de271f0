"""Runs that go on from a checkpoint after they were interrupted. Does not import torch.

    runs/<key>/checkpoint/last.json     the record: step, size and digest of the log, seconds, what made the run so far
                                        (origins), files with their digests
                          ...           the files that it names

The record is written when its files are complete, and makes them the checkpoint.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bestiary.runs.digests import digest_bytes
from bestiary.runs.files import write_file, write_record
from bestiary.runs.store import CHECKPOINT, Outcome, Run

RECORD = "last.json"


def check_record(record: Mapping[str, Any], path: Path) -> None:
    """Raises ValueError if the record of a checkpoint lacks what every checkpoint has, or names files elsewhere."""
    if not all(isinstance(record.get(name), int) and record[name] >= 0 for name in ("step", "log")):
        raise ValueError(f"{path} is damaged: it names no step of training and no size of the log")
    files = record.get("files", {})
    if not isinstance(files, dict) or any(Path(name).name != name for name in files):
        raise ValueError(f"{path} is damaged: it names no files, or files elsewhere")


class ResumableRun(Run):
    """A run that resumes from a checkpoint, its log cut back to what the checkpoint knows of it."""

    @property
    def checkpoint(self) -> Path:
        """The folder of its checkpoint."""
        return self.place / CHECKPOINT

    def reset_log(self) -> None:
        """Keep the log of the attempt before, until the checkpoint has been read."""

    def truncate_log(self, size: int) -> None:
        """Keep the first `size` bytes of the log, in a new file: a former owner may still hold the old one open."""
        self.log.close()
        self.cut_log(size)
        self.log = (self.place / "log.jsonl").open("a")

    def cut_log(self, size: int) -> None:
        """`truncate_log` for a log that is not open."""
        place = self.place / "log.jsonl"
        write_file(place, place.read_bytes()[:size].decode())

    def log_digest(self, size: int) -> str:
        """The digest of the first `size` bytes of the log."""
        return digest_bytes((self.place / "log.jsonl").read_bytes()[:size])

    def check_log(self, record: Mapping[str, Any]) -> None:
        """Raises ValueError unless the log begins as the record of the checkpoint says."""
        path, size = self.place / "log.jsonl", record["log"]
        whole = path.is_file() and path.stat().st_size >= size
        if not whole or ("log_digest" in record and self.log_digest(size) != record["log_digest"]):
            raise ValueError(f"{path} is damaged: it is not the log that its checkpoint knows")

    def origins(self, step: int) -> list[dict[str, Any]]:
        """What made each part of the run up to a step, this part last: for the record of a checkpoint."""
        this = {name: value for name, value in self.origin.items() if name != "earlier"}
        return [*self.origin.get("earlier", []), this | {"until": step}]

    def flush_log(self) -> int:
        """Write the log to disk; its size in bytes. Raises ClaimLost if another worker holds the run now."""
        self.check_held()
        os.fsync(self.log.fileno())
        return self.log.tell()

    def write_checkpoint(self, record: Mapping[str, Any]) -> None:
        """Make the files that the record names the checkpoint of the run. Raises ClaimLost."""
        size = self.flush_log()
        log = {"log": size, "log_digest": self.log_digest(size), "seconds": round(self.seconds, 2)}
        write_record(self.checkpoint / RECORD, {**record, **log})

    def end(self, outcome: str, note: str = "") -> Outcome:
        """Mark the run as done, and remove its checkpoint. Raises ClaimLost if another worker holds it now."""
        ended = super().end(outcome, note)
        self.remove_checkpoint()
        return ended
