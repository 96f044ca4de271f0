"""SHA-256 digests of files that later numbers rest on: written beside them, checked when they are used.

They are those of `sha256sum`. A digest finds damage, not intent: who can change a file can change its digest too.
"""

import hashlib
from pathlib import Path


def digest(path: Path | str) -> str:
    """The SHA-256 digest of a file, as 64 hexadecimal digits, without reading it into memory as a whole."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_bytes(content: bytes) -> str:
    """The digest of a file that holds these bytes."""
    return hashlib.sha256(content).hexdigest()


def check(path: Path | str, expected: str) -> None:
    """Raises ValueError, naming the file, unless its digest is the expected one."""
    found = digest(path)
    if found != expected:
        raise ValueError(f"{path} is damaged: its digest is {found[:12]}…, not {str(expected)[:12]}… as recorded")
