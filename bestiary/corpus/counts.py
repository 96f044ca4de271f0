"""How often each bigram of a corpus occurs: exact, by sorting, in bounded memory, for corpora larger than it.

    <folder>/counts.json    written last: vocabulary, tokenizer, bigrams counted, and checksums of the other two
             keys.npy       each bigram seen, as first * vocab + second, ascending
             counts.npy     how often it was seen
             source.json    which tokens are counted here, written first
             parts/0-9000/  the same files for the bigrams that begin at tokens 0 to 8999, until all are counted
             lock           held by the process that counts

A part is as many bigrams as fit in memory, sorted and run together; parts are merged a little of each at a time. A
count that was stopped goes on after its last whole part. Where numpy sorts with vector instructions, this is nearly as
fast as a table of vocab * vocab counters (benchmarks/text.py), for which a large vocabulary has no room.
"""

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

from bestiary.runs.store import read_json, write_file

FORMAT = 1  # raised when the files change their meaning
MEMORY = 2**30  # bytes
LEAST = 1024  # bigrams in a part, however little memory is given
SLICE = 2**18  # sorted keys looked at a time
BYTES = 80  # that merging takes for each key that it looks at
FAN = 16  # parts merged into one while counting
SAMPLE = 1024  # tokens by which a corpus is told from another of the same length
LARGEST = 3_037_000_499  # vocabulary whose square is an int64

Chunk = tuple[NDArray[np.integer], NDArray[np.integer]]  # keys, ascending, and the count of each
Tell = Callable[[int, int], None]  # hears how many bigrams are counted, of how many


class Head(NamedTuple):
    """What counts must share to be merged."""

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
    def head(self) -> Head:
        return Head(self.vocab, self.tokenizer)

    @property
    def distinct(self) -> int:
        """Different bigrams seen."""
        return len(self.keys)

    def of(self, first: np.ndarray, second: np.ndarray) -> NDArray[np.int64]:
        """How often tokens were followed by others; 0 if never. Raises ValueError for a token beyond the vocabulary."""
        one, two = np.broadcast_arrays(first, second)
        for tokens in (one, two):
            known(tokens, self.vocab)
        if not self.distinct:
            return np.zeros(one.shape, dtype=np.int64)
        wanted, inverse = np.unique(bigrams(one, two, self.vocab), return_inverse=True)
        at = np.searchsorted(self.keys, wanted).clip(max=self.distinct - 1)
        found = np.where(self.keys[at] == wanted, self.counts[at], 0).astype(np.int64)
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
        written(Path(folder), self.chunks(), self.head, self.total)

    def chunks(self) -> Iterator[Chunk]:
        for at in range(0, self.distinct, SLICE):
            yield self.keys[at : at + SLICE], self.counts[at : at + SLICE]


class Part(NamedTuple):
    """The counts of the bigrams that begin in a span of tokens."""

    start: int
    end: int
    counts: Counts

    @property
    def span(self) -> int:
        return self.end - self.start


def count(
    tokens: np.ndarray,
    vocab: int,
    *,
    tokenizer: str = "",
    memory: int = MEMORY,
    folder: Path | str | None = None,
    shard: tuple[int, int] = (0, 1),
    tell: Tell | None = None,
) -> Counts:
    """Count the bigrams of an array of tokens, which may be memory-mapped, in about `memory` bytes.

    The shard (i, n) has the i-th n-th of the bigrams; those of all n, merged, are the whole. With a folder the counts
    are kept there, a count that was stopped goes on, and one that is done is opened. `tell` hears how many bigrams
    are counted, of how many. Raises ValueError for tokens beyond the vocabulary, or a folder with other counts.
    """
    head, span = Head(vocab, tokenizer), bounds(tokens, vocab, shard)
    if folder is None:  # the files are mapped when their folder goes, and last as long as the counts
        with TemporaryDirectory(prefix="bestiary-counts-", ignore_cleanup_errors=True) as scratch:
            return counted(tokens, Path(scratch), head, span=span, memory=memory, tell=tell)
    folder, source = Path(folder), {"vocab": vocab, "tokenizer": tokenizer, "shard": list(shard), **identity(tokens)}
    if not (folder / "counts.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            if not (folder / "counts.json").is_file():  # nor has another process just written it
                if not (folder / "source.json").is_file():
                    write_file(folder / "source.json", source)
                same(folder, source)
                return counted(tokens, folder, head, span=span, memory=memory, tell=tell)
    same(folder, source)
    return open_counts(folder)


def counted(
    tokens: np.ndarray, folder: Path, head: Head, *, span: tuple[int, int], memory: int, tell: Tell | None
) -> Counts:
    """`count` into a folder that no other process counts into, going on after the parts that are there."""
    start, end = span
    parts = finished(folder, start)
    size = max(LEAST, memory // (2 * kind(head.vocab).itemsize))
    for at in range(parts[-1].end if parts else start, end, size):
        until = min(at + size, end)
        found = tallied(np.asarray(tokens[at : until + 1]), head.vocab)
        parts.append(Part(at, until, written(place(folder, at, until), found, head, until - at)))
        while len(parts) >= FAN and parts[-FAN].span <= 2 * parts[-1].span:
            parts[-FAN:] = [joined(folder, parts[-FAN:], memory)]
        if tell is not None:
            tell(until - start, end - start)
    whole = written(folder, merged([part.counts for part in parts], memory), head, end - start)
    shutil.rmtree(folder / "parts", ignore_errors=True)
    for beside in folder.glob(".*.npy-*"):
        beside.unlink(missing_ok=True)
    return whole


def merge(parts: Sequence[Counts], *, memory: int = MEMORY, folder: Path | str | None = None) -> Counts:
    """The counts of several parts of a corpus together, kept in a folder if one is given.

    Raises ValueError if they are not of one vocabulary and tokenizer.
    """
    heads = sorted({part.head for part in parts})
    if len(heads) != 1:
        told = ", ".join(f"vocab {vocab} of tokenizer {tokenizer or 'unknown'}" for vocab, tokenizer in heads)
        raise ValueError(f"counts to merge must be of one tokenizer: given {told or 'none'}")
    if folder is None:
        with TemporaryDirectory(prefix="bestiary-counts-", ignore_cleanup_errors=True) as scratch:
            return merge(parts, memory=memory, folder=scratch)
    return written(Path(folder), merged(parts, memory), heads[0], sum(part.total for part in parts))


def open_counts(folder: Path | str, tokenizer: str | None = None, *, vocab: int | None = None) -> Counts:
    """Counts from a folder, memory-mapped, once their checksums hold.

    Raises ValueError if they are not all there, or of another tokenizer or vocabulary than the one given.
    """
    folder = Path(folder)
    if not (folder / "counts.json").is_file():
        raise ValueError(f"{folder} holds no finished counts of bigrams: count them again")
    try:
        found, sums = opened(folder)
        whole = [zlib.crc32(values.data) for values in (found.keys, found.counts)] == sums
    except (OSError, ValueError, TypeError, LookupError, EOFError) as fault:
        raise ValueError(f"{folder} is damaged ({str(fault).splitlines()[0]}): remove it, count again") from None
    if not whole:
        raise ValueError(f"{folder} is damaged (its checksums do not hold): remove it, count again")
    for name, here, given in (("tokenizer", found.tokenizer, tokenizer), ("vocab", found.vocab, vocab)):
        if given is not None and given != here:
            raise ValueError(f"{folder} has counts of {name} {here or 'unknown'}, not of {given}: count these apart")
    return found


def opened(folder: Path) -> tuple[Counts, list[int]]:
    """The counts in a folder, and what their checksums must be."""
    head = read_json(folder / "counts.json")
    if head["format"] != FORMAT:
        raise ValueError(f"its format is {head['format']}, not {FORMAT}")
    keys, counts = (np.asarray(np.load(folder / name, mmap_mode="r")) for name in ("keys.npy", "counts.npy"))
    return Counts(head["vocab"], head["tokenizer"], head["total"], keys, counts), head["checksums"]


def written(folder: Path, chunks: Iterable[Chunk], head: Head, total: int) -> Counts:
    """Counts from their keys in order, a chunk at a time, kept in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        keys = stack.enter_context(Column(folder / "keys.npy", kind(head.vocab)))
        counts = stack.enter_context(Column(folder / "counts.npy", np.uint32 if total < 2**32 else np.int64))
        for some, numbers in chunks:
            keys.append(some)
            counts.append(numbers)
    sums = {"distinct": keys.length, "checksums": [keys.checksum, counts.checksum]}
    write_file(folder / "counts.json", {"format": FORMAT, **head._asdict(), "total": total, **sums})
    return opened(folder)[0]


class Column:
    """An .npy file of a length not known before, written beside its place and renamed when it is whole."""

    def __init__(self, place: Path, dtype: DTypeLike) -> None:
        self.place, self.dtype, self.length, self.checksum = place, np.dtype(dtype), 0, 0

    def __enter__(self) -> "Column":
        self.beside = self.place.with_name(f".{self.place.name}-{uuid.uuid4().hex}")
        self.file = self.beside.open("wb")
        self.head()
        return self

    def head(self) -> None:
        """Write the header, which numpy pads so that it stays as long while the length grows."""
        shape = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, shape)

    def append(self, values: NDArray[np.integer]) -> None:
        content = np.ascontiguousarray(values, dtype=self.dtype).data
        self.file.write(content)
        self.length, self.checksum = self.length + len(values), zlib.crc32(content, self.checksum)

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self.file:
                self.file.seek(0)
                self.head()
            if fault is None:
                self.beside.replace(self.place)
        finally:
            self.beside.unlink(missing_ok=True)


def bounds(tokens: np.ndarray, vocab: int, shard: tuple[int, int]) -> tuple[int, int]:
    """The first and the last bigram of a shard, the last excluded. Raises ValueError for what cannot be counted."""
    index, number = shard
    if tokens.ndim != 1:
        raise ValueError(f"tokens of shape {tokens.shape}: give one row")
    if not 1 <= vocab <= LARGEST:
        raise ValueError(f"a vocabulary of {vocab}: give one from 1 to {LARGEST:,}")
    if not 0 <= index < number:
        raise ValueError(f"shard {index} of {number}: give one from 0 to {number - 1}")
    last = max(0, len(tokens) - 1)
    return last * index // number, last * (index + 1) // number


def identity(tokens: np.ndarray) -> dict[str, int]:
    """What tells tokens from others, at a look at a few of them."""
    some = np.asarray(tokens[:: max(1, len(tokens) // SAMPLE)]).astype(np.int64)
    return {"tokens": len(tokens), "sample": zlib.crc32(some.data)}


def same(folder: Path, source: dict[str, Any]) -> None:
    """Raises ValueError if a folder has counts of something else, or of what nobody knows."""
    before = dict[str, Any]()
    with suppress(OSError, ValueError):
        before = read_json(folder / "source.json")
    if name := next((name for name in source if before.get(name) != source[name]), None):
        raise ValueError(
            f"{folder} has a count of other tokens ({name} {before.get(name, 'unknown')} there, {source[name]} given): "
            "give another folder or remove it"
        )


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder while others wait; the system lets go of it when this process dies."""
    with (folder / "lock").open("w") as file:
        with suppress(ImportError, OSError):  # where there are no locks, it is for the user not to count twice at once
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def place(folder: Path, start: int, end: int) -> Path:
    """Where a part is kept."""
    return folder / "parts" / f"{start}-{end}"


def finished(folder: Path, start: int) -> list[Part]:
    """The whole parts that an earlier count left, one beginning where another ends."""
    spans = [tuple(map(int, part.name.split("-"))) for part in folder.glob("parts/*-*")]
    parts: list[Part] = []
    for begin, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if begin == (parts[-1].end if parts else start):
            with suppress(ValueError):  # not whole, and counted again
                parts.append(Part(begin, end, open_counts(place(folder, begin, end))))
    return parts


def joined(folder: Path, parts: list[Part], memory: int) -> Part:
    """Neighbouring parts as one."""
    start, end = parts[0].start, parts[-1].end
    whole = merge([part.counts for part in parts], memory=memory, folder=place(folder, start, end))
    for part in parts:
        shutil.rmtree(place(folder, part.start, part.end), ignore_errors=True)
    return Part(start, end, whole)


def tallied(tokens: np.ndarray, vocab: int) -> Iterator[Chunk]:
    """The bigrams of tokens that fit in memory, counted by sorting."""
    known(tokens, vocab)
    keys = bigrams(tokens[:-1], tokens[1:], vocab)
    keys.sort()
    start = 0
    while start < len(keys):
        end = int(np.searchsorted(keys, keys[min(start + SLICE, len(keys)) - 1], side="right"))
        at = groups(keys[start:end])
        yield keys[start:end][at], np.diff(at, append=end - start)
        start = end


def merged(parts: Sequence[Counts], memory: int) -> Iterator[Chunk]:
    """The counts of all parts: each time all keys up to the least of the last keys within reach."""
    reach = max(1, min(4 * SLICE, memory // BYTES) // max(1, len(parts)))
    left = [(part.keys, part.counts) for part in parts if part.distinct]
    while left:
        last = min(keys[:reach][-1] for keys, _ in left)
        ends = [int(np.searchsorted(keys[:reach], last, side="right")) for keys, _ in left]
        keys, counts = (np.concatenate([pair[i][:end] for pair, end in zip(left, ends, strict=True)]) for i in (0, 1))
        order = keys.argsort(kind="stable")
        keys = keys[order]
        at = groups(keys)
        yield keys[at], np.add.reduceat(counts[order], at, dtype=np.int64)
        left = [(keys[end:], counts[end:]) for (keys, counts), end in zip(left, ends, strict=True) if end < len(keys)]


def groups(keys: NDArray[np.integer]) -> NDArray[np.intp]:
    """Where each group of equal keys begins, of keys in order."""
    new = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    return np.flatnonzero(new)


def bigrams(first: np.ndarray, second: np.ndarray, vocab: int) -> NDArray[np.integer]:
    """A number for each bigram."""
    keys = first.astype(kind(vocab))
    keys *= keys.dtype.type(vocab)
    np.add(keys, second, out=keys, dtype=keys.dtype, casting="unsafe")
    return keys


def kind(vocab: int) -> np.dtype:
    """The type of keys: the smaller, the faster sorted."""
    return np.dtype(np.uint32 if vocab**2 <= 2**32 else np.int64)


def known(tokens: np.ndarray, vocab: int) -> None:
    """Raises ValueError if a token is beyond the vocabulary, or none at all."""
    if tokens.size and tokens.dtype.kind not in "iu":
        raise ValueError(f"tokens of type {tokens.dtype}: give integers")
    if tokens.size:
        for token in (tokens.min(), tokens.max()):
            if not 0 <= token < vocab:
                raise ValueError(f"token {token} is beyond the vocabulary of {vocab} that is counted")
