"""Reading folders and files of any kind: what is left out is counted, and what is faulty is named in one line."""

import bz2
import gzip
import json
import lzma
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bestiary.corpus import documents as reading
from bestiary.corpus.documents import cut_text, documents

TEXTS = ["one text", "another,\nof two lines", "naïve 日本語 🙂"]


def read(source: Path) -> tuple[list[str], dict[str, int]]:
    """The documents of a source, and what was skipped."""
    skipped = Counter[str]()
    return list(documents(str(source), skipped=skipped)), dict(skipped)


def rows() -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def zstd(content: bytes) -> bytes:
    arrow = pytest.importorskip("pyarrow")
    return arrow.Codec("zstd").compress(content, asbytes=True)


PACKERS: dict[str, Any] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("capitals", [False, True])
def test_compressed_rows_and_texts_are_read(suffix: str, capitals: bool, tmp_path: Path) -> None:
    names = [f"a.jsonl.{suffix}", f"b.txt.{suffix}", f"c.md.{suffix}"]
    names = [name.upper() if capitals else name for name in names]
    pack = PACKERS[suffix]
    (tmp_path / names[0]).write_bytes(pack(rows()))
    (tmp_path / names[1]).write_bytes(pack(b"first, ") + pack(b"then this"))  # as `cat` makes
    (tmp_path / names[2]).write_bytes(pack(("long " * 10**6).encode()))
    found, skipped = read(tmp_path)
    assert found[:4] == [*TEXTS, "first, then this"]
    assert "".join(found[4:]) == "long " * 10**6
    assert skipped == {}
    assert read(tmp_path / names[0])[0] == TEXTS


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_compressed_file_that_is_damaged_is_skipped_in_a_folder_and_refused_by_name(
    suffix: str, tmp_path: Path
) -> None:
    (tmp_path / "good.txt").write_text("good")
    whole = PACKERS[suffix](os.urandom(5000).hex().encode())
    kinds = [whole[:-300], b"no such file", whole[:200] + b"damage" + whole[206:]]
    if suffix == "zst":
        kinds.pop()  # pyarrow writes no checksum
    for number, damaged in enumerate(kinds):
        (tmp_path / f"bad{number}.txt.{suffix}").write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"bad{number}.txt.{suffix} is no whole \w+ file: "):
            read(tmp_path / f"bad{number}.txt.{suffix}")
    assert read(tmp_path) == (["good"], {"damaged": len(kinds)})


def test_zstd_without_its_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"some")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LookupError, match=r"a.jsonl.zst needs pyarrow: pip install 'bestiary\[text\]'"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["A.JSONL", "A.Json", "A.NDJSON", "A.PARQUET"])
def test_rows_are_known_by_their_suffix_in_capitals_too(name: str, tmp_path: Path) -> None:
    if name.endswith("PARQUET"):
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist([{"text": text} for text in TEXTS]), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(rows())
    assert read(tmp_path) == (TEXTS, {})


def test_what_is_left_out_of_a_folder_is_counted_by_its_reason(tmp_path: Path) -> None:
    for name, content in {
        "a.txt": b"text",
        "empty.txt": b"",
        "image.png": b"\x89PNG\0",
        "archive.zip": b"PK\0\0",
        "latin.txt": "ü".encode("latin-1"),
        ".hidden": b"text",
        ".git/config": b"text",
        "__pycache__/a.pyc": b"text",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    counted = {"hidden": 2, "binary": 2, "empty": 1, "invalid UTF-8": 1, "caches and installed packages": 1}
    assert read(tmp_path) == (["text"], counted | {"broken links": 1, "not files": 1})


def test_links_are_followed_once(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    (folder / "inside").mkdir(parents=True)
    (outside / "deep").mkdir(parents=True)
    for place in (folder / "inside", outside, outside / "deep"):
        (place / "text.txt").write_text(f"in {place.name}")
    (folder / "link").symlink_to(outside)
    (folder / "link2").symlink_to(outside)
    (folder / "again").symlink_to(folder / "inside")  # before the folder itself, by its name
    (folder / "inside" / "loop").symlink_to(folder)
    (folder / "above").symlink_to(tmp_path)
    (outside / "deep" / "loop").symlink_to(outside)
    (folder / "self").symlink_to(folder / "self")
    (folder / "file.txt").symlink_to(outside / "text.txt")
    found, skipped = read(folder)
    assert sorted(found) == ["in deep", "in inside", "in outside", "in outside"]  # a link to a file is a file
    assert skipped == {"links to what is read already": 5, "broken links": 1}


def test_a_link_to_what_would_not_be_read_by_itself_is_followed(tmp_path: Path) -> None:
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "a.txt").write_text("text")
    (tmp_path / "data").symlink_to(tmp_path / ".data")
    assert read(tmp_path) == (["text"], {"hidden": 1})


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "b.jsonl", "a.parquet", "a.txt.gz"])
def test_a_byte_order_mark_is_removed_everywhere(name: str, tmp_path: Path) -> None:
    text, path = "\ufeffa text with \ufeff inside", tmp_path / name
    if name == "a.parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist([{"text": text}]), path)
    elif name == "a.jsonl":
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"text": text}, ensure_ascii=False).encode())
    elif name == "b.jsonl":
        path.write_text(json.dumps({"text": text}))
    else:
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    for source in (path, tmp_path):
        assert read(source)[0] == ["a text with \ufeff inside"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"text": "a", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}", "is no JSON of text"),
        ('{"text": "a", "number": ' + "9" * 5000 + "}", "is no JSON of text"),
        ('{"text": "' + "a" * 2**12 + '"}', "is longer than 0 MiB"),
    ],
    ids=["deep", "long number", "long line"],
)
def test_lines_that_no_reader_bears_are_named(
    line: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "longer" in what:
        monkeypatch.setattr(reading, "LINE_BYTES", 2**12)
    (tmp_path / "rows.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(ValueError, match=f"rows.jsonl, line 2 {what}") as fault:
        read(tmp_path)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("checksums", [False, True])
def test_a_parquet_file_with_a_damaged_page_is_named(checksums: bool, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, rng = tmp_path / "rows.parquet", random.Random(0)
    values = [{"text": rng.randbytes(20).hex()} for _ in range(9000)]
    how = {"row_group_size": 3000, "use_dictionary": False, "write_page_checksum": checksums}
    parquet.write_table(arrow.Table.from_pylist(values), path, **how)
    whole, caught = path.read_bytes(), list[str]()
    for at in range(200, 60_000, 2_000):  # in the first group of rows
        path.write_bytes(whole[:at] + b"\xff" * 8 + whole[at + 8 :])
        try:
            read(path)
        except ValueError as fault:
            caught.append(str(fault))
    assert len(caught) == 30
    assert all(message.startswith(f"{path} is no whole Parquet file: ") and "\n" not in message for message in caught)


@pytest.mark.parametrize("line", ["a line of ünïcödé\n", "日本語"])
def test_a_text_is_cut_where_lines_or_else_characters_end(line: str) -> None:
    parts = list(cut_text(100 * line, 64))
    assert "".join(parts) == 100 * line
    assert all(0 < len(part.encode()) <= 64 for part in parts)
    assert all(part.endswith("\n") for part in parts) or "\n" not in line
    assert list(cut_text("short", 64)) == ["short"]
