"""A corpus of 60 tokens, every second of which follows from the one before, and a model that trains on it quickly."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bestiary.corpus.corpus import FORMAT, Corpus, open_corpus
from bestiary.lm.pretraining import Pretraining

HASH, VOCAB = "0123456789ab", 60
SIZES = {"train": 6000, "selection": 800, "test": 800}


def write_corpus(folder: Path) -> Corpus:
    """The corpus, without a tokenizer."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    rng = np.random.default_rng(0)
    for split, size in SIZES.items():
        tokens = rng.integers(0, VOCAB, size)
        tokens[1::2] = (7 * tokens[::2] + 3) % VOCAB
        tokens.astype(np.uint16).tofile(folder / f"{split}.bin")
    splits = {split: {"tokens": size} for split, size in SIZES.items()}
    manifest = {"format": FORMAT, "hash": HASH, "vocab": VOCAB, "dtype": "uint16", "splits": splits}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return open_corpus(folder)


def small_recipe(**changes: Any) -> Pretraining:
    shape = {"pattern": "attention(heads=2)", "dim": 16, "depth": 2, "context": 16, "batch": 4}
    length = {"steps": 20, "every": 5, "warmup": 4, "rate": 1e-2, "selection_rows": 12, "test_rows": 20}
    return Pretraining(**({"corpus": HASH, "vocab": VOCAB} | shape | length | changes))


def loss_rows(rows: list[dict[str, Any]]) -> list[tuple[int, str, float]]:
    return [(row["step"], row["split"], row["loss"]) for row in rows]


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def read_until(rows: Iterator[dict[str, Any]], step: int) -> None:
    """Read rows up to a step and leave it there."""
    while next(rows)["step"] < step:
        pass
    rows.close()  # pyright: ignore[reportAttributeAccessIssue]
