"""Texts from the standard library, from files and folders, and from the Hugging Face hub, one document at a time."""

import gzip
import json
import os
import sysconfig
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from bestiary.spec import nearest

KNOWN = {  # names for well-known sets
    "pile": "hf:monology/pile-uncopyrighted:train",
    "fineweb": "hf:HuggingFaceFW/fineweb/sample-10BT:train",
    "wikitext": "hf:Salesforce/wikitext/wikitext-103-raw-v1:train",
}
ROWS = (".jsonl", ".ndjson", ".json")  # one object a line
LONGEST = 2**20  # bytes of a text file in a folder that make one document; what is longer is cut at a line's end
NAMED = 2**14  # the same of a text file named by itself, so that one file fills every split of a corpus


class Unreadable(ValueError):
    """A file that is no text; `kind` says what it is instead."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def documents(source: str, *, column: str = "text", skipped: Counter[str] | None = None) -> Iterator[str]:
    """The documents of a source, always in the same order; `skipped` counts what was left out, by its kind.

    "stdlib"                     the sources of the Python standard library, a document each
    a file or folder             of text, a document each, or of rows in JSON lines or Parquet, a document a row
    "hf:NAME[/CONFIG][:SPLIT]"   a data set of the Hugging Face hub, or a folder that `datasets` can read, streamed
    "pile", "fineweb", ...       short for one of these

    A folder is walked in order of names, without hidden files; what is no text in it is skipped and counted, but
    refused where it is named by itself. So is everything that is wrong with a file of rows.
    """
    skipped = Counter() if skipped is None else skipped
    source = KNOWN.get(source, source)
    if source == "stdlib":
        found = walk(Path(sysconfig.get_path("stdlib")), column, skipped, only=".py")
    elif source.startswith("hf:"):
        found = rows(hub(source.removeprefix("hf:")), column, skipped)
    elif (path := Path(source).expanduser()).is_dir():
        found = walk(path, column, skipped)
    elif path.is_file():
        found = rows(read(path, column), column, skipped) if (read := row_reader(path)) else texts(path, NAMED)
    else:
        names = ("stdlib", *KNOWN)
        raise LookupError(
            f"no source {source!r} {nearest(source, names)}: a file, a folder or hf:NAME[/CONFIG][:SPLIT] will do too"
        )
    return filled(found, skipped)


def filled(found: Iterator[str], skipped: Counter[str]) -> Iterator[str]:
    """Without those that hold nothing but white space, or half a character, as JSON can spell it."""
    for text in found:
        kind = "empty" if not text.strip() else "lone surrogates" if not encodes(text) else ""
        if kind:
            skipped[kind] += 1
        else:
            yield text


def encodes(text: str) -> bool:
    """Whether UTF-8 can say it."""
    with suppress(UnicodeEncodeError):
        return bool(text.encode())
    return False


def files(folder: Path, *, only: str = "") -> Iterator[Path]:
    """The files of a folder in order, without hidden ones and what Python keeps or installs in it."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if name[0] != "." and name not in ("__pycache__", "site-packages", "dist-packages")
        )
        for name in sorted(names):
            if name[0] != "." and name.endswith(only) and (file := Path(place, name)).is_file():
                yield file


def walk(folder: Path, column: str, skipped: Counter[str], *, only: str = "") -> Iterator[str]:
    for file in files(folder, only=only):
        if read := row_reader(file):
            yield from rows(read(file, column), column, skipped)
            continue
        try:
            for _ in texts(file, LONGEST):  # all of it, before any of it counts
                pass
        except Unreadable as fault:
            skipped[fault.kind] += 1
            continue
        yield from texts(file, LONGEST)


def texts(file: Path, longest: int) -> Iterator[str]:
    """A text file, in documents of at most `longest` bytes that end where a line does if any line is so short."""
    left, offset = b"", 0
    with opened(file) as stream:
        while block := stream.read(longest - len(left)):
            left += block
            cut = whole(left) if len(left) == longest else len(left)
            yield decoded(left[:cut], file, offset)
            left, offset = left[cut:], offset + cut
    if left or not offset:
        yield decoded(left, file, offset)


def whole(block: bytes) -> int:
    """Where to cut a block: after its last line, or else before a character that it holds only the beginning of."""
    if line := block.rfind(b"\n") + 1:
        return line
    return next(
        (at for at in range(len(block) - 1, max(0, len(block) - 4), -1) if block[at] & 0xC0 != 0x80), len(block)
    )


def decoded(content: bytes, file: Path, offset: int) -> str:
    """Bytes of a file, from an offset on, as text. Raises Unreadable."""
    if (at := content.find(b"\0")) >= 0:
        raise Unreadable("binary", f"{file} is binary: byte {offset + at} is NUL; give text, JSON lines or Parquet")
    try:
        return content.decode()
    except UnicodeDecodeError as fault:
        where = offset + fault.start
        raise Unreadable("invalid UTF-8", f"{file} is not UTF-8 at byte {where}: convert it, with iconv say") from None


@contextmanager
def opened(file: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """A file to be read, unpacked if its name ends in .gz. Raises ValueError if it is no whole gzip file."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as fault:
        raise Unreadable("damaged", f"{file} is no whole gzip file: {fault}") from None


def row_reader(file: Path) -> Callable[[Path, str], Iterator[tuple[str, Any]]] | None:
    """How to get at the rows of a file, by its name; None for text."""
    if file.suffix == ".parquet":
        return parquet
    return json_lines if file.name.removesuffix(".gz").endswith(ROWS) else None


def rows(found: Iterator[tuple[str, Any]], column: str, skipped: Counter[str]) -> Iterator[str]:
    """A column of rows, each with the place where it was found; a row that holds nothing is empty."""
    for place, row in found:
        if not isinstance(row, dict):
            raise ValueError(f"{place} is a JSON {type(row).__name__}: one object a line is needed")
        if column not in row:
            raise ValueError(missing(place, column, row))
        if row[column] is None:
            skipped["empty"] += 1
        elif not isinstance(row[column], str):
            raise ValueError(f"{place} has a {type(row[column]).__name__} as {column!r}: text is needed")
        else:
            yield row[column]


def missing(place: str, column: str, there: Iterable[str]) -> str:
    return f"{place} has no column {column!r} {nearest(column, there)}"


def json_lines(file: Path, _column: str) -> Iterator[tuple[str, Any]]:
    """The values in a file of JSON, one a line."""
    offset = 0
    with opened(file) as stream:
        for number, line in enumerate(stream, start=1):
            if written := decoded(line, file, offset).removeprefix("\ufeff").strip():
                try:
                    yield f"{file}, line {number}", json.loads(written)
                except json.JSONDecodeError as fault:
                    raise ValueError(f"{file}, line {number} is no JSON ({fault.msg}): one object a line") from None
            offset += len(line)


def parquet(file: Path, column: str) -> Iterator[tuple[str, Any]]:
    """The rows of a Parquet file, the one column read a thousand rows at a time."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise LookupError(f"reading {file} needs pyarrow: pip install 'bestiary[text]'") from None
    try:
        with pyarrow.parquet.ParquetFile(file) as stream:
            if column not in stream.schema_arrow.names:
                raise ValueError(missing(str(file), column, stream.schema_arrow.names))
            number = 0
            for batch in stream.iter_batches(batch_size=1000, columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield f"{file}, row {number}", {column: value}
    except pyarrow.ArrowInvalid as fault:
        raise ValueError(f"{file} is no whole Parquet file: {str(fault).splitlines()[0]}") from None


def hub(name: str) -> Iterator[tuple[str, Any]]:
    """The rows of a data set of the Hugging Face hub or of a folder that `datasets` can read, as they come."""
    try:
        import datasets
    except ImportError:
        raise LookupError("data sets of the hub need datasets: pip install 'bestiary[text]'") from None
    path, _, split = name.partition(":")
    owner, _, rest = path.partition("/")
    repository, _, configuration = rest.partition("/")
    folder = Path(path).expanduser()
    where = (str(folder), None) if folder.exists() else (f"{owner}/{repository}".strip("/"), configuration or None)
    try:
        stream = datasets.load_dataset(where[0], where[1], split=split or "train", streaming=True)
        for number, row in enumerate(stream, start=1):
            yield f"hf:{name}, row {number}", row
    except (OSError, ValueError) as fault:
        what = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise LookupError(f"datasets cannot open hf:{name}: {what}") from None
