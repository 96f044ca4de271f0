"""AR hits: every facet of every token against a plain reading, and a text where each is known by hand."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from bestiary.slices.hits import ORDERS, Facets, facets


class DictionaryCounts:
    """Bigram counts, from a dictionary."""

    def __init__(self, tokens: Any, vocab: int) -> None:
        self.vocab, self.table = vocab, Counter(zip(tokens[:-1], tokens[1:], strict=True))

    def lookup(self, first: Any, second: Any) -> Any:
        pairs = zip(first.ravel().tolist(), second.ravel().tolist(), strict=True)
        return np.array([self.table[pair] for pair in pairs], dtype=np.int64).reshape(first.shape)


def read_facets(row: list[int], counts: Any, order: int) -> list[tuple[int, ...]]:
    """The facets of one context, by reading it from the left."""
    found = []
    for t in range(len(row) - 1):
        at = [j for j in range(order - 2, t) if t - order + 2 >= 0]
        prefix, gram = row[t - order + 2 : t + 1], row[t - order + 2 : t + 2]
        grams = [row[j - order + 2 : j + 2] for j in at]
        follow = [row[j + 1] for j in at if row[j - order + 2 : j + 1] == prefix]
        equal = [j for j, seen in zip(at, grams, strict=True) if seen == gram]
        longest = 0
        for n in ORDERS:
            if t - n + 2 >= 0 and any(row[j - n + 2 : j + 2] == row[t - n + 2 : t + 2] for j in range(n - 2, t)):
                longest = n
        last = bool(follow) and follow[-1] == row[t + 1]
        count = counts.table[row[t], row[t + 1]]
        found.append((count, t - equal[-1] if equal else 0, len(equal), len(set(follow)), last, longest))
    return found


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("vocab", [2, 3, 7])
def test_every_facet_equals_a_plain_reading(order: int, vocab: int) -> None:
    rng = np.random.default_rng(order + 10 * vocab)
    counts = DictionaryCounts(rng.integers(vocab, size=100).tolist(), vocab)
    contexts = rng.integers(vocab, size=(20, 31)).astype(np.uint16)
    found = facets(contexts, counts, order=order)
    for i, row in enumerate(contexts.tolist()):
        assert list(zip(*(part[i].tolist() for part in found), strict=True)) == read_facets(row, counts, order)


def test_a_text_known_by_hand() -> None:
    text = "the cat of Ada saw the dog of Ada and the cat of Eve saw Ada"
    words = text.split()
    known = {word: i for i, word in enumerate(dict.fromkeys(words))}
    row = [known[word] for word in words]
    training = ["of Ada", "the cat", "the cat", "the cat", "of Eve"]
    counts = DictionaryCounts([0, 0], len(known))
    counts.table = Counter(tuple(known[word] for word in pair.split()) for pair in training)
    found = facets(np.array([row]), counts)
    # the bigrams that came before: "of Ada" at its second place, "the cat" and "cat of" at theirs
    hits = [words[t + 1] for t in range(len(words) - 1) if found.hits(2)[0, t]]
    assert hits == ["Ada", "of"]  # "the cat" is known by heart
    assert found.hits(3).sum() == 3
    ada, cat, eve, saw = (words.index(*given) - 1 for given in (("Ada", 5), ("cat", 5), ("Eve",), ("saw", 10)))
    assert [int(part[0, ada]) for part in found] == [1, 5, 1, 1, 1, 2]
    assert [int(part[0, cat]) for part in found] == [3, 10, 1, 2, 0, 2]  # "the dog" came between
    assert [int(part[0, eve]) for part in found] == [1, 0, 0, 1, 0, 0]
    assert [int(part[0, saw]) for part in found] == [0, 0, 0, 0, 0, 0]
    assert int(found.longest[0, cat + 1]) == 3  # "the cat of"


def test_a_token_that_repeats_at_once_is_a_hit() -> None:
    assert facets(np.array([[0, 0, 0]]), DictionaryCounts([1], 2)).hits(0).tolist() == [[False, True]]


def test_rows_are_contexts_of_their_own() -> None:
    counts = DictionaryCounts([0], 4)
    assert not facets(np.array([[0, 1, 2], [0, 1, 2]]), counts).distance.any()
    assert facets(np.zeros((0, 5), dtype=np.int64), counts).hits(1).shape == (0, 4)


def test_pieces_of_a_large_text_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    counts, contexts = DictionaryCounts([0, 1, 1], 5), rng.integers(5, size=(9, 12))
    whole = facets(contexts, counts, order=3)
    monkeypatch.setattr("bestiary.slices.hits.TOKENS_AT_ONCE", 24)
    parts = facets(contexts, counts, order=3)
    assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(whole, parts, strict=True))
    assert isinstance(parts, Facets)


def test_what_cannot_be_looked_at_is_refused() -> None:
    counts = DictionaryCounts([0], 4)
    with pytest.raises(ValueError, match="order 6: give one of 2, 3, 4, 5"):
        facets(np.zeros((1, 3), dtype=np.int64), counts, order=6)
    with pytest.raises(ValueError, match="token 4 is beyond the vocabulary of 4"):
        facets(np.array([[0, 4]]), counts)
    with pytest.raises(ValueError, match="rows of two tokens or more"):
        facets(np.zeros((3, 1), dtype=np.int64), counts)


def test_a_threshold_is_a_number_of_occurrences_or_a_rate() -> None:
    from bestiary.slices.hits import PAPER_RATE, read_threshold

    assert read_threshold("50", 10) == 50
    assert read_threshold(PAPER_RATE, 10**10) == 1250, "the threshold of the paper, of 10 billion tokens"
    assert [read_threshold(given, 10**8) for given in ("0.29/M", "0.57/M", "1e-3/M")] == [29, 57, 0]
    assert [read_threshold("2/M", total) for total in (0, 499_999, 500_000, 3_000_000)] == [0, 0, 1, 6]
    for given in ("", "x", "-1", "1.5", "-1/M", "nan/M", "inf/M", "3/K", "3/"):
        with pytest.raises(ValueError, match="is no threshold: give occurrences"):
            read_threshold(given, 100)
