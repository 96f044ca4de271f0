"""The card of a mixer: its scores under the protocol beside the whole field, as a page, Markdown and a figure."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from bestiary._version import __version__
from bestiary.experiments._protocol import RATES_THAT_WORK, SEEDS, best_rate, rows_of_parts
from bestiary.experiments.protocol_v1 import COLUMNS, PARTS
from bestiary.report.command import command, shell_quote
from bestiary.report.page import POLICY, page_style, read_asset
from bestiary.report.plot import LINE_STYLES, SMOKE, STYLE
from bestiary.report.words import count_noun, join_words
from bestiary.results.causes import Cause
from bestiary.results.facts import WIDTHS, family
from bestiary.results.verdict import Entry, recall_neighbours, scores_of, verdict
from bestiary.runs.exports import describe_origin
from bestiary.spec import reading_data

OF_ONE_SEED = "Those of one seed are Wilson’s, of answers taken as independent, and tell nothing of other seeds."


class Card(NamedTuple):
    """What was found of the mixers that the card is of, and the field beside them."""

    own: Sequence[Entry]
    field: Sequence[Entry]
    runs: pd.DataFrame  # of the own mixers
    smoke: bool = False
    causes: Mapping[str, Sequence[Cause]] = {}  # of low scores, by mixer
    failed: int = 0  # runs that failed or cannot be read

    @property
    def title(self) -> str:
        """The names of the mixers that it is of."""
        return " and ".join(entry.name for entry in self.own)

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        return markdown(self)

    def verdicts(self) -> dict[str, list[str]]:
        """Sentences about each mixer of the card."""
        field = {entry.name: entry for entry in self.field}
        failed = [f"Left out: {count_noun(self.failed, 'run')} that failed."] if self.failed else []
        return {entry.name: [*verdict(entry, field), *failed] for entry in self.own}

    def neighbours(self) -> list[str]:
        """The mixers of the field that recall most like those of the card, at about equal state."""
        field = {entry.name: entry for entry in self.field}
        return list(dict.fromkeys(name for entry in self.own for name in recall_neighbours(entry, field)))


@reading_data()
def entries(scores: pd.DataFrame, facts: pd.DataFrame, patterns: Mapping[str, str]) -> list[Entry]:
    """One entry for each mixer that has scores, with its facts where they are known."""
    found = []
    for name in scores["mixer"].unique():
        pattern = patterns.get(name, name)
        row = facts.loc[name].to_dict() if name in facts.index else {"family": family(pattern)}
        known = {str(fact): float(value) for fact, value in row.items() if fact != "family" and value == value}
        found.append(Entry(name, pattern, str(row["family"]), scores_of(scores, name), known))
    return found


def next_steps(entry: Entry) -> Iterator[tuple[str, str]]:
    """What to look at next, with the command: where the mixer is weak, the experiment that says more."""
    pattern = shell_quote(entry.pattern)
    scores = entry.scores
    weak = {column for column, score in scores.items() if column != RATES_THAT_WORK and score.scaled < 0.9}
    if any(column.startswith("recall") for column in weak):
        yield "how recall falls with the distance", f"bestiary run distance --with {pattern}"
    window = scores.get(RATES_THAT_WORK)
    if window is not None and not window.value >= 1:
        yield "a finer grid of learning rates, at one and two layers", f"bestiary run rates --with {pattern}"
    if weak & {"parity", "S3", "parity, longer", "S3, longer"}:
        yield "state tracking by depth and length", f"bestiary run tracking --with {pattern}"
    if weak & {"copying, longer"}:
        yield "where length extrapolation ends", f"bestiary run extrapolation --with {pattern}"
    yield "all that can be said about the mixer itself", f"bestiary show {pattern}"


def commands(card: Card) -> Iterator[str]:
    """The command of the run with the first seed at the best rate, for each mixer and part."""
    if not card.own:
        return
    rows_of = rows_of_parts(card.runs, PARTS)
    for entry in card.own:
        for part in PARTS:
            rows = rows_of(part, entry.pattern)
            if rows:
                recipe = part.recipe(entry.pattern, best_rate(rows), SEEDS[0])
                yield f"# {', '.join(part.columns)}\n{command(recipe)}"


def markdown(card: Card) -> str:
    """The verdict and the scores as Markdown, beside the nearest of the field."""
    by_name = {entry.name: entry for entry in card.field}
    shown = [*card.own, *(by_name[name] for name in card.neighbours()[:3])]
    lines = []
    for name, sentences in card.verdicts().items():
        lines += [f"**{name}**: {' '.join(sentences)}", ""]
    lines += ["| | " + " | ".join(entry.name for entry in shown) + " |", "|---|" + "---|" * len(shown)]
    for column in COLUMNS:
        if any(column in entry.scores for entry in card.own):
            lines.append(f"| {column} | " + " | ".join(cell(entry, column) for entry in shown) + " |")
    for fact, digits in (("state 64", 0), ("train beside attention", 1), ("decode beside attention", 1)):
        values = [entry.facts.get(fact) for entry in shown]
        lines.append(f"| {fact} | " + " | ".join("" if x is None else f"{x:,.{digits}f}" for x in values) + " |")
    seeds = min((score.seeds for entry in card.own for score in entry.scores.values()), default=0)
    lines += ["", f"Bestiary {__version__}, protocol v1, {count_noun(seeds, 'seed')}."]
    return "\n".join(lines)


def cell(entry: Entry, column: str) -> str:
    """A score as text: of the card's own mixers with the interval."""
    score = entry.scores.get(column)
    if score is None or math.isnan(score.value):
        return "none" if score is not None else ""
    if column == RATES_THAT_WORK:
        return f"{score.value:.1f} decades"
    if score.diverged:
        return "diverged"
    return f"{score.value:.2f} ({score.low:.2f} to {score.high:.2f})"


def page(card: Card) -> str:
    """The self-contained HTML page: a card, or the board if it is of no mixer."""
    near = card.neighbours()[:3]
    several = any(score.seeds > 1 for entry in card.own for score in entry.scores.values())
    families = sorted({entry.family for entry in card.field})
    mixers = [entry_data(entry, own=False, near=entry.name in near) for entry in card.field]
    mixers += [entry_data(entry, own=True, near=False) for entry in card.own]
    data = {"columns": COLUMNS, "widths": WIDTHS, "rates": RATES_THAT_WORK, "families": families, "mixers": mixers}
    verdicts = "".join(
        verdict_html(name, sentences) + causes_html(card.causes.get(name, ()))
        for name, sentences in card.verdicts().items()
    )
    parts = {
        "POLICY": POLICY,
        "PROTOCOL": "v1",
        "KIND": "Card of a mixer" if card.own else "Board",
        "TITLE": escape(card.title) if card.own else f"{count_noun(len(card.field), 'mixer')}",
        "MARK": f'<p class="smoke">{SMOKE}</p>' if card.smoke else "",
        "CSS": page_style(),
        "VERDICT": verdicts,
        "SEEDS": "the other seeds run at the best" if several else "no other seed was run for this card",
        "INTERVALS": "" if several else OF_ONE_SEED,
        "ORIGIN": escape(describe_origin(card.runs)) + "." if "begun" in card.runs else "",
        "NEXT": "".join(next_html(entry) for entry in card.own),
        "COMMANDS": escape("\n".join(commands(card))),
        "MARKDOWN": escape(markdown(card)) if card.own else "",
        "BESTIARY": f"Bestiary {__version__}",
        "DATA": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "JS": read_asset("shared.js") + (files("bestiary.results") / "card.js").read_text(encoding="utf-8"),
    }
    template = (files("bestiary.results") / "card.html").read_text(encoding="utf-8")
    template = re.sub(r"<!-- own -->(.*?)<!-- end -->", r"\1" if card.own else "", template, flags=re.DOTALL)
    pieces = template.split("@@")  # text and names in turn, so that nothing put in is looked at again
    return "".join(parts[piece] if odd % 2 else piece for odd, piece in enumerate(pieces))


def entry_data(entry: Entry, *, own: bool, near: bool) -> dict[str, Any]:
    """An entry as the page's script reads it; what is no number is null."""
    scores = {column: [number(float(value)) for value in score] for column, score in entry.scores.items()}
    facts = {fact: number(value) for fact, value in entry.facts.items()}
    about = {"name": entry.name, "family": entry.family, "own": own, "near": near}
    return {**about, "scores": scores, "facts": facts}


def number(value: float) -> float | None:
    """Rounded to four digits after the point, None if it is not finite."""
    return round(value, 4) if math.isfinite(value) else None


def verdict_html(name: str, sentences: Sequence[str]) -> str:
    """A mixer's sentences as a list."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<h3>{escape(name)}</h3><ul>{items}</ul>"


def causes_html(causes: Sequence[Cause]) -> str:
    """What the doctor finds in the runs of low scores, with the numbers behind it and what to try."""
    if not causes:
        return ""
    items = "".join(
        f"<li>{escape(cause_line(cause))} <small>Seen: {escape(cause.evidence)}.</small>"
        + (f"<br><code>{escape(cause.finding.command)}</code>" if cause.finding.command else "")
        + "</li>"
        for cause in causes
    )
    return f"<p>Why it may score little, by the likeliest finding in the runs:</p><ul>{items}</ul>"


def cause_line(cause: Cause) -> str:
    """The columns and what was found in one line."""
    return f"{join_words(cause.columns)}: {cause.finding.sentence}"


def next_html(entry: Entry) -> str:
    """What to look at next, as a list."""
    items = "".join(f"<li>{escape(what)}: <code>{escape(command)}</code></li>" for what, command in next_steps(entry))
    return f"<h3>{escape(entry.name)}</h3><ul>{items}</ul>"


def figure(card: Card) -> Figure:
    """Recall against state, and every score as a strip: the field in grey, the card's own mixers in black."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(8.2, 4.0))
        left, right = drawn.subplots(1, 2, width_ratios=(1.15, 1))
        near = card.neighbours()[:3]
        for entry in card.field:
            if entry.name not in near:
                draw_line(left, entry, color="0.85", marker="o", markersize=2.5)
        shown = [entry for name in near for entry in card.field if entry.name == name]
        for entry, (colour, marker, dash) in zip(shown, LINE_STYLES[1:], strict=False):
            draw_line(left, entry, color=colour, marker=marker, markersize=4, linestyle=dash, label=entry.name)
        for entry, (colour, _, dash) in zip(card.own, LINE_STYLES, strict=False):
            draw_line(left, entry, color=colour, marker="*", markersize=9, linestyle=dash, zorder=5, label=entry.name)
        left.set(xscale="log", xlabel="State in numbers", ylabel="Recall", ylim=(-0.03, 1.03))
        left.legend(loc="upper left", framealpha=0.9, frameon=True, edgecolor="none")
        draw_strips(right, card)
        drawn.supxlabel(
            f"Bestiary {__version__}, protocol v1. Grey: {count_noun(len(card.field), 'mixer')}.", fontsize=6.5
        )
    return drawn


def recall_points(entry: Entry) -> list[tuple[float, float, float, float]]:
    """State, recall and its interval at each width."""
    known = [(entry.facts.get(f"state {width}"), entry.scores.get(f"recall {width}")) for width in WIDTHS]
    return [(state, one.value, one.low, one.high) for state, one in known if state is not None and one is not None]


def draw_line(axis: Any, entry: Entry, **look: Any) -> None:
    """The recall of a mixer against its state."""
    points = recall_points(entry)
    axis.plot([point[0] for point in points], [point[1] for point in points], linewidth=0.9, **look)


def draw_strips(axis: Any, card: Card) -> None:
    """A row for each score but the learning rates: the field as ticks, the own mixers as stars."""
    scored = {column for entry in card.own for column in entry.scores} - {RATES_THAT_WORK}
    columns = [column for column in COLUMNS if column in scored]
    for row, column in enumerate(columns):
        values = [entry.scores[column].value for entry in card.field if column in entry.scores]
        axis.plot(values, [row] * len(values), "|", color="0.65", markersize=7)
        for entry, (colour, _, _) in zip(card.own, LINE_STYLES, strict=False):
            if column in entry.scores:
                axis.plot(entry.scores[column].value, row, "*", color=colour, markersize=9)
    axis.set(xlim=(-0.03, 1.03), ylim=(len(columns) - 0.5, -0.5), xlabel="Score")
    axis.set_yticks(range(len(columns)), columns)
