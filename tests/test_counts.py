"""Bigram counts: against a dictionary, in shards and parts, stopped and begun again, and folders that are refused."""

import json
import shutil
import threading
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bestiary.corpus import counts
from bestiary.corpus.counts import Counts, count, merge, open_counts

FILES = ["counts.json", "counts.npy", "keys.npy", "lock", "source.json"]
SMALL = 2**13  # bytes, for parts of the least size


@pytest.fixture(autouse=True)
def _joined_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that texts of a few parts have some that are merged while counting."""
    monkeypatch.setattr(counts, "MAX_PARTS", 3)


def draw_tokens(length: int, vocab: int, seed: int = 0) -> Any:
    """Tokens of which few are frequent and many rare."""
    rng = np.random.default_rng(seed)
    return (vocab * rng.random(length) ** 6).astype(np.uint16 if vocab <= 2**16 else np.uint32)


def count_by_dictionary(tokens: Any) -> Counter[tuple[int, int]]:
    return Counter(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True))


def as_dictionary(found: Counts) -> Counter[tuple[int, int]]:
    assert (np.diff(found.keys.astype(np.int64)) > 0).all()
    assert found.total == found.counts.sum(dtype=np.int64)
    pairs = zip(found.keys.tolist(), found.counts.tolist(), strict=True)
    return Counter({divmod(key, found.vocab): number for key, number in pairs})


@pytest.mark.parametrize("vocab", [1, 2, 300, 50_257, 65_536, 65_537, 128_256, counts.MAX_VOCAB])
@pytest.mark.parametrize("memory", [SMALL, 2**30])
def test_counts_equal_a_dictionary(vocab: int, memory: int) -> None:
    tokens = draw_tokens(6_000, vocab)
    tokens[-2:] = vocab - 1
    found = count(tokens, vocab, memory=memory)
    assert as_dictionary(found) == count_by_dictionary(tokens)
    assert found.total == len(tokens) - 1
    assert found.distinct == len(count_by_dictionary(tokens))


@pytest.mark.parametrize("vocab", [3, 257, 300])
def test_a_table_counts_what_sorting_counts(vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "CHUNK", 1000)
    tokens = draw_tokens(200_001, vocab)
    tokens[-2:] = vocab - 1
    ways = [dict[int, int](), dict[int, int]()]
    for found, way in zip(ways, (counts.count_in_table, counts.count_by_sorting), strict=True):
        for keys, numbers in way(tokens, vocab):
            assert keys.dtype == counts.key_dtype(vocab)
            assert (np.diff(keys.astype(np.int64)) > 0).all()
            found |= zip(keys.tolist(), numbers.tolist(), strict=True)
    assert ways[0] == ways[1] == {one * vocab + two: n for (one, two), n in count_by_dictionary(tokens).items()}


@pytest.mark.parametrize(("vocab", "memory", "table"), [(256, 2**30, 1), (256, 2**20, 0), (2048, 2**30, 0)])
def test_a_table_is_chosen_where_it_fits_the_memory_and_a_cache(
    vocab: int, memory: int, table: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, way = [], counts.count_in_table
    monkeypatch.setattr(counts, "count_in_table", lambda *given: called.append(1) or way(*given))
    tokens = draw_tokens(100_000, vocab)
    assert as_dictionary(count(tokens, vocab, memory=memory)) == count_by_dictionary(tokens)
    assert len(called) == table


def test_a_key_more_frequent_than_a_look_is_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "CHUNK", 64)
    tokens = np.repeat(draw_tokens(40, 3), 100)
    assert as_dictionary(count(tokens, 3, memory=64)) == count_by_dictionary(tokens)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_memory_mapped_tokens_of_any_type(tmp_path: Path, dtype: type) -> None:
    tokens = draw_tokens(5_000, 300)
    tokens.astype(dtype).tofile(tmp_path / "train.bin")
    mapped = np.memmap(tmp_path / "train.bin", dtype=dtype, mode="r")
    assert as_dictionary(count(mapped, 300, memory=SMALL)) == count_by_dictionary(tokens)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_texts_too_short_to_have_many_bigrams(tmp_path: Path, length: int) -> None:
    tokens = np.arange(length, dtype=np.uint16)
    found = count(tokens, 5, folder=tmp_path)
    assert as_dictionary(found) == as_dictionary(open_counts(tmp_path)) == count_by_dictionary(tokens)
    assert found.lookup(np.array([0, 1]), np.array([1, 2])).tolist() == [int(length == 2), 0]


@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_shards_merge_to_the_whole(number: int) -> None:
    tokens = draw_tokens(5_001, 40)
    shards = [count(tokens, 40, shard=(i, number), memory=SMALL) for i in range(number)]
    whole, found = count(tokens, 40), merge(shards, memory=SMALL)
    assert as_dictionary(found) == as_dictionary(whole) == count_by_dictionary(tokens)
    assert sum(shard.total for shard in shards) == found.total == len(tokens) - 1


def test_more_shards_than_tokens_count_each_bigram_once() -> None:
    tokens = np.array([0, 1, 1, 0], dtype=np.uint16)
    assert as_dictionary(merge([count(tokens, 2, shard=(i, 9)) for i in range(9)])) == count_by_dictionary(tokens)


def test_merging_goes_through_parts_of_any_overlap() -> None:
    texts = [draw_tokens(3_000, 200, seed) for seed in range(5)] + [np.full(3_000, 199, dtype=np.uint16)]
    found = merge([count(text, 200) for text in texts], memory=64 * 7)
    assert as_dictionary(found) == sum(map(count_by_dictionary, texts), Counter())


def test_counts_beyond_32_bits_stay_exact() -> None:
    many = Counts(3, "", 2**32 - 1, np.array([0, 5], dtype=np.uint32), np.array([2**32 - 2, 1], dtype=np.uint32))
    found = merge([many] * 3)
    assert found.lookup(np.array([0, 1]), np.array([0, 2])).tolist() == [3 * (2**32 - 2), 3]
    assert found.most_common(1) == [(0, 0, 3 * (2**32 - 2))]


@pytest.mark.parametrize("vocab", [300, 128_256])
def test_lookups_of_any_shape_equal_a_dictionary(vocab: int) -> None:
    tokens = draw_tokens(20_000, vocab)
    found, known = count(tokens, vocab), count_by_dictionary(tokens)
    first, second = draw_tokens(3_000, vocab, 1).reshape(30, 2, 50), draw_tokens(3_000, vocab, 2).reshape(30, 2, 50)
    first[0], second[0] = tokens[:100].reshape(2, 50), tokens[1:101].reshape(2, 50)
    answer = found.lookup(first, second)
    assert answer.dtype == np.int64
    assert answer.shape == first.shape
    pairs = zip(first.ravel().tolist(), second.ravel().tolist(), strict=True)
    assert answer.ravel().tolist() == [known[pair] for pair in pairs]
    assert found.lookup(first[0], second[0, 0, :1]).shape == (2, 50)
    assert found.lookup(first[:0], second[:0]).shape == (0, 2, 50)
    assert int(found.lookup(tokens[0, ...], tokens[1, ...])) == known[int(tokens[0]), int(tokens[1])]


@pytest.mark.parametrize("n", [0, 1, 10, 1_000, 10**6])
def test_the_most_common_come_first_and_ties_by_token(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "CHUNK", 97)
    tokens = draw_tokens(9_000, 100)
    expected = sorted(count_by_dictionary(tokens).items(), key=lambda item: (-item[1], item[0]))[:n]
    assert count(tokens, 100).most_common(n) == [(*pair, number) for pair, number in expected]


def interrupt_count(place: Path, tokens: Any, after: int, **options: Any) -> None:
    """A count into a folder, stopped once `after` bigrams are counted."""

    def progress(done: int, _: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count(tokens, 300, folder=place, memory=SMALL, progress=progress, **options)


@pytest.mark.parametrize("memory", [SMALL, 4 * SMALL])
@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
def test_a_count_that_was_stopped_goes_on_after_its_parts(tmp_path: Path, memory: int, shard: tuple[int, int]) -> None:
    tokens = draw_tokens(18_000, 300)
    heard: list[int] = []
    for after in (2_000, 6_000):
        interrupt_count(tmp_path, tokens, after, shard=shard)
    found = count(tokens, 300, folder=tmp_path, memory=memory, shard=shard, progress=lambda done, _: heard.append(done))
    assert heard[0] > 6_100
    assert heard[-1] == found.total
    assert as_dictionary(found) == as_dictionary(count(tokens, 300, shard=shard))
    assert sorted(place.name for place in tmp_path.iterdir()) == FILES


@pytest.mark.parametrize("writes", range(11))
def test_a_kill_at_any_write_loses_nothing(tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, put, left = draw_tokens(7_000, 300), counts.write_file, iter(range(writes))

    def failing(place: Path, content: Any) -> None:
        if next(left, None) is None:
            raise OSError("the power is out")
        put(place, content)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power"):
        patch.setattr(counts, "write_file", failing)
        count(tokens, 300, folder=tmp_path, memory=SMALL)
    with pytest.raises(ValueError, match="no finished counts"):
        open_counts(tmp_path)
    assert as_dictionary(count(tokens, 300, folder=tmp_path, memory=SMALL)) == count_by_dictionary(tokens)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def chunks() -> Any:
        yield np.array([1]), np.array([1])
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        counts.write_counts(tmp_path, chunks(), counts.Header(3, ""), 2)
    assert not list(tmp_path.iterdir())


def test_a_damaged_part_is_counted_again(tmp_path: Path) -> None:
    tokens = draw_tokens(9_000, 300)
    interrupt_count(tmp_path, tokens, 5_000)
    flip_last_bit(tmp_path / "parts" / "0-3072" / "keys.npy")
    shutil.rmtree(tmp_path / "parts" / "3072-4096")
    assert as_dictionary(count(tokens, 300, folder=tmp_path, memory=SMALL)) == count_by_dictionary(tokens)


def flip_last_bit(place: Path) -> None:
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(content)


def test_a_count_that_is_done_is_opened_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = draw_tokens(9_000, 300)
    count(tokens, 300, folder=tmp_path)
    for writer in ("count_in_memory", "lock_folder", "write_file"):
        monkeypatch.setattr(counts, writer, None)
    assert as_dictionary(count(tokens, 300, folder=tmp_path)) == count_by_dictionary(tokens)


def test_of_two_that_count_into_a_folder_one_waits(tmp_path: Path) -> None:
    tokens, heard = draw_tokens(9_000, 300), set[int]()

    def counting() -> Any:
        return as_dictionary(
            count(tokens, 300, folder=tmp_path, memory=SMALL, progress=lambda *_: heard.add(threading.get_ident()))
        )

    with ThreadPoolExecutor(2) as pool:
        for found in [pool.submit(counting) for _ in range(2)]:
            assert found.result() == count_by_dictionary(tokens)
    assert len(heard) == 1


def test_a_folder_with_another_count_is_refused(tmp_path: Path) -> None:
    tokens = draw_tokens(9_000, 300)
    interrupt_count(tmp_path / "stopped", tokens, 5_000)
    count(tokens, 300, folder=tmp_path / "stopped")
    count(tokens, 300).save(tmp_path / "saved")
    others: list[tuple[Any, dict[str, Any], str]] = [
        (tokens[1:], {}, "tokens 9000 there, 8999 given"),
        (tokens[::-1], {}, "sample"),
        (tokens, {"shard": (0, 2)}, "shard"),
        (tokens, {"tokenizer": "abc"}, "tokenizer"),
    ]
    for given, options, name in others:
        with pytest.raises(ValueError, match=f"count of other tokens .*{name}"):
            count(given, 300, folder=tmp_path / "stopped", **options)
    with pytest.raises(ValueError, match="vocab unknown there, 300 given"):
        count(tokens, 300, folder=tmp_path / "saved")


def test_saved_counts_are_opened_whole(tmp_path: Path) -> None:
    found = count(draw_tokens(9_000, 300), 300, tokenizer="aaaaaaaaaaaa")
    for _ in range(2):
        found.save(tmp_path / "counts")
    again = open_counts(tmp_path / "counts", "aaaaaaaaaaaa", vocab=300)
    assert as_dictionary(again) == as_dictionary(found)
    assert (again.vocab, again.tokenizer, again.total) == (300, "aaaaaaaaaaaa", 8_999)


def test_another_tokenizer_is_refused_by_both_hashes(tmp_path: Path) -> None:
    count(draw_tokens(900, 300), 300, tokenizer="aaaaaaaaaaaa").save(tmp_path)
    with pytest.raises(ValueError, match="tokenizer aaaaaaaaaaaa, not of bbbbbbbbbbbb"):
        open_counts(tmp_path, "bbbbbbbbbbbb")
    with pytest.raises(ValueError, match="vocab 300, not of 301"):
        open_counts(tmp_path, vocab=301)


@pytest.mark.parametrize(
    "harm",
    [
        lambda place: flip_last_bit(place / "keys.npy"),
        lambda place: flip_last_bit(place / "counts.npy"),
        lambda place: (place / "keys.npy").unlink(),
        lambda place: (place / "keys.npy").write_bytes((place / "keys.npy").read_bytes()[:-40]),
        lambda place: (place / "counts.npy").write_bytes(b""),
        lambda place: (place / "counts.json").write_text("{}"),
        lambda place: (place / "counts.json").write_text('{"format": 1'),
        lambda place: (place / "counts.json").write_text('"counts"'),
        lambda place: (place / "counts.json").write_text("[" * 100_000 + "]" * 100_000),
        *(
            lambda place, field=field: change_header(place, **field)
            for field in ({"format": 99}, {"vocab": True}, {"vocab": 10**30}, {"total": 898}, {"digest": "0"})
        ),
        *(
            lambda place, field=field: change_header(place, **field, digest=None)  # as before there were digests
            for field in ({"vocab": True}, {"vocab": 10**30}, {"vocab": "300"}, {"tokenizer": 3}, {"checksums": 1})
        ),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path: Path, harm: Any) -> None:
    count(draw_tokens(900, 300), 300).save(tmp_path)
    harm(tmp_path)
    with pytest.raises(ValueError, match=r"is damaged \(.+\): remove it, count again$"):
        open_counts(tmp_path)


def raise_without_message(*_: Any, **__: Any) -> None:
    raise ValueError


def test_a_fault_without_a_message_is_told_by_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count(draw_tokens(900, 300), 300).save(tmp_path)
    monkeypatch.setattr(counts, "read_fields", raise_without_message)
    with pytest.raises(ValueError, match=r"is damaged \(ValueError\): remove it"):
        open_counts(tmp_path)


@pytest.mark.parametrize("content", ["null", "3", '"x"', "[]", "{}", "NaN", "[" * 100_000 + "]" * 100_000])
def test_counts_that_do_not_say_of_what_they_are_are_refused_by_name(tmp_path: Path, content: str) -> None:
    tokens = draw_tokens(900, 300)
    count(tokens, 300, folder=tmp_path / "counts")
    (tmp_path / "counts" / "source.json").write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path / 'counts'} has a count of other tokens"):
        count(tokens, 300, folder=tmp_path / "counts")


def test_counts_of_tokens_that_differ_in_one_place_are_refused(tmp_path: Path) -> None:
    tokens = draw_tokens(5000, 300)
    other = tokens.copy()
    other[4321] = (other[4321] + 1) % 300  # not in the sample
    count(tokens, 300, folder=tmp_path / "a")
    assert count(tokens.astype(np.int64), 300, folder=tmp_path / "a").total == 4999
    with pytest.raises(ValueError, match=r"has a count of other tokens \(checksum"):
        count(other, 300, folder=tmp_path / "a")
    count(tokens, 300, folder=tmp_path / "b", digest="one")
    assert count(tokens, 300, folder=tmp_path / "b", digest="one").total == 4999
    for digest, what in (("two", "digest"), (None, "checksum")):
        with pytest.raises(ValueError, match=rf"has a count of other tokens \({what}"):
            count(other, 300, folder=tmp_path / "b", digest=digest)


def test_counts_of_earlier_versions_know_a_sample_of_their_tokens(tmp_path: Path) -> None:
    tokens = draw_tokens(5000, 300)
    count(tokens, 300, folder=tmp_path, digest="one")
    source = json.loads((tmp_path / "source.json").read_text())
    old = {name: source[name] for name in ("vocab", "tokenizer", "shard", "tokens", "sample")}
    (tmp_path / "source.json").write_text(json.dumps(old))
    for digest in ("one", None):
        assert count(tokens, 300, folder=tmp_path, digest=digest).total == 4999
    with pytest.raises(ValueError, match="has a count of other tokens"):
        count(tokens[::-1], 300, folder=tmp_path)


def test_counts_before_there_were_digests_are_read(tmp_path: Path) -> None:
    found = count(draw_tokens(900, 300), 300, folder=tmp_path)
    change_header(tmp_path, digest=None)
    assert as_dictionary(open_counts(tmp_path)) == as_dictionary(found)


def change_header(place: Path, **fields: Any) -> None:
    """Change fields of counts.json, and take out those that are None."""
    header = json.loads((place / "counts.json").read_text()) | fields
    (place / "counts.json").write_text(json.dumps({n: value for n, value in header.items() if value is not None}))


def test_folders_without_finished_counts_are_refused(tmp_path: Path) -> None:
    interrupt_count(tmp_path / "half", draw_tokens(9_000, 300), 2_000)
    for place in (tmp_path / "half", tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="no finished counts"):
            open_counts(place)


def test_tokens_that_cannot_be_counted_are_named() -> None:
    tokens = np.array([0, 7, 2])
    for given, vocab, message in (
        (tokens, 7, "token 7 is beyond the vocabulary of 7"),
        (-tokens, 9, "token -7 is beyond"),
        (tokens / 2, 9, "type float64"),
        (tokens[None], 9, r"shape \(1, 3\)"),
        (tokens, 0, "a vocabulary of 0"),
        (tokens, 2**32, "a vocabulary of 4294967296"),
    ):
        with pytest.raises(ValueError, match=message):
            count(given, vocab)
    for shard in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="shard"):
            count(tokens, 9, shard=shard)
    with pytest.raises(ValueError, match="token 9 is beyond the vocabulary of 9"):
        count(tokens, 9).lookup(np.array([0]), np.array([9]))
    with pytest.raises(ValueError, match="type float64"):
        count(tokens, 9).lookup(np.array([0.5]), np.array([1]))


def test_only_counts_of_one_tokenizer_merge() -> None:
    tokens = draw_tokens(900, 30)
    with pytest.raises(ValueError, match="vocab 30 of tokenizer unknown, vocab 30 of tokenizer abc"):
        merge([count(tokens, 30), count(tokens, 30, tokenizer="abc")])
    with pytest.raises(ValueError, match="vocab 30 of tokenizer unknown, vocab 31"):
        merge([count(tokens, 30), count(tokens, 31)])
    with pytest.raises(ValueError, match="given none"):
        merge([])


@pytest.mark.parametrize("vocab", [4_096, 50_257, 128_256])
def test_memory_stays_within_what_is_given(tmp_path: Path, vocab: int) -> None:
    memory = 2**24
    tokens = draw_tokens(4_000_000, vocab)
    tokens.tofile(tmp_path / "train.bin")
    mapped = np.memmap(tmp_path / "train.bin", dtype=tokens.dtype, mode="r")
    del tokens
    tracemalloc.start()
    found = count(mapped, vocab, memory=memory)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.total == len(mapped) - 1
    assert found.distinct > 500_000  # which a dictionary or an array of 16 bytes each would show
    assert peak < memory + 2**22
    assert held < 2**20
