"""How many associations does a state hold? Accuracy against pairs, one layer, keys and values as vectors.

In continuous MQAR a position holds a key and its value side by side, so one layer can write the pair as it stands:
what is measured is the capacity of its memory, not the skill to shift tokens (Zoology, 2026). The state is measured
after the last pair.
"""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._lines import at_best_rate, lines_by, name_mixers, seeds_note
from bestiary.report.plot import panels
from bestiary.training.recipe import Recipe, clean

MIXERS = {
    "Attention": "attention(rotary=False)",
    "Linear attention": "linear_attention",
    "DeltaNet": "delta_net(heads=1, conv=1)",
    "Gated DeltaNet": "gated_delta(heads=1, conv=1)",
    "Mamba-2": "mamba2(conv=1)",
}
GROUP = ("dim", "mixer", "pairs")


def recipes(scale: str) -> Iterator[Recipe]:
    """Every mixer at growing numbers of pairs."""
    match scale:
        case "smoke":
            yield from grid((2, 4), (16,), (3e-3,), range(2), steps=20, every=10, vocab=32, width=8)
        case "small":
            yield from grid((4, 8, 16, 32, 64), (32,), (1e-2,), range(3), steps=600, every=50, vocab=256, width=32)
        case "paper":
            pairs, rates = (4, 8, 16, 32, 64, 128, 256), (1e-3, 3e-3, 1e-2)
            yield from grid(pairs, (64, 128, 256), rates, range(3), steps=10_000, every=100, vocab=4096, width=128)


def grid(
    pairs: tuple[int, ...],
    dims: tuple[int, ...],
    rates: tuple[float, ...],
    seeds: range,
    *,
    steps: int,
    every: int,
    vocab: int,
    width: int,
) -> Iterator[Recipe]:
    """Every number of pairs, width, mixer, rate and seed; the longest first."""
    for count in reversed(pairs):
        task = f"continuous_mqar(vocab={vocab}, width={width}, pairs={count})"
        for dim in dims:
            for pattern in MIXERS.values():
                for rate in rates:
                    for seed in seeds:
                        settings = {
                            "train": task,
                            "dim": dim,
                            "rate": rate,
                            "seed": seed,
                            "steps": steps,
                            "every": every,
                        }
                        yield clean(pattern, depth=1, **settings)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy at the best rate, and the numbers in the state of the layer after the last pair."""
    found = at_best_rate(name_mixers(table, MIXERS), GROUP)
    found["state"] = [state_numbers(row.mixer, row.dim, row.pairs) for row in found.itertuples()]
    return found


def state_numbers(mixer: str, dim: int, pairs: int) -> int:
    """Numbers in the state of one layer after the last pair."""
    from bestiary.model import memory
    from bestiary.spec import parse, reading_data

    with reading_data():
        (found,) = parse("mixers", MIXERS.get(mixer, mixer))
    return memory(lambda: found.build(dim), time=pairs, dim=dim).numbers


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Accuracy against the number of pairs, one panel for each width of the model."""
    found = summary(table)
    contents = {f"width {dim}": lines_by(rows, x="pairs", by="mixer") for dim, rows in found.groupby("dim")}
    yield "", panels(contents, x="Pairs in the context", note=seeds_note(found))
