"""Finds the tokens of a text that could be recalled from their context: the AR hits of "Zoology" (section 3).

A token is an AR hit if the bigram that it ends occurred earlier in the same context and at most `threshold` times in
the training text (1,250 of 10 billion tokens in the paper, 1,000 in its successor "Just read twice"): often enough to
be copied from the context, too rarely to be memorised. Everything is exact and found by sorting, row by row.

A threshold is a number of occurrences, or a rate per million tokens, so that it means the same for any amount of text.
What is counted stands for what a model was trained on: for a model of unknown training, any text of the same kind.
"""

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bestiary.corpus.counts import Counts

ORDERS = (2, 3, 4, 5)  # of n-grams
PAPER_RATE = "0.125/M"  # 1,250 in 10 billion tokens
TOKENS_AT_ONCE = 2**20  # tokens processed at a time


class Facets(NamedTuple):
    """Properties of each predicted token; all of shape (contexts, length), column t describes token t + 1.

    The gram of a token is the n-gram of the chosen order that it ends; its prefix is the gram without the token. A gram
    that has not occurred earlier in the context has `distance` 0, `earlier` 0, and so on.
    """

    seen: "NDArray[np.int64]"  # how often the bigram was counted
    distance: "NDArray[np.int32]"  # tokens back to the last earlier occurrence of the gram
    earlier: "NDArray[np.int32]"  # occurrences of the gram before this one: 1 at the first that can be recalled
    continuations: "NDArray[np.int32]"  # different tokens that followed the prefix before: 1 is unique, more ambiguous
    last: "NDArray[np.bool_]"  # the last occurrence of the prefix was followed by this token
    longest: "NDArray[np.int8]"  # the longest gram that occurred earlier, of the orders 2 to 5; 0 if none

    def hits(self, threshold: int) -> "NDArray[np.bool_]":
        """Where the AR hits are: grams that occurred earlier in the context, counted at most `threshold` times."""
        return (self.distance > 0) & (self.seen <= threshold)


def read_threshold(text: str, total: int) -> int:
    """Occurrences up to which a bigram is rare: "50" as it is, "0.125/M" of so many per million of `total` tokens.

    Rates are rounded down. Raises ValueError.
    """
    number, slash, unit = text.strip().partition("/")
    try:
        value = float(number) if slash else int(number)
        if not 0 <= value < float("inf") or unit not in ("", "M") or (slash and not unit):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{text!r} is no threshold: give occurrences, such as 50, or occurrences per million, such as {PAPER_RATE}"
        ) from None
    return int(Fraction(str(value)) * total / 10**6) if slash else int(value)  # as written: a float is a little less


def facets(contexts: "NDArray[np.integer]", counts: "Counts", *, order: int = 2) -> Facets:
    """The facets of contexts of shape (n, length + 1), for n-grams of an order from 2 to 5.

    Raises ValueError for another order, or for tokens beyond the vocabulary of the counts.
    """
    if order not in ORDERS:
        raise ValueError(f"n-grams of order {order}: give one of {', '.join(map(str, ORDERS))}")
    if contexts.ndim != 2 or contexts.shape[1] < 2:
        raise ValueError(f"contexts of shape {contexts.shape}: give rows of two tokens or more")
    if contexts.size and int(contexts.max()) >= counts.vocab:
        raise ValueError(f"token {int(contexts.max())} is beyond the vocabulary of {counts.vocab} that was counted")
    size = max(1, TOKENS_AT_ONCE // contexts.shape[1])
    parts = [
        facets_of_batch(contexts[i : i + size].astype(np.int64), counts, order) for i in range(0, len(contexts), size)
    ]
    empty = np.zeros((0, contexts.shape[1] - 1), dtype=np.int64)
    return Facets(*map(np.concatenate, zip(*parts, strict=True))) if parts else Facets(*[empty] * 6)  # pyright: ignore[reportArgumentType]


def facets_of_batch(contexts: "NDArray[np.int64]", counts: "Counts", order: int) -> Facets:
    """`facets` of one batch of rows."""
    longest, found = np.zeros(contexts[:, 1:].shape, dtype=np.int8), {}
    prefix = rank_rows(contexts[:, :-1])
    for n in ORDERS:
        gram = rank_rows(prefix * counts.vocab + contexts[:, 1:])
        longest[count_earlier(gram) > 0] = n
        if n == order:
            found = context_facets(gram, prefix)
        prefix = np.concatenate([np.full_like(gram[:, :1], gram.shape[1]), gram[:, :-1]], axis=1)  # at first, none
    return Facets(seen=counts.lookup(contexts[:, :-1], contexts[:, 1:]), longest=longest, **found)


def context_facets(gram: "NDArray[np.int64]", prefix: "NDArray[np.int64]") -> dict[str, "NDArray"]:
    """The facets that depend on the context alone, from an identifying number for each gram and each prefix."""
    earlier = count_earlier(gram)
    order, starts = group_rows(prefix)
    new = np.take_along_axis(earlier == 0, order, axis=1)  # a continuation that is new for its prefix
    of_prefix = np.take_along_axis(gram, order, axis=1)
    last = ~starts
    last[:, 1:] &= of_prefix[:, 1:] == of_prefix[:, :-1]
    integers = {
        "distance": distance_back(gram),
        "earlier": earlier,
        "continuations": unsort(marks_before(new, starts), order),
    }
    return {name: part.astype(np.int32) for name, part in integers.items()} | {"last": unsort(last, order)}


def group_rows(keys: "NDArray[np.int64]") -> tuple["NDArray[np.intp]", "NDArray[np.bool_]"]:
    """The order that puts equal keys of each row next to each other, stably, and where each group begins."""
    order = keys.argsort(axis=1, kind="stable")
    ordered = np.take_along_axis(keys, order, axis=1)
    starts = np.ones(keys.shape, dtype=bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return order, starts


def rank_rows(keys: "NDArray[np.int64]") -> "NDArray[np.int64]":
    """Renumbers keys with numbers below the length of a row, equal within a row exactly where the keys are."""
    order, starts = group_rows(keys)
    return unsort(starts.cumsum(axis=1) - 1, order)


def count_earlier(keys: "NDArray[np.int64]") -> "NDArray[np.int64]":
    """How often each key occurred earlier in its row."""
    order, starts = group_rows(keys)
    return unsort(marks_before(np.ones_like(starts), starts), order)


def distance_back(keys: "NDArray[np.int64]") -> "NDArray[np.int64]":
    """How far back each key last occurred in its row; 0 if it did not."""
    order, starts = group_rows(keys)
    gaps = np.diff(order, axis=1, prepend=0)
    return unsort(np.where(starts, 0, gaps), order)


def marks_before(marks: "NDArray[np.bool_]", starts: "NDArray[np.bool_]") -> "NDArray[np.int64]":
    """How many marks came before each position in its group."""
    total = marks.cumsum(axis=1) - marks
    first = np.maximum.accumulate(np.where(starts, np.arange(marks.shape[1]), 0), axis=1)
    return total - np.take_along_axis(total, first, axis=1)


def unsort(values: "NDArray", order: "NDArray[np.intp]") -> "NDArray":
    """Puts values that are in sorted order back in their original positions."""
    restored = np.empty_like(values)
    np.put_along_axis(restored, order, values, axis=1)
    return restored
