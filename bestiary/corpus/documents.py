"""Reads the documents of the standard library, of files and folders, and of data sets of the Hugging Face hub."""

import bz2
import gzip
import io
import json
import lzma
import os
import sysconfig
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from bestiary.corpus.gguf import first_line
from bestiary.corpus.hub import skip_without_network
from bestiary.spec import nearest

NAMED_SOURCES = {  # short names for well-known data sets
    "pile": "hf:monology/pile-uncopyrighted:train",
    "fineweb": "hf:HuggingFaceFW/fineweb/sample-10BT:train",
    "wikitext": "hf:Salesforce/wikitext/wikitext-103-raw-v1:train",
}
ROW_SUFFIXES = (".jsonl", ".ndjson", ".json")  # one object a line
COMPRESSED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}  # what is decompressed, by suffix
LEFT_OUT = ("__pycache__", "site-packages", "dist-packages")  # folders that are never read
FOLDER_DOCUMENT_BYTES = 2**20  # the longest document from a text file in a folder; longer files are cut at line ends
FILE_DOCUMENT_BYTES = 2**14  # the same for a file named by itself, so that one file can fill every split of a corpus
LINE_BYTES = 2**28  # the longest line of JSON
BOM = "\ufeff"  # the byte order mark that some editors put before a text


class Unreadable(ValueError):
    """A file cannot be read as text; `kind` names the reason in a word or two, for counting."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class ReadingLog:
    """What was read of a source, and what was left out."""

    skipped: Counter[str] = field(default_factory=Counter)  # files, folders and documents left out, by reason
    files: int = 0  # files read so far, in the order of `source_files`
    cut: bool = False  # whether some documents are pieces of a longer text


def documents(
    source: str, *, column: str = "text", skipped: Counter[str] | None = None, log: ReadingLog | None = None
) -> Iterator[str]:
    """The documents of a source, always in the same order; `skipped` counts what was left out, by reason.

    "stdlib"                     the source files of the Python standard library, each a document
    a file or folder             of text, each file a document, or of JSON lines or Parquet, each row a document
    "hf:NAME[/CONFIG][:SPLIT]"   a data set of the Hugging Face hub, or a folder that `datasets` can read, streamed
    "pile", "fineweb", ...       short names, see `NAMED_SOURCES`

    Files may be compressed (.gz, .bz2, .xz, .zst). A folder is read in order of file names, without hidden files; links
    to folders outside it are followed once. A file in it that is not text is skipped and counted; the same file named
    by itself is refused. A faulty row is always refused. Long text files are cut into pieces. A byte order mark before
    a text is removed, except in "stdlib". `log` keeps what was read. Raises ValueError, and LookupError for an unknown
    source.
    """
    log = ReadingLog(Counter() if skipped is None else skipped) if log is None else log
    source = NAMED_SOURCES.get(source, source)
    if source == "stdlib":
        return drop_unusable(read_folder(Path(sysconfig.get_path("stdlib")), column, log, only=".py"), log.skipped)
    if source.startswith("hf:"):
        found = read_column(read_hub(source.removeprefix("hf:")), column, log.skipped)
    elif (path := Path(source).expanduser()).is_dir():
        found = read_folder(path, column, log)
    elif path.is_file():
        log.files = 1
        found = read_file(path, column, FILE_DOCUMENT_BYTES, log)
    else:
        names = ("stdlib", *NAMED_SOURCES)
        raise LookupError(
            f"no source {source!r} {nearest(source, names)}: a file, a folder or hf:NAME[/CONFIG][:SPLIT] will do too"
        )
    return drop_unusable((text.removeprefix(BOM) for text in found), log.skipped)


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


def cut_text(text: str, longest: int) -> Iterator[str]:
    """A text in pieces of at most `longest` bytes, cut at line ends where lines are short enough."""
    content = text.encode()
    while len(content) > longest:
        at = cut_position(content[:longest])
        yield content[:at].decode()
        content = content[at:]
    yield content.decode()


def source_files(source: str) -> list[Path] | None:
    """All files of a source on disk, in the order in which they are read; None for one that is elsewhere."""
    if source == "stdlib":
        return list(list_files(Path(sysconfig.get_path("stdlib")), only=".py"))
    path = Path(source.removeprefix("hf:").partition(":")[0] if source.startswith("hf:") else source).expanduser()
    if not path.exists():
        return None
    return list(list_files(path)) if path.is_dir() else [path]


def list_files(folder: Path, *, only: str = "", skipped: Counter[str] | None = None) -> Iterator[Path]:
    """The files of a folder in order, without hidden ones, Python's caches and installed packages.

    Links to files are read as files. Links to folders outside the folder are followed, each folder once; with `only`,
    the ending of the names that are wanted, they are not followed. `skipped` counts what was left out, by reason.
    """
    skipped = Counter() if skipped is None else skipped
    root = Path(os.path.realpath(folder))
    visited = {root}
    for place, folders, names in os.walk(folder, followlinks=not only):
        kept = []
        for name in sorted(folders):
            path = Path(place, name)
            target = Path(os.path.realpath(path))
            if name[0] == ".":
                skipped["hidden"] += 1
            elif name in LEFT_OUT:
                skipped["caches and installed packages"] += 1
            elif target in visited or (path.is_symlink() and read_by_its_own_name(target, root)):
                skipped["links to what is read already"] += 1
            else:
                kept.append(name)
                visited.add(target)
        folders[:] = kept
        for name in sorted(names):
            file = Path(place, name)
            if name[0] == ".":
                skipped["hidden"] += 1
            elif not file.is_file():
                skipped["broken links" if file.is_symlink() else "not files"] += 1
            elif name.endswith(only):
                yield file


def read_by_its_own_name(target: Path, root: Path) -> bool:
    """Whether a folder that a link leads to is part of the root, or the root part of it, so that it needs no link."""
    if root.is_relative_to(target):
        return True
    inside = target.relative_to(root).parts if target.is_relative_to(root) else (".",)
    return not any(part[0] == "." or part in LEFT_OUT for part in inside)


def read_folder(folder: Path, column: str, log: ReadingLog, *, only: str = "") -> Iterator[str]:
    """The documents of all files of a folder, or of those whose names end with `only`."""
    for file in list_files(folder, only=only, skipped=None if only else log.skipped):
        log.files += 1
        if row_reader(file) is None:
            try:
                for _ in read_text(file, FOLDER_DOCUMENT_BYTES):  # the whole file must be text before any of it is used
                    pass
            except Unreadable as fault:
                log.skipped[fault.kind] += 1
                continue
        yield from read_file(file, column, FOLDER_DOCUMENT_BYTES, log)


def read_file(file: Path, column: str, longest: int, log: ReadingLog) -> Iterator[str]:
    """The documents of a file: its rows, or its text in pieces of at most `longest` bytes."""
    if read := row_reader(file):
        yield from read_column(read(file, column), column, log.skipped)
        return
    for number, text in enumerate(read_text(file, longest)):
        log.cut |= number > 0
        yield text


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
def open_file(file: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed by the suffix of its name. Raises Unreadable if it is damaged."""
    suffix = file.suffix.lower()
    openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": open_zstd}
    if suffix not in openers:
        with file.open("rb") as stream:
            yield stream
        return
    try:
        with openers[suffix](file) as stream:
            yield cast(IO[bytes], stream)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as fault:
        if isinstance(fault, OSError) and fault.errno is not None and fault.filename is not None:
            raise  # the file cannot be opened at all
        raise Unreadable("damaged", f"{file} is no whole {COMPRESSED[suffix]} file: {fault}") from None


def open_zstd(file: Path) -> io.BufferedReader:
    """Open a file that is compressed by zstd. Raises LookupError without pyarrow."""
    try:
        import pyarrow
    except ImportError:
        raise LookupError(f"reading {file} needs pyarrow: pip install 'bestiary[text]'") from None
    return io.BufferedReader(cast(Any, pyarrow.input_stream(str(file), compression="zstd")))


def row_reader(file: Path) -> Callable[[Path, str], Iterator[tuple[str, Any]]] | None:
    """The function that reads the rows of a file, by its name; None for plain text."""
    name = file.name.lower()
    if name.endswith(".parquet"):
        return read_parquet
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return read_json_lines if name.endswith(ROW_SUFFIXES) else None


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
        for number, line in enumerate(iter(lambda: stream.readline(LINE_BYTES), b""), start=1):
            position = f"{file}, line {number}"
            if len(line) == LINE_BYTES:
                raise ValueError(f"{position} is longer than {LINE_BYTES >> 20} MiB: one object a line")
            if content := decode_bytes(line, file, offset).removeprefix(BOM).strip():
                try:
                    value = json.loads(content)
                except json.JSONDecodeError as fault:
                    raise ValueError(f"{position} is no JSON ({fault.msg}): one object a line") from None
                except (RecursionError, ValueError):  # a ValueError is a number of thousands of digits
                    raise ValueError(f"{position} is no JSON of text (too deep, or its numbers too long)") from None
                yield position, value
            offset += len(line)


def read_parquet(file: Path, column: str) -> Iterator[tuple[str, Any]]:
    """The rows of a Parquet file, of which one column is read, a thousand rows at a time."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise LookupError(f"reading {file} needs pyarrow: pip install 'bestiary[text]'") from None
    number, missing = 0, False
    try:
        with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as stream:
            if missing := column not in stream.schema_arrow.names:
                raise ValueError(missing_column(str(file), column, stream.schema_arrow.names))
            for batch in stream.iter_batches(batch_size=1000, columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield f"{file}, row {number}", {column: value}
    except (pyarrow.ArrowException, OSError, ValueError) as fault:  # damage to a page is any of these
        if missing or isinstance(fault, FileNotFoundError | PermissionError):
            raise
        raise ValueError(f"{file} is no whole Parquet file: {first_line(fault)}, after row {number}") from None


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
        if not Path(address[0]).exists():
            skip_without_network()
        stream = datasets.load_dataset(address[0], address[1], split=split or "train", streaming=True)
        for number, row in enumerate(stream, start=1):
            yield f"hf:{name}, row {number}", row
    except Exception as fault:  # the hub, its client and `datasets` each raise their own
        raise LookupError(f"datasets cannot open hf:{name}: {first_line(fault)}") from None
