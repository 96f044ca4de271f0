"""Many recipes carried out from Python, and their results as a table."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.runs.reading import read_results
from bestiary.runs.store import Store
from bestiary.spec import all_parts
from bestiary.sweep.jobs import Event
from bestiary.sweep.schedule import sweep
from bestiary.training.recipe import SPECS, Recipe

if TYPE_CHECKING:
    import pandas as pd


class RunsFailed(RuntimeError):
    """Some runs have failed; the others are in the store."""


def run_recipes(
    recipes: Iterable[Recipe],
    store: Store | Path | str = "runs",
    *,
    workers: int | None = None,
    device: str = "cpu",
    after_event: Callable[[Event], None] = lambda _: None,
) -> "pd.DataFrame":
    """Carry out the recipes that are not done yet, on all cores, and return the results of all (see `read_results`).

    What is done stays in the store, so the same call goes on where it was broken off. `after_event` is called with
    what happens. Call it under `if __name__ == "__main__":` in a script, which the workers read too. Raises ValueError
    if a recipe cannot be built, and RunsFailed once all others are done.
    """
    found, wanted = store if isinstance(store, Store) else Store(Path(store)), list(recipes)
    for recipe in wanted:
        for part in all_parts(part for field in SPECS for part in getattr(recipe, field)):
            if part.name.startswith("<"):
                raise ValueError(f"workers cannot build {part.name[1:-1]}: put the class in a file, and import it")
        recipe.check()
    failed = []
    for event in sweep(wanted, found, workers=workers, device=device):
        after_event(event)
        failed += [f"{event.recipe.key}: {event.detail}"] if event.kind == "failed" else []
    if failed:
        raise RunsFailed(f"{len(failed)} of {len(wanted)} runs failed; {failed[0]}")
    return read_results(found, wanted)
