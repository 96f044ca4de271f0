"""Figures: what is drawn, and that the same figure is the same file."""

from pathlib import Path

import pandas as pd
import pytest

from bestiary.report.pdf import draw_figures, encode_pdf
from bestiary.report.plot import LINE_STYLES, DotRow, Line, dots, matrix, panels, save_figure

LINES = [
    Line("attention", [64, 128], [1.0, 1.0], [0.99, 0.99], [1.0, 1.0]),
    Line("BaseConv", [64, 128], [0.7, 0.9], [0.6, 0.8], [0.8, 0.95]),
    Line("BaseConv", [64, 128, 256], [0.7, 0.94, 0.96], published=True),
]


def test_a_figure_is_the_same_file_every_time(tmp_path: Path) -> None:
    one, two = (save_figure(panels({"p": LINES}, x="width"), tmp_path / name) for name in ("one", "two"))
    assert [path.suffix for path in one] == [".svg", ".png"]
    for a, b in zip(one, two, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_published_points_share_the_colour_of_ours_and_are_hollow() -> None:
    axis = panels({"p": LINES}, x="width", levels={"p": {"chance": 0.25}}).axes[0]
    ours, published = axis.lines[1], axis.lines[2]
    assert ours.get_color() == published.get_color()
    assert published.get_markerfacecolor() == "white"
    assert published.get_label() == "BaseConv, published"
    assert axis.lines[3].get_ydata()[0] == pytest.approx(0.25)
    assert len(axis.collections) == 2
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["64", "128", "256"]


def test_lines_differ_without_colour() -> None:
    assert (
        len({marker for _, marker, _ in LINE_STYLES})
        == len({str(dash) for _, _, dash in LINE_STYLES})
        == len(LINE_STYLES)
    )


def test_panels_share_one_legend() -> None:
    figure = panels({"a": LINES[:1], "b": LINES[1:2]}, x="width", note="three seeds")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["attention", "BaseConv"]
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]


ODD = "_$x^$.py"  # a name that a legend would leave out, and a formula that cannot be read


def test_any_name_is_shown_as_it_is(tmp_path: Path) -> None:
    figure = panels({ODD: [Line(ODD, [1, 2], [0.0, 1.0]), Line(ODD, [1, 2], [0.0, 1.0], published=True)]}, x="width")
    names = [" _$x^$.py", " _$x^$.py, published"]
    assert [text.get_text().replace(r"\$", "$") for text in figure.legends[0].get_texts()] == names
    table = pd.DataFrame({ODD: [0.5]}, index=[ODD])
    for drawn in (figure, dots([DotRow(ODD, [1.0])], x="steps"), matrix(table)):
        assert ">_$x^$.py<" in save_figure(drawn, tmp_path / "odd")[0].read_text().replace("> _", ">_")


def test_a_pdf_shows_any_name_and_a_state_of_nothing() -> None:
    cell = {"mixer": ODD, "dim": 8, "state": 0, "accuracy": 0.5, "low": 0.4, "high": 0.6, "rates": [], "distances": []}
    task = {"label": ODD, "dims": [8], "mixers": [ODD], "bounds": [], "levels": {}, "segments": []}
    ((_, figure),) = draw_figures(task, [{**cell, "answers": 8, "mean": []}])
    assert encode_pdf(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [r" _\$x^\$.py"]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1]


def test_a_matrix_writes_every_share_and_is_darkest_at_one() -> None:
    table = pd.DataFrame({"one": [0.0, 0.25], "two": [0.5, 1.0]}, index=["a", "b"])
    (axis,) = matrix(table).axes
    assert [text.get_text() for text in axis.texts] == ["0.00", "0.50", "0.25", "1.00"]
    (image,) = axis.images
    shades = image.to_rgba(table.to_numpy())[..., :3].sum(-1)
    assert shades[0, 0] > shades[1, 0] > shades[0, 1] > shades[1, 1]
    table.loc["a", "two"] = float("nan")
    drawn = matrix(table, intervals=table.map("to {}".format)).axes[0].texts
    assert [text.get_text() for text in drawn] == ["0.00", "to 0.0", "0.25", "to 0.25", "1.00", "to 1.0"]


def test_many_ticks_are_thinned_and_few_are_not() -> None:
    from bestiary.report.plot import spread_ticks

    few = [32, 48, 64, 96, 128]
    assert spread_ticks(few) == few
    assert spread_ticks([1, *range(25, 1225, 25)]) == [1, 25, 100, 400]
