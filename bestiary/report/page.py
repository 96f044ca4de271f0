"""The page: one self-contained HTML file, drawn by its own script, which makes no request to any network."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

from bestiary._version import __version__
from bestiary.report.contents import report_data
from bestiary.report.latex import latex_tables
from bestiary.report.pdf import pdf_figures
from bestiary.report.runs import gather_runs
from bestiary.report.words import summary
from bestiary.runs.store import Store
from bestiary.runs.table import progress
from bestiary.training.recipe import Recipe

MARK = "<title>Recall report: "  # by which a page of ours is known
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


class Report(NamedTuple):
    """The page, its tables in LaTeX, and a line about each run that cannot be read."""

    html: str
    latex: str
    damaged: list[str]


def report(
    store: Store,
    recipes: Sequence[Recipe] | None = None,
    *,
    title: str = "All runs",
    version: str = "",
    smoke: bool = False,
    pattern_name: Callable[[str], str] = lambda pattern: pattern,
) -> Report:
    """The report on the runs of these recipes, or on all in the store.

    `pattern_name` gives the name to show for a pattern. With a `version` the page is for a server: it asks for the
    version every few seconds and reloads itself when the answer differs. A `smoke` report is marked as no result, since
    its models are hardly trained. Raises LookupError if no run is done.
    """
    keys = store.run_keys() if recipes is None else [recipe.key for recipe in recipes]
    data = gather_runs(store, keys)
    if data.rows.empty:
        raise LookupError(f"no run of it is done in {store.folder}; `bestiary status` says how they stand")
    states = Counter(line.partition(":")[0] for line in progress(store, recipes)[0]["state"])
    content = report_data(data, pattern_name) | {"smoke": smoke}
    latex = latex_tables(content)
    html = page(content, summary(content, states), title=title, latex=latex, version=version)
    return Report(html, latex, data.damaged)


def page(
    shown: Mapping[str, Any], words: Sequence[tuple[str, list[str]]], *, title: str, latex: str, version: str = ""
) -> str:
    """The HTML of the page from its parts."""
    from bestiary.report.plot import LINE_STYLES, SMOKE

    data = {
        **shown,
        "runs": pack_runs(shown["runs"]),
        "pdf": pdf_figures(shown),
        "looks": [[marker, svg_dashes(dash)] for _, marker, dash in LINE_STYLES],
    }
    policy = f"{POLICY}; connect-src 'self'" if version else POLICY
    parts = {
        "POLICY": policy,
        "VERSION": f'<meta name="bestiary-version" content="{escape(version)}">' if version else "",
        "TITLE": escape(title),
        "MARK": f'<p class="smoke">{SMOKE}</p>' if shown.get("smoke") else "",
        "CSS": page_style(),
        "STEERED": steering(shown),
        "SUMMARY": "\n".join(paragraph(*part) for part in words),
        "LATEX": escape(latex),
        "BESTIARY": f"Bestiary {__version__}",
        "DATA": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "JS": read_asset("shared.js") + read_asset("page.js"),
    }
    pieces = read_asset("page.html").split("@@")  # text and names in turn, so that nothing put in is looked at again
    return "".join(parts[piece] if odd % 2 else piece for odd, piece in enumerate(pieces))


def page_style() -> str:
    """The style sheet, with the colours of lines, light and dark."""
    from bestiary.report.plot import LINE_STYLES

    light = "".join(f"--c{i}:{colour};" for i, (colour, _, _) in enumerate(LINE_STYLES))
    dark = "".join(f"--c{i}:{lighten(colour)};" for i, (colour, _, _) in enumerate(LINE_STYLES))
    return f":root{{{light}}}\n:root[data-theme=dark]{{{dark}}}\n{read_asset('page.css')}"


def steering(shown: Mapping[str, Any]) -> str:
    """A sentence on the stream that decided on rates and stopping, as HTML."""
    by_test = [cell["recipe"].get("steer") == "test" for cell in shown["cells"]]
    where = "on the <em>selection</em> stream"
    if any(by_test):
        test = "on the <em>test</em> set, as the recipe of a paper did: selection accuracies are from there"
        where = test if all(by_test) else f"{where}; with steer=test {test}"
    return f"Learning rates, and when to stop, were decided {where}."


def pack_runs(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The runs by columns, a third of the size; of commands what stands before and after ` seed=N`, each pair once."""
    commands: dict[tuple[str, str], int] = {}
    places = []
    for run in runs:
        before, _, after = (run["command"] or "").partition(f" seed={run['seed']}")
        places.append(None if run["command"] is None else commands.setdefault((before, after), len(commands)))
    columns = {name: [run[name] for run in runs] for name in (runs[0] if runs else ()) if name != "command"}
    return {"columns": columns | {"command": places}, "commands": list(commands)}


def svg_dashes(dash: Any) -> str:
    """A dash pattern of matplotlib as the stroke-dasharray of SVG."""
    named = {"-": (), "--": (3.7, 1.6), "-.": (6.4, 1.6, 1, 1.6), ":": (1, 1.65)}
    return " ".join(f"{1.6 * part:g}" for part in (named[dash] if isinstance(dash, str) else dash[1]))


def lighten(colour: str) -> str:
    """A colour for a dark background: black becomes white, others are mixed with white until light enough."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    if not any(parts):
        return "#f2f2f2"
    while sum(weight * (part / 255) ** 2.2 for weight, part in zip((0.21, 0.72, 0.07), parts, strict=True)) < 0.22:
        parts = [part + (255 - part) // 8 + 1 for part in parts]
    return "#" + "".join(f"{min(255, part):02x}" for part in parts)


def paragraph(heading: str, sentences: Sequence[str]) -> str:
    """A heading and its sentences as HTML."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<h3>{escape(heading)}</h3><ul>{items}</ul>"


def read_asset(name: str) -> str:
    """The text of a file that belongs to the page."""
    return (files("bestiary.report") / name).read_text(encoding="utf-8")
