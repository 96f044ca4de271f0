"""Which mixers track a state, at what depth, and beyond the length they were trained on? Parity and groups.

A diagonal recurrence with non-negative decays cannot keep a parity, whatever its depth and weights, on sequences of
any length (Grazzi et al., 2024); eigenvalues down to -1 can, and products of reflections multiply permutations
(DeltaProduct, Siems et al., 2025); attention needs depth that grows with the length. One element of a group is read
at a time, and the product so far is asked. Tests go up to four times the trained length.
"""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._lines import at_best_rate, lines_by, name_mixers, seeds_note
from bestiary.report.plot import panels
from bestiary.runs.table import depth_for
from bestiary.training.recipe import Recipe, clean

MIXERS = {
    "Attention": "attention(heads=2)",
    "Mamba-2": "mamba2",
    "DeltaNet": "delta_net",
    "DeltaNet, negative": "delta_net(negative=True)",
    "DeltaProduct": "delta_product(steps=2)",
    "LSTM": "lstm",
}
GROUP = ("group", "mixer", "depth", "length")


def recipes(scale: str) -> Iterator[Recipe]:
    """Every mixer and depth on several groups."""
    match scale:
        case "smoke":
            yield from grid(("Z2",), (8, 16), (1,), (3e-3,), range(2), steps=20, every=10, selection_rows=64)
        case "small":
            groups = ("Z2", "S3", "A5")
            yield from grid(groups, (16, 32, 64), (1, 2), (3e-3,), range(3), steps=1000, every=50, test_rows=500)
        case "paper":
            groups, rates = ("Z2", "S3", "S4", "A5", "S5", "Z60", "A4xZ5"), (3e-4, 1e-3, 3e-3)
            yield from grid(groups, (128, 256, 512), (1, 2, 4, 8), rates, range(3), steps=20_000, every=200)


def grid(
    groups: tuple[str, ...],
    lengths: tuple[int, ...],
    depths: tuple[int, ...],
    rates: tuple[float, ...],
    seeds: range,
    **changes: int,
) -> Iterator[Recipe]:
    """Trained at the first of the lengths."""
    for group in groups:
        task, *longer = (f"group_words(group='{group}', length={length})" for length in lengths)
        for depth in reversed(depths):
            for pattern in MIXERS.values():
                for rate in rates:
                    for seed in seeds:
                        settings = {"train": task, "select": task, "test": ", ".join([task, *longer]), **changes}
                        yield clean(pattern, depth=depth, channel="mlp", rate=rate, seed=seed, **settings)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy over all positions, and the share of sequences without a fault, by group, depth and tested length."""
    table = name_mixers(table, MIXERS)
    found = at_best_rate(table, GROUP)
    whole = at_best_rate(table, GROUP, value="whole").set_index(list(GROUP))["whole"]
    found["whole"] = [whole[tuple(row)] for row in found[list(GROUP)].itertuples(index=False)]
    least = depth_for(found, 0.9, group=("group", "mixer", "length"))
    return found.merge(least.rename(columns={"depth": "depth for 0.9"}), on=["group", "mixer", "length"])


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Accuracy against depth at the trained length; and against length at the greatest depth."""
    found = summary(table)
    trained, deep = found[found["length"] == found["length"].min()], found[found["depth"] == found["depth"].max()]
    for suffix, part, x, label in (("", trained, "depth", "Layers"), ("-length", deep, "length", "Elements")):
        contents = {str(group): lines_by(rows, x=x, by="mixer") for group, rows in part.groupby("group", sort=False)}
        yield suffix, panels(contents, x=label, y="Accuracy", note=seeds_note(part))
