"""Which learning rates work? The window of each mixer, and the best rate in it, after Okpekpe & Orvieto (2025).

They find that attention learns to recall over a wide range of rates, and recurrent models in a narrow one that coarse
grids miss. Twelve rates or more on a fine grid, three seeds each, depth 1 and 2, with a channel mixer and a warm-up of
a tenth of the steps; the edges of each window are then sharpened once. A rate works if the mean selection accuracy over
seeds is at least 0.9. `paper` has the four loads of Figure 2 of Zoology, 50 epochs of its 100,000 rows.
Departs from the source: rates are chosen on the selection stream, runs end when that is solved, two widths of the six,
and what we do not know of their recipe is as in `iclr24`. `small` asks it on a short sequence with zero filler, few
steps and no channel mixer, with which nothing but guessing is learnt in so few.
"""

from collections.abc import Iterator

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bestiary.experiments._lines import lines_by, name_mixers, seeds_note
from bestiary.report.plot import panels
from bestiary.report.references import use_decade_ticks
from bestiary.runs.table import curve
from bestiary.sweep.search import rates, refine, windows
from bestiary.training.recipe import Recipe, clean, iclr24

MIXERS = {
    "Attention": "attention",
    "Hyena": "hyena",
    "Mamba": "mamba",
    "Gated DeltaNet": "gated_delta",
    "DeltaNet": "delta_net",
    "Mamba-2": "mamba2",
}
LARGE = ("Gated DeltaNet", "Mamba-2")  # of `paper` alone
GROUP = ("length", "pairs", "dim", "depth", "mixer")
LOW, HIGH = 1e-4, 1e-1
COUNT = {"smoke": 3, "small": 12, "paper": 16}


def recipes(scale: str) -> Iterator[Recipe]:
    """Every rate and seed of each mixer at depth 1 and 2. Raises ValueError if this scale has none of the mixers."""
    if not mixers_of(scale):
        raise ValueError(f"{scale} has none of these mixers: {', '.join(MIXERS)}; --scale paper has all")
    for depth in (2, 1):
        for mixer in mixers_of(scale):
            for recipe in base_recipes(scale, MIXERS[mixer], depth):
                for rate in rates(LOW, HIGH, COUNT[scale]):
                    for seed in range(2 if scale == "smoke" else 3):
                        yield recipe.model_copy(update={"rate": rate, "seed": seed})


def mixers_of(scale: str) -> list[str]:
    """The names of the mixers of a scale."""
    few = [mixer for mixer in MIXERS if mixer not in LARGE]
    return list(MIXERS) if scale == "paper" else few[:: 2 if scale == "smoke" else 1]


def base_recipes(scale: str, pattern: str, depth: int) -> Iterator[Recipe]:
    """The recipes of a mixer and depth, to be run at every rate and seed."""
    own = {"depth": depth, "channel": "mlp"}
    match scale:
        case "smoke":
            tiny = {"steps": 20, "warmup": 2, "every": 10, "batch": 16, "selection_rows": 64, "test_rows": 64}
            yield clean(pattern, train="mqar(vocab=32, length=16, pairs=2)", dim=16, **own, **tiny)
        case "small":
            settings = {"steps": 500, "warmup": 50, "every": 50, "batch": 64, "selection_rows": 256, "test_rows": 1000}
            task = "mqar(vocab=64, length=32, pairs=4, filler='zero')"
            yield clean(pattern, train=task, dim=32, depth=depth, **settings)
        case "paper":
            for length, pairs in ((64, 4), (128, 8), (256, 16), (512, 64)):
                for dim in (64, 256):
                    settings = iclr24(pattern, length=length, pairs=pairs, dim=dim, **own)
                    (epoch,) = settings.distinct
                    regime = {"steps": 50 * epoch, "warmup": 5 * epoch, "hold": 1, "steer": "selection"}
                    yield settings.model_copy(update=regime)


def next_recipes(table: pd.DataFrame, scale: str) -> list[Recipe]:
    """Rates that halve, once, the distance between the last rate that works and the first that does not."""
    return refine(recipes(scale), table, within=(HIGH / LOW) ** (0.5 / (COUNT[scale] - 1)))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Best rate of each mixer, accuracy there, and the window of rates that work, in decades and with its edges."""
    return windows(name_mixers(table, MIXERS), group=GROUP).sort_values(list(GROUP))


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Accuracy against learning rate, one panel for each depth, a figure for each load and width; windows as bars."""
    table = name_mixers(table, MIXERS)
    found, best = curve(table, group=(*GROUP, "rate")), windows(table, group=GROUP)
    cell = ["length", "pairs", "dim"]
    for (length, pairs, dim), rows in found.groupby(cell):
        suffix = f"-{length}-{pairs}-{dim}" if found[cell].drop_duplicates().shape[0] > 1 else ""
        contents = {f"depth {depth}": lines_by(part, x="rate", by="mixer") for depth, part in rows.groupby("depth")}
        note = f"{seeds_note(rows)}\nLength {length}, {pairs} pairs, width {dim}. Bars: windows of rates that work."
        figure = panels(contents, x="Learning rate", y="Accuracy", note=note)
        use_decade_ticks(figure)
        here = best[(best[cell] == [length, pairs, dim]).all(axis=1)]
        for axis, (_, part) in zip(figure.axes, here.groupby("depth"), strict=True):
            draw_windows(axis, part.set_index("mixer")[["from", "to"]].dropna())
        yield suffix, figure


def draw_windows(axis: Axes, spans: pd.DataFrame) -> None:
    """Draw each window as a bar below the axis, in the colour of its line."""
    looks = {line.get_label(): line.get_color() for line in axis.get_lines()}
    for i, (mixer, row) in enumerate(spans.iterrows()):
        axis.plot([row["from"], row["to"]], 2 * [-0.05 * (i + 1)], color=looks[mixer], linewidth=2.5, clip_on=False)
    axis.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axis.set_ylim(-0.05 * (len(spans) + 1), 1.03)
