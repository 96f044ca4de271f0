"""Results kept as they are measured: whole after a kill, never another measurement's, never silently changed."""

from pathlib import Path

import pytest

from bestiary.lm.journal import Journal


def write(path: Path, count: int) -> None:
    with Journal(path, {"measures": "this"}) as journal:
        for i in range(count):
            journal.add(f"key {i}", [i, i / 3])


def test_results_are_there_again_and_half_a_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.jsonl"
    write(path, 3)
    path.write_bytes(path.read_bytes()[:-9])
    with Journal(path, {"measures": "this"}) as journal:
        assert journal.results == {"key 0": [0, 0.0], "key 1": [1, 1 / 3]}
        assert "key 2" not in journal
        journal.add("key 2", "anew")
    with Journal(path, {"measures": "this"}) as journal:
        assert journal["key 2"] == "anew"


@pytest.mark.parametrize("line", range(4))
def test_a_flipped_bit_is_named_with_its_line(tmp_path: Path, line: int) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    for position in range(len(lines[line]) - 1):
        changed = bytearray(lines[line])
        changed[position] ^= 1
        path.write_bytes(b"".join([*lines[:line], bytes(changed), *lines[line + 1 :]]))
        with pytest.raises(ValueError, match=rf"line \d of {path} is damaged"):
            Journal(path, {"measures": "this"})


def test_results_of_another_measurement_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "journal.jsonl", 1)
    with pytest.raises(ValueError, match="holds results of another measurement"):
        Journal(tmp_path / "journal.jsonl", {"measures": "that"})
