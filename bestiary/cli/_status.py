"""The status of runs as lines of text; runs that failed alike share a few."""

from collections.abc import Iterator, Sequence
from textwrap import indent
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bestiary.runs.store import Store

SHOWN = 5  # runs listed of those that failed alike


def run_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each run, in columns."""
    cells = [
        [
            *(row["state"], row["pattern"], f"dim={row['dim']}", f"rate={row['rate']:g}", f"seed={row['seed']}"),
            f"step {row['step']}",
            f"selection {row['selection']:.3f}" if row["selection"] == row["selection"] else "",
            row["key"],
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]


def failure_lines(store: "Store", rows: Sequence[dict[str, Any]], *, most: int | None = SHOWN) -> Iterator[str]:
    """Failed runs under their traceback, grouped by its last line; the commonest first, `most` runs of each."""
    by_key = {row["key"]: row for row in rows}
    for last_line, trace, keys in group_failures(store, list(by_key)):
        runs = [by_key[key] for key in keys]
        yield f"failed {'once' if len(runs) == 1 else f'{len(runs):,} times'}: {last_line}"
        yield from (indent(text, "  ") for text in (trace, *run_lines(runs[:most])))
        if most is not None and len(runs) > most:
            yield f"  and {len(runs) - most:,} more; --all lists every run"


def group_failures(store: "Store", keys: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """The last line of each traceback, the traceback, and the runs that failed by it; the commonest first."""
    found: dict[str, tuple[str, list[str]]] = {}
    for key in keys:
        trace = (store.failure(key) or "it is being tried again").rstrip()
        found.setdefault(trace.rpartition("\n")[2].strip(), (trace, []))[1].append(key)
    return sorted(((said, *rest) for said, rest in found.items()), key=lambda group: -len(group[2]))
