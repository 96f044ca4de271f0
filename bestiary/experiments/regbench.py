"""Which models infer a new language from its strings? RegBench, in-context language learning (Akyurek et al., 2024).

Every sequence holds strings of an automaton of its own. Accuracy is the share of predicted symbols that are legal
after the string so far, `tvd` the total variation distance between the model's distribution and the uniform one
over the legal symbols. They are drawn against the number of distinct training sequences, as in the paper.
Departs from the source: two layers rather than 8 or 12, one learning rate, and in `small` smaller automata, shorter
strings and fewer of them.
"""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._lines import at_best_rate, lines_by, name_mixers, seeds_note
from bestiary.report.plot import panels
from bestiary.training.recipe import Recipe, clean

MIXERS = {
    "Attention": "attention(heads=2)",
    "Mamba": "mamba",
    "Mamba-2": "mamba2",
    "GLA": "gla",
    "Gated DeltaNet": "gated_delta",
    "RWKV-7": "rwkv7, rwkv7(layer=1)",
}
GROUP = ("mixer", "rows")
BATCH = 32


def recipes(scale: str) -> Iterator[Recipe]:
    """Every mixer at several numbers of training sequences."""
    match scale:
        case "smoke":
            yield from grid(
                "regbench(states=4, letters=4, strings=3, least=3)", (64,), range(2), dim=16, steps=4, every=2
            )
        case "small":
            yield from grid("regbench", (1024, 4096, 16384), range(2), dim=64, steps=1500, every=100)
        case "paper":
            rows = (1024, 2560, 5120, 10240, 20480, 40960)
            yield from grid("regbench.paper", rows, range(3), dim=256, steps=30_000, every=500)


def grid(task: str, rows: tuple[int, ...], seeds: range, **changes: int) -> Iterator[Recipe]:
    """Every number of training sequences, mixer and seed."""
    for count in rows:
        for pattern in MIXERS.values():
            for seed in seeds:
                finite = {"distinct": (count // BATCH,), "shuffle": "rows", "batch": BATCH, "test_rows": 1000}
                settings = {"train": task, "seed": seed, "rate": 3e-3, "stop": None, "channel": "mlp"}
                yield clean(pattern, **settings, **finite, **changes)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Legal moves and distance of distributions for each mixer and number of training sequences, with intervals."""
    table = name_mixers(table, MIXERS).assign(rows=[BATCH * sum(distinct) for distinct in table["distinct"]])
    found = at_best_rate(table, GROUP)
    if "tvd" in table:  # not where nothing but diverged runs are known
        close = at_best_rate(table.assign(close=1 - table["tvd"]), GROUP, value="close")
        found = found.assign(tvd=1 - close["close"], tvd_low=1 - close["high"], tvd_high=1 - close["low"])
    return found


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Legal moves, and one minus the distance of distributions, against training sequences."""
    found = summary(table)
    contents = {"Legal moves": lines_by(found, x="rows", by="mixer")}
    if "tvd" in found:
        close = found.assign(close=1 - found["tvd"], low=1 - found["tvd_high"], high=1 - found["tvd_low"])
        contents["1 - total variation distance"] = lines_by(close, x="rows", by="mixer", value="close")
    yield "", panels(contents, x="Training sequences", y="", note=seeds_note(found))
