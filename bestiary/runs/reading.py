"""The runs of a store as one table."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.runs.store import Store
from bestiary.runs.table import results

if TYPE_CHECKING:
    import pandas as pd

    from bestiary.training.recipe import Recipe


def read_results(store: Store | Path | str = "runs", recipes: "Iterable[Recipe] | None" = None) -> "pd.DataFrame":
    """The finished runs of a store, or those of some recipes: one row for each run and test segment.

    Columns: the fields of the recipe, the options of the segment's task, `right`, `asked`, `accuracy`, `loss` (nats per
    answer), `selection`, `solved`, `steps`, `seconds`, `outcome` and others. A run that cannot be read is left out, and
    said in the log "bestiary". Raises LookupError if there is no such store.
    """
    found = store if isinstance(store, Store) else Store(Path(store))
    if not found.folder.is_dir():
        raise LookupError(f"there is no store {str(found.folder)!r}")
    keys = found.run_keys() if recipes is None else [recipe.key for recipe in recipes]
    table, damaged = results(found, keys)
    for line in damaged:
        logging.getLogger("bestiary").warning(line)
    return table
