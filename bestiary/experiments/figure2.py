"""How wide must a model be to recall what it read? Attention against gated convolutions, after Figure 2 of Zoology.

Each panel is one load of multi-query associative recall; the question is how accuracy grows with model width.
Attention recalls at any width; a gated convolution, whose filters do not depend on the input, needs width that
grows with the load (Arora et al., 2023, section 4). `small` asks it on a short sequence with a vocabulary of 64,
which trains in seconds; `paper` is the published grid in the regime in which it was made: 7 mixers, 4 lengths, 4 widths
and 4 learning rates, with the published points beside ours.
"""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._lines import seeds_note
from bestiary.report.plot import Line, panels
from bestiary.runs.table import best, curve
from bestiary.spec import parse
from bestiary.training.recipe import Recipe, clean, iclr24, zoology23

GROUP = ("length", "pairs", "pattern", "depth", "dim")


def recipes(scale: str) -> Iterator[Recipe]:
    """A miniature of the figure, or its published grid."""
    match scale:
        case "smoke":
            yield from grid("mqar(vocab=32, length=16, pairs=2, filler='zero')", (8, 16), range(2), steps=60)
        case "small":
            yield from grid("mqar(vocab=64, length=32, pairs=4, filler='zero')", (32, 64, 128), range(3))
        case "paper":
            yield from published_grid()


MIXERS = {
    "Attention": "attention",
    "BaseConv": "base_conv(filter='explicit', taps=32)",
    "Based": "base_conv, based(features=8)",
}


def grid(task: str, dims: tuple[int, ...], seeds: range, **changes: int) -> Iterator[Recipe]:
    """Attention, a gated convolution, and linear attention behind a short one, each at one learning rate.

    Rates, weight decay and steps were chosen on the selection streams of other runs; LOG.md says how.
    """
    own = {
        "BaseConv": {"depth": 4, "channel": "copy", "rate": 3e-2, "weight_decay": 0.2, "steps": 1200},
        "Based": {"rate": 1e-2},
        "Attention": {},
    }
    for dim in reversed(dims):  # the longest first
        for mixer in [*(name for name in own if name in MIXERS), *(name for name in MIXERS if name not in own)]:
            settings = {"train": task, "dim": dim, "every": 50, **own.get(mixer, {}), **changes}
            yield from (clean(MIXERS[mixer], seed=seed, **settings) for seed in seeds)


WIDTHS = (64, 128, 256, 512)
RATES = (1e-4, 4.64e-4, 2.15e-3, 1e-2)


def published_grid() -> Iterator[Recipe]:
    """The 448 runs of the published figure.

    Those that it shows are made as it was, by `zoology23`; Based and Mamba, which later code added, by `iclr24`.
    H3 had other rates there at lengths from 128 on: four from 10^-3.3 to 10^-2.
    """
    for length, pairs in ((64, 4), (128, 8), (256, 16), (512, 64)):
        for dim in (64, 128, 256, 512):
            for rate in RATES:
                for mixer, pattern in published_mixers(length).items():
                    own = {"channel": "none", "dropout": 0.0} if pattern == "mamba" else {}  # its block has no copy
                    regime = zoology23 if mixer in PUBLISHED[length] else iclr24
                    yield regime(pattern, length=length, pairs=pairs, dim=dim, rate=rate, **own)


def published_mixers(length: int) -> dict[str, str]:
    """The pattern of each mixer of the published figure, at a length; those of its own runs start as they did there."""
    return {
        "Attention": "attention(dropout=0.1, init='zoology23', rotary=False)",
        "Hyena": f"hyena(init='zoology23', taps={length})",
        "RWKV": "rwkv4(init='zoology23', layers=2), rwkv4(init='zoology23', layer=1, layers=2)",
        "BaseConv": f"base_conv, base_conv(filter='implicit', taps={length})",
        "H3": "h3(head=2, init='zoology23'" + (")" if length == 64 else f", state={length})"),
        "Based": "base_conv, based(features=8)",
        "Mamba": "mamba",
    }


# Read from the vector file of the published figure (results.pdf at commit 2f5b63c); Based and Mamba are not in it.
PUBLISHED = {
    64: {
        "Attention": (0.997, 0.999, 1.000, 1.000),
        "BaseConv": (0.699, 0.941, 0.964, 0.999),
        "H3": (0.926, 0.997, 0.989, 0.977),
        "Hyena": (0.516, 0.751, 0.844, 0.865),
        "RWKV": (0.758, 0.933, 0.967, 0.985),
    },
    128: {
        "Attention": (0.998, 1.000, 1.000, 1.000),
        "BaseConv": (0.372, 0.613, 0.843, 0.964),
        "H3": (0.247, 0.735, 0.914, 0.761),
        "Hyena": (0.171, 0.643, 0.736, 0.840),
        "RWKV": (0.175, 0.496, 0.755, 0.930),
    },
    256: {
        "Attention": (0.996, 1.000, 1.000, 1.000),
        "BaseConv": (0.140, 0.335, 0.815, 0.938),
        "H3": (0.075, 0.642, 0.620, 0.668),
        "Hyena": (0.042, 0.132, 0.535, 0.692),
        "RWKV": (0.047, 0.061, 0.673, 0.794),
    },
    512: {
        "Attention": (1.000, 1.000, 1.000, 1.000),
        "BaseConv": (0.020, 0.015, 0.021, 0.712),
        "H3": (0.005, 0.015, 0.021, 0.087),
        "Hyena": (0.008, 0.030, 0.094, 0.172),
        "RWKV": (0.008, 0.018, 0.149, 0.366),
    },
}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each mixer at its best rate, with the interval over seeds and the steps to solve the task."""
    found = curve(best(table, group=GROUP), group=(*GROUP, "rate", "tried", "window"))
    found["mixer"] = [mixer_name(row.pattern, row.length) for row in found.itertuples()]
    columns = [
        "length",
        "pairs",
        "mixer",
        "depth",
        "dim",
        "accuracy",
        "low",
        "high",
        "seeds",
        "answers",
        "rate",
        "tried",
        "window",
    ]
    return found.sort_values(["length", "pairs", "mixer", "dim"])[[*columns, "solved", "seconds"]]


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Accuracy against width, one panel for each load, with the published points of runs in their own regime."""
    found = summary(table)
    contents, levels = {}, {}
    for (length, pairs), rows in found.groupby(["length", "pairs"], sort=True):
        title = f"length {length}, {pairs} pairs"
        lines = [
            Line(mixer, part["dim"].tolist(), *(part[column].tolist() for column in ("accuracy", "low", "high")))
            for mixer, part in rows.groupby("mixer", sort=False)
        ]
        alike = table[(table["length"] == length) & (table["weight_decay"] == 0.01)]  # trained by `zoology23`
        shown, known = {mixer_name(pattern, length) for pattern in alike["pattern"]}, PUBLISHED.get(length, {})
        published = [Line(mixer, WIDTHS, shares, published=True) for mixer, shares in known.items() if mixer in shown]
        contents[title], levels[title] = lines + published, {"1 / pairs": 1 / pairs}
    yield "", panels(contents, x="Model width", levels=levels, note=seeds_note(found))


def mixer_name(pattern: str, length: int) -> str:
    """The name of a pattern in the figure."""
    known = [*MIXERS.items(), *published_mixers(length).items()]
    twice = [(short, doubled(text)) for short, text in known]  # as `zoology23` has it
    return {text: short for short, text in [*twice, *known]}.get(pattern, pattern)


def doubled(text: str) -> str:
    """A pattern in which each part stands twice."""
    return ", ".join(str(part) for part in parse("mixers", text) for _ in "12")
