"""How runs stand, as lines of text; a store of many runs is told in a few."""

from collections.abc import Iterator, Sequence
from textwrap import indent
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bestiary.runs.store import Store

SHOWN = 5  # runs listed of those that failed alike


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
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


def failures(store: "Store", rows: Sequence[dict[str, Any]], *, most: int | None = SHOWN) -> Iterator[str]:
    """Runs that failed alike under one traceback: alike is that its last line is the same. The commonest come first."""
    by_key = {row["key"]: row for row in rows}
    for said, trace, keys in alike(store, list(by_key)):
        found = [by_key[key] for key in keys]
        yield f"failed {'once' if len(found) == 1 else f'{len(found):,} times'}: {said}"
        yield from (indent(text, "  ") for text in (trace, *lines(found[:most])))
        if most is not None and len(found) > most:
            yield f"  and {len(found) - most:,} more; --all lists every run"


def alike(store: "Store", keys: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """The last line of each traceback, the traceback, and the runs that failed by it; the commonest first."""
    found: dict[str, tuple[str, list[str]]] = {}
    for key in keys:
        trace = (store.failure(key) or "it is being tried again").rstrip()
        found.setdefault(trace.rpartition("\n")[2].strip(), (trace, []))[1].append(key)
    return sorted(((said, *rest) for said, rest in found.items()), key=lambda group: -len(group[2]))
