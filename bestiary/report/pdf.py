"""The figures of a report as PDF for a paper, drawn by matplotlib in the style of `plot`."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from textwrap import wrap
from typing import Any

Cell = Mapping[str, Any]


def pdf_figures(contents: Mapping[str, Any], *, most: int = 6) -> list[dict[str, str]]:
    """For each of the first `most` tasks the PDF of each figure that is not empty, in base64."""
    from bestiary.report.plot import mark_smoke

    found = []
    for i, task in enumerate(contents["tasks"][:most]):
        cells = [c for c in contents["cells"] if c["task"] == i]
        drawn = dict(draw_figures(task, cells))
        for figure in drawn.values() if contents.get("smoke") else ():
            mark_smoke(figure)
        found.append({name: encode_pdf(figure) for name, figure in drawn.items()})
    return found


def encode_pdf(figure: Any) -> str:
    """A figure as PDF in base64, the same each time."""
    import matplotlib as mpl

    from bestiary.report.plot import STYLE

    file = BytesIO()
    with mpl.rc_context({**STYLE, "pdf.fonttype": 42}):
        figure.savefig(file, format="pdf", metadata={"CreationDate": None})
    return base64.b64encode(file.getvalue()).decode()


def draw_figures(task: Mapping[str, Any], cells: Sequence[Cell]) -> Iterator[tuple[str, Any]]:
    """The figures of a task by name. All but the first show the greatest width."""
    widest = [c for c in cells if c["dim"] == task["dims"][-1]]
    known = [c for c in cells if c["state"] is not None]
    note, at = wrap_label(task["label"]), f"{wrap_label(task['label'])}\nwidth {task['dims'][-1]}"
    bars = "bars: 95 % interval"
    if known:
        points = series_by_mixer(task, known, lambda c: [(max(1, c["state"]), c["accuracy"], *ends(c))])
        marks = {"marks": task["bounds"], "levels": task["levels"]}
        yield "frontier", line_figure(points, x="State in numbers", note=f"{note}\n{bars}", **marks)
    if (grid := pairs_and_lengths(task)) is not None:
        yield "load", load_maps(task, widest, *grid, note=at)
    swept = series_by_mixer(
        task, [c for c in widest if len(c["rates"]) > 1], lambda c: [r[:4] for r in c["rates"] if r[0] > 0]
    )
    if swept:
        seeds = f"{at}; bars: lowest to highest seed"
        yield "rates", line_figure(swept, x="Learning rate", y="Selection accuracy", note=seeds)
    far = series_by_mixer(task, widest, lambda c: [d[:4] for d in c["distances"]])
    if far:
        yield "distance", line_figure(far, x="Distance in tokens (start of bin)", base=2, note=f"{at}; {bars}")
    learnt = series_by_mixer(task, widest, lambda c: [(step, share, None, None) for step, share in c["mean"]])
    if learnt:
        yield "learning", line_figure(learnt, x="Step", y="Selection accuracy", base=0, note=at)


def ends(c: Cell) -> tuple[float, float]:
    """The ends of a cell's bar; none where all its runs diverged, which leaves no answers."""
    return (c["low"], c["high"]) if c["answers"] else (c["accuracy"], c["accuracy"])


def wrap_label(text: str) -> str:
    """Text broken into lines that fit below a figure."""
    from bestiary.report.plot import as_label

    return "\n".join(map(as_label, wrap(text, 88)))


def series_by_mixer(task: Mapping[str, Any], cells: Sequence[Cell], points: Any) -> dict[int, tuple[str, list[Any]]]:
    """The name and points of each mixer, by its index in the task, which sets its colour."""
    found: dict[int, tuple[str, list[Any]]] = {}
    for c in cells:
        if points(c):
            found.setdefault(task["mixers"].index(c["mixer"]), (c["mixer"], []))[1].extend(points(c))
    return {place: (name, sorted(given, key=lambda p: p[0])) for place, (name, given) in found.items()}


def line_figure(
    given: Mapping[int, tuple[str, list[Any]]],
    *,
    x: str,
    y: str = "Accuracy",
    base: int = 10,
    marks: Sequence[Mapping[str, Any]] = (),
    levels: Mapping[str, float] | None = None,
    note: str = "",
) -> Any:
    """One panel with a line for each mixer, and its intervals where there are any."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from bestiary.report.plot import STYLE

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 2.9 + 0.15 * max(0, len(given) - 12)))
        axis = figure.subplots()
        for place, (name, points) in given.items():
            colour, marker, dash = line_style(place)
            across, up, low, high = zip(*points, strict=True)
            style = {"color": colour, "linestyle": dash, "marker": marker if base else "", "label": shorten(name, 44)}
            if low[0] is None:
                axis.plot(across, up, **style)
                continue
            spread = [
                [max(0, u - v) for u, v in zip(up, low, strict=True)],
                [max(0, v - u) for u, v in zip(up, high, strict=True)],
            ]
            axis.errorbar(across, up, yerr=spread, elinewidth=0.8, capsize=2, **style)
        name_lines(axis, marks, levels or {})
        if base:
            axis.set_xscale("log", base=base)
            axis.xaxis.set_major_formatter("{x:g}")
        axis.set(xlabel=x, ylabel=y, ylim=(-0.03, 1.03))
        figure.legend(loc="outside right center", fontsize=6.5)
        figure.supxlabel(note, fontsize=6.5, color="0.4")
    return figure


def name_lines(axis: Any, marks: Sequence[Mapping[str, Any]], levels: Mapping[str, float]) -> None:
    """Draw the levels of guessing across and the states of theory upright, each with its name."""
    for name, level in levels.items():
        axis.axhline(level, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)))
        side = {"chance": (0.01, "left")}.get(name, (0.99, "right"))  # apart, as they may be near each other
        place, across = (side[0], level), ("axes fraction", "data")
        axis.annotate(name, place, xycoords=across, ha=side[1], va="bottom", color="0.4", size=6.5)
    for mark in marks:
        axis.axvline(mark["state"], color="0.6", linewidth=0.8, linestyle=(0, (2, 2)))
        place, across = (mark["state"], 1.02), ("data", "axes fraction")
        axis.annotate(mark["label"], place, xycoords=across, ha="center", color="0.4", size=6.5)


def load_maps(
    task: Mapping[str, Any], cells: Sequence[Cell], pairs: list[int], lengths: list[int], *, note: str
) -> Any:
    """A small heat map of accuracy by load and length for each mixer."""
    import matplotlib as mpl
    import numpy as np
    from matplotlib.figure import Figure

    from bestiary.report.plot import STYLE

    columns = min(4, len(cells))
    rows = -(-len(cells) // columns)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(0.8 + columns * (0.7 + 0.4 * len(lengths)), 0.4 + rows * (0.6 + 0.3 * len(pairs))))
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, c in zip(axes, cells, strict=False):
            grid = np.full((len(pairs), len(lengths)), np.nan)
            for row, column in np.ndindex(grid.shape):
                grid[row, column] = share_at(task, c, pairs[row], lengths[column])
            axis.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
            for (row, column), share in np.ndenumerate(grid):
                shade = "white" if share > 0.6 else "black"
                if not np.isnan(share):
                    axis.text(column, row, f"{share:.2f}", ha="center", va="center", color=shade, size=6)
            axis.set_xticks(range(len(lengths)), lengths)
            axis.set_yticks(range(len(pairs)), pairs)
            axis.set_title(shorten(c["mixer"], 26), size=6.5)
        for axis in axes[len(cells) :]:
            axis.set_axis_off()
        figure.supxlabel(f"Length\n{note}", size=6.5)
        figure.supylabel("Pairs", size=7)
    return figure


def share_at(task: Mapping[str, Any], c: Cell, pairs: int, length: int) -> float:
    """Mean accuracy over the segments of this load and length, NaN if there are none."""
    both = zip(task["segments"], c["segments"], strict=True)
    found = [share for part, (share, _, _) in both if (part["pairs"], part["length"]) == (pairs, length)]
    return sum(found) / len(found) if found else float("nan")


def pairs_and_lengths(task: Mapping[str, Any]) -> tuple[list[int], list[int]] | None:
    """The loads and the lengths of the test segments, None unless every segment has both and they differ."""
    found = [(part["pairs"], part["length"]) for part in task["segments"]]
    if len(set(found)) < 2 or any(None in part for part in found):
        return None
    return sorted({pairs for pairs, _ in found}), sorted({length for _, length in found})


def line_style(place: int) -> tuple[str, str, Any]:
    """Colour, marker and dash of the mixer at this index; beyond the colours, the same ones with another marker."""
    from bestiary.report.plot import LINE_STYLES

    colour, _, dash = LINE_STYLES[place % len(LINE_STYLES)]
    return colour, LINE_STYLES[(place + place // len(LINE_STYLES)) % len(LINE_STYLES)][1], dash


def shorten(text: str, most: int) -> str:
    """A name as a label of at most so many characters."""
    from bestiary.report.plot import as_label

    return as_label(text if len(text) <= most else f"{text[: most - 1]}…")
