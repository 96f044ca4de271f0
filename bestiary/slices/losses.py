"""A text cut into contexts, and the loss of a language model on each of its tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bestiary.corpus.corpus import windows
from bestiary.corpus.documents import NAMED_SOURCES, ReadingLog, documents
from bestiary.corpus.spans import TokenBytes
from bestiary.slices.hits import Facets, facets

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bestiary.corpus.corpus import Corpus
    from bestiary.corpus.counts import Counts
    from bestiary.corpus.tokenizers import Tokenizer
    from bestiary.model import Model

LOGITS_AT_ONCE = 2**25  # logits computed at a time
STREAMED = 16  # times as many contexts as the limit are read of a data set that is streamed, to choose from


class Passage(NamedTuple):
    """A part of a document."""

    text: str
    begins: bool  # where its document begins
    ends: bool  # where its document ends


@dataclass(frozen=True)
class Text:
    """Contexts to measure on; `corpus` provides the tokenizer and the counts of bigrams."""

    name: str
    corpus: "Corpus"
    contexts: "NDArray[np.int64]"  # (n, length + 1)
    starts: "NDArray[np.int64]"  # (n,): the position of each context's first token among the tokens of the text
    documents: "NDArray[np.int64]"  # (n, length): the number of the document that each predicted token belongs to
    open_bytes: "Callable[[], TokenBytes]"  # the bytes of all tokens of the text
    order: int = 2  # of the n-grams that make a hit
    unit: str = "document"  # or "piece", if these are pieces of longer texts

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
    def token_bytes(self) -> TokenBytes:
        """The bytes that the tokens stand for. Raises ValueError for a corpus that does not know them."""
        return self.open_bytes()

    @cached_property
    def bytes(self) -> int:
        """UTF-8 bytes of all predicted tokens."""
        positions = self.starts[:, None] + np.arange(1, self.shape[1] + 1)
        return int(self.token_bytes.sizes(positions).sum())

    def passages(self) -> Iterator[Passage]:
        """The predicted text: a passage for each document in each run of adjoining contexts."""
        length, separator = self.shape[1], self.corpus.tokenizer.separator
        breaks = np.flatnonzero(np.diff(self.starts) != length) + 1
        for run in np.split(np.arange(len(self.starts)), breaks):
            owner = self.documents[run].ravel()
            edges = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(owner)]
            first = int(self.starts[run[0]]) + 1
            begins, ends = (bool(self.contexts[at] == separator) for at in ((run[0], 0), (run[-1], -1)))
            for start, stop in zip(edges[:-1], edges[1:], strict=True):
                if passage := self.token_bytes.text(first + start, first + stop):
                    yield Passage(passage, begins or start > 0, ends or stop < len(owner))


def split_text(corpus: "Corpus", split: str, length: int, limit: int | None = None, *, order: int = 2) -> Text:
    """The contexts of a split of a corpus; with a limit, so many of them, spread evenly over the split.

    Raises ValueError for a split shorter than a context.
    """
    tokens = corpus.tokens(split)
    corpus.contexts(split, length, 1)  # raises the error
    starts = spread((len(tokens) - 1) // length, limit) * length
    contexts = tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
    numbers = document_numbers(starts, length, corpus.ends(split))
    name = f"{split} of {corpus.folder.name}"
    return Text(name, corpus, contexts, starts, numbers, lambda: corpus.token_bytes(split), order, corpus.unit)


def source_text(
    source: str, corpus: "Corpus", length: int, limit: int | None = None, *, order: int = 2, column: str = "text"
) -> Text:
    """The contexts of any text, by the tokenizer and counts of a corpus; an incomplete last context is left out.

    With a limit, so many contexts, spread evenly over the text; of a data set that is streamed, over its beginning. A
    text shorter than a context is one context. Raises ValueError for a text of fewer than two tokens.
    """
    tokenizer, log = corpus.tokenizer, ReadingLog()
    parts, ends, byte_ends, content = [], [0], [], bytearray()
    streamed = NAMED_SOURCES.get(source, source).startswith("hf:")
    for text in documents(source, column=column, log=log):
        ((tokens, each),) = tokenizer.encode_with_ends([text])
        parts += [tokens, np.array([tokenizer.separator], dtype=tokenizer.dtype)]
        ends.append(ends[-1] + len(tokens) + 1)
        if not tokenizer.is_byte_exact:
            byte_ends.append(len(content) + np.append(each, len(text.encode())))
            content += text.encode()
        if streamed and limit is not None and ends[-1] > STREAMED * limit * length:
            break
    if ends[-1] - len(ends) + 1 < 2:
        raise ValueError(f"{source} has fewer than two tokens")
    tokens = np.concatenate(parts)
    length = min(length, len(tokens) - 1)
    starts = spread((len(tokens) - 1) // length, limit) * length
    contexts = tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
    numbers = document_numbers(starts, length, np.array(ends[1:]))
    texts = None if tokenizer.is_byte_exact else (np.concatenate(byte_ends), np.frombuffer(content, np.uint8))
    spans = TokenBytes(tokens, tokenizer, *(texts or ()))
    return Text(source, corpus, contexts, starts, numbers, lambda: spans, order, "piece" if log.cut else "document")


def spread(rows: int, limit: int | None) -> "NDArray[np.int64]":
    """Which of so many contexts are taken under a limit: evenly spaced ones, whatever they hold."""
    if limit is None or limit >= rows:
        return np.arange(rows)
    return (2 * np.arange(limit) + 1) * rows // (2 * limit)


def document_numbers(starts: "NDArray[np.int64]", length: int, ends: "NDArray[np.integer]") -> "NDArray[np.int64]":
    """The number of the document that each predicted token of contexts belongs to, of shape (contexts, length)."""
    return np.searchsorted(ends, starts[:, None] + np.arange(1, length + 1), side="right")


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


def window_contexts(contexts: "NDArray[np.int64]", window: int) -> "NDArray[np.int64]":
    """Contexts (n, length + 1) cut into overlapping ones of 2 * window + 1 tokens, `window` apart.

    Those of one context follow each other, the last of them ends where it ends. Raises ValueError for a window of which
    the contexts hold no more than two.
    """
    length = contexts.shape[1] - 1
    if not 0 < 2 * window < length:
        raise ValueError(f"a window of {window} in contexts of {length}: it must be at least 1 and less than half")
    starts = window_starts(length, window)
    return contexts[:, starts[:, None] + np.arange(2 * window + 1)].reshape(-1, 2 * window + 1)


def window_losses(losses: "NDArray", length: int, window: int) -> "NDArray":
    """The losses (n, length) of whole contexts from those of their `window_contexts`.

    Each token is taken where the most comes before it: `window` to 2 * window tokens, fewer only at the beginning.
    """
    starts = window_starts(length, window)
    parts = losses.reshape(-1, len(starts), 2 * window)
    found = np.empty((len(parts), length), losses.dtype)
    for i in reversed(range(len(starts))):  # later ones first, so that earlier ones overwrite what they see more of
        new = slice(0 if i == 0 else window, 2 * window)
        found[:, starts[i] + new.start : starts[i] + new.stop] = parts[:, i, new]
    return found


def window_starts(length: int, window: int) -> "NDArray[np.int64]":
    """Where the windows of a context of `length` predicted tokens start."""
    return np.append(np.arange(0, length - 2 * window, window), length - 2 * window)


def bits_per_byte(losses: "NDArray", count: int) -> float:
    """The sum of losses (nats) in bits, divided by the bytes that were predicted: comparable between tokenizers."""
    return float(losses.sum(dtype=np.float64)) / np.log(2) / count


def retokenize(text: Text, tokenizer: "Tokenizer") -> tuple["NDArray[np.int64]", "NDArray[np.bool_]", int]:
    """The same passages in contexts of another tokenizer's tokens, which of them count, and the bytes of those.

    Of the predicted tokens (n, length), those do not count that stand where the text breaks off: the separator after a
    passage that ends within a document, and the first token of one that begins within a document. An incomplete last
    context is left out, here as for the text itself.
    """
    passages = list(text.passages())
    parts, sizes, counted = [], [], []
    encoded = tokenizer.encode_with_ends([passage.text for passage in passages])
    for (tokens, ends), passage in zip(encoded, passages, strict=True):
        parts.append(np.append(tokens, tokenizer.separator))
        sizes.append(np.append(np.diff(ends, prepend=0), 0))
        counted.append(np.ones(len(tokens) + 1, np.bool_))
        counted[-1][0] = passage.begins
        counted[-1][-1] &= passage.ends
    contexts, size, counts = (windows(np.concatenate(each), text.shape[1]) for each in (parts, sizes, counted))
    counts = counts[:, 1:] > 0
    return contexts, counts, int(size[:, 1:][counts].sum())
