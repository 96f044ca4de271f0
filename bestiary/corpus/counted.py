"""Which tokens a folder of counts is of, in its source.json.

It holds the settings of the count, the number of tokens and a sample of them, and, since 0.2, a checksum of all of them
and the digest of their file, if they have one.
"""

import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from bestiary.runs.files import FAULTS, read_fields

SAMPLED_TOKENS = 1024  # tokens that identify a corpus among others of the same length
CHUNK = 2**16  # tokens read at a time


def describe_source(tokens: np.ndarray, settings: Mapping[str, Any], digest: str | None) -> dict[str, Any]:
    """What source.json holds."""
    known = {} if digest is None else {"digest": digest}
    return {**settings, **fingerprint(tokens), "checksum": checksum(tokens), **known}


def check_source(folder: Path, tokens: np.ndarray, settings: Mapping[str, Any], digest: str | None) -> None:
    """Raises ValueError if a folder has counts of something else, or of something unknown."""
    stored, given = dict[str, Any](), {**settings, **fingerprint(tokens)}
    with suppress(*FAULTS):
        stored = read_fields(folder / "source.json")
    if digest is not None and "digest" in stored:
        given["digest"] = digest
    elif "checksum" in stored:
        given["checksum"] = checksum(tokens)
    if name := next((name for name in given if stored.get(name) != given[name]), None):
        raise ValueError(
            f"{folder} has a count of other tokens ({name} {stored.get(name, 'unknown')} there, {given[name]} given): "
            "give another folder or remove it"
        )


def fingerprint(tokens: np.ndarray) -> dict[str, int]:
    """Identifies tokens by their number and a sample."""
    sample = np.asarray(tokens[:: max(1, len(tokens) // SAMPLED_TOKENS)]).astype(np.int64)
    return {"tokens": len(tokens), "sample": zlib.crc32(sample.data)}


def checksum(tokens: np.ndarray) -> int:
    """The checksum of all tokens, whatever type their numbers have."""
    found = 0
    for at in range(0, len(tokens), CHUNK):
        found = zlib.crc32(np.asarray(tokens[at : at + CHUNK]).astype(np.int64).data, found)
    return found
