"""How wide must a model be to recall what it read? Attention against gated convolutions, after Figure 2 of Zoology.

Each panel is one load of multi-query associative recall; the question is how accuracy grows with model width.
Attention recalls at any width; a gated convolution, whose filters do not depend on the input, needs width that
grows with the load (Arora et al., 2023, section 4). `small` asks it on a short sequence with a vocabulary of 64,
which trains in seconds; `paper` is the published grid under its published regime: 7 mixers, 4 lengths, 4 widths
and 4 learning rates, with the published points beside ours.
"""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._lines import seeds_note
from bestiary.report.plot import Line, panels
from bestiary.runs.table import best, curve
from bestiary.training.recipe import Recipe, clean, iclr24

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


SMALL = {
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
        for mixer, choices in own.items():
            for seed in seeds:
                yield clean(
                    SMALL[mixer], **({"train": task, "dim": dim, "seed": seed, "every": 50} | choices | changes)
                )


WIDTHS = (64, 128, 256, 512)
RATES = (1e-4, 4.64e-4, 2.15e-3, 1e-2)


def published_grid() -> Iterator[Recipe]:
    """The 448 runs of the published figure."""
    for length, pairs in ((64, 4), (128, 8), (256, 16), (512, 64)):
        for dim in (64, 128, 256, 512):
            for rate in RATES:
                for pattern in published_mixers(length).values():
                    own = {"channel": "none", "dropout": 0.0} if pattern == "mamba" else {}  # its block has no copy
                    yield iclr24(pattern, length=length, pairs=pairs, dim=dim, rate=rate, **own)


def published_mixers(length: int) -> dict[str, str]:
    """The pattern of each mixer of the published figure, at a length."""
    return {
        "Attention": "attention(dropout=0.1, rotary=False)",
        "Hyena": f"hyena(taps={length})",
        "RWKV": ", ".join(f"rwkv4(layer={layer})" if layer else "rwkv4" for layer in range(4)),
        "BaseConv": f"base_conv, base_conv(filter='implicit', taps={length})",
        "H3": f"h3(head=2, state={length})" if length != 64 else "h3(head=2)",
        "Based": "base_conv, based(features=8)",
        "Mamba": "mamba",
    }


# Digitised from the published figure to about 0.01; Based and Mamba are not in it.
PUBLISHED = {
    64: {
        "Attention": (1.00, 1.00, 1.00, 1.00),
        "H3": (0.92, 1.00, 0.99, 0.98),
        "RWKV": (0.76, 0.93, 0.97, 0.98),
        "BaseConv": (0.70, 0.94, 0.96, 1.00),
        "Hyena": (0.51, 0.75, 0.84, 0.86),
    },
    128: {
        "Attention": (1.00, 1.00, 1.00, 1.00),
        "H3": (0.25, 0.73, 0.91, 0.76),
        "RWKV": (0.18, 0.50, 0.75, 0.92),
        "BaseConv": (0.37, 0.61, 0.84, 0.96),
        "Hyena": (0.18, 0.65, 0.74, 0.84),
    },
    256: {
        "Attention": (0.99, 1.00, 1.00, 1.00),
        "H3": (0.08, 0.64, 0.61, 0.67),
        "RWKV": (0.05, 0.06, 0.67, 0.79),
        "BaseConv": (0.14, 0.34, 0.81, 0.93),
        "Hyena": (0.05, 0.13, 0.53, 0.69),
    },
    512: {
        "Attention": (1.00, 1.00, 1.00, 1.00),
        "H3": (0.01, 0.01, 0.02, 0.09),
        "RWKV": (0.01, 0.02, 0.15, 0.37),
        "BaseConv": (0.02, 0.02, 0.04, 0.71),
        "Hyena": (0.01, 0.02, 0.09, 0.17),
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
    """Accuracy against width, one panel for each load, with the published points where there are any."""
    found = summary(table)
    contents, levels = {}, {}
    for (length, pairs), rows in found.groupby(["length", "pairs"], sort=True):
        title = f"length {length}, {pairs} pairs"
        lines = [
            Line(mixer, part["dim"].tolist(), *(part[column].tolist() for column in ("accuracy", "low", "high")))
            for mixer, part in rows.groupby("mixer", sort=False)
        ]
        shown, known = {line.name for line in lines}, PUBLISHED.get(length, {})
        published = [Line(mixer, WIDTHS, shares, published=True) for mixer, shares in known.items() if mixer in shown]
        contents[title], levels[title] = lines + published, {"1 / pairs": 1 / pairs}
    yield "", panels(contents, x="Model width", levels=levels, note=seeds_note(found))


def mixer_name(pattern: str, length: int) -> str:
    """The name of a pattern in the figure."""
    known = [*SMALL.items(), *published_mixers(length).items()]
    return {text: short for short, text in known}.get(pattern, pattern)
