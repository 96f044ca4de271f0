"""Reading and writing small files, each whole or not at all.

A record is a JSON file whose field `digest` is that of all its other fields, so that damage to any of them is found.
"""

import gc
import json
import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bestiary.runs.digests import digest_bytes

FAULTS = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What reading a damaged file may raise."""


@contextmanager
def no_collections() -> Iterator[None]:
    """Without Python's collector of cycles while many files are read: JSON has no cycles for it to find."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def write_file(place: Path, content: Any) -> None:
    """Write text, or anything else as JSON. After a crash the file is there whole or not at all."""
    beside = place.with_name(f".{place.name}-{uuid.uuid4().hex}")
    try:
        with beside.open("w") as file:
            file.write(content if isinstance(content, str) else json.dumps(content, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(place)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def read_bytes(place: Path | str) -> bytes:
    """The content of a regular file; anything else, such as a pipe, could make the reader wait for ever."""
    descriptor = os.open(place, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a file")
        parts = [os.read(descriptor, status.st_size + 1)]  # the whole file, in one call, unless it grows meanwhile
        while parts[-1]:
            parts.append(os.read(descriptor, 2**20))
        return b"".join(parts)
    finally:
        os.close(descriptor)


def read_json(place: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(place.read_text())


def read_fields(place: Path | str, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """A JSON object that has these fields of these types, and maybe more. Raises ValueError that names the file."""
    name = os.path.basename(place)
    try:
        content = json.loads(read_bytes(place))
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}, not fields")
        for field, kind in kinds.items():
            if not isinstance(content.get(field), kind):
                raise ValueError(f"its field {field!r} is {content.get(field)!r:.40}")
    except FAULTS as fault:
        raise ValueError(f"{name}: {reason(fault)}") from None
    return content


def reason(fault: BaseException) -> str:
    """One line that says what is wrong, without the name of the file."""
    if isinstance(fault, RecursionError):
        return "it is nested too deeply"
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror
    return (str(fault).splitlines() or [type(fault).__name__])[0]


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a record with its digest."""
    return {**content, "digest": digest_bytes(json.dumps(content, sort_keys=True).encode())}


def unseal(content: Any, place: str) -> dict[str, Any]:
    """The content of a record without its digest. Raises ValueError, naming the place, if the digest is not right."""
    if not isinstance(content, dict) or "digest" not in content:
        raise ValueError(f"{place} is damaged: it is no record with a digest")
    rest = {name: value for name, value in content.items() if name != "digest"}
    if seal(rest) != content:
        raise ValueError(f"{place} is damaged: its digest is not that of its content")
    return rest


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError, naming the file, if it holds none."""
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"{path} is damaged: it is no JSON ({reason(fault)})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds {type(content).__name__} where an object is expected")
    return content


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record."""
    write_file(path, seal(content))


def read_record(path: Path) -> dict[str, Any]:
    """The content of a record. Raises ValueError, naming the file, if it is damaged."""
    return unseal(read_object(path), str(path))
