"""One self-contained HTML page: what the store says, drawn by the page's own script, with no request to anywhere."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

from bestiary._version import __version__
from bestiary.report.contents import contents
from bestiary.report.latex import tables
from bestiary.report.pdf import figures
from bestiary.report.runs import gather
from bestiary.report.words import summary
from bestiary.runs.store import Store
from bestiary.runs.table import progress
from bestiary.training.recipe import Recipe

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


class Report(NamedTuple):
    """A page, its tables in LaTeX, and a line about each run that cannot be read."""

    html: str
    latex: str
    damaged: list[str]


def report(
    store: Store,
    recipes: Sequence[Recipe] | None = None,
    *,
    title: str = "All runs",
    version: str = "",
    called: Callable[[str], str] = lambda pattern: pattern,
) -> Report:
    """The report on the runs of these recipes, or on all in the store; `called` is what patterns are called.

    With a `version`, the page is for a server: it asks for `version` now and then and loads itself anew when that is
    another. Raises LookupError if no run is done.
    """
    keys = store.run_keys() if recipes is None else [recipe.key for recipe in recipes]
    found = gather(store, keys)
    if found.rows.empty:
        raise LookupError(f"no run of it is done in {store.folder}; `bestiary status` says how they stand")
    stands = Counter(line.partition(":")[0] for line in progress(store, recipes)[0]["state"])
    shown = contents(found, called)
    written = tables(shown)
    html = page(shown, summary(shown, stands), title=title, latex=written, version=version)
    return Report(html, written, found.damaged)


def page(
    shown: Mapping[str, Any], words: Sequence[tuple[str, list[str]]], *, title: str, latex: str, version: str = ""
) -> str:
    """The page's HTML from its parts."""
    from bestiary.report.plot import LOOKS

    data = {**shown, "pdf": figures(shown), "looks": [[marker, dashes(dash)] for _, marker, dash in LOOKS]}
    policy = f"{POLICY}; connect-src 'self'" if version else POLICY
    light = "".join(f"--c{i}:{colour};" for i, (colour, _, _) in enumerate(LOOKS))
    dark = "".join(f"--c{i}:{lit(colour)};" for i, (colour, _, _) in enumerate(LOOKS))
    parts = {
        "POLICY": policy,
        "VERSION": f'<meta name="bestiary-version" content="{escape(version)}">' if version else "",
        "TITLE": escape(title),
        "CSS": f":root{{{light}}}\n:root[data-theme=dark]{{{dark}}}\n{static('page.css')}",
        "SUMMARY": "\n".join(paragraph(*part) for part in words),
        "LATEX": escape(latex),
        "BESTIARY": f"Bestiary {__version__}",
        "DATA": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "JS": static("shared.js") + static("page.js"),
    }
    pieces = static("page.html").split("@@")  # text and names in turn, so that nothing put in is looked at again
    return "".join(parts[piece] if odd % 2 else piece for odd, piece in enumerate(pieces))


def dashes(dash: Any) -> str:
    """A dash of matplotlib's as SVG has it."""
    named = {"-": (), "--": (3.7, 1.6), "-.": (6.4, 1.6, 1, 1.6), ":": (1, 1.65)}
    return " ".join(f"{1.6 * part:g}" for part in (named[dash] if isinstance(dash, str) else dash[1]))


def lit(colour: str) -> str:
    """A colour as it shows on a dark ground: black turned to white, others mixed with white until light enough."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    if not any(parts):
        return "#f2f2f2"
    while sum(weight * (part / 255) ** 2.2 for weight, part in zip((0.21, 0.72, 0.07), parts, strict=True)) < 0.22:
        parts = [part + (255 - part) // 8 + 1 for part in parts]
    return "#" + "".join(f"{min(255, part):02x}" for part in parts)


def paragraph(heading: str, sentences: Sequence[str]) -> str:
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<h3>{escape(heading)}</h3><ul>{said}</ul>"


def static(name: str) -> str:
    return (files("bestiary.report") / name).read_text(encoding="utf-8")
