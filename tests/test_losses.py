"""A text in contexts and its losses: which document a token is of, files of anyone, and bytes of other tokens."""

import itertools
import json
import math
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bestiary.corpus.corpus import Corpus
from bestiary.corpus.prepare import prepare
from bestiary.corpus.tokenizers import Tokenizer, open_tokenizer
from bestiary.model import Model
from bestiary.slices.logprobs import read_losses
from bestiary.slices.losses import (
    Text,
    bits_per_byte,
    model_losses,
    retokenize,
    source_text,
    split_text,
    window_contexts,
    window_losses,
)
from bestiary.spec import parse


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    here = tmp_path_factory.mktemp("losses")
    rows = [json.dumps({"text": f"Ada has {i * i % 97} of {i % 5}, and Bob naïvely none."}) for i in range(150)]
    (here / "texts.jsonl").write_text("\n".join(rows))
    return prepare(str(here / "texts.jsonl"), here / "corpus", vocab=300, shares=(0.1, 0.3))


def test_every_token_is_of_the_document_that_it_stands_in(corpus: Corpus) -> None:
    text = split_text(corpus, "test", 7)
    ends, tokens = corpus.ends("test").tolist(), corpus.tokens("test")
    for i, row in enumerate(text.contexts.tolist()):
        for t, token in enumerate(row[1:]):
            at = 7 * i + t + 1
            assert token == tokens[at]
            assert text.documents[i, t] == sum(end <= at for end in ends)
    separators = text.contexts[:, 1:] == corpus.tokenizer.separator
    assert (np.diff(text.documents.ravel())[separators.ravel()[:-1]] == 1).all()  # it ends its document
    assert text.bytes == sum(len(corpus.tokenizer.token_bytes[t]) for t in text.contexts[:, 1:][~separators])


def test_a_text_of_ones_own_is_cut_likewise(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps({"said": f"Bob has {i}."}) for i in range(9)))
    text = source_text(str(tmp_path / "own.jsonl"), corpus, 8, column="said")
    whole = [*text.contexts[:, :-1].ravel().tolist(), int(text.contexts[-1, -1])]
    assert corpus.tokenizer.decode(whole).startswith("Bob has 0.<|endoftext|>Bob has 1.")
    counts = np.cumsum(np.array(whole) == corpus.tokenizer.separator)
    assert text.documents.ravel().tolist() == [0, *counts[1:-1].tolist()]
    assert text.unit == "document"
    (tmp_path / "long.txt").write_text("Bob has 12345 of them.\n" * 5000)
    assert source_text(str(tmp_path / "long.txt"), corpus, 8).unit == "piece"
    short = source_text(str(tmp_path / "own.jsonl"), corpus, 10**6, column="said")
    assert short.shape[0] == 1


@pytest.mark.parametrize(("length", "window"), [(20, 3), (21, 5), (12, 5), (7, 1), (64, 16)])
def test_with_a_window_each_token_is_taken_where_most_of_what_is_allowed_comes_before(length: int, window: int) -> None:
    contexts = np.arange(3 * (length + 1)).reshape(3, length + 1)
    parts = window_contexts(contexts, window)
    assert parts.shape[1] == 2 * window + 1
    losses = parts[:, 1:] + np.arange(1, 2 * window + 1) / 1000  # which token it is, and how many come before
    found = window_losses(losses, length, window)
    np.testing.assert_array_equal(found // 1, contexts[:, 1:])
    seen = np.round(1000 * (found % 1)).astype(int)
    before = np.arange(1, length + 1)
    assert (seen[:, : 2 * window] == before[: 2 * window]).all()
    assert (seen[:, 2 * window :] > window).all()
    assert (seen <= 2 * window).all()


def test_a_window_that_is_no_window_is_refused() -> None:
    for window in (0, -1, 10, 11):
        with pytest.raises(ValueError, match="it must be at least 1 and less than half"):
            window_contexts(np.zeros((2, 21), np.int64), window)


@pytest.mark.parametrize("own", [False, True])
def test_under_a_limit_contexts_are_spread_over_the_documents(own: bool, corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps({"text": f"Bob has {i} of them."}) for i in range(90)))

    def text(limit: int | None = None) -> Text:
        path = str(tmp_path / "own.jsonl")
        return source_text(path, corpus, 7, limit) if own else split_text(corpus, "test", 7, limit)

    whole = text()
    rows = len(whole.contexts)
    for limit in (1, 5, 10, rows - 1):
        some = text(limit)
        chosen = [(2 * i + 1) * rows // (2 * limit) for i in range(limit)]
        assert some.starts.tolist() == [7 * row for row in chosen]
        for name in ("contexts", "documents"):
            assert (getattr(some, name) == getattr(whole, name)[chosen]).all()
        assert len(np.unique(some.documents)) >= min(limit, 10)
        assert (some.contexts == text(limit).contexts).all()
    assert (text(rows + 1).contexts == whole.contexts).all()
    assert text(5).bytes == sum(
        len(corpus.tokenizer.token_bytes[t]) for t in text(5).contexts[:, 1:].ravel() if t != corpus.tokenizer.separator
    )


def test_of_a_stream_the_beginning_is_read(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(_: str) -> Any:
        return ((f"row {i}", {"text": f"Bob has {i} of them."}) for i in itertools.count())

    monkeypatch.setattr("bestiary.corpus.documents.read_hub", endless)
    text = source_text("hf:some/thing", corpus, 8, 3)
    assert text.shape == (3, 8)
    assert 100 < text.starts[-1] < 400


def word_level(vocab: tuple[str, ...] = ("Ada", "has", "and", "none")) -> Tokenizer:
    """Words without the white space between them; all but a few are unknown."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers

    names = {"[UNK]": 0, "</s>": 1} | {word: 2 + i for i, word in enumerate(vocab)}
    library = Library(models.WordLevel(names, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(library.to_str(), "words", 1)


@pytest.mark.parametrize("limit", [None, 7])
def test_the_bytes_of_words_are_those_of_the_text_itself(limit: int | None, tmp_path: Path) -> None:
    rows = [f"Ada  has {i} of {i % 5},\tand Bob naïvely none." for i in range(80)]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    words = prepare(str(tmp_path / "texts.jsonl"), tmp_path / "corpus", tokenizer=word_level(), shares=(0.1, 0.3))
    for text in (split_text(words, "test", 4, limit), source_text(str(tmp_path / "texts.jsonl"), words, 4, limit)):
        passages = [passage.text for passage in text.passages()]
        assert sum(len(passage.encode()) for passage in passages) == text.bytes
        assert all(any(passage in row for row in rows) for passage in passages)
        assert text.bytes < 0.9 * words.tokenizer.token_sizes[text.contexts[:, 1:]].sum()
        runs = 1 + np.count_nonzero(np.diff(text.starts) != 4)
        contexts, _, count = retokenize(text, open_tokenizer("bytes"))
        assert text.bytes - 4 - runs <= count <= text.bytes  # but for what fills no last context, and first bytes
        other, _, count = retokenize(text, word_level(("of", "none")))
        assert 0.9 * text.bytes - 8 * (runs - 1) < count <= text.bytes
        assert contexts.shape[1] == other.shape[1] == 5
    byte_text = split_text(prepare(str(tmp_path / "texts.jsonl"), tmp_path / "b", tokenizer="bytes"), "train", 16)
    contexts, _, count = retokenize(byte_text, word_level())
    assert count == pytest.approx(byte_text.bytes, rel=0.02)
    assert abs(word_level().token_sizes[contexts[:, 1:]].sum() - count) > 0.1 * count


def test_losses_of_a_model_are_its_cross_entropy(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(300, dim=8, depth=1, pattern=parse("mixers", "attention")).double()
    contexts = split_text(corpus, "test", 7, 5).contexts
    monkeypatch.setattr("bestiary.slices.losses.LOGITS_AT_ONCE", 300 * 8 * 2)  # two contexts at a time
    reports: list[tuple[int, int]] = []
    found = model_losses(model, contexts, progress=lambda *counts: reports.append(counts))
    chances = model.parallel(torch.from_numpy(contexts[:, :-1])).log_softmax(-1)
    wanted = -chances.gather(2, torch.from_numpy(contexts[:, 1:, None])).squeeze(2).detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert reports == [(2, 5), (4, 5), (5, 5)]
    with pytest.raises(ValueError, match="has token 299, the model a vocabulary of 200"):
        model_losses(Model(200, dim=8, depth=1, pattern=parse("mixers", "attention")), np.full((1, 3), 299))


@pytest.mark.parametrize("suffix", ["npy", "npz", "json", "jsonl", "txt"])
def test_log_probabilities_are_read_from_any_kind_of_file(suffix: str, tmp_path: Path) -> None:
    given, place = -np.arange(6.0).reshape(2, 3), tmp_path / f"a.{suffix}"
    write: dict[str, Any] = {
        "npy": lambda: np.save(place, given),
        "npz": lambda: np.savez(place, given),
        "json": lambda: place.write_text(json.dumps(given.tolist(), indent=1)),
        "jsonl": lambda: place.write_text("\n".join(json.dumps(row) for row in given.tolist())),
        "txt": lambda: place.write_text("\n".join(map(str, given.ravel()))),
    }
    write[suffix]()
    assert (read_losses(place, (2, 3)) == -given).all()
    with pytest.raises(ValueError, match="holds 6 log-probabilities, the text has 3 contexts of 4 tokens to predict"):
        read_losses(place, (3, 4))
    place.write_bytes(b"")
    with pytest.raises(ValueError, match=f"a.{suffix} (is no file of log-probabilities|holds 0)"):
        read_losses(place, (2, 3))


def test_numbers_that_are_no_log_probabilities_are_refused(tmp_path: Path) -> None:
    for wrong in (0.5, math.nan):
        np.save(tmp_path / "a.npy", np.array([-1.0, wrong]))
        with pytest.raises(ValueError, match="holds 1 numbers that are no log-probabilities"):
            read_losses(tmp_path / "a.npy", (1, 2))


KINDS = {
    "complex": np.array([-1j, -2]),
    "bool": np.array([False, False]),
    "records": np.zeros(2, dtype=[("a", "f4"), ("b", "f4")]),
    "subarrays": np.zeros(1, dtype=[("a", "f4", (2,))]),
    "text": np.array(["-1", "-2"]),
    "times": np.array([0, 0], dtype="timedelta64[s]"),
    "objects": np.array([-1, None], dtype=object),
}


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_other_than_real_numbers_are_refused(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    (np.save if suffix == "npy" else np.savez)(path, KINDS[kind])
    with pytest.raises(ValueError, match=f"a.{suffix} is no file of log-probabilities .*an array of ") as fault:
        read_losses(path, (1, 2))
    assert "\n" not in str(fault.value)


def header(shape: str, dtype: str = "<f8") -> bytes:
    content = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content


HEADERS = {
    "terabytes": header("(1000000000000,)"),
    "overflow": header("(4294967296, 4294967296)"),
    "negative": header("(-2, -1)"),
    "cut": header("(2,)") + 9 * b"\0",
    "nested": header("(" * 500 + "1" + ")" * 500),
    "nonsense": header("[}"),
    "version 9": b"\x93NUMPY\x09\x00" + header("(2,)")[8:],
    "huge header": b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little") + b"{}",
    "numbers of 255 bytes": header("(2,)", "<f255"),
}


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_claims_what_is_not_there_takes_no_memory(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", HEADERS[kind])
    else:
        path.write_bytes(HEADERS[kind])
    assert_refused(path)


def assert_refused(path: Path) -> None:
    """In one line, and with little memory."""
    tracemalloc.start()
    with pytest.raises(ValueError, match=path.name) as fault:
        read_losses(path, (1, 2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(fault.value)
    assert len(str(fault.value)) < 400
    assert peak < 2**22


def test_archives_that_unpack_to_a_thousand_times_their_size_are_not_unpacked(tmp_path: Path) -> None:
    zeros = bytes(2**20)
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w", force_zip64=True) as member,
    ):
        member.write(header("(4194304,)"))
        for _ in range(32):
            member.write(zeros)
    assert (tmp_path / "bomb.npz").stat().st_size < 2**16
    assert_refused(tmp_path / "bomb.npz")
    with zipfile.ZipFile(tmp_path / "many.npz", "w") as archive:
        for i in range(1200):
            archive.writestr(str(i), b"")
    assert_refused(tmp_path / "many.npz")
    (tmp_path / "large.txt").write_text("0\n" * 200_000)
    assert_refused(tmp_path / "large.txt")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("[" * 100_000 + "]" * 100_000, "too many|recursion"),
        ("[" * 3000 + "0, 0" + "]" * 3000, "more than 100 lists|recursion"),
        ("[" * 200 + "0, 0" + "]" * 200, "more than 100 lists"),
        ("[true, false]", "bool where numbers are needed"),
        ('["-1", "-2"]', "str where numbers are needed"),
        ('{"a": -1}', "dict where numbers are needed"),
        ("[null, -1]", "NoneType where numbers are needed"),
        ("[-1" + 5000 * "0" + ", 0]", "Exceeds the limit"),
        ("[-1" + 400 * "0" + ", 0]", "too large"),
        ("[-1, -1", "is no file"),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_json_of_anything_but_numbers_is_refused(content: str, what: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{suffix}").write_text(content)
    with pytest.raises(ValueError, match=what):
        read_losses(tmp_path / f"a.{suffix}", (1, 2))
    assert_refused(tmp_path / f"a.{suffix}")


def test_other_tokens_predict_the_same_bytes(corpus: Corpus) -> None:
    text, plain = split_text(corpus, "test", 7), open_tokenizer("bytes")
    contexts, counted, count = retokenize(text, plain)
    inside = contexts[:, 1:][contexts[:, 1:] != plain.separator]
    assert count == inside.size  # a token is a byte, and the end of a document none
    ends = [
        int((part == each.separator).sum()) for part, each in ((contexts, plain), (text.contexts, corpus.tokenizer))
    ]
    assert abs(ends[0] - ends[1]) < 0.1 * ends[1]  # all but what stands twice, where contexts meet
    known = bytes(contexts[:, :-1].ravel()[: 3 * 7][contexts[:, :-1].ravel()[: 3 * 7] < 256].tolist()).decode()
    assert known.split(".")[0] in corpus.tokenizer.decode(text.contexts[:, 1:].ravel()[:30])
    assert text.bytes - 7 < count <= text.bytes  # but for what fills no last context, and the first byte
    assert counted.sum() >= counted.size - 1  # all but the end of a text that breaks off
    bits = bits_per_byte(np.full(contexts[:, 1:].shape, math.log(2))[counted], count)
    assert bits == pytest.approx(counted.sum() / count)


def test_where_a_limit_breaks_a_text_off_no_other_token_counts_for_or_against(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"Ada has {i * i % 97} of {i % 5}, and Bob none."}) for i in range(150)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    corpus = prepare(str(tmp_path / "texts.jsonl"), tmp_path / "corpus", tokenizer="bytes", shares=(0.1, 0.3))
    end = corpus.tokenizer.separator
    for limit in (3, 9, 40, None):
        text = split_text(corpus, "test", 16, limit)
        breaks = np.flatnonzero(np.diff(text.starts) != 16) + 1
        runs = np.split(text.contexts, breaks)
        rest = [run[:, 1:].ravel().tolist()[0 if run[0, 0] == end else 1 :] for run in runs]
        wanted = [token for run in rest for token in run]  # all but first tokens within a document
        contexts, counted, count = retokenize(text, corpus.tokenizer)
        found = contexts[:, 1:][counted].tolist()
        assert found == wanted[: len(found)]
        assert len(wanted) - len(found) <= 16
        assert count == sum(token != end for token in found)


def test_no_whole_split_is_copied_to_count_its_contexts(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    from bestiary.corpus.corpus import windows

    copied = list[int]()
    monkeypatch.setattr(
        "bestiary.corpus.corpus.windows", lambda tokens, length: copied.append(len(tokens)) or windows(tokens, length)
    )
    split_text(corpus, "train", 7, 2)
    assert max(copied) == 8
    with pytest.raises(ValueError, match="one context of 99,999 needs 100,000"):
        split_text(corpus, "train", 99999, 2)
