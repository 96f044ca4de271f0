"""Trains models and opens them: what `bestiary.explain` finds of each, kept in a file for each recipe."""

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bestiary.runs.files import read_record, write_record
from bestiary.spec import Spec, parse
from bestiary.sweep import cores
from bestiary.training.recipe import Recipe

FOLDER = Path("models/opened")
FORMAT = 2  # of what is found; 2: without a convolution means with the newest token's tap alone
Look = Callable[[Recipe], list[dict[str, Any]]]  # trains a recipe and returns rows about it


def open_runs(
    recipes: Sequence[Recipe], look: Look, *, kind: str, folder: Path = FOLDER, workers: int | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of every recipe, each with the recipe's `key`, `mixer`, `rate` and `seed`.

    Recipes whose rows are kept are not trained again, unless they meant something else then: the same call goes on
    where it was stopped. Rows with `news` alone tell how far it is. `look` must be a function of a module.
    """
    left = [recipe for recipe in recipes if not is_kept(folder / f"{kind}-{recipe.key}.json")]
    folder.mkdir(parents=True, exist_ok=True)
    if left:
        with multiprocessing.get_context("spawn").Pool(min(workers or cores(), len(left))) as pool:
            named = look.__module__, look.__name__  # not itself: with other mixers an experiment is loaded once more
            jobs = [(recipe, named, folder / f"{kind}-{recipe.key}.json") for recipe in left]
            for done, name in enumerate(pool.imap_unordered(open_one, jobs), start=1):
                yield {"news": f"{name}: {done} of {len(left)} models opened"}
    for recipe in recipes:
        found = read_record(folder / f"{kind}-{recipe.key}.json")
        about = {"key": recipe.key, "mixer": text_of(recipe.pattern), "rate": recipe.rate, "seed": recipe.seed}
        yield from (about | row for row in found["rows"])


def is_kept(file: Path) -> bool:
    """Whether the rows of a model are in this file, and mean what they would mean now."""
    return file.is_file() and read_record(file).get("format") == FORMAT


def size_of(sizes: Mapping[str, dict[str, Any]], scale: str) -> dict[str, Any]:
    """What a scale runs. Raises LookupError for a scale that an experiment does not have."""
    if scale not in sizes:
        raise LookupError(f"this experiment has no scale {scale!r}, only {' and '.join(sizes)}")
    return sizes[scale]


def open_named(
    mixers: Mapping[str, str], recipes: Sequence[Recipe], look: Look, *, kind: str, scale: str
) -> Iterator[dict[str, Any]]:
    """`open_runs`, with the `scale` and the `name` that an experiment has for each pattern."""
    names = {text_of(parse("mixers", pattern)): name for name, pattern in mixers.items()}
    for row in open_runs(recipes, look, kind=f"{kind}-{scale}"):
        yield row if set(row) == {"news"} else row | {"scale": scale, "name": names[row["mixer"]]}


def text_of(pattern: Iterable[Spec]) -> str:
    """A pattern of mixers as text."""
    return ", ".join(map(str, pattern))


def open_one(job: tuple[Recipe, tuple[str, str], Path]) -> str:
    """Train and open one model in a process of one thread; returns its name."""
    import torch

    recipe, (module, function), file = job
    torch.set_num_threads(1)
    look: Look = getattr(import_module(module), function)
    try:
        write_record(file, {"format": FORMAT, "recipe": recipe.json(), "rows": look(recipe)})
    except KeyboardInterrupt:
        sys.exit(130)
    return f"{text_of(recipe.pattern)}, rate {recipe.rate:g}, seed {recipe.seed}"
