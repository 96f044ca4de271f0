"""A digest tells a damaged file by its name."""

import subprocess
from pathlib import Path

import pytest

from bestiary.runs.digests import check, digest, digest_bytes


def test_every_flipped_bit_is_found_and_the_file_is_named(tmp_path: Path) -> None:
    place, content = tmp_path / "weights", bytes(range(256)) * 8
    place.write_bytes(content)
    expected = digest(place)
    check(place, expected)
    for position in (0, 1000, len(content) - 1):
        place.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with pytest.raises(ValueError, match=f"{place} is damaged"):
            check(place, expected)


def test_a_digest_is_that_of_sha256sum_and_of_the_bytes(tmp_path: Path) -> None:
    place = tmp_path / "log"
    place.write_bytes(b"one\ntwo\n")
    seen = subprocess.run(["sha256sum", place], capture_output=True, text=True, check=True).stdout.split()[0]
    assert digest(place) == digest_bytes(b"one\ntwo\n") == seen
