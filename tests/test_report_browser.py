"""The report's page in a real browser: what a reader sees, clicks and copies, with no request to anywhere."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import Reader
from stores import TESTS, diverged, finished, recipe, several
from test_report import data_of, serving

from bestiary.report import report
from bestiary.report.plot import LINE_STYLES
from bestiary.report.serve import make_server
from bestiary.runs.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of several mixers on one task, and of a diverged and a lone run on another."""
    folder = tmp_path_factory.mktemp("report")
    store = several(folder / "runs")
    finished(store, recipe("mamba2", train="induction_heads(length=16)"), 0.7)
    diverged(store, recipe("attention", train="induction_heads(length=16)"))
    (folder / "report.html").write_text(report(store).html)
    return folder / "report.html"


@pytest.fixture
def reader(browser: Any, written: Path) -> Iterator[Reader]:
    opened = Reader(browser, written.as_uri())
    yield opened
    assert opened.errors == []
    assert {url for url in opened.requests if not url.startswith(("data:", "blob:"))} == {written.as_uri()}
    opened.page.context.close()


def test_every_figure_is_drawn_with_labels_and_a_legend(reader: Reader) -> None:
    for section in ("frontier", "load", "rates", "distance", "learning"):
        words = reader.page.locator(f"#{section} figure svg").text_content()
        assert "base_conv, attention" in words
    assert reader.count("#frontier .point") == 6
    assert reader.count("#load .frame") == 3 * 4
    assert reader.count("#rates .point") == 3 * 2
    assert reader.count("#distance .point") == 3 * 3
    assert reader.count("#learning .seed") == 3 * 3
    assert "bits suffice" in reader.page.locator("#frontier svg").text_content()


def test_every_look_of_a_figure_has_a_mark_and_a_colour_of_its_own(reader: Reader) -> None:
    shape = "((m) => m.getAttribute('d') + m.getAttribute('transform'))"
    drawn = f"data.looks.map((_, i) => {shape}(mark(look(i).kind, 0, 0, 4)))"
    for theme in ("light", "dark"):
        reader.page.evaluate(f"() => theme('{theme}')")
        colour = "getComputedStyle(document.documentElement).getPropertyValue(`--c${i}`)"
        colours = reader.page.evaluate(f"data.looks.map((_, i) => {colour})")
        assert len(set(colours)) == len(set(reader.page.evaluate(drawn))) == len(LINE_STYLES)


def test_hovering_a_point_tells_its_details(reader: Reader) -> None:
    tip = reader.page.locator("#tip")
    assert not tip.is_visible()
    mark = reader.page.locator('#frontier .point[aria-label^="base_conv, attention, width 16"] .mark')
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    reader.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert re.search(
        r"width 16, state [\d,]+ numbers\naccuracy 0\.995 \(.*\)\n3 seeds, 12,000 answers", tip.text_content()
    )
    reader.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert "base_conv, attention, width 16" in reader.page.locator("#point h3").text_content()


def test_the_filter_by_family_hides_points(reader: Reader) -> None:
    reader.page.get_by_label("softmax").uncheck()
    assert reader.count("#frontier .point") == 4
    assert reader.count("#load .frame") == 2 * 4
    reader.page.get_by_label("softmax").check()
    assert reader.count("#frontier .point") == 6


def test_a_point_shows_its_runs_by_keyboard_and_each_copies_its_command(reader: Reader) -> None:
    reader.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    reader.pick("base_conv, width 8")
    assert reader.count("#point tbody tr") == 6
    row = reader.page.locator("#point tbody tr").first
    row.get_by_role("button", name="Copy command").click()
    row.get_by_role("button", name="Copied").wait_for()
    assert reader.page.evaluate("navigator.clipboard.readText()").startswith("bestiary train --task 'mqar(length=28")


def test_a_command_is_copied_where_the_clipboard_is_denied(reader: Reader) -> None:
    reader.page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")
    reader.page.locator("#copy-latex").click()
    assert reader.page.get_by_role("button", name="Copied").is_visible()


def test_the_table_sorts_by_number_and_says_how(reader: Reader) -> None:
    def column(n: int) -> list[str]:
        return reader.page.locator(f"#table tbody tr td:nth-child({n})").all_text_contents()

    assert [float(text) for text in column(9)] == sorted(map(float, column(9)), reverse=True)
    for _ in range(2):
        reader.page.locator("#table th button", has_text="State").click()
    states = [int(text.replace(",", "")) for text in column(5)]
    assert states == sorted(states)
    assert reader.page.locator("#table th[aria-sort]").get_attribute("aria-sort") == "ascending"
    reader.page.locator("#table th button", has_text="State").click()
    assert [int(text.replace(",", "")) for text in column(5)] == states[::-1]
    assert reader.page.locator("#table th[aria-sort]").get_attribute("aria-sort") == "descending"


def test_the_filter_box_narrows_the_table(reader: Reader) -> None:
    reader.page.fill("#filter", "gated_delta width=16")
    assert reader.count("#table tbody tr") == 6
    assert reader.page.locator("#count").text_content() == "6 runs"
    for words, runs in {
        "gated_delta, width=16": 6,
        "vocab=64": 36,
        "vocab=6": 0,
        "rate=0.01": 18,
        "rate=0.0": 0,
    }.items():
        reader.page.fill("#filter", words)
        assert reader.count("#table tbody tr") == runs
    reader.page.fill("#filter", "diverged")
    assert reader.count("#table tbody tr") == 1


def test_a_key_opens_the_recipe_the_origin_and_the_command(reader: Reader) -> None:
    reader.page.locator("#table tbody a").first.click()
    shown = reader.page.locator("dialog[open]")
    shown.wait_for()  # the page hears of its new address a moment later
    words = shown.text_content()
    assert '"pattern"' in words
    assert '"versions"' in words
    assert "bestiary train --task" in words
    reader.page.keyboard.press("Escape")
    shown.wait_for(state="hidden")
    reader.wait_until(lambda: "#run-" not in reader.page.url)


def test_another_task_says_plainly_what_it_has_not(reader: Reader) -> None:
    reader.page.select_option("#task", label="induction_heads(length=16)")
    assert "Nothing to show" in reader.page.locator("#load .empty").text_content()
    assert "one learning rate was tried" in reader.page.locator("#rates .empty").text_content()
    assert reader.count("#frontier .point") == 2
    assert "mamba2" in reader.page.locator("#frontier svg").text_content()
    assert "0.000diverged" in reader.page.locator("#frontier table").text_content()


def test_an_axis_without_round_numbers_has_those_of_its_points(browser: Any, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    finished(store, recipe("mamba2", train="induction_heads(length=16)"), 0.7)
    (tmp_path / "report.html").write_text(report(store).html)
    opened = Reader(browser, (tmp_path / "report.html").as_uri())
    state = data_of(opened.page.content())["cells"][0]["state"]
    assert f"{state:,}" in opened.page.locator("#frontier svg text.soft").all_text_contents()
    assert opened.errors == []


def test_svg_and_pdf_are_saved_whole(reader: Reader, tmp_path: Path) -> None:
    with reader.page.expect_download() as saved:
        reader.page.locator("#frontier .tools button").click()
    saved.value.save_as(tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn.startswith("<svg")
    assert 'xmlns="http://www.w3.org/2000/svg"' in drawn
    assert 'stroke="rgb(213, 94, 0)"' in drawn
    for left in ("class=", "var(", "tabindex"):
        assert left not in drawn
    with reader.page.expect_download() as saved:
        reader.page.locator("#frontier .tools a").click()
    saved.value.save_as(tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


CONTRAST = """() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const page = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll("p, li, a, h1, h2, th, td, label, button, .soft")].map((e) => {
    const style = getComputedStyle(e), own = light(e.ownerSVGElement ? style.fill : style.color);
    return (Math.max(own, page) + 0.05) / (Math.min(own, page) + 0.05);
  }).reduce((a, b) => Math.min(a, b));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_colour_schemes_and_the_button_changes_them(
    browser: Any, written: Path, scheme: str
) -> None:
    opened = Reader(browser, written.as_uri(), color_scheme=scheme)
    ground = "getComputedStyle(document.body).backgroundColor"
    before = opened.page.evaluate(ground)
    assert (before == "rgb(255, 255, 255)") == (scheme == "light")
    assert opened.page.evaluate(CONTRAST) >= 4.5
    opened.page.locator("#theme").click()
    assert opened.page.evaluate(ground) != before
    assert opened.page.evaluate(CONTRAST) >= 4.5
    assert opened.errors == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_never_scrolls_sideways(browser: Any, written: Path, width: int) -> None:
    opened = Reader(browser, written.as_uri(), viewport={"width": width, "height": 800})
    opened.pick("base_conv, width 8")
    for details in opened.page.locator("details").all():
        details.locator("summary").click()
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    opened.page.locator("#table tbody a").first.click()
    assert opened.page.locator("dialog").evaluate("box => box.scrollWidth - box.clientWidth") <= 0
    assert opened.errors == []


OVERLAPS = """(svg) => {
  const boxes = [...svg.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect()]);
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2;
  return boxes.flatMap(([s, a], i) => boxes.slice(i + 1).filter(([, b]) => meet(a, b)).map(([t]) => `${s} | ${t}`));
}"""


@pytest.mark.parametrize("width", [1280, 390])
def test_curves_are_tall_enough_and_no_text_of_theirs_lies_on_another(browser: Any, written: Path, width: int) -> None:
    opened = Reader(browser, written.as_uri(), viewport={"width": width, "height": 800})
    for section in ("frontier", "rates", "distance", "learning"):
        drawing = opened.page.locator(f"#{section} figure svg")
        assert drawing.evaluate(OVERLAPS) == []
        assert drawing.evaluate("svg => svg.clientHeight") > 390
        assert drawing.evaluate("svg => svg.clientWidth / svg.viewBox.baseVal.width") == pytest.approx(1, abs=0.02)


def test_a_page_of_the_smoke_scale_and_its_figures_are_marked(browser: Any, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    finished(store, recipe(), 0.5)
    (tmp_path / "report.html").write_text(report(store, smoke=True).html)
    opened = Reader(browser, (tmp_path / "report.html").as_uri())
    assert opened.page.locator("header .smoke").text_content() == "smoke scale: not a result"
    assert opened.count("#frontier svg text.smoke") == opened.count("#learning svg text.smoke") == 1
    assert opened.errors == []


def test_markup_in_a_name_is_shown_as_text(browser: Any, tmp_path: Path) -> None:
    from bestiary.spec import spec

    file = tmp_path / "<img src=x onerror=alert(1)><script>" / "script>.py"
    file.parent.mkdir(parents=True)
    file.write_text((Path(__file__).parents[1] / "examples" / "my_mixer.py").read_text())
    store = Store(tmp_path / "runs")
    made = finished(store, recipe(test=TESTS).model_copy(update={"pattern": (spec("mixers", str(file)),)}), 0.5)
    (tmp_path / "report.html").write_text(report(store, title="<b>x</b>").html)
    opened = Reader(browser, f"{(tmp_path / 'report.html').as_uri()}#run-{made.key}")
    assert opened.count("img, b") == 0
    assert "onerror=alert(1)" in opened.page.locator("dialog pre").first.text_content()
    assert "onerror=alert(1)" in opened.page.locator("#summary").text_content()
    assert opened.errors == []


def test_a_served_page_loads_itself_anew_when_a_run_has_ended(browser: Any, tmp_path: Path) -> None:
    store = Store(tmp_path)
    finished(store, recipe(), 0.5)
    with serving(make_server(store, lambda version: report(store, version=version).html, port=0)) as address:
        opened = Reader(browser, address)
        assert opened.count("#table tbody tr") == 1
        finished(store, recipe("base_conv"), 0.5)
        opened.page.locator("#table tbody tr").nth(1).wait_for(timeout=60_000)
        assert opened.count("#table tbody tr") == 2
        assert opened.errors == []
        opened.page.context.close()


def test_five_hundred_runs_are_a_small_page_that_opens_and_sorts_at_once(browser: Any, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    for seed in range(50):
        for dim in (8, 16):
            for pattern in ("attention", "base_conv", "mamba2", "gla", "base_conv, attention"):
                finished(store, recipe(pattern, dim=dim, seed=seed, test=TESTS), 0.5 + seed / 200)
    html = report(store).html
    assert len(html) < 3e6
    assert len(data_of(html)["runs"]) == 500
    (tmp_path / "report.html").write_text(html)
    opened = Reader(browser, (tmp_path / "report.html").as_uri())
    assert opened.count("#table tbody tr") == 300
    opened.page.locator("#more").click()
    assert opened.count("#table tbody tr") == 500
    click = "document.querySelector('#table th button').click()"
    sort = f"() => {{ const t = performance.now(); {click}; return performance.now() - t; }}"
    assert opened.page.evaluate(sort) < 2000  # milliseconds
    assert opened.errors == []
