"""What is checked of a corpus: digests of its files, its source, splits that are not empty, the bytes of tokens."""

import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from in_process import command

from bestiary.corpus import corpus as opening
from bestiary.corpus.corpus import SPLITS, Corpus, open_corpus
from bestiary.corpus.prepare import PIECES, prepare
from bestiary.corpus.tokenizers import Tokenizer, open_tokenizer
from bestiary.slices.losses import split_text

OLD = Path(__file__).parent / "earlier" / "corpus"  # written before there were digests
TEXTS = [" ".join(np.random.default_rng(i).choice(["the", "naïve", "日本語", "🙂", "cat"], 60)) for i in range(60)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of sixty texts."""
    (tmp_path / "texts").mkdir()
    for i, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{i:02}.txt").write_bytes(text.encode())
    return tmp_path / "texts"


@pytest.fixture
def small(source: Path, tmp_path: Path) -> Corpus:
    return prepare(str(source), tmp_path / "small", vocab=300, shares=(0.2, 0.2))


def flip_bit(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def read_all(corpus: Corpus) -> None:
    for split in SPLITS:
        corpus.tokens(split)
        corpus.ends(split)


# digests


@pytest.mark.parametrize("at", [0, 0.5, -1])
def test_a_flipped_bit_anywhere_is_named_with_its_file(at: float, small: Corpus) -> None:
    files = [path for path in small.folder.rglob("*") if path.is_file() and path.name != "origin.json"]
    assert len(files) == 9
    for path in files:
        intact = path.read_bytes()
        flip_bit(path, int(at * (len(intact) - 1)) if at >= 0 else -1)
        with pytest.raises(ValueError, match=f"{path.name}.* (is damaged|has format)"):
            read_all(open_corpus(small.folder))
        path.write_bytes(intact)
    read_all(open_corpus(small.folder))


def test_every_flipped_bit_of_a_manifest_is_seen(small: Corpus) -> None:
    path = small.folder / "manifest.json"
    intact = path.read_bytes()
    for at in range(0, len(intact) - 1, 7):
        flip_bit(path, at)
        if json_or_none(path) != json.loads(intact):  # but for white space
            with pytest.raises(ValueError, match="is damaged|has format"):
                open_corpus(small.folder)
        path.write_bytes(intact)


def json_or_none(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None


@pytest.mark.parametrize("name", ["train.ends.npy", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"])
def test_a_file_that_is_missing_is_named(name: str, small: Corpus) -> None:
    (small.folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing: remove the folder"):
        read_all(open_corpus(small.folder))


def test_a_file_is_read_for_its_digest_once(small: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(opening, "check", lambda path, _: read.append(path.name))
    opening.check_once.cache_clear()
    for _ in range(3):
        read_all(open_corpus(small.folder))
    names = [f"{split}.{end}" for split in SPLITS for end in ("bin", "ends.npy")]
    assert sorted(read) == sorted([*names, "tokenizer.json", "tokenizer_config.json"])
    os.utime(small.folder / "train.bin")  # as one that was written again would
    read.clear()
    read_all(open_corpus(small.folder))
    assert read == ["train.bin"]


def test_counts_that_are_there_are_read_without_all_tokens(small: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    total = small.counts().total
    monkeypatch.setattr(opening, "check", None)
    opening.check_once.cache_clear()
    assert small.counts().total == total
    of = json.loads((small.folder / "counts" / "source.json").read_text())
    assert of["digest"] == small.manifest["digests"]["train.bin"]


def test_a_corpus_without_digests_is_read_and_said_to_be_unchecked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(OLD, tmp_path / "old")
    with caplog.at_level(logging.WARNING):
        corpus = open_corpus(tmp_path / "old")
        open_corpus(tmp_path / "old")
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'old'} was written before corpora had digests: its files are read unchecked"
    ]
    read_all(corpus)
    assert (corpus.hash, corpus.unit) == ("c5ccc290fdf5", "document")
    assert corpus.counts().total == len(corpus.tokens("train")) - 1


def damage(path: Path, rng: random.Random) -> None:
    """Flip a bit, cut, empty, delete or overwrite a file somewhere."""
    content, at = bytearray(path.read_bytes()), rng.randrange(path.stat().st_size)
    kind = rng.choice(["flip", "cut", "empty", "delete", "overwrite"])
    if kind == "flip":
        content[at] ^= 1 << rng.randrange(8)
    content[at : at + 8] = rng.randbytes(8) if kind == "overwrite" else content[at : at + 8]
    path.write_bytes({"cut": content[:at], "empty": b""}.get(kind, content))
    if kind == "delete":
        path.unlink()


@pytest.mark.parametrize("old", [False, True])
def test_damage_of_any_kind_is_refused_in_one_line_or_changes_nothing(old: bool, small: Corpus, tmp_path: Path) -> None:
    folder = shutil.copytree(OLD, tmp_path / "old") if old else small.folder
    small.counts()
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("origin.json", "lock")]
    rng, messages = random.Random(0), list[str]()

    def read() -> list[bytes]:
        corpus = open_corpus(folder)
        read_all(corpus)
        text = split_text(corpus, "test", 16)
        return [text.contexts.tobytes(), text.documents.tobytes(), text.facets.seen.tobytes(), str(text.bytes).encode()]

    intact = read()
    for _ in range(120):
        path = rng.choice(files)
        content = path.read_bytes()
        damage(path, rng)
        try:
            assert read() == intact or old  # which is read unchecked
        except (ValueError, LookupError) as fault:
            messages.append(str(fault))
        path.write_bytes(content)
    assert len(messages) > (60 if old else 110)
    assert not [message for message in messages if "\n" in message or str(folder) not in message and not old]


# an unchanged source


def rewrite(path: Path) -> None:
    path.write_text(path.read_text().replace("the", "eht"))


def rewrite_with_the_same_times(path: Path) -> None:
    times = path.stat()
    rewrite(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [rewrite, rewrite_with_the_same_times])
@pytest.mark.parametrize("kind", ["folder", "file", "jsonl", "hf"])
def test_a_source_rewritten_with_as_many_bytes_is_refused(
    kind: str, change: Callable[[Path], None], source: Path, tmp_path: Path
) -> None:
    file = source / "07.txt"
    if kind == "file":
        file = tmp_path / "all.txt"
        file.write_text("\n".join(2 * TEXTS))
    elif kind in ("jsonl", "hf"):
        pytest.importorskip("datasets")
        (tmp_path / "rows").mkdir()
        file = tmp_path / "rows" / "rows.jsonl"
        file.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    given = {"folder": str(source), "file": str(file), "jsonl": str(file), "hf": f"hf:{tmp_path / 'rows'}"}[kind]
    before = prepare(given, tmp_path / "corpus", tokenizer="bytes", shares=(0.2, 0.2))
    assert prepare(given, tmp_path / "corpus", tokenizer="bytes", shares=(0.2, 0.2)) == before
    change(file)
    with pytest.raises(ValueError, match=r"is another corpus, .*\(content \w{12} there, \w{12} given\): give another"):
        prepare(given, tmp_path / "corpus", tokenizer="bytes", shares=(0.2, 0.2))


def test_a_source_that_was_copied_or_touched_is_the_same(source: Path, small: Corpus, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "copy")
    os.utime(source / "07.txt", (0, 0))
    for place in (tmp_path / "copy", source):
        assert prepare(str(place), small.folder, vocab=300, shares=(0.2, 0.2)) == small


def test_only_files_that_were_read_count(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for i in range(9):
        (tmp_path / "texts" / f"{i}.txt").write_text("\n".join(40 * TEXTS))
    how = {"tokenizer": "bytes", "shares": (0.2, 0.2), "limit": 2_000_000}
    corpus = prepare(str(tmp_path / "texts"), tmp_path / "corpus", **how)
    assert corpus.manifest["request"]["content"]["files"] == 4
    rewrite(tmp_path / "texts" / "8.txt")
    assert prepare(str(tmp_path / "texts"), tmp_path / "corpus", **how) == corpus
    rewrite(tmp_path / "texts" / "3.txt")
    with pytest.raises(ValueError, match="is another corpus"):
        prepare(str(tmp_path / "texts"), tmp_path / "corpus", **how)


def test_a_source_that_changes_while_it_is_read_is_refused(source: Path, tmp_path: Path) -> None:
    def progress(*_: int) -> None:
        rewrite(source / "07.txt")

    with pytest.raises(ValueError, match="texts has changed while it was read: prepare it again"):
        prepare(str(source), tmp_path / "corpus", tokenizer="bytes", shares=(0.2, 0.2), progress=progress)
    assert os.listdir(tmp_path) == ["texts"]


def test_a_corpus_that_knows_names_and_sizes_alone_is_opened_and_said_to_be_unchecked(
    source: Path, small: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    """As those that were written before contents counted."""
    manifest = json.loads((small.folder / "manifest.json").read_text())
    for name in ("digest", "digests", "source_state"):
        del manifest[name]
    del manifest["request"]["content"]
    (small.folder / "manifest.json").write_text(json.dumps(manifest))
    with caplog.at_level(logging.WARNING):
        assert prepare(str(source), small.folder, vocab=300, shares=(0.2, 0.2)).hash == small.hash
    assert "knows the files of its source by names and sizes alone" in caplog.text
    (source / "07.txt").write_text("shorter")
    with pytest.raises(ValueError, match=r"source files \w{12} there, files \w{12} given"):
        prepare(str(source), small.folder, vocab=300, shares=(0.2, 0.2))


# splits


def test_few_long_documents_are_cut_until_no_split_is_empty(tmp_path: Path) -> None:
    (tmp_path / "novels").mkdir()
    texts = ["\n".join(" ".join(np.random.default_rng([i, j]).choice(list("abcdefg"), 30)) for j in range(4000))
             for i in range(9)]  # fmt: skip
    for i, text in enumerate(texts):
        (tmp_path / "novels" / f"{i}.txt").write_text(text)
    corpus = prepare(str(tmp_path / "novels"), tmp_path / "corpus", tokenizer="bytes")
    sizes = {split: part["bytes"] for split, part in corpus.manifest["splits"].items()}
    assert 0.02 < sizes["test"] / sum(sizes.values()) < 0.09
    assert 0.02 < sizes["selection"] / sum(sizes.values()) < 0.09
    assert sum(sizes.values()) == sum(len(text) for text in texts)
    assert (corpus.unit, corpus.manifest["piece_bytes"]) == ("piece", PIECES[0])
    ends = corpus.ends("train")
    assert np.diff(ends, prepend=0).max() <= PIECES[0] + 1
    assert open_corpus(corpus.folder) == prepare(str(tmp_path / "novels"), corpus.folder, tokenizer="bytes")


def test_documents_that_fill_every_split_are_not_cut(small: Corpus) -> None:
    assert (small.unit, small.manifest["piece_bytes"]) == ("document", None)


def test_a_text_file_by_itself_is_pieces(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("\n".join(40 * TEXTS))
    assert prepare(str(tmp_path / "long.txt"), tmp_path / "corpus", tokenizer="bytes").unit == "piece"


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_too_little_text_for_the_shares_is_refused_and_enough_without_them(tokenizer: str, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "one short text"}))
    with pytest.raises(ValueError, match="has too little text to split: .*would be empty, .*--selection and --test"):
        prepare(str(tmp_path / "one.jsonl"), tmp_path / "corpus", tokenizer=tokenizer)
    assert os.listdir(tmp_path) == ["one.jsonl"]
    assert prepare(str(tmp_path / "one.jsonl"), tmp_path / "corpus", tokenizer=tokenizer, shares=(0.0, 0.0), vocab=257)


# bytes


def test_a_refusal_stands_on_a_line_of_its_own_after_progress(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": "Ada has 3. " * 9}) + "\n" for _ in range(9)))
    done = command("corpus", "text.jsonl", "--out", "corpus", "--tokenizer", "bytes", "--limit", "100", folder=tmp_path)
    assert done.status == 2
    assert any(line.startswith("bestiary: text.jsonl has too little") for line in done.err.splitlines()), done.err
    assert "piece)" in done.err
    assert "\r" not in done.err


def word_level() -> Tokenizer:
    """Words without the white space between them; all but four are unknown."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers

    vocab = {"[UNK]": 0, "</s>": 1, "the": 2, "cat": 3, "naïve": 4}
    library = Library(models.WordLevel(vocab, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(library.to_str(), "words", 1)


def byte_fallback() -> Tokenizer:
    """BPE with bytes for what it lacks, the space included."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models

    vocab = {"<unk>": 0, "</s>": 1, "a": 2, "t": 3} | {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    library = Library(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    return Tokenizer(library.to_str(), "fallback", 1)


def with_prefix_space() -> Tokenizer:
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    letters = pre_tokenizers.ByteLevel.alphabet()
    library = Library(models.BPE(vocab={"</s>": 0} | {letter: 1 + i for i, letter in enumerate(letters)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    library.decoder = decoders.ByteLevel()
    return Tokenizer(library.to_str(), "prefix", 0)


OTHERS = {"words": word_level, "fallback": byte_fallback, "prefix": with_prefix_space}


@pytest.mark.parametrize("name", OTHERS)
def test_tokens_of_any_tokenizer_stand_for_all_bytes_of_the_text(name: str, source: Path, tmp_path: Path) -> None:
    tokenizer = OTHERS[name]()
    assert not tokenizer.is_byte_exact
    for text, (tokens, ends) in zip(TEXTS, tokenizer.encode_with_ends(TEXTS), strict=True):
        assert ends[-1] == len(text.encode()) != tokenizer.token_sizes[tokens].sum()
        assert (np.diff(ends, prepend=0) >= 0).all()
    corpus = prepare(str(source), tmp_path / "corpus", tokenizer=tokenizer, shares=(0.2, 0.2))
    for split in SPLITS:
        spans, ends = corpus.token_bytes(split), corpus.ends(split)
        sizes = spans.sizes(np.arange(len(corpus.tokens(split))))
        assert sizes.sum() == corpus.manifest["splits"][split]["bytes"]
        assert (sizes[ends - 1] == 0).all()  # separators
        texts = [spans.text(int(start), int(end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        assert set(texts) <= set(TEXTS)
    path = corpus.folder / "test.text.bin"
    flip_bit(path)
    with pytest.raises(ValueError, match=r"test.text.bin is damaged"):
        open_corpus(corpus.folder).token_bytes("test")


def test_words_own_the_space_before_them() -> None:
    ((tokens, ends),) = word_level().encode_with_ends(["the  cat 日本 "])
    assert tokens.tolist() == [2, 3, 0]
    assert ends.tolist() == [3, 8, 16]


def test_an_old_corpus_of_tokens_that_lose_bytes_is_read_but_has_no_bits_per_byte(source: Path, tmp_path: Path) -> None:
    corpus = prepare(str(source), tmp_path / "corpus", tokenizer=word_level(), shares=(0.2, 0.2))
    for split in SPLITS:
        (corpus.folder / f"{split}.byte_ends.bin").unlink()
    assert len(open_corpus(corpus.folder).tokens("train"))
    with pytest.raises(ValueError, match="does not say which bytes its tokens stand for"):
        corpus.token_bytes("test")


def test_bytes_and_byte_level_tokens_keep_no_text(small: Corpus) -> None:
    assert open_tokenizer("bytes").is_byte_exact
    assert small.tokenizer.is_byte_exact
    assert not list(small.folder.glob("*.text.bin"))
    spans, ends = small.token_bytes("test"), small.ends("test")
    assert spans.text(0, int(ends[0])) in TEXTS
