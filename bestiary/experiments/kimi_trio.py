"""Palindromes, recall and stacks at growing length: the three synthetic tasks of Kimi Linear (Kimi Team, 2025).

Two layers, two heads; published is that KDA does at least as well as Gated DeltaNet, and Mamba-2 fails all three at
length. `paper` takes heads of 128 channels, 20,000 steps and four learning rates.
Departs from the source, which gives neither vocabularies nor numbers of pairs and stacks' operations: those of the
tasks here are ours.
"""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from bestiary.experiments._lines import at_best_rate, lines_by, name_mixers, seeds_note
from bestiary.report.plot import panels
from bestiary.training.recipe import Recipe, clean

MIXERS = {"KDA": "kda(heads=2)", "Gated DeltaNet": "gated_delta(heads=2)", "Mamba-2": "mamba2"}
TITLES = {"palindrome": "Palindrome", "listed_mqar": "MQAR", "stacks": "Stacks"}
GROUP = ("probe", "mixer", "tokens")


def recipes(scale: str) -> Iterator[Recipe]:
    """The three tasks at growing lengths."""
    match scale:
        case "smoke":
            yield from grid((16,), (3e-3,), range(2), dim=16, steps=10, every=5)
        case "small":
            yield from grid((32, 64, 128), (3e-3,), range(2), dim=64, steps=1500, every=50)
        case "paper":
            rates = (5e-5, 1e-4, 5e-4, 1e-3)
            yield from grid((256, 512, 1024, 2048), rates, range(3), dim=256, steps=20_000, every=200)


def grid(lengths: tuple[int, ...], rates: tuple[float, ...], seeds: range, **changes: int) -> Iterator[Recipe]:
    """Every length, task, mixer, rate and seed; the longest first."""
    for length in reversed(lengths):
        for task in tasks(length):
            for pattern in MIXERS.values():
                for rate in rates:
                    for seed in seeds:
                        yield clean(pattern, train=task, batch=64, rate=rate, seed=seed, **changes)


def tasks(length: int) -> tuple[str, ...]:
    """The three of about so many tokens; below the published lengths, with smaller vocabularies and fewer stacks."""
    vocab, stacks = (", vocab=256", ", stacks=16, elements=16") if length < 256 else ("", "")
    pairs, operations = (length - 1) // 3, length // 3
    return (
        f"palindrome(length={length})",
        f"listed_mqar(pairs={pairs}{vocab})",
        f"stacks(operations={operations}{stacks})",
    )


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each mixer on each task at each length, at the best rate."""
    names = [TITLES[text.partition("(")[0]] for text in table["task"]]
    return at_best_rate(name_mixers(table, MIXERS).assign(probe=names, tokens=table["task"].map(task_length)), GROUP)


def task_length(task: str) -> int:
    """Tokens in a sequence of a task."""
    from bestiary.spec import parse, reading_data

    with reading_data():
        return parse("tasks", task)[0].build().length


def figures(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Accuracy against length, one panel for each task."""
    found = summary(table)
    contents = {
        str(probe): lines_by(rows, x="tokens", by="mixer") for probe, rows in found.groupby("probe", sort=False)
    }
    yield "", panels(contents, x="Tokens", y="Accuracy", note=seeds_note(found))
