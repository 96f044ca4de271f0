"""Stores of runs that nobody trained, for tests of what is made from them."""

from pathlib import Path
from typing import Any

from bestiary.runs.store import Store
from bestiary.training.recipe import Recipe, clean

SIZES: dict[str, Any] = {"dim": 8, "steps": 20, "every": 10, "selection_rows": 40, "test_rows": 50}
TASK = "mqar(vocab=64, length=28, pairs=4)"
TESTS = ", ".join(f"mqar(vocab=64, length={length}, pairs={pairs})" for length in (28, 48) for pairs in (2, 7))


def recipe(pattern: str = "attention", **changes: Any) -> Recipe:
    return clean(pattern, **({"train": TASK} | SIZES | changes))


def finished(store: Store, made: Recipe, accuracy: float, *, selection: float | None = None) -> Recipe:
    """A run in the store that ended with this test accuracy, and with this on the selection stream or the same."""
    run = store.claim(made)
    assert run is not None
    shown = accuracy if selection is None else selection
    with run:
        for step in (10, 20):
            for segment in range(len(made.select or made.test)):
                run.append(line(step, "selection", segment, shown * step / 20))
        for segment in range(len(made.test)):
            run.append(line(20, "test", segment, accuracy))
            for distance in (1, 3, 9):
                run.append({**line(20, "test", segment, accuracy), "facet": "distance", "value": distance})
        run.end("finished")
    return made


def diverged(store: Store, made: Recipe) -> Recipe:
    run = store.claim(made)
    assert run is not None
    with run:
        run.append(line(10, "train", -1, 0.0))
        run.end("diverged", "the loss is nan at step 10")
    return made


def line(step: int, split: str, segment: int, accuracy: float) -> dict[str, Any]:
    right = round(1000 * accuracy)
    return {"step": step, "split": split, "segment": segment, "facet": "", "value": 0} | {
        "loss": 100.0,
        "right": right,
        "asked": 1000,
        "extra": {},
    }


def several(folder: Path) -> Store:
    """Three mixers at two widths, two rates and three seeds, tested at two loads and two lengths."""
    store = Store(folder)
    reached = {"base_conv, attention": 0.99, "base_conv": 0.4, "short_conv, gated_delta": 0.8}
    for pattern, accuracy in reached.items():
        for dim in (8, 16):
            for rate in (0.001, 0.01):
                for seed in range(3):
                    made = recipe(pattern, test=TESTS, dim=dim, rate=rate, seed=seed)
                    finished(store, made, accuracy * (dim + 48) / 64 - (rate == 0.01) * 0.2 + seed / 200)
    return store
