"""How far back does each mixer recall? Accuracy against the distance from a question to its pair.

One load of multi-query recall, whose questions are spread over the whole sequence. Two layers of a sliding window see
as far as twice the window and no further; a fixed decay forgets with age; attention should not care. Distances are
binned by powers of two: a bin holds those from its number up to twice that.
"""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._lines import at_best_rate, lines_by, name_mixers, seeds_note
from bestiary.report.plot import panels
from bestiary.training.recipe import Recipe, clean

facet = "distance"  # the rows given to `summary` and `figures` are those of bestiary.runs.facets.by_facet

MIXERS = {
    "Attention": "attention",
    "Window of 8": "attention(window=8)",
    "RetNet": "retnet",
    "Based": "base_conv, based(features=8)",
    "Mamba": "mamba",
    "Gated DeltaNet": "gated_delta",
}
GROUP = ("length", "pairs", "dim", "mixer", "distance")


def recipes(scale: str) -> Iterator[Recipe]:
    """Every mixer at one load."""
    match scale:
        case "smoke":
            tiny = {"steps": 20, "every": 10, "batch": 16, "selection_rows": 64, "test_rows": 64}
            yield from grid("mqar(vocab=64, length=32, pairs=2, power=0.5)", (3e-3,), range(2), dim=16, **tiny)
        case "small":
            settings = {"steps": 1000, "every": 50, "batch": 64, "dim": 64, "selection_rows": 256, "test_rows": 2000}
            yield from grid(
                "mqar(vocab=128, length=64, pairs=4, power=0.5, filler='zero')", (3e-3,), range(3), **settings
            )
        case "paper":
            settings = {"steps": 20_000, "every": 200, "dim": 128}
            for length, pairs in ((256, 16), (1024, 64)):
                task = f"mqar(length={length}, pairs={pairs}, power=0.5)"
                yield from grid(task, (1e-3, 3e-3, 1e-2), range(3), **settings)


def grid(task: str, rates: tuple[float, ...], seeds: range, **changes: int) -> Iterator[Recipe]:
    """Every mixer, rate and seed."""
    for pattern in reversed(MIXERS.values()):
        for rate in rates:
            for seed in seeds:
                yield clean(pattern, train=task, rate=rate, seed=seed, **changes)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy in each bin of distances, of each mixer at the rate that is best over all of them."""
    return at_best_rate(bin_distances(name_mixers(table, MIXERS)), GROUP)


def bin_distances(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each run and bin: the counts of its distances, summed."""
    bins = [2 ** (int(distance).bit_length() - 1) for distance in table[facet]]
    runs = table.assign(distance=bins).groupby(["key", "segment", "distance"], sort=False, as_index=False)
    found = runs.agg(
        {name: "sum" if name in ("right", "asked") else "first" for name in table if name not in runs.keys}
    )
    return found.assign(accuracy=(found["right"] / found["asked"]).where(found["asked"] > 0))


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Accuracy against distance, one panel for each load."""
    found = summary(table)
    contents, levels = {}, {}
    for (length, pairs), rows in found.groupby(["length", "pairs"]):
        title = f"length {length}, {pairs} pairs"
        contents[title], levels[title] = lines_by(rows, x="distance", by="mixer"), {"1 / pairs": 1 / pairs}
    yield "", panels(contents, x="Tokens back to the key", levels=levels, note=seeds_note(found))
