"""The page of coloured text: what it refuses, and in a real browser what a reader sees, points at and switches."""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browsing import Reader

from bestiary.report.words import count_noun
from bestiary.slices.page import Passage, write_page
from bestiary.slices.tables import FACETS, first_words, interval_sentences, page_figures, selection_note

PIECES = [
    "<|endoftext|>",
    "def",
    " pear",
    "(",
    "x",
    "):",
    "\n    ",
    "return",
    " pear",
    "(",
    "\ufffd",
    "</script>",
    "\n",
]
NAN = math.nan
CODE = Passage(
    pieces=PIECES,
    losses=[
        [NAN, 1.0, 6.0, 0.5, 2.0, 0.1, 0.2, 1.5, 4.0, 3.0, 5.0, 9.0, 0.0],
        [NAN, 1.5, 6.0, 0.25, 2.0, 0.2, 0.1, 1.0, 5.0, 0.124, 5.0, 12.0, 0.0],
    ],
    hits=[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
    distances=[0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 400, 0],
    counts=[0, 1, 2, 3, 4, 5, 6, 7, 8, 1234, 10, 11, 0],
    earlier=[-1] * 9 + [3] + [-1] * 3,
    title="code.py",
)
LINES = json.dumps("<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 400 40'><text y='20'>Gap</text></svg>")[1:-1]


def random_passage(seed: int, size: int = 40) -> Passage:
    """Words and losses drawn by chance, with the true earlier occurrences of their pairs."""
    rng = np.random.default_rng(seed)
    pieces = [["pear", " plum", " fig", ",", "\n"][i] for i in rng.integers(5, size=size)]
    losses = rng.exponential(2.0, (2, size)).round(3)
    losses[:, 0] = NAN
    pairs = list(zip(pieces, pieces[1:], strict=False))
    earlier = [-1] + [max((j + 1 for j in range(i) if pairs[j] == pair), default=-1) for i, pair in enumerate(pairs)]
    return Passage(
        pieces=pieces,
        losses=losses.tolist(),
        hits=[int(at >= 0 and rng.random() < 0.5) for at in earlier],
        distances=[i - at if at >= 0 else 0 for i, at in enumerate(earlier)],
        counts=rng.integers(2000, size=size).tolist(),
        earlier=earlier,
        title=f"invented {seed}",
    )


def first_model(passage: Passage) -> Passage:
    return passage._replace(losses=passage.losses[:1])


def write(place: Path, passages: list[Passage], names: tuple[str, ...] = ("mamba2", "attention")) -> Path:
    write_page(
        place, title="A text", sentences=["All is told.", "So it is."], passages=passages, names=names, figures=[LINES]
    )
    return place


def test_what_is_put_in_cannot_leave_its_place(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script><!--@@DATA@@"
    passage = CODE._replace(pieces=[bad, *PIECES[1:]], title=bad)
    write_page(tmp_path / "a.html", title=bad, sentences=[bad], passages=[passage], names=(bad, "b"))
    html = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert html.count("<script") == html.count("</script") == 2
    assert "<!--" not in html
    data = json.loads(re.findall(r'id="data">(.*?)</script>', html, re.S)[0])
    assert data["names"] == [bad, "b"]
    assert data["passages"][0]["title"] == data["passages"][0]["pieces"][0] == bad
    assert data["passages"][0]["losses"][0][:2] == [None, 1.0]


@pytest.mark.parametrize("name", ["losses", "hits", "distances", "counts", "earlier"])
@pytest.mark.parametrize("change", [lambda row: row[:-1], lambda row: [*row, 0]])
def test_lists_of_a_wrong_length_are_refused_by_the_name_of_the_passage(
    name: str, change: Callable[[list[Any]], list[Any]], tmp_path: Path
) -> None:
    row = getattr(CODE, name)
    wrong = CODE._replace(title="page 7", **{name: [row[0], change(row[1])] if name == "losses" else change(row)})
    with pytest.raises(ValueError, match=rf"passage 'page 7' has 1[24] {name} for 13 pieces"):
        write(tmp_path / "a.html", [CODE, wrong])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"losses": CODE.losses[:1]}, "passage 'code.py' has losses of 1 models: give one list for each of 2"),
        ({"hits": [2] * 13}, "passage 'code.py' has a hit of 2"),
        ({"earlier": [-1] * 9 + [4] + [-1] * 3}, "passage 'code.py', token 9: an earlier occurrence at 4, 6 back"),
        ({"earlier": [0] + [-1] * 12}, "passage 'code.py', token 0: an earlier occurrence at 0, 0 back"),
    ],
)
def test_values_that_do_not_fit_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        write(tmp_path / "a.html", [CODE._replace(**change)])


def test_no_passage_a_third_model_and_a_figure_that_is_not_svg_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no passage"):
        write(tmp_path / "a.html", [])
    for names in ((), ("a", "b", "c")):
        with pytest.raises(ValueError, match="0 models|3 models"):
            write(tmp_path / "a.html", [CODE], names)
    for figure in ("<svg><g></svg>", "<p></p>", "plot.png"):
        with pytest.raises(ValueError, match="a figure is not SVG"):
            write_page(tmp_path / "a.html", title="", sentences=[], passages=[CODE], names=("a", "b"), figures=[figure])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("text") / "text.html", [CODE, *map(random_passage, range(6))])


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; in the end, nothing was complained of in it and nothing was asked for."""
    readers: list[tuple[Any, str]] = []

    def opens(place: Path, **how: Any) -> Any:
        readers.append((Reader(browser, place.as_uri(), **how), place.as_uri()))
        page = readers[-1][0].page
        page.evaluate("() => choose(0)")
        return page

    yield opens
    for reader, address in readers:
        assert reader.errors == []
        assert {url for url in reader.requests if not url.startswith("data:")} == {address}
        reader.page.context.close()


@pytest.fixture
def page(opened: Callable[..., Any], place: Path) -> Any:
    return opened(place)


def token(page: Any, i: int) -> Any:
    return page.locator(f"#text .token[data-i='{i}']")


def background_colours(page: Any) -> list[str]:
    return page.evaluate("[...tokens()].map((span) => getComputedStyle(span).backgroundColor)")


def card_text(page: Any) -> str:
    return " ".join(page.locator("#card").inner_text().split())


@pytest.mark.slow
def test_the_text_stands_as_it_is_with_line_breaks_and_boxes(page: Any) -> None:
    assert page.locator("#text").text_content() == "".join(PIECES)
    assert page.locator("#text .break").count() == 2
    assert page.locator("#text .box").all_text_contents() == ["<|endoftext|>", "\ufffd"]
    tops = page.evaluate("[5, 7].map((i) => tokens()[i].getBoundingClientRect().top)")
    assert tops[1] > tops[0] + 10
    lefts = page.evaluate("[1, 7].map((i) => tokens()[i].getBoundingClientRect().left)")
    width = page.evaluate("tokens()[4].getBoundingClientRect().width")
    edge = page.evaluate("tokens()[0].getBoundingClientRect().left")
    assert lefts[1] - edge == pytest.approx(4 * width, abs=1)


@pytest.mark.slow
def test_exactly_the_hits_are_underlined(page: Any) -> None:
    for at, passage in enumerate([CODE, *map(random_passage, range(6))]):
        page.evaluate(f"() => choose({at})")
        lines = page.evaluate("[...tokens()].map((span) => getComputedStyle(span).textDecorationLine)")
        assert [line == "underline" for line in lines] == [bool(hit) for hit in passage.hits]


@pytest.mark.slow
def test_colours_switch_between_the_difference_and_each_loss(page: Any) -> None:
    def hues() -> list[str]:
        return page.evaluate("[...tokens()].map((span) => span.className.replace(/token|hit/g, '').trim())")

    def strengths() -> list[float]:
        return page.evaluate("[...tokens()].map((span) => parseFloat(span.style.getPropertyValue('--strength')))")

    page.locator("#limit").fill("4")
    a, b = (np.array(row) for row in CODE.losses)
    assert hues()[1:] == ["first" if gap < 0 else "second" for gap in (a - b)[1:]]
    np.testing.assert_allclose(strengths()[1:], 100 * np.minimum(1, np.abs(a - b)[1:] / 4), atol=0.06)
    seen = {tuple(background_colours(page))}
    for name, losses in (("mamba2", a), ("attention", b)):
        page.locator("#modes").get_by_label(name).check()
        page.locator("#limit").fill("8")
        assert set(hues()[1:]) == {"loss"}
        np.testing.assert_allclose(strengths()[1:], 100 * np.minimum(1, losses[1:] / 8), atol=0.06)
        seen.add(tuple(background_colours(page)))
    assert len(seen) == 3


@pytest.mark.slow
def test_the_legend_says_what_the_scale_is(page: Any) -> None:
    page.locator("#limit").fill("2.5")
    assert page.locator("#limit-said").inner_text() == "±2.5 nats"
    assert page.locator("#legend").inner_text().split() == [
        *("−2.5", "0", "nats", "+2.5"),
        *("mamba2", "better", "attention", "better"),
    ]
    page.locator("#modes").get_by_label("attention").check()
    assert page.locator("#legend").inner_text().split()[-2:] == ["certain", "surprised"]


@pytest.mark.slow
def test_a_narrower_scale_colours_more_strongly(page: Any) -> None:
    page.locator("#limit").fill("6")
    faint = background_colours(page)
    page.locator("#limit").fill("1")
    assert faint[1] != background_colours(page)[1]
    assert faint[2] == background_colours(page)[2]  # no difference


@pytest.mark.slow
def test_hits_alone_are_coloured_if_so_wished(page: Any) -> None:
    before, paper = background_colours(page), background_colours(page)[0]
    page.get_by_label("AR hits only").check()
    after = background_colours(page)
    assert [colour != paper for colour in after] == [bool(hit) for hit in CODE.hits]
    assert after[9] == before[9]


@pytest.mark.slow
def test_pointing_at_a_token_tells_its_numbers_and_shows_where_it_occurred_before(page: Any) -> None:
    assert not page.locator("#card").is_visible()
    token(page, 9).hover()
    assert card_text(page) == (
        f"( AR hit Model Probability Loss, nats mamba2 {math.exp(-3):.3f} 3.00 attention {math.exp(-0.124):.3f} 0.12 "
        "attention better by 2.88 Earlier in the context 6 tokens back Pair was counted 1,234 times"
    )
    assert page.evaluate("[...document.querySelectorAll('.earlier')].map((span) => span.dataset.i)") == ["3"]
    assert page.evaluate("[...document.querySelectorAll('.pair')].map((span) => span.dataset.i)") == ["2", "8"]
    assert token(page, 3).evaluate("(span) => getComputedStyle(span).outlineStyle") == "solid"
    end = page.evaluate(
        "(() => { const b = document.querySelector('#trace circle').getBoundingClientRect(); return b.x; })()"
    )
    box = token(page, 3).bounding_box()
    assert box["x"] - 8 < end < box["x"] + box["width"]
    page.mouse.move(2, 2)
    assert not page.locator("#card").is_visible()
    assert page.locator(".earlier, .pair, .now, #trace path").count() == 0


@pytest.mark.slow
def test_the_card_says_what_is_rare_not_shown_or_not_predicted(page: Any) -> None:
    token(page, 11).hover()
    assert "mamba2 1.2 × 10⁻⁴ 9.00 attention 6.1 × 10⁻⁶ 12.00 mamba2 better by 3.00" in card_text(page)
    assert "400 tokens back, not shown Pair was counted 11 times" in card_text(page)
    assert card_text(page).startswith("</script> other")
    assert page.evaluate("[probability(745), probability(746)]") == ["4.9 × 10⁻³²⁴", "0"]
    token(page, 12).hover()
    assert "mamba2 1.000 0.00 attention 1.000 0.00 no difference 0.00 Earlier in the context none" in card_text(page)
    assert card_text(page).endswith("never")
    token(page, 0).hover()
    assert card_text(page) == "<|endoftext|> Nothing was predicted here: it begins the context."


@pytest.mark.slow
def test_the_card_covers_neither_its_token_nor_the_earlier_one(page: Any) -> None:
    page.evaluate("() => choose(3)")
    passage = random_passage(2)
    for i in (i for i, at in enumerate(passage.earlier) if at >= 0):
        token(page, i).hover()
        card, *boxes = (
            page.locator(what).bounding_box() for what in ("#card", f".token[data-i='{i}']", ".token.earlier")
        )
        for box in boxes:
            apart = card["y"] >= box["y"] + box["height"] - 1 or card["y"] + card["height"] <= box["y"] + 1
            assert apart or card["x"] >= box["x"] + box["width"] or card["x"] + card["width"] <= box["x"]


@pytest.mark.slow
def test_the_keyboard_moves_by_token_by_line_and_by_hit(page: Any) -> None:
    page.locator("#text [tabindex='0']").focus()
    assert "Nothing was predicted" in card_text(page)
    at = "Number(document.activeElement.dataset.i)"
    for key, place in [
        ("ArrowRight", 1),
        ("n", 9),
        ("ArrowLeft", 8),
        ("ArrowUp", 1),
        ("End", 12),
        ("p", 9),
        ("Home", 0),
    ]:
        page.keyboard.press(key)
        assert page.evaluate(at) == place, key
    page.keyboard.press("N")
    assert card_text(page).startswith("( AR hit")
    page.keyboard.press("Escape")
    assert not page.locator("#card").is_visible()


@pytest.mark.slow
def test_passages_are_listed_by_their_gap_on_hits_with_their_means(page: Any) -> None:
    passages = [CODE, *map(random_passage, range(6))]

    def means(passage: Passage, hit: int) -> list[float]:
        rows, keep = np.array(passage.losses), np.array(passage.hits) == hit
        a, b = np.nanmean(rows[:, keep], axis=1)
        return [a, b, a - b]

    def said(row: list[float]) -> list[str]:
        return [f"{row[0]:.2f}", f"{row[1]:.2f}", f"{row[2]:+.2f}".replace("-", "−")]

    def listed() -> list[str]:
        return page.locator("#list .title").all_text_contents()

    by_gap = sorted(passages, key=lambda passage: means(passage, 1)[2])
    page.locator("#sort").select_option("first")
    assert listed() == [passage.title for passage in by_gap]
    page.locator("#sort").select_option("second")
    assert listed() == [passage.title for passage in by_gap[::-1]]
    assert page.locator("#title").inner_text() == by_gap[-1].title
    page.locator("#sort").select_option("given")
    assert listed() == [passage.title for passage in passages]
    for line, passage in zip(page.locator("#list > div").all(), passages, strict=True):
        numbers = [re.findall(r"[−+]?\d+\.\d+", text) for text in line.locator(".line").all_inner_texts()]
        assert numbers == [said(means(passage, 1)), said(means(passage, 0))]
        line.click()
        rows = page.locator("#means tbody tr").all_inner_texts()
        asked = sum(passage.hits)
        assert rows[0].split("\t") == ["AR hits", str(asked), *said(means(passage, 1))]
        assert rows[1].split("\t") == ["Other", str(len(passage.hits) - 1 - asked), *said(means(passage, 0))]
        assert page.locator("#list [aria-selected='true'] .title").inner_text() == passage.title
        assert page.locator("#text").text_content() == "".join(passage.pieces)


@pytest.mark.slow
def test_arrows_and_buttons_turn_to_the_next_passage_and_the_address_keeps_it(
    opened: Callable[..., Any], place: Path
) -> None:
    page = opened(place)
    page.locator("#sort").select_option("given")
    page.locator("#list [tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#title").inner_text() == "invented 0"
    page.locator("#next").click()
    assert page.locator("#place").inner_text() == "3 of 7"
    assert page.url.endswith("#passage-3")
    page.reload()
    assert page.locator("#title").inner_text() == "invented 1"


@pytest.mark.slow
def test_a_page_of_one_model_shows_its_loss(opened: Callable[..., Any], tmp_path: Path) -> None:
    page = opened(write(tmp_path / "a.html", [first_model(CODE), first_model(random_passage(1))], ("attention",)))
    assert not page.locator("#modes").is_visible()
    assert "loss" in token(page, 4).get_attribute("class").split()
    token(page, 9).hover()
    assert "attention 0.050 3.00 Earlier in the context 6 tokens back" in card_text(page)
    assert "3.00 nats" in page.locator("#list > div", has_text="code.py").inner_text()


CONTRAST = """() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const draw = canvas.getContext("2d", { willReadFrequently: true });
  const light = (colour) => {
    draw.fillStyle = colour;
    draw.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...draw.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    const own = getComputedStyle(e).backgroundColor;
    return own.endsWith(", 0)") ? ground(e.parentElement) : own;
  };
  const shown = (e) => e.getClientRects().length && e.textContent.trim() && !e.closest("svg");
  return [...document.querySelectorAll("body *")].filter(shown).map((e) => {
    const [own, page] = [light(getComputedStyle(e).color), light(ground(e))];
    return { ratio: (Math.max(own, page) + 0.05) / (Math.min(own, page) + 0.05), e: e.outerHTML.slice(0, 80) };
  }).reduce((a, b) => (a.ratio < b.ratio ? a : b));
}"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_can_be_read_at_full_colour_in_both_schemes(
    opened: Callable[..., Any], place: Path, scheme: str
) -> None:
    page = opened(place, color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    for only in (False, True):
        page.locator("#only").set_checked(only)
        for mode in range(3):
            page.locator("#modes label").nth(mode).click()
            page.locator("#limit").fill("0.25")
            token(page, 9).focus()
            worst = page.evaluate(CONTRAST)
            assert worst["ratio"] >= 4.5, worst
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != ground
    assert page.evaluate(CONTRAST)["ratio"] >= 4.5


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 760, 390])
def test_the_page_never_scrolls_sideways(opened: Callable[..., Any], tmp_path: Path, width: int) -> None:
    long = CODE._replace(title="a/very/long/folder/" * 8, pieces=["x" * 300, " " * 200, *PIECES[2:]])
    names = ("gated_delta(heads=4, short=False), attention(window=64)", "attention" * 9)
    page = opened(write(tmp_path / "a.html", [long], names), viewport={"width": width, "height": 800})
    page.locator("details summary").click()
    for i in (0, 1, 5, 9, 12):
        token(page, i).focus()
        assert page.locator("#card").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert (
            page.evaluate("document.querySelector('#text').scrollWidth - document.querySelector('#text').clientWidth")
            <= 0
        )


@pytest.mark.slow
def test_on_a_phone_a_tap_shows_the_card_below_and_touching_elsewhere_closes_it(
    opened: Callable[..., Any], place: Path
) -> None:
    page = opened(place, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    token(page, 9).tap()
    assert card_text(page).startswith("( AR hit")
    box = page.locator("#card").bounding_box()
    assert box["x"] == 0
    assert box["width"] == 390
    assert box["y"] + box["height"] == 844
    assert token(page, 9).bounding_box()["y"] < box["y"]
    page.locator("#title").dispatch_event("pointerdown")
    assert not page.locator("#card").is_visible()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_each_figure_can_be_read_at_any_width(opened: Callable[..., Any], tmp_path: Path, width: int) -> None:
    """Curves as `slice` draws them, with their letters no smaller than 8 pixels."""
    rows = [{"model": name, "low": low, "loss": 2.0, "half": 0.1} for name in "ab" for low in (1, 2, 4, 8, 1024)]
    figures = list(page_figures({name: pd.DataFrame(rows) for name in FACETS}))
    names = ("mamba2", "attention")
    write_page(
        tmp_path / "a.html", title="", sentences=[], passages=[CODE], names=names, figures=figures, caption="Means."
    )
    page = opened(tmp_path / "a.html", viewport={"width": width, "height": 844})
    boxes = [figure.bounding_box() for figure in page.locator(".figures figure").all()]
    assert len(boxes) == len(FACETS)
    assert len({box["y"] for box in boxes}) == (1 if width > 1000 else len(FACETS))
    assert all(260 < box["width"] <= width for box in boxes)
    scale = "(svg) => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width"
    for svg in page.locator(".figures svg").all():
        assert 7 * svg.evaluate(scale) >= 8  # the smallest letters are of 7 points, a unit of the drawing each
    assert page.locator(".figures p").inner_text() == "Means."


def test_titles_are_first_words() -> None:
    assert first_words("  Some\n\tfew\ufffd words ") == "Some few words"
    assert first_words("word " * 30) == ("word " * 12).strip() + "…"
    assert first_words("x" * 200) == "x" * 60 + "…"
    assert first_words(" \n") == ""


@pytest.mark.parametrize(("models", "what"), [(1, "the highest loss on hits"), (2, "the largest gap on hits")])
def test_what_is_shown_is_told_for_one_model_and_for_two(models: int, what: str) -> None:
    assert (
        selection_note(models) == f"Shown are the contexts with {what}, one of each document in turn: no random sample."
    )
    assert "one of each piece in turn" in selection_note(models, "piece")


def test_one_document_is_no_documents() -> None:
    assert [count_noun(count, "document") for count in (0, 1, 1234)] == ["0 documents", "1 document", "1,234 documents"]
    assert interval_sentences(1, "piece") == ["A single piece has no intervals."]
    assert len(interval_sentences(19, "document")) == 2
    assert interval_sentences(20, "document") == ["Intervals of 95 % are over 20 documents."]
    assert "say nothing about other documents" in interval_sentences(30, "piece")[-1]


@pytest.mark.slow
def test_markup_in_a_text_is_shown_as_text(opened: Callable[..., Any], tmp_path: Path) -> None:
    bad = "</script><img src=x onerror=alert(1)>"
    passage = CODE._replace(pieces=[bad, bad, *PIECES[2:]], title=bad)
    page = opened(write(tmp_path / "a.html", [passage], (bad, "b")))
    token(page, 1).hover()
    assert page.locator("img").count() == 0
    assert page.locator("#text").text_content().startswith(bad + bad)


@pytest.mark.slow
def test_two_hundred_passages_are_a_small_page_that_turns_at_once(opened: Callable[..., Any], tmp_path: Path) -> None:
    place = write(tmp_path / "a.html", [random_passage(seed, 256) for seed in range(200)])
    assert place.stat().st_size < 6e6
    page = opened(place)
    assert page.locator(".token").count() == 256 + 1  # and the one in the key
    turn = "() => { const t = performance.now(); choose(7); document.body.offsetHeight; return performance.now() - t; }"
    assert page.evaluate(turn) < 1000  # milliseconds
