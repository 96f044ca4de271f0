"""Files of language models: each is written whole or not at all, and has a digest that is checked when it is read.

A record is a JSON file whose field `digest` is that of all its other fields, so that damage to any of them is found.
`digests.json` in the folder of a trained model is a record of the digests of its files.
"""

import errno
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.runs.digests import check, digest, digest_bytes
from bestiary.runs.store import write_file

if TYPE_CHECKING:
    from torch import Tensor, nn

DIGESTS = "digests.json"


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
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as fault:
        reason = "too deeply nested" if isinstance(fault, RecursionError) else str(fault).splitlines()[0]
        raise ValueError(f"{path} is damaged: it is no JSON ({reason})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds {type(content).__name__} where an object is expected")
    return content


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record."""
    write_file(path, seal(content))


def read_record(path: Path) -> dict[str, Any]:
    """The content of a record. Raises ValueError, naming the file, if it is damaged."""
    return unseal(read_object(path), str(path))


def write_digests(folder: Path, names: Sequence[str]) -> None:
    """Record the digests of files in a folder."""
    write_record(folder / DIGESTS, {"files": {name: digest(folder / name) for name in names}})


def check_digests(folder: Path) -> bool:
    """Whether the folder records digests. Raises ValueError, naming the file, if one that it records is not right."""
    if not (folder / DIGESTS).is_file():
        return False
    files = read_record(folder / DIGESTS).get("files")
    if not isinstance(files, dict):
        raise ValueError(f"{folder / DIGESTS} is damaged: it names no files")
    for name, expected in files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{folder / DIGESTS} is damaged: it names {name}, a file elsewhere")
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing, but {folder / DIGESTS} records it")
        check(folder / name, expected)
    return True


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise what torch and safetensors report of the disk, such as that it is full, as the OSError that it was."""
    try:
        yield
    except OSError:
        raise
    except Exception as fault:
        if found := re.search(r"\(os error (\d+)\)", str(fault)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from fault
        if "No space left on device" in str(fault):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from fault
        raise


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None) -> str:
    """Write a safetensors file, with the mode that the umask gives; its digest."""
    from safetensors.torch import save_file

    beside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        beside.touch()
        mode = beside.stat().st_mode
        with disk_errors(path):
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside, dict(metadata or {}))
        beside.chmod(mode)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        written = digest(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return written


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """The tensors of a safetensors file. Raises ValueError, naming the file, if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as fault:
        raise ValueError(f"{path} is damaged or no safetensors file ({fault})") from None


def load_weights(model: "nn.Module", path: Path) -> None:
    """Read the weights of a model from its file. Raises ValueError if they are damaged or those of another model."""
    try:
        model.load_state_dict(read_tensors(path))
    except RuntimeError as fault:
        first = next((line.strip() for line in str(fault).splitlines()[1:]), str(fault))
        raise ValueError(f"{path} holds the weights of another model ({first})") from None
