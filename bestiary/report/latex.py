"""Tables for a paper, in LaTeX with booktabs."""

from collections.abc import Mapping, Sequence
from typing import Any

from bestiary.report.words import counted, top

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


def tables(contents: Mapping[str, Any]) -> str:
    """A table for each task: a row for each mixer at the width chosen on the selection stream."""
    head = "% Needs \\usepackage{booktabs} and \\usepackage{textcomp}, and a wide page for many segments.\n"
    parts = []
    for i, task in enumerate(contents["tasks"]):
        rows = list(top([c for c in contents["cells"] if c["task"] == i]).values())
        parts.append(table(task, sorted(rows, key=lambda c: c["mixer"]), f"recall-{i + 1}"))
    return head + "\n" + "\n".join(parts)


def table(task: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], name: str) -> str:
    segments = task["segments"] if len(task["segments"]) > 1 else []
    heads = [
        "Mixer",
        "Width",
        "State",
        *(stacked(part["label"]) for part in segments),
        "Mean" if segments else "Accuracy",
    ]
    columns = [[c["segments"][s] for c in cells] for s in range(len(segments))]
    columns.append([[c["accuracy"], c["low"], c["high"]] for c in cells])
    written = [numbers(column) for column in columns]
    lines = [
        " & ".join([escaped(c["mixer"]), str(c["dim"]), state(c), *(column[row] for column in written)]) + r" \\"
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


def numbers(column: Sequence[Sequence[float]]) -> list[str]:
    """Mean and half of the interval; the highest mean, as it is written, in bold."""
    best = max(f"{mean:.3f}" for mean, _, _ in column)
    means = [f"{mean:.3f}" for mean, _, _ in column]
    marked = [rf"\mathbf{{{mean}}}" if mean == best else mean for mean in means]
    return [rf"${mean} \pm {(high - low) / 2:.3f}$" for mean, (_, low, high) in zip(marked, column, strict=True)]


def caption(task: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> str:
    seeds = min(c["seeds"] for c in cells)
    at_least = (
        f"at least {counted(seeds, 'seed')}" if seeds < max(c["seeds"] for c in cells) else counted(seeds, "seed")
    )
    return (
        f"Accuracy on {escaped(task['label'])}: mean over {at_least} and half of the 95\\,\\% interval, the highest "
        "mean in bold. Width and learning rate are chosen on the selection stream. State in numbers."
    )


def state(c: Mapping[str, Any]) -> str:
    return "--" if c["state"] is None else f"{c['state']:,}".replace(",", "{,}")


def stacked(text: str) -> str:
    """The head of a column, an option a line."""
    lines = r" \\ ".join(map(escaped, text.split(", ")))
    return rf"\shortstack{{{lines}}}"


def escaped(text: str) -> str:
    """Text as LaTeX shows it."""
    return "".join(SPECIAL.get(mark, mark) for mark in text)
