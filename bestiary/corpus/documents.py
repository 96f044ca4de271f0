"""Reads the documents of the standard library, of files and folders, and of data sets of the Hugging Face hub."""

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

NAMED_SOURCES = {  # short names for well-known data sets
    "pile": "hf:monology/pile-uncopyrighted:train",
    "fineweb": "hf:HuggingFaceFW/fineweb/sample-10BT:train",
    "wikitext": "hf:Salesforce/wikitext/wikitext-103-raw-v1:train",
}
ROW_SUFFIXES = (".jsonl", ".ndjson", ".json")  # one object a line
FOLDER_DOCUMENT_BYTES = 2**20  # the longest document from a text file in a folder; longer files are cut at line ends
FILE_DOCUMENT_BYTES = 2**14  # the same for a file named by itself, so that one file can fill every split of a corpus


class Unreadable(ValueError):
    """A file cannot be read as text; `kind` names the reason in a word or two, for counting."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def documents(source: str, *, column: str = "text", skipped: Counter[str] | None = None) -> Iterator[str]:
    """The documents of a source, always in the same order; `skipped` counts what was left out, by reason.

    "stdlib"                     the source files of the Python standard library, each a document
    a file or folder             of text, each file a document, or of JSON lines or Parquet, each row a document
    "hf:NAME[/CONFIG][:SPLIT]"   a data set of the Hugging Face hub, or a folder that `datasets` can read, streamed
    "pile", "fineweb", ...       short names, see `NAMED_SOURCES`

    A folder is read in order of file names, without hidden files. A file in it that is not text is skipped and
    counted; the same file named by itself is refused. A faulty row is always refused. Raises ValueError, and
    LookupError for an unknown source.
    """
    skipped = Counter() if skipped is None else skipped
    source = NAMED_SOURCES.get(source, source)
    if source == "stdlib":
        found = read_folder(Path(sysconfig.get_path("stdlib")), column, skipped, only=".py")
    elif source.startswith("hf:"):
        found = read_column(read_hub(source.removeprefix("hf:")), column, skipped)
    elif (path := Path(source).expanduser()).is_dir():
        found = read_folder(path, column, skipped)
    elif path.is_file():
        found = (
            read_column(read(path, column), column, skipped)
            if (read := row_reader(path))
            else read_text(path, FILE_DOCUMENT_BYTES)
        )
    else:
        names = ("stdlib", *NAMED_SOURCES)
        raise LookupError(
            f"no source {source!r} {nearest(source, names)}: a file, a folder or hf:NAME[/CONFIG][:SPLIT] will do too"
        )
    return drop_unusable(found, skipped)


def drop_unusable(found: Iterator[str], skipped: Counter[str]) -> Iterator[str]:
    """Drops and counts texts of white space alone, and those with lone surrogates, which JSON can spell."""
    for text in found:
        kind = "empty" if not text.strip() else "lone surrogates" if not is_valid_utf8(text) else ""
        if kind:
            skipped[kind] += 1
        else:
            yield text


def is_valid_utf8(text: str) -> bool:
    """Whether UTF-8 can encode a text."""
    with suppress(UnicodeEncodeError):
        return bool(text.encode())
    return False


def list_files(folder: Path, *, only: str = "") -> Iterator[Path]:
    """The files of a folder in order, without hidden ones, Python's caches and installed packages."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if name[0] != "." and name not in ("__pycache__", "site-packages", "dist-packages")
        )
        for name in sorted(names):
            if name[0] != "." and name.endswith(only) and (file := Path(place, name)).is_file():
                yield file


def read_folder(folder: Path, column: str, skipped: Counter[str], *, only: str = "") -> Iterator[str]:
    """The documents of all files of a folder, or of those whose names end with `only`."""
    for file in list_files(folder, only=only):
        if read := row_reader(file):
            yield from read_column(read(file, column), column, skipped)
            continue
        try:
            for _ in read_text(file, FOLDER_DOCUMENT_BYTES):  # the whole file must be text before any of it is used
                pass
        except Unreadable as fault:
            skipped[fault.kind] += 1
            continue
        yield from read_text(file, FOLDER_DOCUMENT_BYTES)


def read_text(file: Path, longest: int) -> Iterator[str]:
    """A text file in pieces of at most `longest` bytes, cut at line ends where lines are short enough."""
    left, offset = b"", 0
    with open_file(file) as stream:
        while block := stream.read(longest - len(left)):
            left += block
            cut = cut_position(left) if len(left) == longest else len(left)
            yield decode_bytes(left[:cut], file, offset)
            left, offset = left[cut:], offset + cut
    if left or not offset:
        yield decode_bytes(left, file, offset)


def cut_position(block: bytes) -> int:
    """Where to cut a block: after its last line, or else before an incomplete last character."""
    if line := block.rfind(b"\n") + 1:
        return line
    return next(
        (at for at in range(len(block) - 1, max(0, len(block) - 4), -1) if block[at] & 0xC0 != 0x80), len(block)
    )


def decode_bytes(content: bytes, file: Path, offset: int) -> str:
    """Bytes of a file, which begin at an offset in it, as text. Raises Unreadable."""
    if (at := content.find(b"\0")) >= 0:
        raise Unreadable("binary", f"{file} is binary: byte {offset + at} is NUL; give text, JSON lines or Parquet")
    try:
        return content.decode()
    except UnicodeDecodeError as fault:
        where = offset + fault.start
        raise Unreadable("invalid UTF-8", f"{file} is not UTF-8 at byte {where}: convert it, with iconv say") from None


@contextmanager
def open_file(file: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """Open a file for reading, decompressed if its name ends in .gz. Raises Unreadable if it is damaged."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as fault:
        raise Unreadable("damaged", f"{file} is no whole gzip file: {fault}") from None


def row_reader(file: Path) -> Callable[[Path, str], Iterator[tuple[str, Any]]] | None:
    """The function that reads the rows of a file, by its name; None for plain text."""
    if file.suffix == ".parquet":
        return read_parquet
    return read_json_lines if file.name.removesuffix(".gz").endswith(ROW_SUFFIXES) else None


def read_column(found: Iterator[tuple[str, Any]], column: str, skipped: Counter[str]) -> Iterator[str]:
    """One column of rows, each given with its position for error messages; null counts as empty."""
    for position, row in found:
        if not isinstance(row, dict):
            raise ValueError(f"{position} is a JSON {type(row).__name__}: one object a line is needed")
        if column not in row:
            raise ValueError(missing_column(position, column, row))
        if row[column] is None:
            skipped["empty"] += 1
        elif not isinstance(row[column], str):
            raise ValueError(f"{position} has a {type(row[column]).__name__} as {column!r}: text is needed")
        else:
            yield row[column]


def missing_column(position: str, column: str, columns: Iterable[str]) -> str:
    """The message for a column that is not there, with the most similar one that is."""
    return f"{position} has no column {column!r} {nearest(column, columns)}"


def read_json_lines(file: Path, _column: str) -> Iterator[tuple[str, Any]]:
    """The values of a file of JSON lines, each with its position."""
    offset = 0
    with open_file(file) as stream:
        for number, line in enumerate(stream, start=1):
            if content := decode_bytes(line, file, offset).removeprefix("\ufeff").strip():
                try:
                    yield f"{file}, line {number}", json.loads(content)
                except json.JSONDecodeError as fault:
                    raise ValueError(f"{file}, line {number} is no JSON ({fault.msg}): one object a line") from None
            offset += len(line)


def read_parquet(file: Path, column: str) -> Iterator[tuple[str, Any]]:
    """The rows of a Parquet file, of which one column is read, a thousand rows at a time."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise LookupError(f"reading {file} needs pyarrow: pip install 'bestiary[text]'") from None
    try:
        with pyarrow.parquet.ParquetFile(file) as stream:
            if column not in stream.schema_arrow.names:
                raise ValueError(missing_column(str(file), column, stream.schema_arrow.names))
            number = 0
            for batch in stream.iter_batches(batch_size=1000, columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield f"{file}, row {number}", {column: value}
    except pyarrow.ArrowInvalid as fault:
        raise ValueError(f"{file} is no whole Parquet file: {str(fault).splitlines()[0]}") from None


def read_hub(name: str) -> Iterator[tuple[str, Any]]:
    """The rows of a data set of the Hugging Face hub, or of a folder that `datasets` can read, streamed."""
    try:
        import datasets
    except ImportError:
        raise LookupError("data sets of the hub need datasets: pip install 'bestiary[text]'") from None
    path, _, split = name.partition(":")
    owner, _, rest = path.partition("/")
    repository, _, configuration = rest.partition("/")
    folder = Path(path).expanduser()
    address = (str(folder), None) if folder.exists() else (f"{owner}/{repository}".strip("/"), configuration or None)
    try:
        stream = datasets.load_dataset(address[0], address[1], split=split or "train", streaming=True)
        for number, row in enumerate(stream, start=1):
            yield f"hf:{name}, row {number}", row
    except (OSError, ValueError) as fault:
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise LookupError(f"datasets cannot open hf:{name}: {reason}") from None
