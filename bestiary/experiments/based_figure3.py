"""Which feature map recalls most for its state? Linear attention behind a short convolution, after Figure 3 of Based.

Each map at several widths, trained on a mixture of lengths and loads and tested beyond them; the figure is accuracy on
the hardest slice against the state, in numbers and counted. Upright lines say what that slice needs: where the bits
suffice, n log n, and where least squares recall it (see `bestiary.report.references`). `paper` is the published grid
of maps, widths and rates in its regime, `small` a mixture in miniature. The published figure is not available as
numbers.
Departs from the source: a Taylor map holds each product once, cosFormer's horizon is fixed; and Performer's state is
what its 256 samples need, where the source plotted the width of the input instead.
"""

from collections.abc import Iterator
from functools import cache

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._lines import at_best_rate, lines_by, seeds_note
from bestiary.report.plot import panels
from bestiary.report.references import draw_references, references, use_decade_ticks
from bestiary.spec import reading_data
from bestiary.training.recipe import Recipe, based, clean
from bestiary.training.size import state_size

MAPS = {
    "Taylor, 16": "based(features=16)",
    "Taylor, 24": "based(features=24)",
    "elu + 1": "linear_attention(feature='elu')",
    "identity": "linear_attention(feature='identity')",
    "ReLU": "linear_attention(feature='relu')",
    "square": "linear_attention(feature='square')",
    "cosFormer": "linear_attention(feature='cosformer')",
    "Performer": "linear_attention(feature='performer')",
    "polynomial": "linear_attention(feature='polynomial')",
}
SMALL = {  # Taylor maps of fewer features and a Performer of fewer samples, for the state of small widths
    "Taylor, 4": "based(features=4)",
    "Taylor, 8": "based(features=8)",
    "Performer": "linear_attention(feature='performer', samples=32)",
}
GROUP = ("map", "dim", "state")
RATES = (1e-3, 3.16e-3, 1e-2, 3.16e-2)


def recipes(scale: str) -> Iterator[Recipe]:
    """Every feature map at several widths, tested on the hardest segment."""
    miniature = {name: text for name, text in (MAPS | SMALL).items() if name not in ("Taylor, 16", "Taylor, 24")}
    match scale:
        case "smoke":
            tiny = {"steps": 10, "every": 5, "batch": 16, "selection_rows": 32, "test_rows": 32}
            yield from mixture_grid(miniature, (8,), (3e-3,), range(2), lengths=((16, 2),), hardest=(32, 4), **tiny)
        case "small":
            settings = {"steps": 800, "every": 100, "batch": 64, "selection_rows": 256, "test_rows": 1000}
            lengths = ((16, 2), (32, 4), (32, 8))
            yield from mixture_grid(
                miniature, (16, 32, 64), (1e-2,), range(3), lengths=lengths, hardest=(64, 16), **settings
            )
        case "paper":
            for dim in range(512, 0, -64):
                for text in MAPS.values():
                    for rate in RATES:
                        yield based(f"base_conv(filter='explicit', taps=3), {text}", dim=dim, rate=rate)


def mixture_grid(
    maps: dict[str, str],
    dims: tuple[int, ...],
    rates: tuple[float, ...],
    seeds: range,
    *,
    lengths: tuple[tuple[int, int], ...],
    hardest: tuple[int, int],
    **changes: int,
) -> Iterator[Recipe]:
    """Trained on short sequences of few pairs, tested on them and on the hardest."""
    train, (test,) = (
        [f"mqar(vocab=128, length={n}, pairs={p}, filler='zero')" for n, p in part] for part in (lengths, (hardest,))
    )
    tasks = {"train": ", ".join(train), "test": ", ".join([*train, test])}
    for dim in reversed(dims):
        for text in maps.values():
            for rate in rates:
                for seed in seeds:
                    yield clean(
                        f"base_conv(filter='explicit', taps=3), {text}",
                        dim=dim,
                        rate=rate,
                        seed=seed,
                        **tasks,
                        **changes,
                    )


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy on the slice with most pairs, of each map and width at its best rate, beside its state in numbers."""
    hard = table[table["pairs"] == table["pairs"].max()]
    hard = hard.assign(map=[pattern_name(text) for text in hard["pattern"]])
    models = zip(hard["pattern"], hard["dim"], hard["depth"], hard["task"], strict=True)
    return at_best_rate(hard.assign(state=[state_numbers(*model) for model in models]), GROUP)


def pattern_name(pattern: str) -> str:
    """The experiment's name for the feature map of a pattern."""
    return short_names().get(pattern.partition("), ")[2], pattern)


@cache
def short_names() -> dict[str, str]:
    """The name of each feature map by the text of its mixer."""
    from bestiary.spec import parse

    return {str(parse("mixers", text)[0]): name for part in (MAPS, SMALL) for name, text in part.items()}


@reading_data()
def state_numbers(pattern: str, dim: int, depth: int, task: str) -> int:
    """Numbers in the state of a model after a sequence of the task."""
    return state_size(clean(pattern, dim=int(dim), depth=int(depth), train=task))[0]


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Accuracy on the hardest slice against the state, a line for each map."""
    found, pairs = summary(table), int(table["pairs"].max())
    vocab = int(table["vocab"].iloc[0])
    title = f"{pairs} pairs, vocabulary {vocab:,}"
    figure = panels({title: lines_by(found, x="state", by="map")}, x="Numbers in the state", note=seeds_note(found))
    draw_references(figure, {title: references(pairs, vocab)})
    use_decade_ticks(figure)
    yield "", figure
