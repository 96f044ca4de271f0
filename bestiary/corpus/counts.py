"""How often each bigram of a corpus occurs: exact, in bounded memory, also for corpora larger than that.

    <folder>/counts.json    written last: vocabulary, tokenizer, bigrams counted, checksums of the other two, a digest
             keys.npy       each bigram seen, as first * vocab + second, ascending
             counts.npy     how often it was seen
             source.json    which tokens are counted here, written first
             parts/0-9000/  the same files for the bigrams that begin at tokens 0 to 8999, until all are counted
             lock           held by the process that counts

A part is as many bigrams as fit in memory, counted in a table of vocab * vocab counters where a cache holds that, and
sorted where not; parts are merged chunk by chunk. A count that was interrupted resumes after its last complete part.
Where numpy sorts with vector instructions, sorting is faster than a larger table (benchmarks/text.py).
"""

import json
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bestiary.corpus.counted import check_source, describe_source
from bestiary.corpus.gguf import first_line
from bestiary.runs.digests import digest_bytes
from bestiary.runs.files import FAULTS, read_fields, write_file

FORMAT = 1  # incremented when the files change their meaning
MEMORY = 2**30  # bytes, the default for counting
MIN_PART = 1024  # bigrams in a part, however little memory is given
CHUNK = 2**18  # sorted keys processed at a time
MERGE_BYTES = 80  # of memory that merging needs for each key it holds
TABLE = 2**20  # counters of the largest table: 8 MiB, which a cache holds; beyond that sorting is faster
TABLE_BYTES = 24  # of memory that a table needs for each counter: the table, a block of keys, and the counts of those
MAX_PARTS = 16  # parts on disk before they are merged into one
MAX_VOCAB = 3_037_000_499  # the largest vocabulary whose square is an int64

Chunk = tuple[NDArray[np.integer], NDArray[np.integer]]  # keys, ascending, and the count of each
Progress = Callable[[int, int], None]  # called with the bigrams counted and their total


class Header(NamedTuple):
    """What counts must have in common to be merged."""

    vocab: int
    tokenizer: str


@dataclass(frozen=True, eq=False)
class Counts:
    """Exact counts of bigrams."""

    vocab: int
    tokenizer: str  # its hash
    total: int  # bigrams counted, each occurrence
    keys: NDArray[np.integer]
    counts: NDArray[np.integer]

    @property
    def header(self) -> Header:
        """The vocabulary and the tokenizer."""
        return Header(self.vocab, self.tokenizer)

    @property
    def distinct(self) -> int:
        """How many different bigrams were seen."""
        return len(self.keys)

    def lookup(self, first: np.ndarray, second: np.ndarray) -> NDArray[np.int64]:
        """How often each `first` was followed by each `second`; 0 if never. Arrays are broadcast.

        Raises ValueError for a token beyond the vocabulary.
        """
        one, two = np.broadcast_arrays(first, second)
        for tokens in (one, two):
            check_tokens(tokens, self.vocab)
        if not self.distinct:
            return np.zeros(one.shape, dtype=np.int64)
        distinct, inverse = np.unique(bigram_keys(one, two, self.vocab), return_inverse=True)
        at = np.searchsorted(self.keys, distinct).clip(max=self.distinct - 1)
        found = np.where(self.keys[at] == distinct, self.counts[at], 0).astype(np.int64)
        return found[inverse.ravel()].reshape(one.shape)

    def most_common(self, n: int) -> list[tuple[int, int, int]]:
        """The n most frequent bigrams as (first, second, count), the most frequent first, ties by token."""
        keys, counts = self.keys[:0], self.counts[:0]
        for more_keys, more_counts in self.chunks() if n > 0 else ():
            keys, counts = np.concatenate([keys, more_keys]), np.concatenate([counts, more_counts])
            least = np.partition(counts, -n)[-n] if len(counts) > n else 0
            able = np.flatnonzero(counts >= least)
            best = able[np.argsort(-counts[able].astype(np.int64), kind="stable")[:n]]
            keys, counts = keys[best], counts[best]
        pairs = zip(keys.tolist(), counts.tolist(), strict=True)
        return [(key // self.vocab, key % self.vocab, count) for key, count in pairs]

    def save(self, folder: Path | str) -> None:
        """Write the counts into a folder, to be opened with `open_counts`."""
        write_counts(Path(folder), self.chunks(), self.header, self.total)

    def chunks(self) -> Iterator[Chunk]:
        """All keys and counts, `CHUNK` at a time."""
        for at in range(0, self.distinct, CHUNK):
            yield self.keys[at : at + CHUNK], self.counts[at : at + CHUNK]


class Part(NamedTuple):
    """The counts of the bigrams that begin in a span of tokens."""

    start: int
    end: int
    counts: Counts

    @property
    def span(self) -> int:
        """How many bigrams were counted."""
        return self.end - self.start


def count(
    tokens: np.ndarray,
    vocab: int,
    *,
    tokenizer: str = "",
    memory: int = MEMORY,
    folder: Path | str | None = None,
    shard: tuple[int, int] = (0, 1),
    digest: str | None = None,
    progress: Progress | None = None,
) -> Counts:
    """Count the bigrams of an array of tokens (tokens,), which may be memory-mapped, in about `memory` bytes.

    The shard (i, n) is the i-th of n equal parts of the bigrams; the counts of all n shards, merged, are those of the
    whole. With a folder the counts are kept there, an interrupted count resumes, and a finished one is opened.
    The folder knows the tokens by a checksum, or by their `digest` if one is given here, which saves reading them.
    `progress` is called with the bigrams counted and their total. Raises ValueError for tokens beyond the vocabulary,
    or a folder with other counts.
    """
    header, span = Header(vocab, tokenizer), shard_bounds(tokens, vocab, shard)
    if folder is None:  # the files stay mapped after their folder is removed, as long as the counts live
        with TemporaryDirectory(prefix="bestiary-counts-", ignore_cleanup_errors=True) as scratch:
            return count_into(tokens, Path(scratch), header, span=span, memory=memory, progress=progress)
    folder, settings = Path(folder), {"vocab": vocab, "tokenizer": tokenizer, "shard": list(shard)}
    if not (folder / "counts.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder):
            if not (folder / "counts.json").is_file():  # unless another process has just written it
                if (folder / "source.json").is_file():
                    check_source(folder, tokens, settings, digest)
                else:
                    write_file(folder / "source.json", describe_source(tokens, settings, digest))
                return count_into(tokens, folder, header, span=span, memory=memory, progress=progress)
    check_source(folder, tokens, settings, digest)
    return open_counts(folder)


def count_into(
    tokens: np.ndarray, folder: Path, header: Header, *, span: tuple[int, int], memory: int, progress: Progress | None
) -> Counts:
    """`count` into a locked folder, resuming after the parts that are there."""
    start, end = span
    parts = finished_parts(folder, start)
    size = max(MIN_PART, memory // (2 * key_dtype(header.vocab).itemsize))
    for at in range(parts[-1].end if parts else start, end, size):
        until = min(at + size, end)
        found = count_in_memory(np.asarray(tokens[at : until + 1]), header.vocab, memory)
        parts.append(Part(at, until, write_counts(part_folder(folder, at, until), found, header, until - at)))
        while len(parts) >= MAX_PARTS and parts[-MAX_PARTS].span <= 2 * parts[-1].span:
            parts[-MAX_PARTS:] = [join_parts(folder, parts[-MAX_PARTS:], memory)]
        if progress is not None:
            progress(until - start, end - start)
    whole = write_counts(folder, merge_chunks([part.counts for part in parts], memory), header, end - start)
    shutil.rmtree(folder / "parts", ignore_errors=True)
    for partial in folder.glob(".*.npy-*"):
        partial.unlink(missing_ok=True)
    return whole


def merge(parts: Sequence[Counts], *, memory: int = MEMORY, folder: Path | str | None = None) -> Counts:
    """The counts of several parts of a corpus added up, kept in a folder if one is given.

    Raises ValueError if they are not of one vocabulary and tokenizer.
    """
    headers = sorted({part.header for part in parts})
    if len(headers) != 1:
        given = ", ".join(f"vocab {vocab} of tokenizer {tokenizer or 'unknown'}" for vocab, tokenizer in headers)
        raise ValueError(f"counts to merge must be of one tokenizer: given {given or 'none'}")
    if folder is None:
        with TemporaryDirectory(prefix="bestiary-counts-", ignore_cleanup_errors=True) as scratch:
            return merge(parts, memory=memory, folder=scratch)
    return write_counts(Path(folder), merge_chunks(parts, memory), headers[0], sum(part.total for part in parts))


def open_counts(folder: Path | str, tokenizer: str | None = None, *, vocab: int | None = None) -> Counts:
    """Open the counts in a folder, memory-mapped, after checking their checksums.

    Raises ValueError if they are incomplete or damaged, or of another tokenizer or vocabulary than the one given.
    """
    folder = Path(folder)
    if not (folder / "counts.json").is_file():
        raise ValueError(f"{folder} holds no finished counts of bigrams: count them again")
    try:
        counts, checksums = read_counts(folder)
        intact = [zlib.crc32(values.data) for values in (counts.keys, counts.counts)] == checksums
    except FAULTS as fault:
        raise ValueError(f"{folder} is damaged ({first_line(fault)}): remove it, count again") from None
    if not intact:
        raise ValueError(f"{folder} is damaged (its checksums do not hold): remove it, count again")
    for name, here, given in (("tokenizer", counts.tokenizer, tokenizer), ("vocab", counts.vocab, vocab)):
        if given is not None and given != here:
            raise ValueError(f"{folder} has counts of {name} {here or 'unknown'}, not of {given}: count these apart")
    return counts


def read_counts(folder: Path) -> tuple[Counts, list[int]]:
    """The counts in a folder, and the checksums that were stored with them."""
    header = read_fields(folder / "counts.json", format=int, vocab=int, tokenizer=str, total=int, checksums=list)
    if header["format"] != FORMAT:
        raise ValueError(f"its format is {header['format']}, not {FORMAT}")
    if header.get("digest") not in (None, header_digest(header)):  # None in counts before 0.2
        raise ValueError("counts.json: its digest is not that of its content")
    if isinstance(header["vocab"], bool) or not 1 <= header["vocab"] <= MAX_VOCAB:
        raise ValueError(f"counts.json: a vocabulary of {header['vocab']}")
    keys, counts = (np.asarray(open_array(folder / name)) for name in ("keys.npy", "counts.npy"))
    return Counts(header["vocab"], header["tokenizer"], header["total"], keys, counts), header["checksums"]


def header_digest(header: dict[str, Any]) -> str:
    """The digest of everything else in counts.json, which it holds as "digest"."""
    content = {name: value for name, value in header.items() if name != "digest"}
    return digest_bytes(json.dumps(content, sort_keys=True).encode())


def write_counts(folder: Path, chunks: Iterable[Chunk], header: Header, total: int) -> Counts:
    """Write chunks of ascending keys with their counts into a folder, and open them."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        keys = stack.enter_context(ArrayWriter(folder / "keys.npy", key_dtype(header.vocab)))
        counts = stack.enter_context(ArrayWriter(folder / "counts.npy", np.uint32 if total < 2**32 else np.int64))
        for chunk_keys, chunk_counts in chunks:
            keys.append(chunk_keys)
            counts.append(chunk_counts)
    checks = {"distinct": keys.length, "checksums": [keys.checksum, counts.checksum]}
    content = {"format": FORMAT, **header._asdict(), "total": total, **checks}
    write_file(folder / "counts.json", content | {"digest": header_digest(content)})
    return read_counts(folder)[0]


def open_array(path: Path) -> np.ndarray:
    """An .npy file of one row of integers, memory-mapped. Raises ValueError, naming the file, if it is damaged."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as fault:  # numpy raises nearly anything for a damaged file
        raise ValueError(f"{path} is damaged ({first_line(fault)})") from None
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(f"{path} is damaged (an array of {found.dtype} of shape {found.shape})")
    return found


class ArrayWriter:
    """Writes an .npy file of unknown length under a temporary name and renames it when it is complete."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self.path, self.dtype, self.length, self.checksum = path, np.dtype(dtype), 0, 0

    def __enter__(self) -> "ArrayWriter":
        self.partial = self.path.with_name(f".{self.path.name}-{uuid.uuid4().hex}")
        self.file = self.partial.open("wb")
        self.write_header()
        return self

    def write_header(self) -> None:
        """Write the header, which numpy pads so that its size does not change while the array grows."""
        shape = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, shape)

    def append(self, values: NDArray[np.integer]) -> None:
        """Write values at the end."""
        content = np.ascontiguousarray(values, dtype=self.dtype).data
        self.file.write(content)
        self.length, self.checksum = self.length + len(values), zlib.crc32(content, self.checksum)

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self.file:
                self.file.seek(0)
                self.write_header()
            if fault is None:
                self.partial.replace(self.path)
        finally:
            self.partial.unlink(missing_ok=True)


def shard_bounds(tokens: np.ndarray, vocab: int, shard: tuple[int, int]) -> tuple[int, int]:
    """The first bigram of a shard and the one after its last. Raises ValueError for invalid tokens or shards."""
    index, number = shard
    if tokens.ndim != 1:
        raise ValueError(f"tokens of shape {tokens.shape}: give one row")
    if not 1 <= vocab <= MAX_VOCAB:
        raise ValueError(f"a vocabulary of {vocab}: give one from 1 to {MAX_VOCAB:,}")
    if not 0 <= index < number:
        raise ValueError(f"shard {index} of {number}: give one from 0 to {number - 1}")
    last = max(0, len(tokens) - 1)
    return last * index // number, last * (index + 1) // number


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder while others wait; the system releases the lock when this process dies."""
    with (folder / "lock").open("w") as file:
        with suppress(ImportError, OSError):  # without file locks, users must not count into one folder twice at once
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def part_folder(folder: Path, start: int, end: int) -> Path:
    """The folder of a part."""
    return folder / "parts" / f"{start}-{end}"


def finished_parts(folder: Path, start: int) -> list[Part]:
    """The complete parts that an earlier count left, each beginning where the one before ends."""
    spans = [tuple(map(int, part.name.split("-"))) for part in folder.glob("parts/*-*")]
    parts: list[Part] = []
    for begin, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if begin == (parts[-1].end if parts else start):
            with suppress(ValueError):  # an incomplete part is counted again
                parts.append(Part(begin, end, open_counts(part_folder(folder, begin, end))))
    return parts


def join_parts(folder: Path, parts: list[Part], memory: int) -> Part:
    """Merge neighbouring parts into one."""
    start, end = parts[0].start, parts[-1].end
    whole = merge([part.counts for part in parts], memory=memory, folder=part_folder(folder, start, end))
    for part in parts:
        shutil.rmtree(part_folder(folder, part.start, part.end), ignore_errors=True)
    return Part(start, end, whole)


def count_in_memory(tokens: np.ndarray, vocab: int, memory: int) -> Iterator[Chunk]:
    """Count the bigrams of tokens that fit in memory: in a table if it is small, by sorting otherwise."""
    check_tokens(tokens, vocab)
    small = vocab**2 <= min(TABLE, len(tokens)) and TABLE_BYTES * max(CHUNK, vocab**2) <= memory
    return count_in_table(tokens, vocab) if small else count_by_sorting(tokens, vocab)


def count_in_table(tokens: np.ndarray, vocab: int) -> Iterator[Chunk]:
    """Count bigrams by a counter for each pair of tokens, in blocks that are at least as long as the table."""
    size, block = vocab**2, max(CHUNK, vocab**2)
    table = np.zeros(size, dtype=np.int64)
    for at in range(0, len(tokens) - 1, block):
        some = tokens[at : at + block + 1]
        keys = some[:-1].astype(np.intp)
        keys *= vocab
        np.add(keys, some[1:], out=keys, dtype=keys.dtype, casting="unsafe")
        table += np.bincount(keys, minlength=size)
    for at in range(0, size, CHUNK):
        seen = np.flatnonzero(table[at : at + CHUNK])
        yield (seen + at).astype(key_dtype(vocab)), table[at : at + CHUNK][seen]


def count_by_sorting(tokens: np.ndarray, vocab: int) -> Iterator[Chunk]:
    """Count bigrams by sorting them."""
    keys = bigram_keys(tokens[:-1], tokens[1:], vocab)
    keys.sort()
    start = 0
    while start < len(keys):
        end = int(np.searchsorted(keys, keys[min(start + CHUNK, len(keys)) - 1], side="right"))
        at = group_starts(keys[start:end])
        yield keys[start:end][at], np.diff(at, append=end - start)
        start = end


def merge_chunks(parts: Sequence[Counts], memory: int) -> Iterator[Chunk]:
    """The counts of all parts added up, in ascending order: at each step, all keys up to the smallest last one read."""
    reach = max(1, min(4 * CHUNK, memory // MERGE_BYTES) // max(1, len(parts)))
    left = [(part.keys, part.counts) for part in parts if part.distinct]
    while left:
        last = min(keys[:reach][-1] for keys, _ in left)
        ends = [int(np.searchsorted(keys[:reach], last, side="right")) for keys, _ in left]
        keys, counts = (np.concatenate([pair[i][:end] for pair, end in zip(left, ends, strict=True)]) for i in (0, 1))
        order = keys.argsort(kind="stable")
        keys = keys[order]
        at = group_starts(keys)
        yield keys[at], np.add.reduceat(counts[order], at, dtype=np.int64)
        left = [(keys[end:], counts[end:]) for (keys, counts), end in zip(left, ends, strict=True) if end < len(keys)]


def group_starts(keys: NDArray[np.integer]) -> NDArray[np.intp]:
    """Where each group of equal keys begins in sorted keys."""
    new = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    return np.flatnonzero(new)


def bigram_keys(first: np.ndarray, second: np.ndarray, vocab: int) -> NDArray[np.integer]:
    """One number for each bigram: first * vocab + second."""
    keys = first.astype(key_dtype(vocab))
    keys *= keys.dtype.type(vocab)
    np.add(keys, second, out=keys, dtype=keys.dtype, casting="unsafe")
    return keys


def key_dtype(vocab: int) -> np.dtype:
    """The smallest integer type that holds every key: smaller types sort faster."""
    return np.dtype(np.uint32 if vocab**2 <= 2**32 else np.int64)


def check_tokens(tokens: np.ndarray, vocab: int) -> None:
    """Raises ValueError if a token is beyond the vocabulary or no integer."""
    if tokens.size and tokens.dtype.kind not in "iu":
        raise ValueError(f"tokens of type {tokens.dtype}: give integers")
    if tokens.size:
        for token in (tokens.min(), tokens.max()):
            if not 0 <= token < vocab:
                raise ValueError(f"token {token} is beyond the vocabulary of {vocab} that is counted")
