"""Figures that a paper can print: readable in grey, safe for the colour-blind, and the same file every time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "bestiary",
    "svg.fonttype": "none",
}

# Okabe & Ito's colours, each with a marker and a dash of its own so that grey is enough
LINE_STYLES = (
    ("#000000", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#0072B2", "^", "-."),
    ("#009E73", "D", ":"),
    ("#CC79A7", "v", (0, (5, 1, 1, 1, 1, 1))),
    ("#E69F00", "P", (0, (3, 1))),
    ("#56B4E9", "X", (0, (1, 1))),
    ("#8C8C00", "*", (0, (7, 2))),
    ("#882255", "<", (0, (4, 1, 1, 1))),
    ("#44AA99", ">", (0, (2, 2))),
    ("#999999", "h", (0, (6, 1, 2, 1))),
    ("#6A3D9A", "p", (0, (1, 3))),
)


TICKS = 8  # values of x that are all written


class Line(NamedTuple):
    """A line of a panel; `low` and `high` are its band. A published one is drawn hollow, without a band."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    published: bool = False


def panels(
    contents: Mapping[str, Sequence[Line]],
    *,
    x: str | Mapping[str, str],
    y: str = "Recall accuracy",
    levels: Mapping[str, Mapping[str, float]] | None = None,
    note: str = "",
    size: tuple[float, float] = (2.3, 2.5),
    whiskers: bool = False,
    shares: bool = True,
) -> Figure:
    """A row of panels, each with a logarithmic x axis and accuracy on the y axis, and one legend for all.

    `x` labels the axis, or the axis of each panel. `size` is a panel's in inches. `levels` are horizontal lines in
    each panel, such as chance. Published points are hollow and grey-dashed, in the colour of the line of the same name.
    `whiskers` draw intervals as bars, where bands would hide each other. Without `shares` the y axis is logarithmic
    rather than from 0 to 1, and fewer values of x are written.
    """
    names = list(dict.fromkeys(line.name for lines in contents.values() for line in lines))
    looks = {name: LINE_STYLES[i % len(LINE_STYLES)] for i, name in enumerate(names)}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.4 + size[0] * len(contents), size[1]))
        axes = figure.subplots(1, len(contents), sharey=True, squeeze=False)[0]
        for axis, (title, lines) in zip(axes, contents.items(), strict=True):
            for line in lines:
                draw_line(axis, line, *looks[line.name], whiskers=whiskers)
            for name, level in (levels or {}).get(title, {}).items():
                axis.axhline(level, color="0.6", linewidth=0.8, linestyle=(0, (2, 2)))
                axis.annotate(
                    name,
                    (1, level),
                    xycoords=("axes fraction", "data"),
                    ha="right",
                    va="bottom",
                    color="0.4",
                    size=7,
                )
            ticks = sorted({value for line in lines for value in line.x})
            axis.set_xscale("log", base=2)
            shown = spread_ticks(ticks) if shares else ticks[:: -(-len(ticks) // 5)]
            axis.set_xticks(shown, [f"{tick:g}" for tick in shown])
            axis.set(title=as_label(title), xlabel=x if isinstance(x, str) else x[title])
            set_y_axis(axis, shares=shares)
        axes[0].set_ylabel(y)
        handles = {
            text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside right center")
        if note:
            figure.supxlabel(note, fontsize=6.5, color="0.4")
    return figure


def as_label(name: object) -> str:
    """A name as text of a figure: "$" begins no formula, and a legend does not leave it out as it does "_name"."""
    text = str(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def spread_ticks(ticks: Sequence[float | int]) -> list[float | int]:
    """All of a few ticks of a logarithmic axis; of many, those at least four times the last one that is shown."""
    shown: list[float | int] = []
    for tick in ticks:
        if len(ticks) <= TICKS or not shown or tick >= 4 * shown[-1]:
            shown.append(tick)
    return shown


def set_y_axis(axis: Axes, *, shares: bool) -> None:
    """An axis from 0 to 1, or a logarithmic one."""
    if shares:
        axis.set(ylim=(-0.03, 1.03))
    else:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()


def draw_line(axis: Axes, line: Line, colour: str, marker: str, dash: Any, *, whiskers: bool) -> None:
    """Draw one line into a panel, with its band or bars."""
    if line.published:
        axis.plot(
            line.x,
            line.y,
            color=colour,
            marker=marker,
            mfc="white",
            linestyle=(0, (1, 2)),
            linewidth=0.7,
            alpha=0.8,
            label=as_label(f"{line.name}, published"),
        )
        return
    look: Any = {"color": colour, "marker": marker, "linestyle": dash, "zorder": 3, "clip_on": False}
    axis.plot(line.x, line.y, label=as_label(line.name), **look)
    if line.low is not None and line.high is not None and whiskers:
        axis.vlines(line.x, line.low, line.high, color=colour, linewidth=0.8, alpha=0.6)
    elif line.low is not None and line.high is not None:
        axis.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)


class DotRow(NamedTuple):
    """A row of marks: `reached` are values, `censored` are how far those went that never arrived."""

    name: str
    reached: Sequence[float]
    censored: Sequence[float] = ()


def dots(rows: Sequence[DotRow], *, x: str, note: str = "", logarithmic: bool = True) -> Figure:
    """A row of marks for each name, the first on top, along one axis."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 0.9 + 0.24 * len(rows)))
        axis = figure.subplots()
        for height, row in enumerate(rows):
            spread = np.linspace(-0.2, 0.2, len(row.reached) + len(row.censored) + 2)[1:-1]
            inside, outside = spread[: len(row.reached)] + height, spread[len(row.reached) :] + height
            axis.plot(row.reached, inside, "o", color=LINE_STYLES[2][0], alpha=0.8)
            axis.plot(row.censored, outside, ">", color=LINE_STYLES[1][0], mfc="white")
        if logarithmic:
            axis.set_xscale("log")
            axis.xaxis.set_minor_locator(LogLocator(subs=(2.0, 3.0, 5.0)))
            axis.xaxis.set_minor_formatter("{x:g}")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_yticks(range(len(rows)), [as_label(row.name) for row in rows])
        axis.set(xlabel=x, ylim=(len(rows) - 0.5, -0.5))
        if note:
            figure.supxlabel(note, fontsize=6.5, color="0.4")
    return figure


def matrix(table: pd.DataFrame, *, intervals: pd.DataFrame | None = None, note: str = "") -> Figure:
    """Shares by row and column, written in their cells and shaded from white (0) to dark (1); NaN leaves a cell empty.

    `intervals`, in the same rows and columns, are texts that are written below them, small.
    """
    height = 0.28 if intervals is None else 0.33
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.6 + 0.75 * len(table.columns), 1.1 + height * len(table)))
        axis = figure.subplots()
        axis.imshow(table.to_numpy(dtype=float), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, values in enumerate(table.to_numpy(dtype=float)):
            for column in map(int, np.flatnonzero(~np.isnan(values))):
                value = values[column]
                look: dict[str, Any] = {"ha": "center", "color": "white" if value > 0.6 else "black"}
                axis.text(column, row, f"{value:.2f}", va="center" if intervals is None else "bottom", size=7, **look)
                if intervals is not None:
                    axis.text(column, row + 0.08, str(intervals.iat[row, column]), va="top", size=5, **look)
        axis.set_xticks(range(len(table.columns)), [*map(as_label, table.columns)], rotation=30, ha="right")
        axis.set_yticks(range(len(table)), [*map(as_label, table.index)])
        axis.spines[:].set_visible(False)
        if note:
            letters = int(19 * figure.get_figwidth())  # that a line holds
            figure.supxlabel(fill(note, letters), fontsize=6.5, color="0.4")
    return figure


def identity(table: pd.DataFrame, *, x: str, y: str, by: str, tolerance: float, note: str = "") -> Figure:
    """Shares of the column `y` with intervals `low` to `high` against those of `x`, beside the diagonal."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 4.2))
        axis = figure.subplots()
        ends = np.array([-0.05, 1.05])
        axis.fill_between(ends, ends - tolerance, ends + tolerance, color="0.9", linewidth=0)
        axis.plot(ends, ends, color="0.6", linewidth=0.8)
        for (name, rows), (colour, marker, _) in zip(table.groupby(by, sort=True), LINE_STYLES, strict=False):
            bars = [rows[y] - rows["low"], rows["high"] - rows[y]]
            look = {"color": colour, "marker": marker, "linestyle": "none", "elinewidth": 0.7, "mfc": "none"}
            axis.errorbar(rows[x], rows[y], np.clip(bars, 0, None), label=as_label(name), **look)
        axis.set(xlabel=x.capitalize(), ylabel=y.capitalize(), xlim=ends, ylim=ends, aspect="equal")
        axis.legend(loc="upper left")
        if note:
            figure.supxlabel(note, fontsize=6.5, color="0.4")
    return figure


class Growth(NamedTuple):
    """A count that grows with x, the law beside it, and the law in words."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    law: Sequence[float] | None = None
    text: str = ""


def growth_panels(
    contents: Mapping[str, Sequence[Growth]],
    *,
    x: str,
    columns: int = 4,
    even: bool = False,
    base: int = 10,
    note: str = "",
) -> Figure:
    """A grid of panels with logarithmic axes: a mark for each count, its law dashed in the same colour.

    With `even`, x is linear. `base` is that of the y axis.
    """
    names = list(dict.fromkeys(rise.name for rises in contents.values() for rise in rises))
    rows = -(-len(contents) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 1.9 * min(columns, len(contents)), 0.5 + 1.6 * rows))
        axes = figure.subplots(rows, min(columns, len(contents)), sharey=True, squeeze=False).flatten()
        for axis, (title, lines) in zip(axes, contents.items(), strict=False):
            for line in lines:
                colour, marker, _ = LINE_STYLES[names.index(line.name) % len(LINE_STYLES)]
                axis.plot(line.x, line.y, marker, color=colour, label=line.name, zorder=3, clip_on=False)
                if line.law is not None:
                    axis.plot(line.x, line.law, "--", color=colour, linewidth=1)
                place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "size": 6.5, "color": colour}
                axis.annotate(line.text, (line.x[-1], line.y[-1]), **place)
            axis.set_xscale("linear" if even else "log", **({} if even else {"base": 2}))
            axis.set_yscale("log", base=base)
            ticks = sorted({value for line in lines for value in line.x})
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
            axis.set_title(title.replace(", vocabulary", "\nvocabulary"))
        for axis in axes[len(contents) :]:
            axis.set_axis_off()
        handles = {t: h for axis in axes for h, t in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside right center")
        figure.supxlabel(f"{x}. {note}" if note else x, fontsize=7)
    return figure


SMOKE = "smoke scale: not a result"


def mark_smoke(figure: Figure) -> None:
    """Write across a figure that its models were hardly trained."""
    style: Any = {"size": 16, "color": "0.55", "alpha": 0.45, "rotation": 20, "ha": "center", "va": "center"}
    figure.text(0.45, 0.55, SMOKE, zorder=10, **style)


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write the figure as SVG and PNG and return both paths; the same figure gives the same bytes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png")]  # a dot in the name ends no name
    with mpl.rc_context(STYLE):
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=200)
    return paths
