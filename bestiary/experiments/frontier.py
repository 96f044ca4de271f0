"""How much does each mixer recall for the memory it keeps? Accuracy against state, after Figure 2 of Based.

A mixture of lengths and loads is trained on, and seven slices are tested, the hardest beyond what was trained. Each
point is the mean over the slices of one model at its best learning rate; the state is what the model keeps of the
longest slice, measured. Layer 0 is a short gated convolution, layer 1 the mixer (Arora et al., 2024; the README figure
of Zoology). `small` asks it in miniature: a vocabulary of 256, lengths up to 128, widths up to 64. `paper` is the
published mixture under its published regime, with the published points beside ours.
Departs from the source: its Mamba and Mamba-2 are two such blocks without the convolution before them, here they are
behind it like the others at the small scale; three seeds instead of one; states are counted, not by formula.
"""

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._lines import seeds_note
from bestiary.report.plot import Line, panels
from bestiary.report.references import draw_references, references, use_decade_ticks
from bestiary.runs.table import best, curve
from bestiary.spec import parse, reading_data
from bestiary.training.recipe import Recipe, based, clean

TRAIN, TEST = (
    ((32, 2), (32, 4), (64, 8), (64, 16)),
    ((32, 2), (32, 4), (32, 8), (64, 8), (64, 16), (128, 16), (128, 32)),
)
RATES = (5e-3, 1e-2)
WINDOWS = (4, 8, 16, 32)

# One width of the model for each point, or one option that sets the size of its state.
MIXERS = {
    "Attention": "attention(rotary=False)",
    "Based": "based(features=8)",
    "DeltaNet": "delta_net(heads=1)",
    "GLA": "gla(heads=1)",
    "Gated DeltaNet": "gated_delta(heads=1)",
    "Hyena": "hyena(taps=128)",
    "KDA": "kda(heads=1)",
    "Mamba-2": "mamba2(state=16)",
}
WINDOW = "Sliding window"


def recipes(scale: str) -> Iterator[Recipe]:
    """A miniature of the figure, or its published grid."""
    match scale:
        case "smoke":
            sizes = {"steps": 20, "every": 10, "batch": 8, "selection_rows": 16, "test_rows": 16}
            yield from small_grid((8, 16), range(2), RATES[:1], windows=(4,), **sizes)
        case "small":
            yield from small_grid((16, 32, 64), range(3), RATES, windows=WINDOWS, steps=1500)
        case "paper":
            yield from published_grid()


def small_grid(
    dims: tuple[int, ...], seeds: range, rates: tuple[float, ...], *, windows: tuple[int, ...], **changes: Any
) -> Iterator[Recipe]:
    """Every mixer at every width, and windows at the middle one; the longest first."""
    train, test = (tasks(pairs, vocab=256) for pairs in (TRAIN, TEST))
    given = {"train": train, "test": test, "select": train, "batch": 64, "every": 100, "selection_rows": 128}
    given |= {"test_rows": 512} | changes
    points = [(dim, mixer) for dim in reversed(dims) for mixer in MIXERS.values()]
    if "Attention" in MIXERS:
        points += [(dims[-2], f"attention(rotary=False, window={window})") for window in windows]
    for (dim, mixer), rate, seed in product(points, rates, seeds):
        yield clean(f"base_conv, {mixer}", dim=dim, rate=rate, seed=seed, **given)


def tasks(sizes: tuple[tuple[int, int], ...], *, vocab: int) -> str:
    """MQAR at these lengths and numbers of pairs."""
    return ", ".join(f"mqar(vocab={vocab}, length={length}, pairs={pairs})" for length, pairs in sizes)


def published_grid() -> Iterator[Recipe]:
    """The models of the published figure at its learning rates, three seeds each."""
    rates = (1e-3, 3.16e-3, 1e-2, 3.16e-2)
    for (dim, text), rate, seed in product(published_models(), rates, range(3)):
        own = {"channel": "none", "dropout": 0.0} if text.startswith("mamba") else {}  # their blocks have no copy
        yield based(text, dim=dim, rate=rate, seed=seed, **own)


def published_models() -> Iterator[tuple[int, str]]:
    """Width and pattern."""
    for dim in (256, 128, 64):
        yield from ((dim, f"base_conv, {mixer}") for mixer in ("delta_net", "gated_delta", "gla", "rwkv7(layer=1)"))
        yield from ((dim, f"{mixer}(state={state})") for mixer in ("mamba", "mamba2") for state in (8, 16, 24))
        yield from ((dim, "hyena(taps=1024)"), (dim, f"h3(head=2, state={dim // 4})"))
    for dim in (128, 64, 32):
        yield dim, "base_conv, attention(heads=2, dropout=0.1, rotary=False)"
    yield from ((dim, f"base_conv, based(features={f})") for dim in (128, 64, 48) for f in (8, 16, 24))
    windows = (2**k + 1 for k in range(3, 11))  # theirs does not count the token itself
    yield from ((128, f"base_conv, attention(rotary=False, window={window})") for window in windows)


# Digitised from the published figure to about 0.003: numbers in the state by the authors' formulas, and accuracy.
PUBLISHED: dict[str, tuple[tuple[float, float], ...]] = {
    "GLA": ((4864, 0.532), (17920, 0.771), (68608, 0.950)),
    "DeltaNet": ((8960, 0.793), (34304, 0.963), (134144, 0.995)),
    "Gated DeltaNet": ((17152, 0.890), (67072, 0.988), (265216, 0.994)),
    "RWKV-7": ((17152, 0.816), (34304, 0.915), (68608, 0.981)),
    "Mamba-2": (
        (8192, 0.520),
        (16384, 0.690),
        (24576, 0.728),
        (32768, 0.784),
        (49152, 0.796),
        (65536, 0.832),
        (98304, 0.844),
    ),
    "Mamba": ((8192, 0.52), (16384, 0.70), (24576, 0.697), (49152, 0.758), (98304, 0.85)),
    "Based": (
        (9396, 0.667),
        (12468, 0.719),
        (24756, 0.840),
        (30564, 0.836),
        (40548, 0.912),
        (64276, 0.856),
        (80484, 0.985),
        (85268, 0.970),
        (169236, 0.991),
    ),
    WINDOW: (
        (9728, 0.081),
        (17920, 0.145),
        (34304, 0.310),
        (67072, 0.514),
        (132608, 0.655),
        (263680, 0.797),
        (525824, 0.936),
        (1050112, 1.0),
    ),
    "Attention": ((525056, 1.0), (1050112, 1.0)),
    "H3": ((8192, 0.189), (32768, 0.248), (131072, 0.247)),
    "Hyena": ((524288, 0.185), (1048576, 0.304), (2097152, 0.409)),
}
BYTES = 4  # of a number; the published axis is in bytes


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy, the mean over slices, of each model at its best rate, with its state in numbers."""
    whole = mean_over_slices(table)
    group = ("mixer", "pattern", "state", "dim", "rate", "tried", "window")
    found = curve(best(whole, group=("pattern", "dim")), group=group)
    return found.sort_values(["mixer", "state"]).drop(columns=["pattern", "solved", "solves"])


def mean_over_slices(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each run: the mean of its accuracies over the test slices."""
    firsts = [name for name in ("selection", "solved", "seconds", "outcome", "format") if name in table]
    sums = {"accuracy": "mean", "asked": "sum"} | dict.fromkeys(firsts, "first")
    kept = ["key", "pattern", "dim", "depth", "channel", "rate", "seed"]
    filled = table.assign(accuracy=table["accuracy"].fillna(0.0), asked=table["asked"].fillna(0))
    found = filled.groupby(kept, sort=False).agg(sums).reset_index()
    tests = ", ".join(table.drop_duplicates("segment").sort_values("segment")["task"])
    models = zip(found["pattern"], found["dim"], found["depth"], found["channel"], strict=True)
    states = [state_numbers(pattern, dim, depth, channel, tests) for pattern, dim, depth, channel in models]
    return found.assign(state=states, mixer=[pattern_name(pattern) for pattern in found["pattern"]])


@cache
@reading_data()
def state_numbers(pattern: str, dim: int, depth: int, channel: str, tests: str) -> int:
    """Numbers in the state after the longest slice."""
    from bestiary.training.size import state_size

    return state_size(clean(pattern, train=tests, dim=dim, depth=depth, channel=channel))[0]


@reading_data()
def pattern_name(pattern: str) -> str:
    """The name of a pattern in the figure; of one that is not the experiment's, its text."""
    return names_of_patterns(tuple(MIXERS.items())).get(plain_text(pattern), pattern)


@cache
def names_of_patterns(mixers: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The name of each pattern of the miniature and of the published figure."""
    found = {f"base_conv, attention(rotary=False, window={window})": WINDOW for window in WINDOWS}
    found |= {f"base_conv, {text}": name for name, text in mixers}
    for _, text in published_models():
        found[text] = WINDOW if "window" in text else NAMES[parse("mixers", text)[-1].name]
    return {plain_text(text): name for text, name in found.items()}


def plain_text(pattern: str) -> str:
    """A pattern as a table has it."""
    return ", ".join(map(str, parse("mixers", pattern)))


NAMES = {text.partition("(")[0]: name for name, text in MIXERS.items()} | {
    "mamba": "Mamba",
    "h3": "H3",
    "rwkv7": "RWKV-7",
}


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Accuracy against state, a line for each mixer, with what a state of that size could hold."""
    found = summary(table)
    last = table.sort_values(["length", "pairs"]).iloc[-1]
    title = f"MQAR, {table['task'].nunique()} slices up to {last['pairs']:.0f} pairs in {last['length']:.0f} tokens"
    lines = [
        Line(str(mixer), *(rows[column].tolist() for column in ("state", "accuracy", "low", "high")))
        for mixer, rows in found.groupby("mixer", sort=False)
    ]
    if last["vocab"] == 8192 and last["length"] == 1024:
        shown = {line.name for line in lines}
        lines += [
            Line(mixer, [size / BYTES for size, _ in points], [share for _, share in points], published=True)
            for mixer, points in PUBLISHED.items()
            if mixer in shown
        ]
    figure = panels({title: lines}, x="Numbers in the state", note=seeds_note(found), size=(4.2, 3.0), whiskers=True)
    use_decade_ticks(figure)
    draw_references(figure, {title: references(int(last["pairs"]), int(last["vocab"]))})
    yield "", figure
