"""Every construction: at what sizes it is shown, on what sequences, and how its size is proved to grow."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from bestiary.constructions._construction import Construction
from bestiary.constructions._triplets import draw_triplets
from bestiary.constructions.all_distances import all_distances
from bestiary.constructions.memories import Rule, memory_of
from bestiary.constructions.reflections import S3, draw_words, parity, permutations
from bestiary.constructions.softmax_attention import softmax_attention
from bestiary.constructions.some_distances import some_distances
from bestiary.constructions.sorting import sorting
from bestiary.constructions.triplet_attention import triplet_attention
from bestiary.constructions.two_passes import read_again, two_passes
from bestiary.spec import spec
from bestiary.tasks._task import Batch, stream


class Growth(NamedTuple):
    """A law of growth with the number of tokens, up to a constant, and how it is written."""

    text: str
    at: Callable[[float], float]


FLAT = Growth("", lambda _: 1.0)
LINEAR = Growth("$N$", lambda n: n)
SQUARE = Growth("$N^2$", lambda n: n * n)
SORTED = Growth("$N \\log^3 N$", lambda n: n * math.log2(n) ** 3)
DEEP = Growth("$\\log^2 N \\log\\log N$", lambda n: math.log2(n) ** 2 * math.log2(math.log2(n)))


class Entry(NamedTuple):
    """One construction: `build` and `draw` take (vocab, length), of which `sizes` are shown, `tiny` first."""

    build: Callable[[int, int], Construction]
    draw: Callable[[int, int], Batch]
    sizes: tuple[tuple[int, int], ...]
    tiny: tuple[tuple[int, int], ...]
    proved: Mapping[str, Growth]  # of the counts of a Size


STREAMS = ((256, 64), (8192, 64), (8192, 256), (8192, 1024))
TRIPLETS = ((256, 63), (8192, 63), (8192, 255), (8192, 1023))
SHORT = ((16, 12), (16, 24))


def seeded_generator(*path: str | int) -> torch.Generator:
    """The random generator of a name."""
    return stream("constructions", *path)


def rows_of(length: int) -> int:
    """Sequences that a construction reads: fewer where they are long."""
    return max(4, min(16, 2048 // length))


def mqar_batch(vocab: int, length: int) -> Batch:
    """MQAR with a quarter as many pairs as it has tokens, or as many as the vocabulary has keys."""
    pairs = min(length // 4, vocab // 2 - 1)
    return spec("tasks", "mqar", vocab=vocab, length=length, pairs=pairs).build().draw(rows_of(length) // 2, "test", 0)


def triplet_batch(vocab: int, length: int) -> Batch:
    """Triplets whose queries stand at any distance from their keys."""
    return draw_triplets(rows_of(length) // 2, length // 3, vocab, seeded_generator(vocab, length))


def distant_triplets(vocab: int, length: int) -> Batch:
    """Triplets whose queries stand at four distances from their keys."""
    rows = length // 3
    return draw_triplets(
        rows_of(length) // 2, rows, vocab, seeded_generator(vocab, length), distances=(1, 2, rows // 3, rows // 2)
    )


def two_lists(vocab: int, length: int) -> Batch:
    """A long list, then one of four, read twice."""
    first = length // 2 - 3 - 4
    task = spec("tasks", "set_disjointness", vocab=vocab, first=first, second=4).build()
    return read_again(task.draw(rows_of(length), "test", 0), 2)


def memory_entry(rule: Rule) -> Entry:
    """The entry of an associative memory."""
    return Entry(
        lambda vocab, _: memory_of(rule, vocab),
        mqar_batch,
        ((256, 64), (2048, 64), (2048, 256), (2048, 1024)),
        ((32, 16), (32, 24)),
        {"layers": FLAT, "width": FLAT, "parameters": FLAT, "state": FLAT},
    )


CATALOGUE: dict[str, Entry] = {
    "attention, no softmax": Entry(
        lambda vocab, _: triplet_attention(vocab),
        triplet_batch,
        TRIPLETS,
        SHORT,
        {"layers": FLAT, "width": FLAT, "parameters": FLAT, "state": LINEAR},
    ),
    "attention, two layers": Entry(
        softmax_attention,
        mqar_batch,
        STREAMS,
        ((32, 16), (32, 24)),
        {"layers": FLAT, "width": FLAT, "parameters": FLAT, "state": LINEAR},
    ),
    "BaseConv, every distance": Entry(
        lambda vocab, length: all_distances(vocab, length // 3),
        triplet_batch,
        TRIPLETS,
        SHORT,
        {"layers": FLAT, "width": LINEAR, "parameters": LINEAR, "state": SQUARE},
    ),
    "BaseConv, sorting": Entry(
        lambda vocab, length: sorting(vocab, length // 3),
        triplet_batch,
        TRIPLETS,
        SHORT,
        {"layers": DEEP, "width": Growth("$\\log N$", math.log2), "parameters": SORTED},
    ),
    "BaseConv, four distances": Entry(
        lambda vocab, _: some_distances(vocab, 4),
        distant_triplets,
        TRIPLETS,
        SHORT,
        {"layers": FLAT, "width": FLAT, "parameters": FLAT},
    ),
    "linear attention": memory_entry("linear"),
    "delta rule": memory_entry("delta"),
    "least squares": memory_entry("squares"),
    "Based, two passes": Entry(
        lambda vocab, length: two_passes(vocab, length // 2 - 7, 4),
        two_lists,
        ((128, 64), (2048, 64), (2048, 256), (2048, 1024)),
        ((64, 24), (64, 32)),
        {"layers": FLAT, "width": FLAT, "parameters": FLAT, "state": FLAT},
    ),
    "parity": Entry(
        lambda _vocab, _length: parity(),
        lambda _, length: draw_words(rows_of(length), length, 2, seeded_generator("parity", length)),
        ((3, 64), (3, 256), (3, 1024)),
        ((3, 12), (3, 24)),
        {"layers": FLAT, "width": FLAT, "parameters": FLAT, "state": FLAT},
    ),
    "permutations": Entry(
        lambda _vocab, _length: permutations(),
        lambda _, length: draw_words(rows_of(length), length, len(S3), seeded_generator("permutations", length)),
        ((7, 64), (7, 256), (7, 1024)),
        ((7, 12), (7, 24)),
        {"layers": FLAT, "width": FLAT, "parameters": FLAT, "state": FLAT},
    ),
}
