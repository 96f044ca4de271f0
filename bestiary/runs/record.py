"""What a run's folder holds, checked when it is read: nothing damaged or incomplete gets into a table."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from operator import itemgetter, le
from pathlib import Path
from typing import Any, NamedTuple

from bestiary.runs.digests import check, digest_bytes
from bestiary.runs.files import FAULTS, read_bytes, read_fields, reason

KEPT = ("recipe.json", "origin.json", "log.jsonl")  # files whose digests are recorded when a run ends
ENCODER = json.JSONEncoder(sort_keys=True)
COMPLETE = ("solved", "finished")  # outcomes of runs that were scored on the test stream
NUMBERS = (int, float)
LINE = {"step": int, "split": str, "segment": int, "facet": str, "value": int, "right": int, "asked": int}
FIELDS = itemgetter(*LINE, "loss")
KINDS = (*({kind} for kind in LINE.values()), {float, int})


class DamagedRun(ValueError):
    """A run's folder cannot be read, or does not hold what it should."""


class Outcome(NamedTuple):
    """How a run ended."""

    outcome: str  # "solved" (stopped early), "finished" or "diverged"
    seconds: float
    note: str = ""
    digests: Mapping[str, str] = {}  # of the files in the folder, by name; empty in stores before 0.2

    def own_digest(self) -> str:
        """The digest of the other fields, recorded under "done"."""
        others = {file: digest for file, digest in self.digests.items() if file != "done"}
        return digest_bytes(ENCODER.encode([self.outcome, self.seconds, self.note, others]).encode())


class Record(NamedTuple):
    """A run as it is on disk: its recipe, how it ended (None if it has not) and its measurements."""

    key: str
    recipe: dict[str, Any]
    ended: Outcome | None
    log: list[dict[str, Any]]
    format: int | None = None  # that of its key (see `training.recipe.FORMAT`); None for today's


def damaged_run(place: Path, fault: BaseException | str) -> DamagedRun:
    """The error that says what is wrong with a run's folder, and how to set it aside."""
    what = fault if isinstance(fault, str) else reason(fault)
    aside, count = f"{place}.damaged", 1
    while os.path.lexists(aside):
        aside, count = f"{place}.damaged-{count + 1}", count + 1
    command = f"mv {shlex.quote(str(place))} {shlex.quote(aside)}"
    return DamagedRun(f"{place} cannot be read ({what}); set it aside with: {command}")


def read_record(folder: Path | str) -> Record:
    """A run's recipe, outcome and measurements. Raises DamagedRun, naming the file, if anything is wrong with them."""
    place = os.fspath(folder)  # text, since joining paths would take a twentieth of the time of `status`
    try:
        ended = read_outcome(place)
        expected = {} if ended is None else ended.digests
        recipe, number = read_recipe(place, expected)
        check_origin(place, expected)
        log = read_log(place, expected, done=ended is not None)
        if "kind" not in recipe:
            check_log(log, len(recipe["test"]) if ended is not None and ended.outcome in COMPLETE else 0)
    except FAULTS as fault:
        raise damaged_run(Path(place), fault) from None
    return Record(os.path.basename(place), recipe, ended, log, number)


def read_outcome(place: Path | str) -> Outcome | None:
    """How the run ended; None if it has not. Raises ValueError."""
    path = f"{place}/done"
    if not os.path.lexists(path):
        return None
    fields: dict[str, Any] = {"digests": {}} | read_fields(path, outcome=str, seconds=NUMBERS, note=str)
    if sorted(fields) != sorted(Outcome._fields) or not isinstance(fields["digests"], dict):
        raise ValueError(f"done: it has other fields than {', '.join(Outcome._fields)}")
    ended = Outcome(**fields)
    if ended.outcome not in (*COMPLETE, "diverged"):
        raise ValueError(f"done: {ended.outcome!r:.40} is no outcome")
    if ended.digests and (not ended.digests.keys() >= {*KEPT} or ended.digests.get("done") != ended.own_digest()):
        raise ValueError("done: it has changed since the run ended; its digest is another")
    return ended


def read_recipe(place: Path | str, digests: Mapping[str, str]) -> tuple[dict[str, Any], int]:
    """The stored recipe, which must be that of the folder's name, and the format of that. Raises ValueError."""
    from bestiary.training.recipe import find_format

    content = verified_bytes(place, "recipe.json", digests)
    try:
        recipe = json.loads(content)
        number = find_format(os.path.basename(place), recipe)
    except FAULTS as fault:
        raise ValueError(f"recipe.json: {reason(fault)}") from None
    if number is None:
        raise ValueError("recipe.json: it is not the recipe of this folder's name")
    return recipe, number


def check_origin(place: Path | str, digests: Mapping[str, str]) -> None:
    """Raises ValueError if origin.json is there and cannot be read."""
    if "origin.json" in digests:
        verified_bytes(place, "origin.json", digests)
    elif os.path.lexists(f"{place}/origin.json"):
        origin = read_fields(f"{place}/origin.json")
        if not isinstance(origin.get("host", {}), dict) or not isinstance(origin.get("versions", {}), dict):
            raise ValueError("origin.json: its host or versions are no fields")


def read_log(place: Path | str, digests: Mapping[str, str], *, done: bool) -> list[dict[str, Any]]:
    """The measurements of a log. A last line that was cut off is left out, unless the run is done: that is damage."""
    if not done and not os.path.lexists(f"{place}/log.jsonl"):
        return []
    content = verified_bytes(place, "log.jsonl", digests)
    try:
        text, newline, rest = content.decode().rpartition("\n")
        lines = text.count("\n") + len(newline)
        measurements = json.loads(f"[{text.replace(chr(10), ',')}]")  # all at once takes half the time of one by one
    except FAULTS as fault:
        raise ValueError(f"log.jsonl: {reason(fault)}") from None
    if len(measurements) != lines:
        raise ValueError(f"log.jsonl: {lines} lines hold {len(measurements)} measurements")
    if rest and done:
        raise ValueError("log.jsonl: it ends in half a line, though the run is done")
    return measurements


def check_log(log: Sequence[Any], segments: int) -> None:
    """Raises ValueError unless all are measurements, and so many segments were scored on the test stream."""
    try:  # column by column, which takes less time than line by line
        columns = tuple(zip(*map(FIELDS, log), strict=True)) or ((),) * len(KINDS)
        _, splits, numbers, facets, _, right, asked, _ = columns
        sound = all(set(map(type, column)) <= kinds for column, kinds in zip(columns, KINDS, strict=True))
        sound = sound and (not log or (min(right) >= 0 and min(asked) > 0)) and all(map(le, right, asked))
    except (TypeError, LookupError):
        sound, splits, facets, numbers = False, (), (), ()
    if not sound:
        raise_for_line(log)
    lines = zip(splits, facets, numbers, strict=True)
    tested = {number for split, facet, number in lines if split == "test" and not facet}
    if missing := sorted(set(range(segments)) - tested):
        raise ValueError(f"log.jsonl: the run has ended, but no test of segment {missing[0]} is in it")


def raise_for_line(log: Sequence[Any]) -> None:
    """Raises ValueError for the first line that is no measurement."""
    for number, line in enumerate(log, start=1):
        try:
            values = FIELDS(line)
        except (TypeError, LookupError) as fault:
            raise ValueError(f"log.jsonl: line {number} is no measurement (no {fault})") from None
        kinds = zip(map(type, values), KINDS, strict=True)
        if (
            not all(kind in known for kind, known in kinds)
            or not 0 <= line["right"] <= line["asked"]
            or not line["asked"]
        ):
            raise ValueError(f"log.jsonl: line {number} is no measurement")


def verified_bytes(place: Path | str, file: str, digests: Mapping[str, str]) -> bytes:
    """The content of a file, which must have the digest that was recorded, if one was. Raises ValueError."""
    try:
        content = read_bytes(f"{place}/{file}")
    except FAULTS as fault:
        raise ValueError(f"{file}: {reason(fault)}") from None
    if file in digests and digest_bytes(content) != digests[file]:
        raise ValueError(f"{file}: it has changed since the run ended; its digest is another")
    return content


def verified(place: Path, file: str) -> bool:
    """Check a file of a run that is done, such as its weights, before it is used.

    Returns False if no digest of it was recorded, as in stores before 0.2. Raises DamagedRun, naming the file.
    """
    try:
        ended = read_outcome(place)
        expected = None if ended is None else ended.digests.get(file)
        if expected is not None:
            check(place / file, expected)
    except FAULTS as fault:
        raise damaged_run(place, fault if isinstance(fault, ValueError) else f"{file}: {reason(fault)}") from None
    return expected is not None
