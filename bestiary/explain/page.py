"""The page of an explanation: one self-contained HTML file that makes no request to any network."""

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from io import StringIO
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bestiary._version import __version__
from bestiary.explain.explanation import Explanation, words
from bestiary.explain.patching import PLACES, matrix_of
from bestiary.explain.watching import watch_figure
from bestiary.report.page import POLICY, page_style, read_asset

CUTS = ("behind the pairs", "half way to the question", "before the question")
MOST = 12  # rows of the table of parts
WATCHED = (
    "At each step: the kinds of answers, the weight that the best head puts on the token before and on the asked pair, "
    "and how many pairs the best matrix gives back, with its rank as a share of the largest."
)
FILTERS = (
    "The share of each convolution's weights, in absolute value, on each token back; of a long filter, farther is what "
    "lies beyond those, and of a diagonal state-space model the filter is its impulse response."
)


def page(explained: Sequence[Explanation], played: Sequence[Any]) -> str:
    """The HTML of one explanation or of several side by side; `played` has a row of each, or None."""
    parts = {
        "POLICY": POLICY,
        "TITLE": escape(" and ".join(dict.fromkeys(one.name for one in explained))),
        "TASK": escape(", ".join(dict.fromkeys(one.task for one in explained))),
        "CSS": page_style(),
        "MODELS": "".join(map(model_html, explained)),
        "BESTIARY": f"Bestiary {__version__}",
        "DATA": json.dumps(
            [{"name": one.name, "row": row} for one, row in zip(explained, played, strict=True)]
        ).replace("<", "\\u003c"),
        "JS": read_asset("shared.js") + (files("bestiary.explain") / "page.js").read_text(encoding="utf-8"),
    }
    template = (files("bestiary.explain") / "page.html").read_text(encoding="utf-8")
    pieces = template.split("@@")  # text and names in turn, so that nothing put in is looked at again
    return "".join(parts[piece] if odd % 2 else piece for odd, piece in enumerate(pieces))


def model_html(found: Explanation) -> str:
    """The sections of one model."""
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in words(found))
    sections = [
        f"<h2>{escape(found.name)}</h2><ul>{said}</ul>",
        section("What it answers", "Guess: what a guess among the row's values would have.", shares(found.errors)),
        section("Where it answers rightly", "", plain(found.facets)),
        section("What it answers when the row is changed", "", changed(found.edits)),
        section(
            "Where the key is",
            "Two rows differ in which of two pairs has which key. The model reads one, with the stream before a layer "
            "taken from the other at one kind of place. 1: this alone decides the answer. 0: it does not matter.",
            heat(matrix_of(found.keys, "place", PLACES), "before layer"),
        ),
        section(
            "Where the value is",
            "The same with exchanged values.",
            heat(matrix_of(found.values, "place", PLACES), "before layer"),
        ),
    ]
    if len(found.states):
        about = "The state of one layer is taken from the other row, at a cut between the pairs and the question."
        states = found.states.pivot(index="layer", columns="cut", values="effect")[list(CUTS)]
        sections.append(section("Which state carries the pairs", about, heat(states, "state of layer")))
    if len(found.parts):
        columns = found.parts.head(MOST)[["layer", "part", "accuracy", "lost"]]
        sections.append(section("What it cannot do without", "Accuracy without each part.", plain(columns)))
        sections.append(section("Without more and more", "The least needed first.", plain(found.removed)))
    if len(found.weights):
        about = (
            "The share of a question's weight on each place, by layer and head, and on the same place of another pair."
        )
        sections.append(section("What the question reads", about, plain(found.weights)))
    if len(found.readback):
        about = (
            "What each head's matrix gives back after the last pair. Named: the share of pairs whose own value is the "
            "nearest of the row's. Least squares: the cosine of the matrix of this size with the least squared error."
        )
        sections.append(section("What the memory holds", about, plain(found.readback)))
    if len(found.filters):
        sections.append(section("What convolutions look at", FILTERS, plain(found.filters)))
    if len(found.watched):
        sections.append(section("While it learnt", WATCHED, drawn(watch_figure(found.watched))))
    return f"<article>{''.join(sections)}</article>"


def drawn(figure: Figure) -> str:
    """A figure as SVG within a page."""
    svg = StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return f'<figure class="white">{svg.getvalue()[svg.getvalue().find("<svg") :]}</figure>'


def section(title: str, about: str, body: str) -> str:
    """A heading, a line about what is shown, and a table."""
    caption = f'<p class="caption">{escape(about)}</p>' if about else ""
    table = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">{body}</div>'
    return f"<section><h3>{escape(title)}</h3>{caption}{table}</section>"


def shares(table: pd.DataFrame) -> str:
    """Kinds of answers with a bar for their share, and a mark for a guess."""
    rows = "".join(
        f'<tr title="{escape(row.meaning)}"><th scope="row">{escape(row.answer)}</th>'
        f'<td class="bar"><i style="width:{100 * row.share:.1f}%"></i><b style="left:{100 * row.guess:.1f}%"></b></td>'
        f"<td>{row.share:.2f}</td><td class=soft>{row.low:.2f} to {row.high:.2f}</td><td>{row.guess:.2f}</td></tr>"
        for row in table.itertuples()
    )
    head = "<th></th><th></th><th>share</th><th>95&nbsp;% interval</th><th>guess</th>"
    return f"<table class=shares><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def changed(table: pd.DataFrame) -> str:
    """Edits, with the shares of answers that follow them."""
    columns = ["edit", "meaning", "follows", "as before", "other", "rows"]
    return plain(table[columns])


def heat(table: pd.DataFrame, index: str) -> str:
    """A table of effects, shaded."""
    head = "".join(f"<th scope=col>{escape(str(name))}</th>" for name in table)
    rows = "".join(
        f"<tr><th scope=row>{escape(layer_name(label, index))}</th>{''.join(map(cell, values))}</tr>"
        for label, values in zip(table.index, table.to_numpy(), strict=True)
    )
    return f"<table class=heat><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>"


def layer_name(label: Any, index: str) -> str:
    """What a row of a heat map is called."""
    return "all states" if label == "all" else f"{index} {label}"


def cell(value: float) -> str:
    """A shaded cell."""
    if value != value:
        return "<td>–</td>"
    strength = min(1.0, abs(value))
    light = " class=deep" if strength > 0.55 else ""
    return f'<td{light} style="--s:{strength:.2f}">{value:.2f}</td>'.replace("-0.00", "0.00")


def plain(table: pd.DataFrame) -> str:
    """A table of text and numbers."""
    head = "".join(f"<th scope=col>{escape(str(name))}</th>" for name in table)
    rows = "".join(f"<tr>{''.join(map(plain_cell, row))}</tr>" for row in table.itertuples(index=False))
    return f"<table class=plain><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def plain_cell(value: Any) -> str:
    """Shares with two digits, large numbers without, text as it is."""
    if isinstance(value, float):
        text = f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
        text = {"inf": "∞", "nan": "–", "-0.00": "0.00"}.get(text, text)
        return f"<td class=number>{text}</td>"
    return f"<td class=number>{value}</td>" if isinstance(value, int) else f"<td class=text>{escape(str(value))}</td>"
