"""Does training find what can be written down? Models of the same layers and width as a construction that is exact.

Each construction recalls without a fault at its width. Here the same mixers, in as many layers and of the same width,
start from their usual weights and are trained on the same task, three seeds at each of several learning rates, the best
of which counts. A construction is a proof that weights exist and no statement about which of them training reaches.
Trained models have norms and a residual stream around each layer; of the constructions only attention has them.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bestiary.report.plot import Line, panels
from bestiary.runs.table import best, curve
from bestiary.training.recipe import Recipe, clean

GROUP = ("vocab", "length", "pairs", "pattern", "depth", "dim")
SIZES = {
    "smoke": [(16, 12, 2)],
    "small": [(32, 24, 4), (64, 32, 4)],
    "paper": [(64, 32, 4), (256, 64, 8), (512, 128, 16)],
}


def constructions(vocab: int, length: int) -> dict[str, tuple[int, Callable[[], Any]]]:
    """For each pattern of mixers the number of its layers, and a function that builds the construction."""
    from bestiary.constructions.memories import memory_of
    from bestiary.constructions.softmax_attention import PATTERN, softmax_attention

    convolved = "short_conv(taps=2, residual=False)"
    attention = f'linear_attention(feature="identity", normalise=False, features={vocab // 2 - 1})'
    return {
        PATTERN: (2, lambda: softmax_attention(vocab, length)),
        f"serial('{convolved}, {attention}')": (1, lambda: memory_of("linear", vocab)),
        "delta_net(heads=1, conv=2)": (1, lambda: memory_of("delta", vocab)),
        "mesa_net(heads=1, conv=2, steps=1)": (1, lambda: memory_of("squares", vocab)),
    }


def recipes(scale: str) -> Iterator[Recipe]:
    """The same layers at the same width, at each rate and seed."""
    for vocab, length, pairs in SIZES[scale]:
        task = f"mqar(vocab={vocab}, length={length}, pairs={pairs})"
        for pattern, (depth, build) in constructions(vocab, length).items():
            own = {
                "train": task,
                "depth": depth,
                "dim": stream_width(build()),
                "steps": {"smoke": 20, "small": 2000}.get(scale, 20_000),
            }
            for rate in (1e-2,) if scale == "smoke" else (1e-3, 3e-3, 1e-2):
                for seed in range(2 if scale == "smoke" else 3):
                    yield clean(pattern, rate=rate, seed=seed, **own)


def stream_width(construction: Any) -> int:
    """The width of a construction's stream."""
    import torch

    from bestiary.constructions._construction import measure_size

    return measure_size(construction, torch.zeros(1, 2, dtype=torch.long)).width


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of what was trained, at its best rate, beside that of the construction, both on test streams."""
    found = curve(best(table, group=GROUP), group=(*GROUP, "rate", "tried"))
    found["written"] = [
        construction_accuracy(*(getattr(row, name) for name in GROUP[:4])) for row in found.itertuples()
    ]
    columns = [*GROUP, "written", "accuracy", "low", "high", "seeds", "solves", "answers", "rate", "tried", "seconds"]
    return found[columns]


@cache
def construction_accuracy(vocab: int, length: int, pairs: int, pattern: str) -> float:
    """The accuracy of the construction on sequences of the test stream."""
    from bestiary.constructions._construction import score
    from bestiary.spec import spec

    known = {canonical_pattern(name): build for name, (_, build) in constructions(vocab, length).items()}
    task = spec("tasks", "mqar", vocab=vocab, length=length, pairs=pairs).build()
    right, asked = score(known[pattern](), task.draw(16, "test", 0))
    return right / asked


def canonical_pattern(pattern: str) -> str:
    """A pattern as a table has it."""
    from bestiary.spec import parse, reading_data

    with reading_data():
        return ", ".join(map(str, parse("mixers", pattern)))


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Trained and written accuracy against the vocabulary, one panel for each pattern."""
    contents, found = {}, summary(table)
    for title, rows in found.groupby(found["pattern"].map(panel_title), sort=False):
        vocab = rows["vocab"].tolist()
        trained = Line("trained", vocab, *(rows[column].tolist() for column in ("accuracy", "low", "high")))
        contents[str(title)] = [Line("written down", vocab, rows["written"].tolist()), trained]
    yield "", panels(contents, x="Vocabulary", note="Trained: mean over seeds at the best rate and 95 % interval.")


def panel_title(pattern: str) -> str:
    """A short name for the memory of a pattern."""
    names = {
        "attention": "attention",
        "serial": "linear attention",
        "delta_net": "delta rule",
        "mesa_net": "least squares",
    }
    return next(name for start, name in names.items() if pattern.startswith(start))
