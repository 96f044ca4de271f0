"""The tables of a report in LaTeX, with booktabs."""

from collections.abc import Mapping, Sequence
from typing import Any

from bestiary.report.levels import above
from bestiary.report.words import best_cells, count_noun, list_names

HEAD = "% Needs \\usepackage{booktabs} and \\usepackage{textcomp}, and a wide page for many segments.\n"

SPECIAL = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "'": r"\textquotesingle{}",
    '"': r"\textquotedbl{}",
}


def latex_tables(contents: Mapping[str, Any]) -> str:
    """A table for each task: what guessing scores, then each mixer at the width chosen on the selection stream."""
    parts = []
    for i, task in enumerate(contents["tasks"]):
        rows = list(best_cells([c for c in contents["cells"] if c["task"] == i]).values())
        mark = "Smoke scale: not a result. " if contents.get("smoke") else ""
        parts.append(latex_table(task, sorted(rows, key=lambda c: c["mixer"]), f"recall-{i + 1}", mark=mark))
    return HEAD + "\n" + "\n".join(parts)


def latex_table(task: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], name: str, *, mark: str = "") -> str:
    """One table: rows for chance and plateau, then one for each cell; a column for each test segment."""
    segments = task["segments"] if len(task["segments"]) > 1 else []
    heads = [
        "Mixer",
        "Width",
        "State",
        *(column_head(part["label"]) for part in segments),
        "Mean" if segments else "Accuracy",
    ]
    levels = [*(part["levels"] for part in segments), task["levels"]]
    shown = [[*c["segments"][: len(segments)], (c["accuracy"], c["low"], c["high"])] for c in cells]
    rows = [row if c["answers"] else [None] * len(levels) for c, row in zip(cells, shown, strict=True)]
    written = [format_column(*pair) for pair in zip(zip(*rows, strict=True), levels, strict=True)]
    lines = [
        " & ".join([escape_latex(c["mixer"]), str(c["dim"]), state_text(c), *(column[row] for column in written)])
        + r" \\"
        for row, c in enumerate(cells)
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{mark}{caption(task, cells)}}}",
            rf"\label{{tab:{name}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            r"\midrule",
            *level_rows(levels),
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def level_rows(levels: Sequence[Mapping[str, float]]) -> list[str]:
    """The rows of chance and plateau with a rule below them, where they are known."""
    rows = [
        " & ".join([title, "", "", *(f"${part[name]:.3f}$" if name in part else "--" for part in levels)]) + r" \\"
        for name, title in (("chance", "Chance"), ("plateau", "Plateau"))
        if any(name in part for part in levels)
    ]
    return [*rows, r"\midrule"] if rows else []


def format_column(column: Sequence[Sequence[float] | None], levels: Mapping[str, float]) -> list[str]:
    """Mean and its interval, None as diverged; in bold the highest printed mean of those above guessing."""
    best = max((f"{found[0]:.3f}" for found in column if found and above(found[1], levels)), default="")
    texts = []
    for found in column:
        mean, low, high = (f"{share:.3f}" for share in found or (0.0, 0.0, 1.0))
        marked = rf"\mathbf{{{mean}}}" if found and mean == best and above(found[1], levels) else mean
        texts.append(rf"${marked}\ [{low}, {high}]$" if found else "diverged")
    return texts


def caption(task: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> str:
    """The caption of a table, with what its numbers are."""
    seeds = min(c["seeds"] for c in cells)
    at_least = (
        f"at least {count_noun(seeds, 'seed')}" if seeds < max(c["seeds"] for c in cells) else count_noun(seeds, "seed")
    )
    steered = [c["mixer"] for c in cells if c["recipe"].get("steer") == "test"]
    chosen = "on the selection stream" if len(steered) < len(cells) else "on the test set"
    some = f", of {escape_latex(list_names(steered))} on the test set" if 0 < len(steered) < len(cells) else ""
    return (
        f"Accuracy on {escape_latex(task['label'])}: mean over {at_least} and its 95\\,\\% interval in brackets, "
        "the highest mean in bold among those whose interval is above chance and plateau. The plateau is a guess among "
        f"the answers that occur. Width and learning rate are chosen {chosen}{some}. State in numbers."
    )


def state_text(c: Mapping[str, Any]) -> str:
    """The numbers in the state, with thousands separated as LaTeX spaces them."""
    return "--" if c["state"] is None else f"{c['state']:,}".replace(",", "{,}")


def column_head(text: str) -> str:
    """The head of a column, one option a line."""
    lines = r" \\ ".join(map(escape_latex, text.split(", ")))
    return rf"\shortstack{{{lines}}}"


def escape_latex(text: str) -> str:
    """Text with the special characters of LaTeX escaped."""
    return "".join(SPECIAL.get(mark, mark) for mark in text)
