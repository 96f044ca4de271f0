"""The table of results by a facet of the questions, such as the distance to the pair or the load."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bestiary.runs.store import Store
from bestiary.runs.table import facets, results

if TYPE_CHECKING:
    import pandas as pd


def by_facet(store: Store, keys: Iterable[str], facet: str) -> "tuple[pd.DataFrame, list[str]]":
    """The rows of `table.results`, once for each value of a facet, which is a column of that name.

    `right`, `asked`, `accuracy` and `loss` count only the answers with that value. Columns that are not measured by
    facet are left out. A run that diverged has a row with score 0 for each value that other runs of its task have.
    Also returns a line about each run that cannot be read. Raises LookupError if no run has the facet.
    """
    table, damaged = results(store, keys)
    if table.empty:
        return table, damaged
    parts = facets(store, table["key"].unique(), facet)
    if parts.empty:
        known = sorted({task for task in table["task"]})
        raise LookupError(f"no run was scored by {facet!r}; the tasks are {', '.join(known)}")
    return join_facets(table, parts.rename(columns={"value": facet}), facet), damaged


def join_facets(table: "pd.DataFrame", parts: "pd.DataFrame", facet: str) -> "pd.DataFrame":
    """Each row of results, with the counts of every value of the facet that its task has."""
    whole = [name for name in ("right", "asked", "accuracy", "loss", "whole", facet) if name in table]
    runs = table.drop(columns=whole)
    tasks = runs[["key", "segment", "task"]].merge(parts[["key", "segment", facet]], on=["key", "segment"])
    values = tasks[["task", facet]].drop_duplicates().sort_values(facet)
    counts = parts[["key", "segment", facet, "right", "asked", "accuracy", "loss"]]
    rows = runs.merge(values, on="task").merge(counts, on=["key", "segment", facet], how="left")
    diverged = rows["outcome"] == "diverged"
    rows = rows[rows["asked"].notna() | diverged]
    return rows.assign(right=rows["right"].fillna(0).astype(int)).reset_index(drop=True)
