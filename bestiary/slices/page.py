"""One self-contained HTML page that shows the loss of a language model on each token of a text, or where two differ.

The page's script draws one passage at a time, colours its tokens by loss or by difference of losses, and underlines
the AR hits. It makes no requests.
"""

import json
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from bestiary._version import __version__

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


class Passage(NamedTuple):
    """A stretch of text, token by token: each list, and each of those in `losses`, has one value for each piece."""

    pieces: list[str]
    losses: list[list[float]]  # of each model, in nats; nan where nothing was predicted, as at a context's first token
    hits: list[int]  # 1 at an AR hit, 0 elsewhere
    distances: list[int]  # tokens back to the earlier occurrence of the n-gram that a token ends, 0 if there is none
    counts: list[int]  # of the bigram that it ends in the training text
    earlier: list[int]  # position in this passage where that occurrence ends, -1 if it is not in it
    title: str


def write_page(
    place: Path,
    *,
    title: str,
    sentences: Sequence[str],
    passages: Sequence[Passage],
    names: Sequence[str],
    figures: Sequence[str] = (),
    caption: str = "",
) -> None:
    """Write the page about one or two models; `sentences` stand at its top, `figures` are complete SVG documents,
    `caption` stands below them.

    Raises ValueError for another number of models, no passage, a passage whose lists do not fit each other, or a
    figure that is not SVG.
    """
    if len(names) not in (1, 2):
        raise ValueError(f"{len(names)} models: a page shows one, or the difference of two")
    if not passages:
        raise ValueError("no passage to show: give at least one")
    for passage in passages:
        check_passage(passage, len(names))
    data = {"names": list(names), "passages": [passage_json(passage) for passage in passages]}
    parts = {
        "POLICY": POLICY,
        "TITLE": escape(title),
        "CSS": package_file("report", "page.css") + package_file("slices", "page.css"),
        "SUMMARY": "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences),
        "FIGURES": "".join(map(figure_html, figures)) + (f"<p>{escape(caption)}</p>" if caption else ""),
        "BESTIARY": f"Bestiary {__version__}",
        "DATA": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "JS": package_file("report", "shared.js") + package_file("slices", "page.js"),
    }
    pieces = package_file("slices", "page.html").split(
        "@@"
    )  # text and names alternate: what is inserted is not searched again
    html = "".join(parts[piece] if odd % 2 else piece for odd, piece in enumerate(pieces))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(html, encoding="utf-8")


def check_passage(passage: Passage, models: int) -> None:
    """Raises ValueError, naming the passage, if its lists do not fit each other."""
    here, size = f"passage {passage.title!r}", len(passage.pieces)
    if len(passage.losses) != models:
        raise ValueError(f"{here} has losses of {len(passage.losses)} models: give one list for each of {models}")
    lists = [(name, getattr(passage, name)) for name in ("hits", "distances", "counts", "earlier")]
    for name, values in [*(("losses", losses) for losses in passage.losses), *lists]:
        if len(values) != size:
            raise ValueError(f"{here} has {len(values)} {name} for {size} pieces: give one for each")
    if wrong := set(passage.hits) - {0, 1}:
        raise ValueError(f"{here} has a hit of {wrong.pop()}: give 1 at a hit, 0 elsewhere")
    for i, (at, distance) in enumerate(zip(passage.earlier, passage.distances, strict=True)):
        if at != -1 and not 0 <= at == i - distance < i:
            raise ValueError(
                f"{here}, token {i}: an earlier occurrence at {at}, {distance} back; give {i} - distance, or -1"
            )


def passage_json(passage: Passage) -> dict[str, Any]:
    """A passage as JSON: null for losses that are not numbers."""
    whole = {name: [int(n) for n in getattr(passage, name)] for name in ("hits", "distances", "counts", "earlier")}
    losses = [[round(float(x), 4) if math.isfinite(x) else None for x in row] for row in passage.losses]
    return {"title": passage.title, "pieces": list(passage.pieces), "losses": losses, **whole}


def figure_html(figure: str) -> str:
    """A figure in its frame: on white, unless it is drawn in the page's own colours."""
    begin = figure.find("<svg")
    try:
        root = ElementTree.fromstring(figure[begin:] if begin >= 0 else figure)
    except ElementTree.ParseError as fault:
        raise ValueError(f"a figure is not SVG: {fault}") from None
    if root.tag.rpartition("}")[2] != "svg":
        raise ValueError(f"a figure is not SVG but <{root.tag}>")
    look = "" if "var(--" in figure else ' class="white"'
    return f"<figure{look}>{figure[begin:]}</figure>"


def package_file(*place: str) -> str:
    """The text of a file of the package, read without importing its folder."""
    return files("bestiary").joinpath(*place).read_text(encoding="utf-8")
