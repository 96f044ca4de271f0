"""A text as tokens on disk: memory-mapped, split by document, and told from others by a hash.

    <folder>/manifest.json      what it holds, written last
             origin.json        versions and host of what wrote it
             tokenizer/         the tokenizer, whole
             train.bin          tokens, each document followed by the separator; the same for selection and test
             train.ends.npy     where each document ends: i is tokens[ends[i - 1] : ends[i]], its separator included
             counts/            counts of bigrams in train, when they were asked for

A document goes to a split by the hash of its text, so the same text always goes to the same one, whatever else the
corpus holds: exact duplicates are kept, but never lie on both sides. Near duplicates may.
Texts are read and encoded a few MiB at a time and appended to files in a hidden folder beside the place, which is
renamed when all is written. One that was left by a process that died is removed by the next.
"""

import hashlib
import json
import math
import os
import shutil
import sysconfig
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bestiary.corpus.counts import Column
from bestiary.corpus.documents import KNOWN, documents, files
from bestiary.corpus.tokenizers import Tokenizer, open_tokenizer, train_bpe
from bestiary.runs.store import is_alive, machine, origin, process_start, read_json, try_rename, write_file

if TYPE_CHECKING:
    from bestiary.corpus.counts import Counts

FORMAT = 1  # raised when the files change their meaning
SPLITS = ("train", "selection", "test")
SAMPLE = 2**23  # characters of training documents that a BPE is trained on,
READ = 2**26  # chosen by their hash among the documents in the first so many of the source
BATCH = 2**21  # characters encoded at a time

Tell = Callable[[int, int], None]  # hears how many documents and tokens there are so far


@dataclass(frozen=True)
class Corpus:
    """A corpus in a folder."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def hash(self) -> str:
        """Equal exactly for the same tokens in the same splits by the same tokenizer."""
        return self.manifest["hash"]

    @property
    def vocab(self) -> int:
        """How many tokens the tokenizer knows."""
        return self.manifest["vocab"]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that it was written by."""
        return open_tokenizer(self.folder / "tokenizer")

    def tokens(self, split: str) -> np.ndarray:
        """All tokens of a split, memory-mapped."""
        place = self.folder / f"{known(split)}.bin"
        if not self.manifest["splits"][split]["tokens"]:
            return np.zeros(0, self.manifest["dtype"])  # nothing cannot be mapped
        return np.memmap(place, dtype=self.manifest["dtype"], mode="r")

    def ends(self, split: str) -> np.ndarray:
        """Where each document of a split ends, its separator included."""
        return np.load(self.folder / f"{known(split)}.ends.npy", mmap_mode="r")

    def counts(self, *, memory: int = 2**30, tell: Tell | None = None) -> "Counts":
        """How often each bigram occurs in train: counted in so much memory the first time, then read."""
        from bestiary.corpus.counts import count

        folder, tokenizer = self.folder / "counts", self.manifest["tokenizer"]["hash"]
        return count(self.tokens("train"), self.vocab, tokenizer=tokenizer, memory=memory, folder=folder, tell=tell)

    def contexts(self, split: str, length: int, limit: int | None = None) -> np.ndarray:
        """The first `limit` windows of `length` tokens and the one that follows; row i begins at i * length."""
        if length < 1 or (limit is not None and limit < 1):
            raise ValueError(f"contexts of {length} tokens, at most {limit}: both must be at least 1")
        tokens = self.tokens(split)
        if len(tokens) <= length:
            raise ValueError(
                f"{split} of {self.folder} has {len(tokens):,} tokens: one context of {length:,} needs {length + 1:,}"
            )
        rows = min((len(tokens) - 1) // length, limit or len(tokens))
        return windows(tokens[: rows * length + 1], length)


def windows(tokens: np.ndarray, length: int) -> np.ndarray:
    """Consecutive contexts (n, length + 1), each beginning with the last token of the one before; at least one."""
    length = min(length, len(tokens) - 1)
    return np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::length].astype(np.int64)


def known(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"a corpus has no split {split!r} among {list(SPLITS)}")
    return split


def open_corpus(folder: Path | str) -> Corpus:
    """A corpus from its folder. Raises LookupError if there is none, ValueError if it is not whole."""
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        raise LookupError(f"{folder} is no corpus: write one with `bestiary corpus SOURCE --out {folder}`")
    try:
        manifest = read_json(folder / "manifest.json")
        made = manifest["format"]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{folder / 'manifest.json'} is damaged: remove the folder, prepare it again") from None
    if made != FORMAT:
        raise ValueError(f"{folder} has format {made}, not {FORMAT}: prepare it again elsewhere")
    for split in SPLITS:
        place, size = folder / f"{split}.bin", manifest["splits"][split]["tokens"]
        needed = size * np.dtype(manifest["dtype"]).itemsize
        there = place.stat().st_size if place.is_file() else 0
        if there != needed:
            raise ValueError(f"{place} has {there:,} bytes instead of {needed:,}: remove the folder, prepare it again")
    return Corpus(folder, manifest)


@dataclass(frozen=True)
class Wanted:
    """What a corpus is to be made of."""

    source: str
    column: str
    tokenizer: Tokenizer | int  # one that there is, or how many tokens a BPE is to be trained for
    shares: tuple[float, float]  # of selection and test
    limit: int | None

    def texts(self, skipped: Counter[str] | None = None) -> Iterator[str]:
        return documents(self.source, column=self.column, skipped=skipped)

    def split(self, text: str) -> str:
        """Where a document goes."""
        (selection, test), at = self.shares, place(text)
        return "test" if at < test else "selection" if at < test + selection else "train"

    @cached_property
    def request(self) -> dict[str, Any]:
        """As kept in the manifest: files count by their names and sizes, a tokenizer by its hash, wherever they lie."""
        tokenizer = self.tokenizer.hash if isinstance(self.tokenizer, Tokenizer) else f"bpe-{self.tokenizer}"
        asked = {"source": state(self.source), "column": self.column, "tokenizer": tokenizer}
        return {**asked, "shares": list(self.shares), "limit": self.limit}


def prepare(
    source: str,
    folder: Path | str,
    *,
    tokenizer: str | Tokenizer = "bpe",
    vocab: int = 4096,
    shares: tuple[float, float] = (0.05, 0.05),
    column: str = "text",
    limit: int | None = None,
    tell: Tell | None = None,
) -> Corpus:
    """Write a source (see `documents`) as a corpus, or open it if the folder already holds exactly this.

    `tokenizer` is "bpe", trained here for `vocab` tokens, or what `open_tokenizer` opens; `shares` go to selection
    and test; with a `limit`, the document that fills so many tokens is the last. Raises ValueError if the folder
    holds anything else, or there is no text.
    """
    folder, shares = Path(folder), (float(shares[0]), float(shares[1]))
    if min(shares) < 0 or sum(shares) >= 1:
        raise ValueError(f"shares of {shares} for selection and test leave nothing to train on: give less than 1")
    if limit is not None and limit < 1:
        raise ValueError(f"a limit of {limit} tokens: give at least 1, or none")
    opened = (
        tokenizer if isinstance(tokenizer, Tokenizer) else vocab if tokenizer == "bpe" else open_tokenizer(tokenizer)
    )
    wanted = Wanted(KNOWN.get(source, source), column, opened, shares, limit)
    if Path(source).is_dir() and folder.resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(f"{folder} lies within its own source {source}: write it elsewhere")
    if folder.is_dir() and any(folder.iterdir()):
        return same(folder, wanted)
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear(folder)
    beside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        write(beside, wanted, tell)
        try_rename(beside, folder)  # or another process was faster
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return same(folder, wanted)


def same(folder: Path, wanted: Wanted) -> Corpus:
    """The corpus in a folder. Raises ValueError unless it is the one that is wanted."""
    if not (folder / "manifest.json").is_file():
        raise ValueError(f"{folder} is not empty and no corpus: give another folder")
    found = open_corpus(folder)
    there, asked = found.manifest["request"], wanted.request
    if there != asked:
        what = ", ".join(
            f"{name} {there.get(name)} there, {asked[name]} given" for name in asked if there.get(name) != asked[name]
        )
        raise ValueError(
            f"{folder} is another corpus, {short(there)}, not {short(asked)} ({what}): give another folder or remove it"
        )
    return found


def place(text: str) -> float:
    """A number from 0 to 1 by the hash of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def short(content: Any) -> str:
    """12 digits that tell a value from others."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def state(source: str) -> str:
    """What tells a source from others, and from itself after a file has come, gone or changed its size."""
    path = Path(sysconfig.get_path("stdlib") if source == "stdlib" else source).expanduser()
    if not path.exists():
        return source
    found = files(path, only=".py" if source == "stdlib" else "") if path.is_dir() else [path]
    return f"files {short([(os.path.relpath(file, path), file.stat().st_size) for file in found])}"


def clear(folder: Path) -> None:
    """Remove what processes that died have left of this corpus."""
    for left in folder.parent.glob(f".{folder.name}-{32 * '[0-9a-f]'}"):
        with suppress(FileNotFoundError):
            if not is_alive(left, now=time.time()):
                shutil.rmtree(left, ignore_errors=True)


class Document(NamedTuple):
    """A document as it is written."""

    split: str
    size: int  # bytes of text
    tokens: np.ndarray


class Part:
    """The files of a split while they are written."""

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer) -> None:
        self.folder, self.split, self.digest = folder, split, hashlib.sha256()
        self.end = np.array([tokenizer.separator], tokenizer.dtype)
        self.tokens = self.documents = self.bytes = 0

    def __enter__(self) -> "Part":
        with ExitStack() as stack:
            self.file = stack.enter_context((self.folder / f"{self.split}.bin").open("wb"))
            self.ends = stack.enter_context(Column(self.folder / f"{self.split}.ends.npy", "<i8"))
            self.close = stack.pop_all().__exit__
        return self

    def __exit__(self, *how: Any) -> None:
        self.close(*how)

    def append(self, documents: list[Document]) -> None:
        if not documents:
            return
        content = np.concatenate([row for document in documents for row in (document.tokens, self.end)])
        self.file.write(content.tobytes())
        self.digest.update(content.tobytes())
        self.ends.append(self.tokens + np.cumsum([len(document.tokens) + 1 for document in documents]))
        self.tokens += len(content)
        self.documents += len(documents)
        self.bytes += sum(document.size for document in documents)

    @property
    def sums(self) -> dict[str, int]:
        """For the manifest; bytes are those of the texts in UTF-8, separators not counted."""
        return {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes}


def write(folder: Path, wanted: Wanted, tell: Tell | None) -> None:
    """Write all files of a corpus, the manifest last."""
    folder.mkdir()
    owner = folder / "owner.json"
    write_file(owner, {"machine": machine(), "process": os.getpid(), "born": process_start(os.getpid())})
    tokenizer = wanted.tokenizer if isinstance(wanted.tokenizer, Tokenizer) else trained(wanted, wanted.tokenizer)
    skipped, documents, tokens = Counter[str](), 0, 0
    with ExitStack() as stack:
        parts = [stack.enter_context(Part(folder, split, tokenizer)) for split in SPLITS]
        for batch in encoded(wanted, tokenizer, skipped):
            for part in parts:
                part.append([document for document in batch if document.split == part.split])
            owner.touch()  # still alive
            documents, tokens = documents + len(batch), sum(part.tokens for part in parts)
            if tell is not None:
                tell(documents, tokens)
    if not documents:
        raise ValueError(nothing(wanted, "there is no text of two tokens", skipped))
    tokenizer.save(folder / "tokenizer")
    write_file(folder / "origin.json", origin())
    owner.unlink()
    write_file(folder / "manifest.json", manifest(wanted, tokenizer, parts, skipped))


def manifest(wanted: Wanted, tokenizer: Tokenizer, parts: list[Part], skipped: Counter[str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "source": wanted.source,
        "hash": short([tokenizer.hash, [part.digest.hexdigest() for part in parts]]),
        "tokenizer": {"name": tokenizer.name, "hash": tokenizer.hash},
        "vocab": tokenizer.vocab,
        "dtype": tokenizer.dtype.str,
        "splits": {part.split: part.sums for part in parts},
        "skipped": dict(sorted(skipped.items())),  # files and documents, by what is wrong with them
        "request": wanted.request,
    }


def nothing(wanted: Wanted, what: str, skipped: Counter[str]) -> str:
    """Why a source gives no corpus."""
    told = ", ".join(f"{count:,} {kind}" for kind, count in sorted(skipped.items()))
    return f"{what} in {wanted.source}" + (f" (skipped: {told})" if told else "")


def encoded(wanted: Wanted, tokenizer: Tokenizer, skipped: Counter[str]) -> Iterator[list[Document]]:
    """The documents of a source up to the limit, a batch at a time."""
    left = math.inf if wanted.limit is None else wanted.limit
    for texts in batches(wanted.texts(skipped)):
        batch = []
        for text, tokens in zip(texts, tokenizer.encode(texts), strict=True):
            if len(tokens) < 2:
                skipped["shorter than two tokens"] += 1
            elif left > 0:
                batch.append(Document(wanted.split(text), len(text.encode()), tokens))
                left -= len(tokens) + 1
        yield batch
        if left <= 0:
            return


def batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """Texts, as many together as make up a batch."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def trained(wanted: Wanted, vocab: int) -> Tokenizer:
    """A BPE of the source: from those of its first training documents that come first by their hash."""
    skipped, found, read = Counter[str](), [], 0
    for text in wanted.texts(skipped):
        read += len(text)
        if wanted.split(text) == "train":
            found.append((place(text), text))
        if read >= READ:
            break
    if not found:
        raise ValueError(nothing(wanted, "there is no document to train a BPE on", skipped))
    found.sort(key=itemgetter(0))
    sizes = np.cumsum([len(text) for _, text in found])
    return train_bpe([text for _, text in found[: int(np.searchsorted(sizes, SAMPLE)) + 1]], vocab)
