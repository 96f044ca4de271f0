"""Results that are kept in a file as they are measured, so that the same command goes on after it was killed.

The first line says what is measured, each further line holds one result; every line carries its digest. A last line
that was cut off is dropped, any other damage is an error.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from bestiary.runs.files import seal, unseal


class Journal:
    """Results by their keys, kept in a file; without a path, in memory only. A context manager that closes the file.

    Raises ValueError, naming the file, if it is damaged or holds results of another measurement.
    """

    def __init__(self, path: Path | None = None, subject: Mapping[str, Any] | None = None) -> None:
        self.path, self.results, self.file = path, {}, None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        first, *rest = [self.read_line(i, line) for i, line in enumerate(whole.splitlines())] or [None]
        expected = json.loads(json.dumps(dict(subject or {})))
        if first not in (None, expected):
            raise ValueError(f"{path} holds results of another measurement: name another file, or remove it")
        self.results = {line["key"]: line["result"] for line in rest if line is not None}
        self.file = path.open("ab")
        self.file.truncate(len(whole))
        if first is None:
            self.write_line(expected)

    def read_line(self, number: int, line: bytes) -> dict[str, Any]:
        """The content of a line. Raises ValueError if it is damaged."""
        place = f"line {number + 1} of {self.path}"
        try:
            return unseal(json.loads(line), place)
        except (ValueError, RecursionError) as fault:
            what = str(fault) if place in str(fault) else f"{place} is damaged"
            raise ValueError(f"{what}; remove the file to measure again") from None

    def write_line(self, content: Mapping[str, Any]) -> None:
        """Add a line to the file, if there is one."""
        if self.file is not None:
            self.file.write(json.dumps(seal(content)).encode() + b"\n")
            self.file.flush()

    def __contains__(self, key: str) -> bool:
        return key in self.results

    def __getitem__(self, key: str) -> Any:
        return self.results[key]

    def add(self, key: str, result: Any) -> None:
        """Keep a result, which must be JSON."""
        self.write_line({"key": key, "result": result})
        self.results[key] = result

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            self.file.close()
