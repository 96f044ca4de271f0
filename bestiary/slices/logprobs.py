"""Losses from a file of log-probabilities that anyone may have written.

Nothing in the file is believed before it is looked at: types and sizes are read first, and numbers only if there are as
many as the text has tokens to predict.
"""

import json
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bestiary.corpus.gguf import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUMBER_BYTES = 256  # the most that a file holds for each number, with all white space around it
SPARE_BYTES = 2**16  # and besides them
HEADER_BYTES = 2**14  # of an .npy file
MEMBERS = 1000  # arrays in an .npz file
DEEPEST = 100  # lists within lists


def read_losses(path: Path, shape: tuple[int, int]) -> "NDArray[np.float32]":
    """Losses from a file of natural-log probabilities: .npy, .npz, .json, .jsonl, or text with one number a line.

    The file has one number for each token after the first of each context, in order; `shape` is (contexts, length).
    Raises ValueError if there are more or fewer, or if some cannot be log-probabilities.
    """
    count = shape[0] * shape[1]
    if (size := path.stat().st_size) > NUMBER_BYTES * count + SPARE_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, too many for the {count:,} log-probabilities that the text needs")
    try:
        found = read_numbers(path, shape)
    except WrongCount as fault:
        raise ValueError(
            f"{path} holds {fault.count:,} log-probabilities, the text has {shape[0]:,} contexts of {shape[1]:,} "
            f"tokens to predict, {count:,} in all"
        ) from None
    except Exception as fault:  # numpy, zipfile and json raise nearly anything for a damaged file
        raise ValueError(f"{path} is no file of log-probabilities ({first_line(fault)})") from None
    if wrong := int((~(found <= 1e-6)).sum()):
        raise ValueError(f"{path} holds {wrong:,} numbers that are no log-probabilities")
    return -found.reshape(shape).astype(np.float32)


class WrongCount(Exception):
    """A file holds more or fewer numbers than the text has tokens to predict."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


def read_numbers(path: Path, shape: tuple[int, int]) -> "NDArray[np.float64]":
    """All numbers of a file in order. Raises WrongCount unless they fit the shape, and nearly anything for damage."""
    count = shape[0] * shape[1]
    match path.suffix.lower():
        case ".npy":
            with path.open("rb") as file:
                check_count(header_size(file), count)
            found = np.load(path, allow_pickle=False).astype(np.float64).ravel()
        case ".npz":
            found = read_archive(path, count)
        case ".json":
            found = np.array(list(flatten(json.loads(path.read_text()))), dtype=np.float64)
        case ".jsonl":
            values = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
            found = np.array(list(flatten(values)), dtype=np.float64)
        case _:
            found = np.array(path.read_text().split(), dtype=np.float64)
    check_count(found.size, count)
    return found


def check_count(count: int, wanted: int) -> None:
    """Raises WrongCount unless they are equal."""
    if count != wanted:
        raise WrongCount(count)


def read_archive(path: Path, count: int) -> "NDArray[np.float64]":
    """All numbers of an .npz file, whose arrays are looked at before any of them is unpacked."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(names) > MEMBERS:
            raise ValueError(f"{len(names):,} arrays")
        sizes = []
        for name in names:
            with archive.open(name) as member:
                sizes.append(header_size(member))
        check_count(sum(sizes), count)
    with np.load(path, allow_pickle=False) as file:
        return np.concatenate([file[name].astype(np.float64).ravel() for name in file.files])


def header_size(file: Any) -> int:
    """How many numbers an open .npy file says it holds. Raises ValueError unless they are real numbers."""
    file = BytesIO(file.read(HEADER_BYTES))  # whose length is no longer what the header says
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version[0]}.{version[1]} of its format")
    shape, _, dtype = readers[version](file)
    if dtype.kind not in "fiu" or dtype.shape:
        raise ValueError(f"an array of {dtype}, where real numbers are needed")
    if any(side < 0 for side in shape):
        raise ValueError(f"an array of shape {shape}")
    size = 1
    for side in shape:  # in Python's own integers, which do not overflow
        size *= side
    return size


def flatten(values: Any) -> Iterator[float]:
    """The numbers of nested lists, in order. Raises ValueError for anything else."""
    waiting = [iter([values])]
    while waiting:
        for value in waiting[-1]:
            if isinstance(value, list):
                if len(waiting) > DEEPEST:
                    raise ValueError(f"more than {DEEPEST} lists within each other")
                waiting.append(iter(value))
                break
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{type(value).__name__} where numbers are needed")
            yield float(value)
        else:
            waiting.pop()
