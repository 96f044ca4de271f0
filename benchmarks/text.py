"""Text: how fast bigrams are counted and looked up, in how much memory; how fast hits are found and losses sliced.

Tokens are drawn by Zipf's law, independently, which makes more different bigrams than a text has; with the folder of a
corpus, its training tokens are counted too.

    python benchmarks/text.py [CORPUS]
"""

import sys
import tracemalloc
from collections.abc import Callable
from statistics import median
from time import process_time
from typing import Any
from unittest import mock

import numpy as np
from _bench import interleaved, machine, ratio, told
from numpy.typing import NDArray

from bestiary.corpus import counts as counts_module
from bestiary.corpus.counts import MEMORY, TABLE_BYTES, Counts, bigram_keys, count
from bestiary.slices.hits import facets
from bestiary.slices.slices import Estimates, Sums, share_or_reason

TOKENS = 2**26
LOOKUPS = 2**20
ROUNDS = 3
CONTEXTS, LENGTH, THRESHOLD = 4096, 256, 50
VOCABS = (257, 1_024, 4_096, 50_257, 128_256)  # bytes, small, ours, of GPT-2, of Llama 3


def zipf_tokens(length: int, vocab: int) -> NDArray[np.integer]:
    """Tokens of which the r-th most frequent is as frequent as 1 / r, in the type that a corpus keeps them in."""
    rng = np.random.default_rng(0)
    shares = np.cumsum(1 / np.arange(1, vocab + 1))
    ranks = np.searchsorted(shares, rng.random(2**24) * shares[-1]).clip(max=vocab - 1)
    names = rng.permutation(vocab).astype(np.uint16 if vocab <= 2**16 else np.uint32)
    return np.resize(names[ranks], length)


def count_with_tables(tokens: NDArray[np.integer], vocab: int, memory: int, most: int) -> Callable[[], Counts]:
    """Counting with tables of at most so many counters, 0 for sorting alone."""

    def counting() -> Counts:
        with mock.patch.object(counts_module, "TABLE", most):
            return count(tokens, vocab, memory=memory)

    return counting


def benchmark_counting(name: str, tokens: NDArray[np.integer], vocab: int) -> Counts:
    """Tokens a second in plenty and in little memory, by sorting alone and with a table where that fits in memory."""
    ways: dict[str, Callable[[], Counts]] = {
        f"sorting in {memory >> 20} MiB": count_with_tables(tokens, vocab, memory, 0)
        for memory in (MEMORY, MEMORY // 16)
    }
    if TABLE_BYTES * vocab**2 <= MEMORY:
        ways["a table of counters"] = count_with_tables(tokens, vocab, MEMORY, vocab**2)
    print(f"counting: {len(tokens):,} tokens, {name}, vocabulary {vocab:,}; {machine()}")
    taken, (plenty, *_) = interleaved(ways, rounds=ROUNDS, clock=process_time), ways
    print(told(taken))
    print("  " + ", ".join(f"{way}: {len(tokens) / median(t) / 1e6:.0f} M tokens/s" for way, t in taken.items()))
    if "a table of counters" in taken:
        print(f"  ratio of the table to sorting: {ratio(taken, 'a table of counters', plenty):.2f}")
    return count(tokens, vocab)


def benchmark_lookups(counts: Counts, tokens: NDArray[np.integer]) -> None:
    """Bigrams looked up a second, against a search for each in the order of the text."""
    first, second = tokens[:LOOKUPS], tokens[LOOKUPS : 2 * LOOKUPS]

    def unsorted() -> Any:
        keys = bigram_keys(first, second, counts.vocab)
        at = np.searchsorted(counts.keys, keys).clip(max=counts.distinct - 1)
        return np.where(counts.keys[at] == keys, counts.counts[at], 0)

    taken = interleaved({"sorted first": lambda: counts.lookup(first, second), "as they come": unsorted}, rounds=ROUNDS)
    print(f"looking up: {len(first):,} bigrams of {counts.distinct:,}\n{told(taken)}")
    speed = len(first) / median(taken["sorted first"]) / 1e6
    print(f"  {speed:.1f} M lookups/s, ratio {ratio(taken, 'as they come', 'sorted first'):.1f}")


def measure_memory(tokens: NDArray[np.integer], vocab: int, memory: int) -> None:
    """The most that counting allocates, beyond the tokens and what is mapped from files."""
    tracemalloc.start()
    count(tokens, vocab, memory=memory)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"  counting in {memory >> 20} MiB, vocabulary {vocab:,}: {most / 2**20:.0f} MiB allocated at most")


def hits_by_dictionary(row: list[int], seen: Counts) -> list[bool]:
    """The hits of one context, by a dictionary: what finding them is measured against."""
    found, before = [], set[tuple[int, int]]()
    rare = (seen.lookup(np.array(row[:-1]), np.array(row[1:])) <= THRESHOLD).tolist()
    for i, pair in enumerate(zip(row[:-1], row[1:], strict=True)):
        found.append(pair in before and rare[i])
        before.add(pair)
    return found


def benchmark_hits(counts: Counts, tokens: NDArray[np.integer]) -> None:
    """Tokens a second of all facets, and of hits alone by a dictionary in plain Python."""
    contexts = np.array(tokens[: CONTEXTS * LENGTH + 1]).astype(np.int64)
    rows = np.lib.stride_tricks.sliding_window_view(contexts, LENGTH + 1)[::LENGTH]
    few = rows[: len(rows) // 8]
    assert [hits_by_dictionary(row, counts) for row in few.tolist()] == facets(few, counts).hits(THRESHOLD).tolist()
    ways = {
        "every facet, by sorting": lambda: facets(few, counts),
        "hits alone, by a dictionary": lambda: [hits_by_dictionary(row, counts) for row in few.tolist()],
    }
    taken = interleaved(ways, rounds=ROUNDS)
    print(f"finding hits: {few[:, 1:].size:,} tokens in contexts of {LENGTH}\n{told(taken)}")
    speeds = {way: few[:, 1:].size / median(seconds) / 1e6 for way, seconds in taken.items()}
    print("  " + ", ".join(f"{way}: {speed:.2f} M tokens/s" for way, speed in speeds.items()))
    found = facets(rows, counts).hits(THRESHOLD)
    losses = {name: np.random.default_rng(0).gamma(2.0, size=found.shape) for name in ("model", "reference")}
    documents = np.arange(found.size).reshape(found.shape) // 5000

    def slicing() -> None:
        text = Estimates(Sums.from_losses(losses, found, documents))
        share_or_reason(text, "model", "reference")

    seconds = median(interleaved({"slicing": slicing}, rounds=ROUNDS)["slicing"])
    print(f"slicing two models with intervals: {found.size / seconds / 1e6:.1f} M tokens/s")


def main(corpus: str | None) -> None:
    for vocab in VOCABS:
        tokens = zipf_tokens(TOKENS, vocab)
        benchmark_lookups(benchmark_counting("Zipf", tokens, vocab), tokens)
        measure_memory(tokens, vocab, MEMORY // 16)
    if corpus is not None:
        from bestiary.corpus.corpus import open_corpus

        opened = open_corpus(corpus)
        tokens = opened.tokens("train")
        counts = benchmark_counting(corpus, tokens, opened.vocab)
        benchmark_lookups(counts, tokens)
        benchmark_hits(counts, tokens)


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else None)
