"""A text cut into contexts, and the loss of a language model on each of its tokens, from a model or from a file."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from bestiary.corpus.corpus import windows
from bestiary.corpus.documents import documents
from bestiary.slices.hits import Facets, facets

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bestiary.corpus.corpus import Corpus
    from bestiary.corpus.counts import Counts
    from bestiary.corpus.tokenizers import Tokenizer
    from bestiary.model import Model

LOGITS_AT_ONCE = 2**25  # logits computed at a time


@dataclass(frozen=True)
class Text:
    """Contexts to measure on; `corpus` provides the tokenizer and the counts of bigrams."""

    name: str
    corpus: "Corpus"
    contexts: "NDArray[np.int64]"  # (n, length + 1)
    documents: "NDArray[np.int64]"  # (n, length): the number of the document that each predicted token belongs to
    order: int = 2  # of the n-grams that make a hit

    @property
    def shape(self) -> tuple[int, int]:
        """(contexts, length), the shape of every property of the predicted tokens."""
        return self.documents.shape  # pyright: ignore[reportReturnType]

    @cached_property
    def counts(self) -> "Counts":
        """How often each bigram occurs in the training split of the corpus."""
        return self.corpus.counts()

    @cached_property
    def facets(self) -> Facets:
        """The facets of every predicted token."""
        return facets(self.contexts, self.counts, order=self.order)

    @cached_property
    def bytes(self) -> int:
        """UTF-8 bytes of all predicted tokens."""
        return int(self.corpus.tokenizer.token_sizes[self.contexts[:, 1:]].sum())


def split_text(corpus: "Corpus", split: str, length: int, limit: int | None = None, *, order: int = 2) -> Text:
    """The contexts of a split of a corpus, at most `limit`."""
    contexts, name = corpus.contexts(split, length, limit), f"{split} of {corpus.folder.name}"
    return Text(name, corpus, contexts, document_numbers(contexts.shape, corpus.ends(split)), order)


def source_text(
    source: str, corpus: "Corpus", length: int, limit: int | None = None, *, order: int = 2, column: str = "text"
) -> Text:
    """The contexts of any text, by the tokenizer and counts of a corpus; an incomplete last context is left out.

    A text shorter than a context is one context. Raises ValueError for a text of fewer than two tokens.
    """
    parts, ends = [], [0]
    for piece in encode_texts(documents(source, column=column), corpus):
        parts += [piece, np.array([corpus.tokenizer.separator], dtype=piece.dtype)]
        ends.append(ends[-1] + len(piece) + 1)
        if limit is not None and ends[-1] > limit * length:
            break
    tokens = np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)
    if ends[-1] - len(ends) + 1 < 2:
        raise ValueError(f"{source} has fewer than two tokens")
    contexts = windows(tokens, length)[:limit]
    return Text(source, corpus, contexts, document_numbers(contexts.shape, np.array(ends[1:])), order)


def encode_texts(texts: Iterable[str], corpus: "Corpus") -> Iterable["NDArray"]:
    """The tokens of each text."""
    for text in texts:
        yield from corpus.tokenizer.encode([text])


def document_numbers(shape: tuple[int, ...], ends: "NDArray[np.integer]") -> "NDArray[np.int64]":
    """The number of the document that each predicted token belongs to; consecutive contexts share one token."""
    count, length = shape[0], shape[1] - 1
    return np.searchsorted(ends, np.arange(1, count * length + 1), side="right").reshape(count, length)


def model_losses(
    model: "Model",
    contexts: "NDArray[np.integer]",
    *,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> "NDArray[np.float32]":
    """The loss in nats of each token after the first of each context (n, length + 1), under a model of this package.

    `progress` is called with the contexts done and their total. Raises ValueError for tokens that it does not know.
    """
    import torch
    from torch.nn import functional as F

    model = model.to(device).eval()
    vocab, found = model.embed.weight.shape[0], []
    if contexts.size and int(contexts.max()) >= vocab:
        raise ValueError(f"the text has token {int(contexts.max())}, the model a vocabulary of {vocab}")
    size = max(1, LOGITS_AT_ONCE // (vocab * contexts.shape[1]))
    with torch.no_grad():
        for start in range(0, len(contexts), size):
            tokens = torch.from_numpy(contexts[start : start + size].astype(np.int64)).to(device)
            logits = model.parallel(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
            found.append(loss.view(len(tokens), -1).cpu().numpy())
            if progress is not None:
                progress(min(start + size, len(contexts)), len(contexts))
    return np.concatenate(found)


def read_losses(place: Path, shape: tuple[int, int]) -> "NDArray[np.float32]":
    """Losses from a file of natural-log probabilities: .npy, .npz, .json, .jsonl, or text with one number a line.

    The file has one number for each token after the first of each context, in order; `shape` is (contexts, length).
    Raises ValueError if there are more or fewer, or if some cannot be log-probabilities.
    """
    try:
        given = read_numbers(place)
    except (ValueError, TypeError, KeyError, EOFError, BadZipFile) as fault:
        what = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise ValueError(f"{place} is no file of log-probabilities ({what})") from None
    if given.size != shape[0] * shape[1]:
        raise ValueError(
            f"{place} holds {given.size:,} log-probabilities, the text has {shape[0]:,} contexts of {shape[1]:,} "
            f"tokens to predict, {shape[0] * shape[1]:,} in all"
        )
    if not (given <= 1e-6).all():
        raise ValueError(f"{place} holds {int((~(given <= 1e-6)).sum()):,} numbers that are no log-probabilities")
    return -given.reshape(shape).astype(np.float32)


def read_numbers(place: Path) -> "NDArray[np.float64]":
    """All numbers of a file in order."""
    match place.suffix:
        case ".npy":
            return np.load(place, allow_pickle=False).astype(np.float64).ravel()
        case ".npz":
            with np.load(place, allow_pickle=False) as file:
                return np.concatenate([file[name].astype(np.float64).ravel() for name in file.files])
        case ".json":
            return np.array(list(flatten(json.loads(place.read_text()))), dtype=np.float64)
        case ".jsonl":
            values = [json.loads(line) for line in place.read_text().splitlines() if line.strip()]
            return np.array(list(flatten(values)), dtype=np.float64)
        case _:
            return np.array(place.read_text().split(), dtype=np.float64)


def flatten(values: Any) -> Iterable[float]:
    """The numbers of nested lists, in order."""
    if isinstance(values, list):
        for part in values:
            yield from flatten(part)
    else:
        yield float(values)


def bits_per_byte(losses: "NDArray", count: int) -> float:
    """The sum of losses (nats) in bits, divided by the bytes that were predicted: comparable between tokenizers."""
    return float(losses.sum(dtype=np.float64)) / np.log(2) / count


def retokenize(text: Text, tokenizer: "Tokenizer") -> tuple["NDArray[np.int64]", int]:
    """The same documents in contexts of another tokenizer's tokens, and the bytes predicted in them.

    An incomplete last context is left out, here as for the text itself.
    """
    own, flat = text.corpus.tokenizer, text.contexts[:, 1:].ravel()
    ends = np.flatnonzero(flat == own.separator)
    pieces = [piece[piece != own.separator] for piece in np.split(flat, ends + 1)]
    texts = [own.decode(piece) for piece in pieces if len(piece)]
    parts = [np.append(part, tokenizer.separator) for part in tokenizer.encode(texts)]
    contexts = windows(np.concatenate(parts), text.shape[1])
    return contexts, int(tokenizer.token_sizes[contexts[:, 1:]].sum())
