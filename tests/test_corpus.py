"""Corpora of text: what is read, how it is encoded, and what is on disk afterwards."""

import gzip
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bestiary.corpus import documents as reading
from bestiary.corpus import prepare as module
from bestiary.corpus.corpus import SPLITS, Corpus, open_corpus
from bestiary.corpus.documents import documents
from bestiary.corpus.prepare import prepare
from bestiary.corpus.tokenizers import CONFIG_FILE, Tokenizer, open_tokenizer, read_config, read_tokenizer, train_bpe

WORDS = [
    "the",
    "cat",
    "a",
    "mat",
    "naïve",
    "Grüße",
    "日本語",
    "🙂",
    "<|endoftext|>",
    "x",
    "=",
    "#",
    "\t",
    " ",
    "done\n",
]
TEXTS = [" ".join(np.random.default_rng(i).choice(WORDS, 40)) for i in range(60)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of sixty texts."""
    folder = tmp_path / "texts"
    for i, text in enumerate(TEXTS):
        (folder / f"part{i % 3}").mkdir(parents=True, exist_ok=True)
        (folder / f"part{i % 3}" / f"{i:02}.txt").write_bytes(text.encode())
    return folder


@pytest.fixture
def small(source: Path, tmp_path: Path) -> Corpus:
    return prepare(str(source), tmp_path / "small", vocab=300, shares=(0.2, 0.2))


def write_jsonl(place: Path, rows: list[Any]) -> Path:
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def file_contents(folder: Path) -> dict[str, bytes]:
    """Every file of a corpus but the one that tells when it was made."""
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return {name: content for name, content in found.items() if name != "origin.json"}


def split_documents(corpus: Corpus, split: str) -> list[str]:
    """The documents of a split, decoded."""
    spans = np.split(corpus.tokens(split), corpus.ends(split)[:-1])
    return [corpus.tokenizer.decode(span[:-1]) for span in spans]


def foreign_tokenizer(folder: Path) -> Tokenizer:
    """A byte-level tokenizer as others save it: another end, padding, a limit, an added word, and a special token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.Sequence([decoders.ByteLevel()])
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=letters, special_tokens=["<s>"], show_progress=False)
    library.train_from_iterator(TEXTS, trainer)
    library.add_tokens([AddedToken("naïve", normalized=False)])
    library.add_special_tokens(["[STOP]"])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    library.enable_padding(length=9)
    library.enable_truncation(5)
    folder.mkdir()
    library.save(str(folder / "tokenizer.json"))
    (folder / CONFIG_FILE).write_text(json.dumps({"eos_token": {"content": "[STOP]"}}))
    return open_tokenizer(folder)


def make_tokenizer(kind: str, tmp_path: Path) -> Tokenizer:
    if kind == "hf":
        return foreign_tokenizer(tmp_path / "hf")
    return open_tokenizer("bytes") if kind == "bytes" else train_bpe(TEXTS, 300)


KINDS = ("bytes", "bpe", "hf")


# tokenizers


@pytest.mark.parametrize("kind", KINDS)
def test_the_sizes_of_tokens_add_up_to_the_bytes_of_the_text(kind: str, tmp_path: Path) -> None:
    made = make_tokenizer(kind, tmp_path)
    for text, tokens in zip(TEXTS, made.encode(TEXTS), strict=True):
        assert made.token_sizes[tokens].sum() == len(text.encode())
    assert made.token_sizes[made.separator] == 0
    assert made.token_sizes.shape == (made.vocab,)


@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_back_from_its_tokens_and_from_their_pieces(kind: str, tmp_path: Path) -> None:
    made = make_tokenizer(kind, tmp_path)
    for text, tokens in zip(TEXTS, made.encode(TEXTS), strict=True):
        assert made.decode(tokens) == text
        assert b"".join(made.token_bytes[token] for token in tokens).decode() == text
    assert "".join(made.pieces(made.encode(["a mat x"])[0])) == "a mat x"


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_holds_a_separator_not_even_one_that_spells_it(kind: str, tmp_path: Path) -> None:
    made = make_tokenizer(kind, tmp_path)
    for tokens in made.encode(["a <|endoftext|> b [STOP] c <s> d"]):
        assert made.separator not in tokens
        assert (made.token_sizes[tokens] > 0).all()


def test_half_a_character_is_shown_as_a_replacement() -> None:
    made = open_tokenizer("bytes")
    assert made.pieces(made.encode(["ü!"])[0]) == ["\ufffd", "\ufffd", "!"]


def test_bytes_are_encoded_as_the_library_would() -> None:
    made = open_tokenizer("bytes")
    for text, tokens in zip(TEXTS, made.encode(TEXTS), strict=True):
        assert tokens.tolist() == list(text.encode()) == made.library.encode(text).ids
    assert (made.vocab, made.separator) == (257, 256)


def test_sentencepiece_tokens_are_read_by_their_bytes(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models

    vocab = {"<unk>": 0, "</s>": 1, "▁a": 2, "b": 3} | {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    library = Library(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    library.save(str(tmp_path / "tokenizer.json"))
    made = open_tokenizer(tmp_path / "tokenizer.json")
    assert made.token_bytes[2:4] + made.token_bytes[-1:] == [b" a", b"b", b"\xff"]
    assert made.separator == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_is_the_same_again(kind: str, tmp_path: Path) -> None:
    made = make_tokenizer(kind, tmp_path)
    made.save(tmp_path / "saved")
    again = open_tokenizer(str(tmp_path / "saved"))
    assert again == made
    assert again.hash == made.hash
    assert [tokens.tolist() for tokens in again.encode(TEXTS)] == [tokens.tolist() for tokens in made.encode(TEXTS)]


@pytest.mark.hf
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_opens_in_transformers(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    made = make_tokenizer(kind, tmp_path)
    made.save(tmp_path / "saved")
    other = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert other.eos_token_id == made.separator
    text = TEXTS[0].replace("<|endoftext|>", "")
    assert other(text, add_special_tokens=False).input_ids == made.encode([text])[0].tolist()
    other.save_pretrained(tmp_path / "theirs")
    assert open_tokenizer(tmp_path / "theirs").encode([text])[0].tolist() == made.encode([text])[0].tolist()


def test_a_tokenizer_without_an_end_of_text_is_given_one(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library
    from tokenizers import models

    library = Library(models.BPE(vocab={"a": 0}, merges=[]))
    library.save(str(tmp_path / "tokenizer.json"))
    made = open_tokenizer(tmp_path)
    assert (made.separator, made.vocab) == (1, 2)
    library.add_tokens(["</s>"])  # markup that texts contain, as in Gemma
    library.add_special_tokens(["<eos>"])
    library.save(str(tmp_path / "tokenizer.json"))
    assert open_tokenizer(tmp_path).separator == 2


def test_the_hash_tells_tokenizers_apart() -> None:
    one, same, other = train_bpe(TEXTS, 300), train_bpe(TEXTS, 300), train_bpe(TEXTS, 301)
    assert one.hash == same.hash != other.hash
    assert len(one.hash) == 12


def test_tokenizers_are_alike_that_make_the_same_tokens() -> None:
    """As one that transformers has written again, with a processor that adds nothing."""
    made = train_bpe(TEXTS, 300)
    again = json.loads(made.definition) | {"post_processor": {"type": "TemplateProcessing"}, "padding": None}
    assert made.is_equivalent(Tokenizer(json.dumps(again), "again", made.separator))
    assert not made.is_equivalent(train_bpe(TEXTS, 301))
    assert not made.is_equivalent(Tokenizer(made.definition, made.name, made.separator + 1))


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    for name, fault, what in (
        (tmp_path / "nowhere", LookupError, "no tokenizer at .*nowhere: give 'bytes'"),
        (tmp_path, LookupError, "has no tokenizer.json; make one with transformers"),
        (tmp_path / "bad.json", ValueError, "bad.json is no tokenizer"),
        ("bpe", ValueError, "'bpe' is trained on a text"),
    ):
        with pytest.raises(fault, match=what):
            open_tokenizer(str(name))


def test_a_fault_without_a_message_is_told_by_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tokenizers

    def fail(_: str) -> None:
        raise ValueError

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(tokenizers, "Tokenizer", SimpleNamespace(from_str=fail))
    with pytest.raises(ValueError, match="config.json is no tokenizer: ValueError"):
        read_tokenizer(tmp_path / "config.json", None, "it")
    monkeypatch.setattr(json, "loads", fail)
    with pytest.raises(ValueError, match="is no configuration of a tokenizer: ValueError"):
        read_config(tmp_path / "config.json")


def test_a_name_out_of_the_hubs_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: str) -> str:
        raise ConnectionError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(LookupError, match="no tokenizer 'nobody/none' here or within reach on the hub"):
        open_tokenizer("nobody/none")


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 257 tokens .* not 256"):
        train_bpe(TEXTS, 256)


# documents


def test_a_folder_is_read_in_order_of_names(source: Path) -> None:
    (source / ".hidden.txt").write_text("not this")
    names = sorted(f"part{i % 3}/{i:02}" for i in range(60))
    assert list(documents(str(source))) == [TEXTS[int(name[-2:])] for name in names]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.parquet", "folder"])
def test_rows_are_read_alike_from_every_kind_of_file(name: str, tmp_path: Path) -> None:
    rows = [{"text": text, "n": 1} for text in [*TEXTS, "", None]]
    plain = write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "rows.json").write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "folder").mkdir()
    write_jsonl(tmp_path / "folder" / "a.jsonl", rows[:9])
    write_jsonl(tmp_path / "folder" / "b.jsonl", rows[9:])
    if name.endswith("parquet"):
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / name)
    skipped = Counter[str]()
    assert list(documents(str(tmp_path / name), skipped=skipped)) == TEXTS
    assert skipped == {"empty": 2}


@pytest.mark.parametrize("name", ["", "/rows.jsonl"])
def test_hugging_face_data_sets_are_streamed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    write_jsonl(tmp_path / "rows.jsonl", [{"body": text} for text in TEXTS])
    if name:  # as the hub's, by a name with a configuration
        load, local = datasets.load_dataset, str(tmp_path)
        asked = []
        monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or load(local, **k))
        assert list(documents("hf:owner/name/one:train", column="body")) == TEXTS
        assert asked == [(("owner/name", "one"), {"split": "train", "streaming": True})]
    else:
        assert list(documents(f"hf:{tmp_path}:train", column="body")) == TEXTS
        with pytest.raises(ValueError, match="row 1 has no column 'text' among .'body'."):
            next(documents(f"hf:{tmp_path}"))
        with pytest.raises(LookupError, match="datasets cannot open hf:.*:none"):
            next(documents(f"hf:{tmp_path}:none"))


def test_what_data_sets_of_the_hub_fail_with_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    for fault in (
        RuntimeError("Dataset scripts are no longer supported, but found name.py"),
        datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset"),
        OSError("no such address"),
        Exception("a fault of the client"),  # as those of httpx are
    ):

        def load(*_: Any, fault: Exception = fault, **__: Any) -> Any:
            raise fault

        monkeypatch.setattr(datasets, "load_dataset", load)
        monkeypatch.setattr(reading, "skip_without_network", lambda: None)
        with pytest.raises(LookupError, match=f"^datasets cannot open hf:owner/name: {fault}$"):
            next(documents("hf:owner/name"))


def test_well_known_sets_have_plain_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(reading, "read_hub", lambda name: asked.append(name) or iter([("row 1", {"text": "a"})]))
    assert [list(documents(name)) for name in ("pile", "fineweb", "wikitext")] == [["a"], ["a"], ["a"]]
    assert asked[0] == "monology/pile-uncopyrighted:train"


def test_the_standard_library_is_read_with_its_doc_strings_and_nothing_installed() -> None:
    import textwrap

    first = [text for _, text in zip(range(40), documents("stdlib"), strict=False)]
    assert any("__future__" in text for text in first)
    files = [str(file) for file in reading.list_files(Path(textwrap.__file__).parent, only=".py")]
    assert textwrap.__file__ in files
    assert not [file for file in files if "site-packages" in file or not file.endswith(".py")]


def test_a_source_that_is_unknown_is_refused_with_the_likeliest() -> None:
    with pytest.raises(LookupError, match="no source 'stdlip' among .* did you mean 'stdlib'.*a file, a folder or hf:"):
        documents("stdlip")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"fine\n" + 99 * b"x" + b"\0", "file.txt is binary: byte 104 is NUL"),
        (b"fine\n" + b"x\xffy", "file.txt is not UTF-8 at byte 6"),
        (2**14 * b"x" + b"\n" + b"\xff", f"file.txt is not UTF-8 at byte {2**14 + 1}"),
    ],
)
def test_what_is_no_text_is_refused_by_name_and_skipped_in_a_folder(content: bytes, what: str, source: Path) -> None:
    (source / "file.txt").write_bytes(content)
    with pytest.raises(ValueError, match=what):
        list(documents(str(source / "file.txt")))
    skipped = Counter[str]()
    assert len(list(documents(str(source), skipped=skipped))) == 60
    assert skipped == {"binary" if b"\0" in content else "invalid UTF-8": 1}


def test_a_gzip_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(os.urandom(999).hex().encode())[:-300])
    with pytest.raises(ValueError, match="cut.txt.gz is no whole gzip file"):
        list(documents(str(tmp_path / "cut.txt.gz")))


def test_a_parquet_file_is_refused_if_damaged_or_without_the_column(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    place = tmp_path / "rows.parquet"
    parquet.write_table(arrow.Table.from_pylist([{"body": "a"}]), place)
    with pytest.raises(ValueError, match="rows.parquet has no column 'text' among .'body'."):
        list(documents(str(place)))
    place.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="rows.parquet is no whole Parquet file"):
        list(documents(str(place)))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"body": "a", "tex": 1}', "line 3 has no column 'text' among .'body', 'tex'.; did you mean 'tex'"),
        ('{"text": 7}', "line 3 has a int as 'text': text is needed"),
        ('["text"]', "line 3 is a JSON list: one object a line"),
        ('{"text": "a"', "line 3 is no JSON"),
        ('{"text": "\xff"}', "is not UTF-8 at byte 28"),
    ],
)
def test_a_bad_row_is_refused_with_its_file_and_line(line: str, what: str, tmp_path: Path) -> None:
    content = '{"text": "good"}\n\n{}\n'.replace("{}", line)
    (tmp_path / "rows.jsonl").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=f"rows.jsonl.*{what}"):
        list(documents(str(tmp_path)))


def test_rows_that_no_utf8_can_say_are_skipped_and_counted(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "\ud800"}, {"text": "good"}])
    skipped = Counter[str]()
    assert list(documents(str(tmp_path), skipped=skipped)) == ["good"]
    assert skipped == {"lone surrogates": 1}


@pytest.mark.parametrize("line", ["a line of ünïcödé\n", "日本語"])
def test_a_long_file_is_cut_where_lines_or_else_characters_end(line: str, tmp_path: Path) -> None:
    text = 2000 * line
    (tmp_path / "long.txt").write_bytes(text.encode())
    parts = list(documents(str(tmp_path / "long.txt")))
    assert "".join(parts) == text
    assert len(parts) > 1
    assert all(len(part.encode()) <= reading.FILE_DOCUMENT_BYTES for part in parts)
    assert all(part.endswith("\n") for part in parts) or "\n" not in line
    assert list(documents(str(tmp_path))) == [text]


# corpora


@pytest.mark.parametrize("kind", KINDS)
def test_every_document_is_in_one_split_whole_and_followed_by_the_separator(
    kind: str, source: Path, tmp_path: Path
) -> None:
    made = prepare(str(source), tmp_path / "corpus", tokenizer=make_tokenizer(kind, tmp_path), shares=(0.2, 0.2))
    for split in SPLITS:
        ends, tokens = made.ends(split), made.tokens(split)
        assert len(ends) == made.manifest["splits"][split]["documents"] > 0
        assert ends[-1] == len(tokens) == made.manifest["splits"][split]["tokens"]
        assert (np.flatnonzero(tokens == made.tokenizer.separator) == ends - 1).all()
    assert sorted(text for split in SPLITS for text in split_documents(made, split)) == sorted(TEXTS)
    assert sum(part["bytes"] for part in made.manifest["splits"].values()) == sum(len(t.encode()) for t in TEXTS)


def test_a_text_goes_to_the_same_split_in_every_corpus(tmp_path: Path, small: Corpus) -> None:
    place = write_jsonl(tmp_path / "twice.jsonl", [{"text": text} for text in [*TEXTS[::-1], "more of it", *TEXTS]])
    twice = prepare(str(place), tmp_path / "twice", tokenizer=small.tokenizer, shares=(0.2, 0.2))
    for split in SPLITS:
        assert sorted(2 * split_documents(small, split)) == sorted(
            text for text in split_documents(twice, split) if text != "more of it"
        )


def test_shares_say_how_much_goes_where(tmp_path: Path) -> None:
    place = write_jsonl(tmp_path / "many.jsonl", [{"text": f"document {i}"} for i in range(4000)])
    made = prepare(str(place), tmp_path / "corpus", tokenizer="bytes", shares=(0.1, 0.3))
    documents = [made.manifest["splits"][split]["documents"] for split in SPLITS]
    assert np.abs(np.array(documents) / 4000 - [0.6, 0.1, 0.3]).max() < 0.03
    with pytest.raises(ValueError, match="leave nothing to train on"):
        prepare(str(place), tmp_path / "other", shares=(0.5, 0.5))


def test_contexts_are_windows_one_after_the_other(small: Corpus) -> None:
    tokens = small.tokens("train")
    rows = small.contexts("train", 7)
    assert rows.shape == ((len(tokens) - 1) // 7, 8)
    assert rows.dtype == np.int64
    for i, row in enumerate(rows):
        assert row.tolist() == tokens[7 * i : 7 * i + 8].tolist()
    assert (small.contexts("train", 7, limit=3) == rows[:3]).all()
    assert len(small.contexts("train", len(tokens) - 1)) == 1


def test_a_corpus_smaller_than_one_context_says_what_is_needed(small: Corpus) -> None:
    size = len(small.tokens("test"))
    with pytest.raises(ValueError, match=f"test of .* has {size:,} tokens: one context of {size:,} needs {size + 1:,}"):
        small.contexts("test", size)
    with pytest.raises(ValueError, match="no split 'valid' among"):
        small.contexts("valid", 3)
    with pytest.raises(ValueError, match="must be at least 1"):
        small.contexts("test", 0)


def test_a_split_that_got_nothing_is_empty(tmp_path: Path) -> None:
    made = prepare(
        str(write_jsonl(tmp_path / "a.jsonl", [{"text": "some"}])), tmp_path / "c", tokenizer="bytes", shares=(0.0, 0.0)
    )
    assert [len(made.tokens(split)) for split in SPLITS] == [5, 0, 0]
    assert [len(made.ends(split)) for split in SPLITS] == [1, 0, 0]
    with pytest.raises(ValueError, match="has 0 tokens"):
        made.contexts("test", 4)


def test_what_is_empty_or_short_is_skipped_and_counted(source: Path, tmp_path: Path) -> None:
    (source / "empty.txt").touch()
    (source / "blank.txt").write_text(" \n")
    (source / "short.txt").write_text("x")
    (source / "image.png").write_bytes(b"\x89PNG\0")
    (source / "latin.txt").write_bytes("ü".encode("latin-1"))
    made = prepare(str(source), tmp_path / "corpus", vocab=300)
    counted = {"empty": 2, "shorter than two tokens": 1, "binary": 1, "invalid UTF-8": 1}
    assert made.manifest["skipped"] == counted
    assert sum(part["documents"] for part in made.manifest["splits"].values()) == 60


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_a_source_without_text_is_refused_and_leaves_nothing(tokenizer: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"there is no .* in .*source \(skipped: 1 empty\)"):
        prepare(str(tmp_path / "source"), tmp_path / "corpus", tokenizer=tokenizer)
    assert os.listdir(tmp_path) == ["source"]


def test_a_bpe_without_a_document_to_train_on_is_refused(tmp_path: Path) -> None:
    place = write_jsonl(tmp_path / "one.jsonl", [{"text": "all of this is for testing"}])
    with pytest.raises(ValueError, match="no document to train a BPE on in .*one.jsonl"):
        prepare(str(place), tmp_path / "corpus", shares=(0.0, 0.999))


def test_preparing_again_opens_what_is_there(source: Path, small: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "write_corpus", None)
    again = prepare(str(source), small.folder, vocab=300, shares=(0.2, 0.2))
    assert again == small == open_corpus(small.folder)
    assert again.tokenizer.hash == small.manifest["tokenizer"]["hash"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"tokenizer": "bytes"}, r"tokenizer bpe-300 there, \w{12} given"),
        ({"vocab": 301}, "tokenizer bpe-300 there, bpe-301 given"),
        ({"shares": (0.1, 0.2)}, r"shares \[0.2, 0.2\] there, \[0.1, 0.2\] given"),
        ({"source": "stdlib"}, r"source files \w{12} there, files \w{12} given"),
        ({}, r"source files \w{12} there, files \w{12} given"),
    ],
)
def test_a_folder_with_another_corpus_is_refused(change: dict, what: str, source: Path, small: Corpus) -> None:
    before = file_contents(small.folder)
    if not change:
        (source / "new.txt").write_text("a file that has come since")
    how = {"source": str(source), "vocab": 300, "shares": (0.2, 0.2)} | change
    with pytest.raises(ValueError, match=rf"is another corpus, \w{{12}}, not \w{{12}} \({what}"):
        prepare(how.pop("source"), small.folder, **how)
    assert file_contents(small.folder) == before


def test_a_folder_with_other_things_is_left_alone(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not empty and no corpus"):
        prepare(str(source), tmp_path)
    with pytest.raises(ValueError, match="lies within its own source"):
        prepare(str(source), source / "corpus")


KILLED = """
import os, signal, sys
from bestiary.corpus import prepare as corpus
corpus.BATCH_CHARACTERS = 500
source, folder = sys.argv[1:]
corpus.prepare(source, folder, vocab=300, progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_one_that_was_killed_leaves_no_corpus_and_begun_again_gives_the_same_bytes(
    source: Path, tmp_path: Path
) -> None:
    whole = prepare(str(source), tmp_path / "whole", vocab=300)
    done = subprocess.run([sys.executable, "-c", KILLED, str(source), str(tmp_path / "cut")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [name[:5] for name in sorted(os.listdir(tmp_path))] == [".cut-", "texts", "whole"]
    with pytest.raises(LookupError, match="cut is no corpus"):
        open_corpus(tmp_path / "cut")
    again = prepare(str(source), tmp_path / "cut", vocab=300)
    assert file_contents(again.folder) == file_contents(whole.folder)
    assert sorted(os.listdir(tmp_path)) == ["cut", "texts", "whole"]


def test_what_a_live_process_is_writing_is_left_alone_and_the_first_to_finish_wins(
    source: Path, tmp_path: Path
) -> None:
    inner = []

    def progress(*_: int) -> None:
        if not inner:
            inner.append(prepare(str(source), tmp_path / "corpus", vocab=300))

    outer = prepare(str(source), tmp_path / "corpus", vocab=300, progress=progress)
    assert outer == inner[0]
    assert sorted(os.listdir(tmp_path)) == ["corpus", "texts"]


def test_the_size_of_batches_changes_nothing_and_progress_is_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[int, int]] = []
    one = prepare(str(source), tmp_path / "one", vocab=300)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 1000)
    many = prepare(str(source), tmp_path / "many", vocab=300, progress=lambda *sums: heard.append(sums))
    assert file_contents(one.folder) == file_contents(many.folder)
    assert len(heard) > 5
    assert heard == sorted(heard)
    sums = [sum(part[what] for part in many.manifest["splits"].values()) for what in ("documents", "tokens")]
    assert heard[-1] == tuple(sums)


def test_a_limit_ends_with_the_document_that_fills_it(source: Path, tmp_path: Path) -> None:
    made = prepare(str(source), tmp_path / "corpus", tokenizer="bytes", shares=(0.2, 0.2), limit=2000)
    sizes = np.cumsum([len(text.encode()) + 1 for text in documents(str(source))])
    assert sum(part["tokens"] for part in made.manifest["splits"].values()) == sizes[np.searchsorted(sizes, 2000)]


def test_the_hash_is_that_of_the_content(source: Path, small: Corpus, tmp_path: Path) -> None:
    moved = source.rename(tmp_path / "elsewhere")
    same = prepare(str(moved), tmp_path / "same", vocab=300, shares=(0.2, 0.2))
    assert same.hash == small.hash
    (moved / "part0" / "00.txt").write_bytes(TEXTS[0].encode() + b"!")
    with pytest.raises(ValueError, match="is another corpus"):
        prepare(str(moved), same.folder, vocab=300, shares=(0.2, 0.2))
    assert prepare(str(moved), tmp_path / "edited", tokenizer=small.tokenizer, shares=(0.2, 0.2)).hash != small.hash


def test_a_bpe_is_trained_on_the_first_documents_by_their_hash(
    source: Path, small: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []
    monkeypatch.setattr(module, "BPE_CHARACTERS", 600)
    monkeypatch.setattr(module, "train_bpe", lambda texts, vocab: heard.append(texts) or train_bpe(texts, vocab))
    prepare(str(source), tmp_path / "corpus", vocab=300, shares=(0.2, 0.2))
    assert sorted(heard[0], key=module.hash_position) == heard[0]
    assert sum(map(len, heard[0][:-1])) < 600 <= sum(map(len, heard[0]))
    assert set(heard[0]) <= set(split_documents(small, "train"))


def test_a_vocabulary_of_more_than_two_bytes_is_kept_in_four(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers

    library = Library(models.WordLevel({f"w{i}": i for i in range(70_000)}, "w0"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.save(str(tmp_path / "tokenizer.json"))
    assert open_tokenizer(tmp_path).dtype == np.uint32
    words = {(69_999 - i, i) for i in range(30)}
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": f"w{one} w{two}"} for one, two in words])
    made = prepare(str(rows), tmp_path / "pairs", tokenizer=str(tmp_path), shares=(0.3, 0.3))
    read = {split: made.tokens(split) for split in ("train", "selection", "test")}
    assert {tokens.dtype for tokens in read.values()} == {np.dtype(np.uint32)}
    spans = [span for split, tokens in read.items() for span in np.split(tokens, made.ends(split)[:-1])]
    assert sorted(map(tuple, (span[:2].tolist() for span in spans))) == sorted(words)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "w69999"}, {"text": "w3"}])
    with pytest.raises(ValueError, match="2 shorter than two tokens"):
        prepare(str(rows), tmp_path / "corpus", tokenizer=str(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "gone", "format", "manifest"])
def test_a_corpus_that_is_not_whole_is_refused(damage: str, small: Corpus) -> None:
    manifest = small.folder / "manifest.json"
    if damage == "cut":
        os.truncate(small.folder / "train.bin", 100)
    elif damage == "gone":
        (small.folder / "test.bin").unlink()
    else:
        manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 0') if damage == "format" else "{")
    with pytest.raises(ValueError, match="instead of|has format 0, not 1|is damaged"):
        open_corpus(small.folder)


def test_bigrams_are_those_of_train(small: Corpus) -> None:
    tokens = np.asarray(small.tokens("train"))
    wanted = Counter(zip(tokens.tolist(), tokens[1:].tolist(), strict=False))
    counts = small.counts()
    assert counts.total == len(tokens) - 1
    assert counts.lookup(tokens[:-1], tokens[1:]).tolist() == [
        wanted[pair] for pair in zip(tokens.tolist(), tokens[1:].tolist(), strict=False)
    ]
    assert small.counts(memory=2**16).most_common(3) == counts.most_common(3)


def test_nothing_heavy_is_imported_with_a_corpus() -> None:
    heavy = ("torch", "tokenizers", "datasets", "pyarrow", "pandas")
    code = f"import sys, bestiary.corpus.corpus; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
