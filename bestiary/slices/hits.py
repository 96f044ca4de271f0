"""Which tokens of a text could have been recalled from its context: the AR hits of "Zoology" (section 3), and more.

A token is an AR hit if the bigram that it ends occurred earlier in the same context and at most `threshold` times in
the training text (1,250 of 10 billion tokens in the paper, 1,000 in its successor "Just read twice"): often enough to
be copied from the context, too rarely to be known by heart. Everything is exact and found by sorting, row by row.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bestiary.corpus.counts import Counts

ORDERS = (2, 3, 4, 5)  # of the n-grams looked for
ROWS = 2**20  # tokens looked at a time


class Facets(NamedTuple):
    """What is known of each token to be predicted; all of shape (contexts, length), column t about token t + 1.

    The gram of a token is the n-gram of the chosen order that it ends; its prefix is the gram without the token. What
    has not occurred earlier in the context has `distance` 0, `earlier` 0, and so on.
    """

    seen: "NDArray[np.int64]"  # how often the bigram occurred in training
    distance: "NDArray[np.int32]"  # tokens back to the last earlier occurrence of the gram
    earlier: "NDArray[np.int32]"  # occurrences of the gram before this one: 1 at the first that could be recalled
    continuations: "NDArray[np.int32]"  # different tokens that followed the prefix before: 1 is unique, more ambiguous
    last: "NDArray[np.bool_]"  # the last occurrence of the prefix was followed by this token
    longest: "NDArray[np.int8]"  # the longest gram that occurred earlier, of the orders 2 to 5; 0 if none

    def hits(self, threshold: int) -> "NDArray[np.bool_]":
        """Where the AR hits are."""
        return (self.distance > 0) & (self.seen <= threshold)


def facets(contexts: "NDArray[np.integer]", counts: "Counts", *, order: int = 2) -> Facets:
    """The facets of contexts of shape (n, length + 1), by grams of an order from 2 to 5.

    Raises ValueError for another order, or tokens that the counts do not know.
    """
    if order not in ORDERS:
        raise ValueError(f"n-grams of order {order}: give one of {', '.join(map(str, ORDERS))}")
    if contexts.ndim != 2 or contexts.shape[1] < 2:
        raise ValueError(f"contexts of shape {contexts.shape}: give rows of two tokens or more")
    if contexts.size and int(contexts.max()) >= counts.vocab:
        raise ValueError(f"token {int(contexts.max())} is beyond the vocabulary of {counts.vocab} that was counted")
    size = max(1, ROWS // contexts.shape[1])
    parts = [some(contexts[i : i + size].astype(np.int64), counts, order) for i in range(0, len(contexts), size)]
    empty = np.zeros((0, contexts.shape[1] - 1), dtype=np.int64)
    return Facets(*map(np.concatenate, zip(*parts, strict=True))) if parts else Facets(*[empty] * 6)  # pyright: ignore[reportArgumentType]


def some(contexts: "NDArray[np.int64]", counts: "Counts", order: int) -> Facets:
    """`facets` of a few rows."""
    longest, found = np.zeros(contexts[:, 1:].shape, dtype=np.int8), {}
    prefix = ranks(contexts[:, :-1])
    for n in ORDERS:
        gram = ranks(prefix * counts.vocab + contexts[:, 1:])
        longest[before(gram) > 0] = n
        if n == order:
            found = recalled(gram, prefix)
        prefix = np.concatenate([np.full_like(gram[:, :1], gram.shape[1]), gram[:, :-1]], axis=1)  # at first, none
    return Facets(seen=counts.of(contexts[:, :-1], contexts[:, 1:]), longest=longest, **found)


def recalled(gram: "NDArray[np.int64]", prefix: "NDArray[np.int64]") -> dict[str, "NDArray"]:
    """What the context tells of each token, from a number for each gram and each prefix."""
    earlier = before(gram)
    order, starts = grouped(prefix)
    new = np.take_along_axis(earlier == 0, order, axis=1)  # a continuation that the prefix had not before
    of_prefix = np.take_along_axis(gram, order, axis=1)
    last = ~starts
    last[:, 1:] &= of_prefix[:, 1:] == of_prefix[:, :-1]
    counted = {"distance": back(gram), "earlier": earlier, "continuations": scattered(since(new, starts), order)}
    return {name: part.astype(np.int32) for name, part in counted.items()} | {"last": scattered(last, order)}


def grouped(keys: "NDArray[np.int64]") -> tuple["NDArray[np.intp]", "NDArray[np.bool_]"]:
    """Each row's places, equal keys beside each other and in order, and where a group begins."""
    order = keys.argsort(axis=1, kind="stable")
    there = np.take_along_axis(keys, order, axis=1)
    starts = np.ones(keys.shape, dtype=bool)
    starts[:, 1:] = there[:, 1:] != there[:, :-1]
    return order, starts


def ranks(keys: "NDArray[np.int64]") -> "NDArray[np.int64]":
    """Numbers below the length of a row, equal within a row exactly where keys are."""
    order, starts = grouped(keys)
    return scattered(starts.cumsum(axis=1) - 1, order)


def before(keys: "NDArray[np.int64]") -> "NDArray[np.int64]":
    """How often each key occurred earlier in its row."""
    order, starts = grouped(keys)
    return scattered(since(np.ones_like(starts), starts), order)


def back(keys: "NDArray[np.int64]") -> "NDArray[np.int64]":
    """How far back each key occurred last in its row; 0 if it did not."""
    order, starts = grouped(keys)
    gaps = np.diff(order, axis=1, prepend=0)
    return scattered(np.where(starts, 0, gaps), order)


def since(marks: "NDArray[np.bool_]", starts: "NDArray[np.bool_]") -> "NDArray[np.int64]":
    """How many marks came before each place in its group."""
    total = marks.cumsum(axis=1) - marks
    first = np.maximum.accumulate(np.where(starts, np.arange(marks.shape[1]), 0), axis=1)
    return total - np.take_along_axis(total, first, axis=1)


def scattered(values: "NDArray", order: "NDArray[np.intp]") -> "NDArray":
    """Values in sorted order, put back in their places."""
    found = np.empty_like(values)
    np.put_along_axis(found, order, values, axis=1)
    return found
