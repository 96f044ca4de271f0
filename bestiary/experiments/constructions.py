"""How large is a model that recalls with weights written down, and is it ever wrong? Every construction, measured.

Nothing is trained. Each construction reads fresh sequences at growing sizes, in float64 and in float32; its layers,
width, weights and state are counted from the thing itself, and the figure sets beside each count the growth that is
proved (dashed, through the last point). `small` goes up to a vocabulary of 8,192 and 1,024 tokens where the width that
the theorem asks for allows it.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bestiary.report.plot import Growth, growth_panels

COUNTS = ("layers", "width", "parameters", "state")


def measure(scale: str) -> Iterator[dict[str, Any]]:
    """One row for each construction and size."""
    from bestiary.constructions.catalogue import CATALOGUE

    for name, entry in CATALOGUE.items():
        for vocab, length in entry.tiny if scale == "smoke" else entry.sizes:
            yield {"construction": name, "vocab": vocab, "tokens": length, **measure_construction(entry, vocab, length)}


def measure_construction(entry: Any, vocab: int, length: int) -> dict[str, Any]:
    """Size, right answers in float64 and float32, and seconds to build and to read."""
    from bestiary.constructions._construction import measure_size, score

    batch, start = entry.draw(vocab, length), time.perf_counter()
    construction = entry.build(vocab, length)
    built = time.perf_counter()
    right, asked = score(construction, batch)
    seconds = {"built": built - start, "seconds": time.perf_counter() - built}
    size = measure_size(construction, batch.tokens)._asdict()
    right_in_float32, _ = score(construction.float(), batch)
    return {**size, "right": right, "asked": asked, "right32": right_in_float32, **seconds}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The counts, and the accuracy in either type."""
    shares = {"accuracy": table["right"] / table["asked"], "in float32": table["right32"] / table["asked"]}
    columns = ["construction", "vocab", "tokens", *COUNTS, "asked", *shares, "built", "seconds"]
    return table.assign(**shares)[columns]


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """One panel for each construction: its counts against the number of tokens, at its largest vocabulary."""
    from bestiary.constructions.catalogue import CATALOGUE

    contents = {}
    for name, rows in table.groupby("construction", sort=False):
        rows = rows[rows["vocab"] == rows["vocab"].max()]
        proved = CATALOGUE[str(name)].proved
        contents[f"{name}, vocabulary {rows['vocab'].iloc[0]:,}"] = list(count_lines(rows, proved))
    yield (
        "",
        growth_panels(contents, x="Tokens read", note="Counted; dashed: the growth that is proved, up to a constant."),
    )


def count_lines(rows: pd.DataFrame, proved: Mapping[str, Any]) -> Iterator[Growth]:
    """The counts of a construction, each with the growth that is proved."""
    tokens = [float(n) for n in rows["tokens"]]
    for count in COUNTS:
        if count in proved and rows[count].notna().all():
            law, counted = proved[count], [float(n) for n in rows[count]]
            guide = [law.at(n) / law.at(tokens[-1]) * counted[-1] for n in tokens]
            yield Growth(count, tokens, counted, guide, law.text)
