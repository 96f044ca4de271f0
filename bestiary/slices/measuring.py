"""Measures losses in chunks and keeps them in a file, so that a measurement that was stopped goes on where it was.

A record for each context: its number, its losses, and a checksum of both. A file is read up to the first record that
is not whole or not the next, and measured on from there.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bestiary.runs.digests import digest_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK_TOKENS = 2**13  # predicted between two writes


def measure(
    losses: "Callable[[NDArray], NDArray]",
    contexts: "NDArray[np.int64]",
    folder: Path,
    *,
    identity: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> "NDArray[np.float32]":
    """The losses of contexts (n, length + 1), of shape (n, length), with those that a folder keeps already.

    `identity` tells the model from others, and from itself after a change. `progress` is called with the contexts that
    are done and their number, first with those that were kept.
    """
    length = contexts.shape[1] - 1
    record = np.dtype([("context", "<u4"), ("losses", "<f4", (length,)), ("checksum", "<u4")])
    folder.mkdir(parents=True, exist_ok=True)
    name = digest_bytes("\n".join([*identity, str(contexts.shape), digest_bytes(contexts.tobytes())]).encode())
    path, count = folder / f"{name[:16]}.losses", max(1, CHUNK_TOKENS // length)
    found = [kept_losses(path, record)[: len(contexts)]]
    done = len(found[0])
    if progress is not None:
        progress(done, len(contexts))
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(done * record.itemsize)
        file.seek(0, 2)
        for start in range(done, len(contexts), count):
            rows = np.zeros(len(contexts[start : start + count]), record)
            rows["losses"] = losses(contexts[start : start + count])
            rows["context"] = np.arange(start, start + len(rows))
            rows["checksum"] = list(checksums(rows))
            file.write(rows.tobytes())
            file.flush()
            found.append(rows["losses"])
            if progress is not None:
                progress(start + len(rows), len(contexts))
    return np.concatenate(found).astype(np.float32)


def kept_losses(path: Path, record: np.dtype) -> "NDArray[np.float32]":
    """The losses of the first contexts, as many as a file keeps whole."""
    content = path.read_bytes() if path.is_file() else b""
    rows = np.frombuffer(content[: len(content) // record.itemsize * record.itemsize], record)
    whole = (rows["checksum"] == np.fromiter(checksums(rows), np.uint32, len(rows))) & (
        rows["context"] == np.arange(len(rows))
    )
    return rows["losses"][: len(rows) if whole.all() else int(whole.argmin())]


def checksums(rows: "NDArray[np.void]") -> Iterator[int]:
    """The checksum of everything else in each record."""
    for row in rows:
        yield zlib.crc32(row.tobytes()[:-4])
