"""Writes a source as a corpus (see `bestiary.corpus.corpus`), or opens the one that was written from it.

The hash of a document's text decides its split, so the same text always goes to the same split, whatever else the
corpus holds: exact duplicates are kept but never end up in two splits. Near duplicates may. Where a split would stay
empty, as for a few novels, documents are cut into pieces, as large as will do, and each piece goes by its own hash.
Texts are read and encoded a few MiB at a time and appended to files in a hidden folder beside the target, which is
renamed once everything is written. A hidden folder left by a process that died is removed by the next one.
A source is known again by the names, sizes and contents of its files. Contents are read again only if the times in the
file system say that a file may have changed.
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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from bestiary.corpus.corpus import FORMAT, SPLITS, Corpus, Progress, manifest_digest, open_corpus, tell_once
from bestiary.corpus.counts import ArrayWriter
from bestiary.corpus.documents import NAMED_SOURCES, ReadingLog, cut_text, documents, list_files, source_files
from bestiary.corpus.tokenizers import Tokenizer, open_tokenizer, train_bpe
from bestiary.runs.digests import digest
from bestiary.runs.store import is_alive, machine, origin, process_start, try_rename, write_file

BPE_CHARACTERS = 2**23  # of training documents that a BPE is trained on,
BPE_READ = 2**26  # chosen by their hash among the documents in the first so many characters of the source
BATCH_CHARACTERS = 2**21  # characters encoded at a time
PIECES = (2**14, 2**12, 2**10, 2**8)  # bytes of the pieces into which documents are cut where a split stays empty


class EmptySplit(ValueError):
    """A split that should have a share of the documents got none."""


@dataclass(frozen=True)
class CorpusRequest:
    """What a corpus is made of: its source, its tokenizer and how it is split."""

    source: str
    column: str
    tokenizer: Tokenizer | int  # an existing one, or the vocabulary of a BPE to train
    shares: tuple[float, float]  # of selection and test
    limit: int | None
    piece: int | None = None  # bytes of the pieces that documents are cut into

    def texts(self, log: ReadingLog) -> Iterator[str]:
        """The documents of the source, or their pieces; `log` keeps what was read and left out."""
        for text in documents(self.source, column=self.column, log=log):
            for number, part in enumerate([text] if self.piece is None else cut_text(text, self.piece)):
                log.cut |= number > 0
                yield part

    def split(self, text: str) -> str:
        """The split that a document belongs to."""
        (selection, test), position = self.shares, hash_position(text)
        return "test" if position < test else "selection" if position < test + selection else "train"

    @cached_property
    def identity(self) -> dict[str, Any]:
        """As stored in the manifest: files by their names and sizes, a tokenizer by its hash, wherever they lie."""
        tokenizer = self.tokenizer.hash if isinstance(self.tokenizer, Tokenizer) else f"bpe-{self.tokenizer}"
        text = {"source": source_fingerprint(self.source), "column": self.column, "tokenizer": tokenizer}
        return {**text, "shares": list(self.shares), "limit": self.limit}


def prepare(
    source: str,
    folder: Path | str,
    *,
    tokenizer: str | Tokenizer = "bpe",
    vocab: int = 4096,
    shares: tuple[float, float] = (0.05, 0.05),
    column: str = "text",
    limit: int | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Write a source (see `documents`) as a corpus, or open it if the folder already holds exactly this corpus.

    `tokenizer` is "bpe", which trains one of `vocab` tokens, or anything that `open_tokenizer` opens. `shares` are the
    shares of selection and test. With a `limit`, reading stops after the document that reaches so many tokens.
    `progress` is called with the documents and tokens so far. Raises ValueError if the folder holds anything else, or
    if the source has no text.
    """
    folder, shares = Path(folder), (float(shares[0]), float(shares[1]))
    if min(shares) < 0 or sum(shares) >= 1:
        raise ValueError(f"shares of {shares} for selection and test leave nothing to train on: give less than 1")
    if limit is not None and limit < 1:
        raise ValueError(f"a limit of {limit} tokens: give at least 1, or none")
    if not isinstance(tokenizer, Tokenizer) and tokenizer != "bpe":
        tokenizer = open_tokenizer(tokenizer)
    encoder = tokenizer if isinstance(tokenizer, Tokenizer) else vocab
    request = CorpusRequest(NAMED_SOURCES.get(source, source), column, encoder, shares, limit)
    if Path(source).is_dir() and folder.resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(f"{folder} lies within its own source {source}: write it elsewhere")
    if folder.is_dir() and any(folder.iterdir()):
        return open_requested(folder, request)
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    for piece in (None, *PIECES):
        partial = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
        try:
            write_corpus(partial, replace(request, piece=piece), progress)
            try_rename(partial, folder)  # or another process was faster
            break
        except EmptySplit:
            if piece == PIECES[-1]:
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return open_requested(folder, request)


def open_requested(folder: Path, request: CorpusRequest) -> Corpus:
    """Open the corpus in a folder. Raises ValueError unless it is the requested one, from an unchanged source."""
    if not (folder / "manifest.json").is_file():
        raise ValueError(f"{folder} is not empty and no corpus: give another folder")
    corpus = open_corpus(folder)
    stored, given = dict(corpus.manifest["request"]), dict(request.identity)
    content = stored.pop("content", None)
    if stored == given and (files := source_files(request.source)) is not None:
        if content is None:
            tell_once(
                f"{folder} knows the files of its source by names and sizes alone: their contents are not checked"
            )
        elif corpus.manifest["source_state"] != file_states(files[: content["files"]]):
            stored["content"] = content["digest"]
            given["content"] = content_digest(files[: content["files"]])
    if stored != given:
        differences = ", ".join(
            f"{name} {stored.get(name)} there, {given[name]} given" for name in given if stored.get(name) != given[name]
        )
        raise ValueError(
            f"{folder} is another corpus, {short_hash(stored)}, not {short_hash(given)} ({differences}): "
            "give another folder or remove it"
        )
    return corpus


def hash_position(text: str) -> float:
    """A number from 0 to 1 that depends on the hash of a text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def short_hash(content: Any) -> str:
    """12 hex digits of the hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def source_fingerprint(source: str) -> str:
    """Identifies a source; it changes when a file is added, removed or changes its size."""
    path = Path(sysconfig.get_path("stdlib") if source == "stdlib" else source).expanduser()
    if not path.exists():
        return source
    found = list_files(path, only=".py" if source == "stdlib" else "") if path.is_dir() else [path]
    return f"files {short_hash([(os.path.relpath(file, path), file.stat().st_size) for file in found])}"


def file_states(files: Sequence[Path]) -> str:
    """Identifies files by their sizes and the times of their last changes, without reading them."""
    states = [file.stat() for file in files]
    return short_hash([(state.st_size, state.st_mtime_ns, state.st_ctime_ns) for state in states])


def content_digest(files: Sequence[Path]) -> str:
    """Identifies files by all that they contain, in order; reads them."""
    return short_hash([digest(file) for file in files])


def remove_abandoned(folder: Path) -> None:
    """Remove what processes that died left behind while writing this corpus."""
    for leftover in folder.parent.glob(f".{folder.name}-{32 * '[0-9a-f]'}"):
        with suppress(FileNotFoundError):
            if not is_alive(leftover, now=time.time()):
                shutil.rmtree(leftover, ignore_errors=True)


class Document(NamedTuple):
    """A document and the split it belongs to."""

    split: str
    text: bytes  # in UTF-8
    tokens: np.ndarray
    byte_ends: np.ndarray  # where each token ends in the text


class SplitWriter:
    """Writes the files of one split."""

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer) -> None:
        self.folder, self.split, self.digest = folder, split, hashlib.sha256()
        self.separator = np.array([tokenizer.separator], tokenizer.dtype)
        self.keeps_text = not tokenizer.is_byte_exact
        self.tokens = self.documents = self.bytes = 0
        self.names: list[str] = []  # of the files written

    def __enter__(self) -> "SplitWriter":
        with ExitStack() as stack:
            self.file = stack.enter_context(self.open(f"{self.split}.bin"))
            self.ends = stack.enter_context(ArrayWriter(self.folder / f"{self.split}.ends.npy", "<i8"))
            self.names.append(f"{self.split}.ends.npy")
            if self.keeps_text:
                self.text = stack.enter_context(self.open(f"{self.split}.text.bin"))
                self.byte_ends = stack.enter_context(self.open(f"{self.split}.byte_ends.bin"))
            self.close = stack.pop_all().__exit__
        return self

    def __exit__(self, *how: Any) -> None:
        self.close(*how)

    def open(self, name: str) -> IO[bytes]:
        """Open a file of the split for writing."""
        self.names.append(name)
        return (self.folder / name).open("wb")

    def append(self, documents: list[Document]) -> None:
        """Write documents at the end, each followed by the separator."""
        if not documents:
            return
        content = np.concatenate([row for document in documents for row in (document.tokens, self.separator)])
        self.file.write(content.tobytes())
        self.digest.update(content.tobytes())
        self.ends.append(self.tokens + np.cumsum([len(document.tokens) + 1 for document in documents]))
        self.tokens += len(content)
        self.documents += len(documents)
        for document in documents:
            if self.keeps_text:
                self.text.write(document.text)
                ends = np.append(document.byte_ends, len(document.text))  # of the separator too
                self.byte_ends.write((self.bytes + ends).astype("<i8").tobytes())
            self.bytes += len(document.text)

    @property
    def totals(self) -> dict[str, int]:
        """Documents, tokens and bytes written; bytes are those of the texts in UTF-8, without separators."""
        return {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes}


def write_corpus(folder: Path, request: CorpusRequest, progress: Progress | None) -> None:
    """Write all files of a corpus into a new folder, the manifest last. Raises EmptySplit, or ValueError."""
    folder.mkdir()
    owner = folder / "owner.json"
    write_file(owner, {"machine": machine(), "process": os.getpid(), "born": process_start(os.getpid())})
    files, logs = source_files(request.source), [ReadingLog(), ReadingLog()]
    states = None if files is None else file_states(files)
    tokenizer = request.tokenizer
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = train_tokenizer(request, tokenizer, logs[0])
    with ExitStack() as stack:
        parts = [stack.enter_context(SplitWriter(folder, split, tokenizer)) for split in SPLITS]
        for batch in encode_documents(request, tokenizer, logs[1]):
            for part in parts:
                part.append([document for document in batch if document.split == part.split])
            owner.touch()  # a sign of life for processes on other machines
            if progress is not None:
                progress(sum(part.documents for part in parts), sum(part.tokens for part in parts))
    check_splits(request, parts, logs[1])
    tokenizer.save(folder / "tokenizer")
    content: dict[str, Any] = build_manifest(request, tokenizer, parts, logs[1])
    if files is not None:
        read = files[: max(log.files for log in logs) or None]
        content["source_state"] = file_states(read)
        content["request"] |= {"content": {"files": len(read), "digest": content_digest(read)}}
        if file_states(source_files(request.source) or []) != states:
            raise ValueError(f"{request.source} has changed while it was read: prepare it again")
    names = [*(name for part in parts for name in part.names), *(f"tokenizer/{name}" for name in tokenizer.files)]
    content["digests"] = {name: digest(folder / name) for name in names}
    write_file(folder / "origin.json", origin())
    owner.unlink()
    write_file(folder / "manifest.json", content | {"digest": manifest_digest(content)})


def check_splits(request: CorpusRequest, parts: list[SplitWriter], log: ReadingLog) -> None:
    """Raises EmptySplit if a split that has a share of the documents got none; ValueError if there are none at all."""
    count = sum(part.documents for part in parts)
    if not count:
        raise ValueError(no_text_message(request, "there is no text of two tokens", log.skipped))
    selection, test = request.shares
    shares = {"train": 1 - selection - test, "selection": selection, "test": test}
    if empty := [part.split for part in parts if shares[part.split] and not part.documents]:
        raise EmptySplit(
            f"{request.source} has too little text to split: {' and '.join(empty)} would be empty, even with documents "
            f"cut into pieces of {PIECES[-1]} bytes ({count:,} piece{'s' * (count != 1)}); give more text, or other "
            "shares (--selection and --test, 0 for none)"
        )


def build_manifest(
    request: CorpusRequest, tokenizer: Tokenizer, parts: list[SplitWriter], log: ReadingLog
) -> dict[str, Any]:
    """The content of manifest.json, without digests."""
    return {
        "format": FORMAT,
        "source": request.source,
        "hash": short_hash([tokenizer.hash, [part.digest.hexdigest() for part in parts]]),
        "tokenizer": {"name": tokenizer.name, "hash": tokenizer.hash},
        "vocab": tokenizer.vocab,
        "dtype": tokenizer.dtype.str,
        "unit": "piece" if log.cut else "document",
        "piece_bytes": request.piece,  # if documents were cut because a split would have been empty
        "splits": {part.split: part.totals for part in parts},
        "skipped": dict(sorted(log.skipped.items())),  # how many files and documents were skipped, by reason
        "request": dict(request.identity),
    }


def no_text_message(request: CorpusRequest, what: str, skipped: Counter[str]) -> str:
    """Says why a source gives no corpus."""
    reasons = ", ".join(f"{count:,} {kind}" for kind, count in sorted(skipped.items()))
    return f"{what} in {request.source}" + (f" (skipped: {reasons})" if reasons else "")


def encode_documents(request: CorpusRequest, tokenizer: Tokenizer, log: ReadingLog) -> Iterator[list[Document]]:
    """The documents of a source up to its limit of tokens, a batch at a time."""
    left = math.inf if request.limit is None else request.limit
    for texts in group_texts(request.texts(log)):
        batch = []
        for text, (tokens, ends) in zip(texts, tokenizer.encode_with_ends(texts), strict=True):
            if len(tokens) < 2:
                log.skipped["shorter than two tokens"] += 1
            elif left > 0:
                batch.append(Document(request.split(text), text.encode(), tokens, ends))
                left -= len(tokens) + 1
        yield batch
        if left <= 0:
            return


def group_texts(texts: Iterator[str]) -> Iterator[list[str]]:
    """Groups texts into batches of at least `BATCH_CHARACTERS`, except the last."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def train_tokenizer(request: CorpusRequest, vocab: int, log: ReadingLog) -> Tokenizer:
    """Train a BPE on the source: on those of its first training documents whose hashes are smallest."""
    candidates, read = [], 0
    for text in request.texts(log):
        read += len(text)
        if request.split(text) == "train":
            candidates.append((hash_position(text), text))
        if read >= BPE_READ:
            break
    if not candidates:
        raise (EmptySplit if read else ValueError)(
            no_text_message(request, "there is no document to train a BPE on", log.skipped)
        )
    candidates.sort(key=itemgetter(0))
    sizes = np.cumsum([len(text) for _, text in candidates])
    return train_bpe([text for _, text in candidates[: int(np.searchsorted(sizes, BPE_CHARACTERS)) + 1]], vocab)
