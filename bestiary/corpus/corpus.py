"""A text as tokens on disk: memory-mapped, split by document, identified by a hash.

    <folder>/manifest.json        what the corpus holds, with the digests of the files below, written last
             origin.json          versions and host of the process that wrote it
             tokenizer/           the tokenizer
             train.bin            tokens, each document followed by the separator; the same for selection and test
             train.ends.npy       where each document ends: i is tokens[ends[i - 1] : ends[i]], its separator included
             train.text.bin       the documents in UTF-8, only if the tokens do not hold all of their bytes
             train.byte_ends.bin  where each token ends in them, likewise
             counts/              counts of the bigrams in train, once they were counted

`bestiary.corpus.prepare` writes corpora. The digest of a file is checked once in each process that uses the file; a
corpus that was written before there were digests is read unchecked, and the log says so.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bestiary.corpus.counts import open_array
from bestiary.corpus.spans import TokenBytes
from bestiary.corpus.tokenizers import Tokenizer, open_tokenizer
from bestiary.runs.digests import check, digest_bytes
from bestiary.runs.store import read_json

if TYPE_CHECKING:
    from bestiary.corpus.counts import Counts

FORMAT = 1  # incremented when the files change their meaning
SPLITS = ("train", "selection", "test")
AGAIN = "remove the folder and prepare it again"

Progress = Callable[[int, int], None]  # called with what is done and how much there is
logger = logging.getLogger(__name__)


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

    @property
    def unit(self) -> str:
        """What was split and what intervals are over: "document", or "piece" if documents were cut."""
        return self.manifest.get("unit", "document")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that encoded the corpus."""
        return open_tokenizer(self.folder / "tokenizer")

    def tokens(self, split: str) -> np.ndarray:
        """All tokens of a split, of shape (tokens,), memory-mapped.

        Raises ValueError for an unknown split, or a damaged file.
        """
        return self.mapped(f"{check_split(split)}.bin", self.manifest["dtype"])

    def ends(self, split: str) -> np.ndarray:
        """Where each document of a split ends, its separator included; of shape (documents,).

        Raises ValueError for an unknown split, or a damaged file.
        """
        path, totals = self.checked(f"{check_split(split)}.ends.npy"), self.manifest["splits"][split]
        try:
            ends = open_array(path)
        except ValueError as fault:
            raise ValueError(f"{fault}: {AGAIN}") from None
        if len(ends) != totals["documents"] or (len(ends) and ends[-1] != totals["tokens"]):
            raise ValueError(f"{path} is damaged (it does not end where the tokens do): {AGAIN}")
        return ends

    def token_bytes(self, split: str) -> TokenBytes:
        """The bytes of text that the tokens of a split stand for.

        Raises ValueError for a corpus of an earlier version whose tokens do not hold all bytes of its text.
        """
        tokens = self.tokens(split)
        if self.tokenizer.is_byte_exact:
            return TokenBytes(tokens, self.tokenizer)
        if not (self.folder / f"{split}.byte_ends.bin").is_file():
            raise ValueError(
                f"{self.folder} does not say which bytes its tokens stand for, and its tokenizer does not keep them: "
                "prepare it again to compare bits per byte"
            )
        ends, text = self.mapped(f"{split}.byte_ends.bin", "<i8"), self.mapped(f"{split}.text.bin", "u1")
        return TokenBytes(tokens, self.tokenizer, ends, text)

    def counts(self, *, memory: int = 2**30, progress: Progress | None = None) -> "Counts":
        """How often each bigram occurs in train: counted in `memory` bytes once, read from disk afterwards."""
        from bestiary.corpus.counts import count

        folder, name = self.folder / "counts", "train.bin"
        counted = (folder / "counts.json").is_file()  # these have checksums of their own, and know their tokens
        tokens = self.mapped(name, self.manifest["dtype"], checked=not counted)
        tokenizer, digest = self.manifest["tokenizer"]["hash"], self.manifest.get("digests", {}).get(name)
        options: dict[str, Any] = {"tokenizer": tokenizer, "digest": digest, "memory": memory, "progress": progress}
        return count(tokens, self.vocab, folder=folder, **options)

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

    def mapped(self, name: str, dtype: str, *, checked: bool = True) -> np.ndarray:
        """A file of numbers, memory-mapped, its digest checked unless told otherwise."""
        path = self.checked(name) if checked else self.folder / name
        if not path.stat().st_size:
            return np.zeros(0, dtype)  # an empty file cannot be mapped
        return np.memmap(path, dtype=dtype, mode="r")

    def checked(self, name: str) -> Path:
        """The path of a file. Raises ValueError if it is missing, or its digest is not the one in the manifest."""
        path = self.folder / name
        try:
            state = path.stat()
            if (expected := self.manifest.get("digests", {}).get(name)) is not None:
                check_once(path, state.st_size, state.st_mtime_ns, expected)
        except FileNotFoundError:
            raise ValueError(f"{path} is missing: {AGAIN}") from None
        except ValueError as fault:
            raise ValueError(f"{fault}: {AGAIN}") from None
        return path


@cache
def check_once(path: Path, size: int, modified: int, expected: str) -> None:  # noqa: ARG001 (they tell states apart)
    """Check the digest of a file, once in this process for each state that the file is seen in."""
    check(path, expected)


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
    manifest = read_manifest(folder / "manifest.json")
    corpus = Corpus(folder, manifest)
    for split in SPLITS:
        path, tokens = folder / f"{split}.bin", manifest["splits"][split]["tokens"]
        expected = tokens * np.dtype(manifest["dtype"]).itemsize
        size = path.stat().st_size if path.is_file() else 0
        if size != expected:
            raise ValueError(f"{path} has {size:,} bytes instead of {expected:,}: {AGAIN}")
    for name in manifest.get("digests", {}):
        if name.startswith("tokenizer/"):  # small, and copied by whoever trains on the corpus
            corpus.checked(name)
    if "digests" not in manifest:
        tell_once(f"{folder} was written before corpora had digests: its files are read unchecked")
    return corpus


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a corpus. Raises ValueError if it is damaged or of another format."""
    damaged = ValueError(f"{path} is damaged: {AGAIN}")
    try:
        manifest = read_json(path)
        known = manifest["format"], manifest["hash"], manifest["vocab"], np.dtype(manifest["dtype"])
        sizes = [manifest["splits"][split]["tokens"] for split in SPLITS]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise damaged from None
    if known[0] != FORMAT:
        raise ValueError(f"{path.parent} has format {known[0]}, not {FORMAT}: prepare it again elsewhere")
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise damaged
    if ("digests" in manifest or "digest" in manifest) and manifest.get("digest") != manifest_digest(manifest):
        raise damaged
    return manifest


def manifest_digest(manifest: dict[str, Any]) -> str:
    """The digest of everything else in a manifest, which it holds as "digest"."""
    content = {name: value for name, value in manifest.items() if name != "digest"}
    return digest_bytes(json.dumps(content, sort_keys=True).encode())


@cache
def tell_once(message: str) -> None:
    """Log a warning, once in this process."""
    logger.warning(message)
