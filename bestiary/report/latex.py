"""The tables of a report in LaTeX, with booktabs."""

from collections.abc import Mapping, Sequence
from typing import Any

from bestiary.report.words import best_cells, count_noun

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
    """A table for each task, with a row for each mixer at the width chosen on the selection stream."""
    head = "% Needs \\usepackage{booktabs} and \\usepackage{textcomp}, and a wide page for many segments.\n"
    parts = []
    for i, task in enumerate(contents["tasks"]):
        rows = list(best_cells([c for c in contents["cells"] if c["task"] == i]).values())
        parts.append(latex_table(task, sorted(rows, key=lambda c: c["mixer"]), f"recall-{i + 1}"))
    return head + "\n" + "\n".join(parts)


def latex_table(task: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], name: str) -> str:
    """One table: a row for each cell, a column for each test segment."""
    segments = task["segments"] if len(task["segments"]) > 1 else []
    heads = [
        "Mixer",
        "Width",
        "State",
        *(column_head(part["label"]) for part in segments),
        "Mean" if segments else "Accuracy",
    ]
    columns = [[c["segments"][s] for c in cells] for s in range(len(segments))]
    columns.append([[c["accuracy"], c["low"], c["high"]] for c in cells])
    written = [format_column(column) for column in columns]
    lines = [
        " & ".join([escape_latex(c["mixer"]), str(c["dim"]), state_text(c), *(column[row] for column in written)])
        + r" \\"
        for row, c in enumerate(cells)
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption(task, cells)}}}",
            rf"\label{{tab:{name}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def format_column(column: Sequence[Sequence[float]]) -> list[str]:
    """Mean and half the width of its interval; the highest printed mean in bold."""
    best = max(f"{mean:.3f}" for mean, _, _ in column)
    means = [f"{mean:.3f}" for mean, _, _ in column]
    marked = [rf"\mathbf{{{mean}}}" if mean == best else mean for mean in means]
    return [rf"${mean} \pm {(high - low) / 2:.3f}$" for mean, (_, low, high) in zip(marked, column, strict=True)]


def caption(task: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> str:
    """The caption of a table, with what its numbers are."""
    seeds = min(c["seeds"] for c in cells)
    at_least = (
        f"at least {count_noun(seeds, 'seed')}" if seeds < max(c["seeds"] for c in cells) else count_noun(seeds, "seed")
    )
    return (
        f"Accuracy on {escape_latex(task['label'])}: mean over {at_least} and half of the 95\\,\\% interval, "
        "the highest mean in bold. Width and learning rate are chosen on the selection stream. State in numbers."
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
