"""A text as tokens on disk: memory-mapped, split by document, identified by a hash.

    <folder>/manifest.json      what the corpus holds, written last
             origin.json        versions and host of the process that wrote it
             tokenizer/         the tokenizer
             train.bin          tokens, each document followed by the separator; the same for selection and test
             train.ends.npy     where each document ends: i is tokens[ends[i - 1] : ends[i]], its separator included
             counts/            counts of the bigrams in train, once they were counted

The hash of a document's text decides its split, so the same text always goes to the same split, whatever else the
corpus holds: exact duplicates are kept but never end up in two splits. Near duplicates may.
Texts are read and encoded a few MiB at a time and appended to files in a hidden folder beside the target, which is
renamed once everything is written. A hidden folder left by a process that died is removed by the next one.
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

from bestiary.corpus.counts import ArrayWriter
from bestiary.corpus.documents import NAMED_SOURCES, documents, list_files
from bestiary.corpus.tokenizers import Tokenizer, open_tokenizer, train_bpe
from bestiary.runs.store import is_alive, machine, origin, process_start, read_json, try_rename, write_file

if TYPE_CHECKING:
    from bestiary.corpus.counts import Counts

FORMAT = 1  # incremented when the files change their meaning
SPLITS = ("train", "selection", "test")
BPE_CHARACTERS = 2**23  # of training documents that a BPE is trained on,
BPE_READ = 2**26  # chosen by their hash among the documents in the first so many characters of the source
BATCH_CHARACTERS = 2**21  # characters encoded at a time

Progress = Callable[[int, int], None]  # called with the documents and tokens so far


@dataclass(frozen=True)
class Corpus:
    """A corpus in a folder."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def hash(self) -> str:
        """12 hex digits, equal exactly for the same tokens in the same splits by the same tokenizer."""
        return self.manifest["hash"]

    @property
    def vocab(self) -> int:
        """The size of the tokenizer's vocabulary."""
        return self.manifest["vocab"]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that encoded the corpus."""
        return open_tokenizer(self.folder / "tokenizer")

    def tokens(self, split: str) -> np.ndarray:
        """All tokens of a split, of shape (tokens,), memory-mapped. Raises ValueError for an unknown split."""
        path = self.folder / f"{check_split(split)}.bin"
        if not self.manifest["splits"][split]["tokens"]:
            return np.zeros(0, self.manifest["dtype"])  # an empty file cannot be mapped
        return np.memmap(path, dtype=self.manifest["dtype"], mode="r")

    def ends(self, split: str) -> np.ndarray:
        """Where each document of a split ends, its separator included; of shape (documents,)."""
        return np.load(self.folder / f"{check_split(split)}.ends.npy", mmap_mode="r")

    def counts(self, *, memory: int = 2**30, progress: Progress | None = None) -> "Counts":
        """How often each bigram occurs in train: counted in `memory` bytes once, read from disk afterwards."""
        from bestiary.corpus.counts import count

        folder, tokenizer = self.folder / "counts", self.manifest["tokenizer"]["hash"]
        return count(
            self.tokens("train"), self.vocab, tokenizer=tokenizer, memory=memory, folder=folder, progress=progress
        )

    def contexts(self, split: str, length: int, limit: int | None = None) -> np.ndarray:
        """The first `limit` windows of a split, of shape (windows, length + 1); row i begins at token i * length.

        Raises ValueError if the split has no whole window.
        """
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
    """Consecutive windows of shape (n, length + 1), at least one; each begins with the last token of the one before."""
    length = min(length, len(tokens) - 1)
    return np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::length].astype(np.int64)


def check_split(split: str) -> str:
    """The name itself. Raises ValueError if no corpus has such a split."""
    if split not in SPLITS:
        raise ValueError(f"a corpus has no split {split!r} among {list(SPLITS)}")
    return split


def open_corpus(folder: Path | str) -> Corpus:
    """Open the corpus in a folder. Raises LookupError if there is none, ValueError if it is damaged."""
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        raise LookupError(f"{folder} is no corpus: write one with `bestiary corpus SOURCE --out {folder}`")
    try:
        manifest = read_json(folder / "manifest.json")
        written_format = manifest["format"]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{folder / 'manifest.json'} is damaged: remove the folder, prepare it again") from None
    if written_format != FORMAT:
        raise ValueError(f"{folder} has format {written_format}, not {FORMAT}: prepare it again elsewhere")
    for split in SPLITS:
        path, tokens = folder / f"{split}.bin", manifest["splits"][split]["tokens"]
        expected = tokens * np.dtype(manifest["dtype"]).itemsize
        size = path.stat().st_size if path.is_file() else 0
        if size != expected:
            raise ValueError(f"{path} has {size:,} bytes instead of {expected:,}: remove the folder, prepare it again")
    return Corpus(folder, manifest)


@dataclass(frozen=True)
class CorpusRequest:
    """What a corpus is made of: its source, its tokenizer and how it is split."""

    source: str
    column: str
    tokenizer: Tokenizer | int  # an existing one, or the vocabulary of a BPE to train
    shares: tuple[float, float]  # of selection and test
    limit: int | None

    def texts(self, skipped: Counter[str] | None = None) -> Iterator[str]:
        """The documents of the source; `skipped` counts what was left out, by kind."""
        return documents(self.source, column=self.column, skipped=skipped)

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
    beside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        write_corpus(beside, request, progress)
        try_rename(beside, folder)  # or another process was faster
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return open_requested(folder, request)


def open_requested(folder: Path, request: CorpusRequest) -> Corpus:
    """Open the corpus in a folder. Raises ValueError unless it is the requested one."""
    if not (folder / "manifest.json").is_file():
        raise ValueError(f"{folder} is not empty and no corpus: give another folder")
    corpus = open_corpus(folder)
    stored, given = corpus.manifest["request"], request.identity
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


def remove_abandoned(folder: Path) -> None:
    """Remove what processes that died left behind while writing this corpus."""
    for leftover in folder.parent.glob(f".{folder.name}-{32 * '[0-9a-f]'}"):
        with suppress(FileNotFoundError):
            if not is_alive(leftover, now=time.time()):
                shutil.rmtree(leftover, ignore_errors=True)


class Document(NamedTuple):
    """A document and the split it belongs to."""

    split: str
    size: int  # bytes of its text in UTF-8
    tokens: np.ndarray


class SplitWriter:
    """Writes the files of one split."""

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer) -> None:
        self.folder, self.split, self.digest = folder, split, hashlib.sha256()
        self.separator = np.array([tokenizer.separator], tokenizer.dtype)
        self.tokens = self.documents = self.bytes = 0

    def __enter__(self) -> "SplitWriter":
        with ExitStack() as stack:
            self.file = stack.enter_context((self.folder / f"{self.split}.bin").open("wb"))
            self.ends = stack.enter_context(ArrayWriter(self.folder / f"{self.split}.ends.npy", "<i8"))
            self.close = stack.pop_all().__exit__
        return self

    def __exit__(self, *how: Any) -> None:
        self.close(*how)

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
        self.bytes += sum(document.size for document in documents)

    @property
    def totals(self) -> dict[str, int]:
        """Documents, tokens and bytes written; bytes are those of the texts in UTF-8, without separators."""
        return {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes}


def write_corpus(folder: Path, request: CorpusRequest, progress: Progress | None) -> None:
    """Write all files of a corpus into a new folder, the manifest last."""
    folder.mkdir()
    owner = folder / "owner.json"
    write_file(owner, {"machine": machine(), "process": os.getpid(), "born": process_start(os.getpid())})
    tokenizer = request.tokenizer
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = train_tokenizer(request, tokenizer)
    skipped, documents, tokens = Counter[str](), 0, 0
    with ExitStack() as stack:
        parts = [stack.enter_context(SplitWriter(folder, split, tokenizer)) for split in SPLITS]
        for batch in encode_documents(request, tokenizer, skipped):
            for part in parts:
                part.append([document for document in batch if document.split == part.split])
            owner.touch()  # a sign of life for processes on other machines
            documents, tokens = documents + len(batch), sum(part.tokens for part in parts)
            if progress is not None:
                progress(documents, tokens)
    if not documents:
        raise ValueError(no_text_message(request, "there is no text of two tokens", skipped))
    tokenizer.save(folder / "tokenizer")
    write_file(folder / "origin.json", origin())
    owner.unlink()
    write_file(folder / "manifest.json", build_manifest(request, tokenizer, parts, skipped))


def build_manifest(
    request: CorpusRequest, tokenizer: Tokenizer, parts: list[SplitWriter], skipped: Counter[str]
) -> dict[str, Any]:
    """The content of manifest.json."""
    return {
        "format": FORMAT,
        "source": request.source,
        "hash": short_hash([tokenizer.hash, [part.digest.hexdigest() for part in parts]]),
        "tokenizer": {"name": tokenizer.name, "hash": tokenizer.hash},
        "vocab": tokenizer.vocab,
        "dtype": tokenizer.dtype.str,
        "splits": {part.split: part.totals for part in parts},
        "skipped": dict(sorted(skipped.items())),  # how many files and documents were skipped, by reason
        "request": request.identity,
    }


def no_text_message(request: CorpusRequest, what: str, skipped: Counter[str]) -> str:
    """Says why a source gives no corpus."""
    reasons = ", ".join(f"{count:,} {kind}" for kind, count in sorted(skipped.items()))
    return f"{what} in {request.source}" + (f" (skipped: {reasons})" if reasons else "")


def encode_documents(request: CorpusRequest, tokenizer: Tokenizer, skipped: Counter[str]) -> Iterator[list[Document]]:
    """The documents of a source up to its limit of tokens, a batch at a time."""
    left = math.inf if request.limit is None else request.limit
    for texts in group_texts(request.texts(skipped)):
        batch = []
        for text, tokens in zip(texts, tokenizer.encode(texts), strict=True):
            if len(tokens) < 2:
                skipped["shorter than two tokens"] += 1
            elif left > 0:
                batch.append(Document(request.split(text), len(text.encode()), tokens))
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


def train_tokenizer(request: CorpusRequest, vocab: int) -> Tokenizer:
    """Train a BPE on the source: on those of its first training documents whose hashes are smallest."""
    skipped, candidates, read = Counter[str](), [], 0
    for text in request.texts(skipped):
        read += len(text)
        if request.split(text) == "train":
            candidates.append((hash_position(text), text))
        if read >= BPE_READ:
            break
    if not candidates:
        raise ValueError(no_text_message(request, "there is no document to train a BPE on", skipped))
    candidates.sort(key=itemgetter(0))
    sizes = np.cumsum([len(text) for _, text in candidates])
    return train_bpe([text for _, text in candidates[: int(np.searchsorted(sizes, BPE_CHARACTERS)) + 1]], vocab)
