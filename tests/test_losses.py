"""A text in contexts and its losses: which document a token is of, files of anyone, and bytes of other tokens."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bestiary.corpus.corpus import Corpus, prepare
from bestiary.corpus.tokenizers import open_tokenizer
from bestiary.model import Model
from bestiary.slices.losses import bits_per_byte, model_losses, read_losses, retokenize, source_text, split_text
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
    text = source_text(str(tmp_path / "own.jsonl"), corpus, 8, 3, column="said")
    assert text.shape == (3, 8)
    whole = [*text.contexts[:, :-1].ravel().tolist(), int(text.contexts[-1, -1])]
    assert corpus.tokenizer.decode(whole).startswith("Bob has 0.<|endoftext|>Bob has 1.")
    counts = np.cumsum(np.array(whole) == corpus.tokenizer.separator)
    assert text.documents.ravel().tolist() == [0, *counts[1:-1].tolist()]
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "Bob has 12345 of them. " * 50}))
    assert source_text(str(tmp_path / "long.jsonl"), corpus, 8, 3).shape == (3, 8)
    short = source_text(str(tmp_path / "own.jsonl"), corpus, 10**6, column="said")
    assert short.shape[0] == 1


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


def test_other_tokens_predict_the_same_bytes(corpus: Corpus) -> None:
    text, plain = split_text(corpus, "test", 7), open_tokenizer("bytes")
    contexts, count = retokenize(text, plain)
    inside = contexts[:, 1:][contexts[:, 1:] != plain.separator]
    assert count == inside.size  # a token is a byte, and the end of a document none
    ends = [
        int((part == each.separator).sum()) for part, each in ((contexts, plain), (text.contexts, corpus.tokenizer))
    ]
    assert abs(ends[0] - ends[1]) < 0.1 * ends[1]  # all but what stands twice, where contexts meet
    known = bytes(contexts[:, :-1].ravel()[: 3 * 7][contexts[:, :-1].ravel()[: 3 * 7] < 256].tolist()).decode()
    assert known.split(".")[0] in corpus.tokenizer.decode(text.contexts[:, 1:].ravel()[:30])
    assert text.bytes - 7 < count <= text.bytes  # but for what fills no last context, and the first byte
    assert bits_per_byte(np.full(contexts[:, 1:].shape, math.log(2)), count) == pytest.approx(
        contexts[:, 1:].size / count
    )
