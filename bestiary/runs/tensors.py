"""Files of tensors in the format of safetensors, which holds numbers and no code."""

import errno
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.runs.digests import digest

if TYPE_CHECKING:
    from torch import Tensor


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
