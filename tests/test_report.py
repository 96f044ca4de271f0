"""The report's parts: its numbers, its words, its commands, its tables in LaTeX, and the verb that writes it."""

import base64
import http.client
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stores import TASK, TESTS, diverged, finished, line, recipe, several
from typer.testing import CliRunner

from bestiary import cli
from bestiary.cli import runs as verbs
from bestiary.report import command, report
from bestiary.report.contents import mean_curve, report_data
from bestiary.report.latex import escape_latex, format_column, latex_tables
from bestiary.report.page import page
from bestiary.report.pdf import draw_figures, pdf_figures
from bestiary.report.runs import family, gather_runs, tasks_text
from bestiary.report.serve import make_server, store_version
from bestiary.report.words import summary
from bestiary.runs.store import Store
from bestiary.runs.table import distance_counts
from bestiary.training.recipe import Recipe, based, clean, iclr24


@pytest.fixture(autouse=True)
def _no_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them is most of the work, and one test looks at them."""
    monkeypatch.setattr("bestiary.report.page.pdf_figures", lambda _: [])


def gather_data(store: Store) -> dict[str, Any]:
    return report_data(gather_runs(store, store.run_keys()))


def test_an_experiment_says_what_patterns_are_called(tmp_path: Path) -> None:
    store = several(tmp_path)
    shown = report_data(
        gather_runs(store, store.run_keys()), lambda pattern: "Short" if "attention" not in pattern else pattern
    )
    assert {c["mixer"] for c in shown["cells"]} == {"Short", "base_conv, attention"}


def summary_text(store: Store, **stands: int) -> str:
    return " ".join(sentence for _, part in summary(gather_data(store), stands) for sentence in part)


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert found is not None
    data = json.loads(found[1])
    columns, commands = data["runs"]["columns"], data["runs"]["commands"]
    runs = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for run in runs:
        around = None if run["command"] is None else commands[run["command"]]
        run["command"] = around and f" seed={run['seed']}".join(around)
    return data | {"runs": runs}


RECIPES = {
    "the defaults": clean("attention"),
    "what differs": clean("2*gated_delta, attention(window=8)", depth=3, dim=16, seed=3, rate=1e-4, clip=None),
    "tests of their own": recipe(test=TESTS, select=TASK, channel="mlp"),
    "of a paper": iclr24("base_conv, based(features=8)", length=128, pairs=8),
    "with finite sets": based("mamba2"),
    "text in quotes": clean("base_conv(filter='explicit', taps=4)", train="mqar(filler='zero')"),
    "mixers in a mixer": clean("serial('base_conv, attention')"),
}


@pytest.mark.parametrize("made", RECIPES.values(), ids=RECIPES)
def test_the_command_of_a_run_makes_its_key_through_the_command_line_itself(
    made: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Recipe] = []

    def run_recipes(_name: str, recipes: list[Recipe], _folder: Path, **_how: Any) -> tuple[int, pd.DataFrame]:
        heard.extend(recipes)
        return 0, pd.DataFrame()

    monkeypatch.setattr(verbs, "run_recipes", run_recipes)
    stored = json.loads(json.dumps(made.json()))
    assert command(stored) == command(made)
    done = CliRunner().invoke(cli.app, shlex.split(command(made))[1:])
    assert done.exit_code == 0, done.output
    assert [found.key for found in heard] == [made.key]


def test_no_command_is_given_for_a_run_whose_file_is_gone(tmp_path: Path) -> None:
    source = (Path(__file__).parents[1] / "examples" / "my_mixer.py").read_text()
    good, odd = tmp_path / "mine.py", tmp_path / "a <b>.py"
    for file in (good, odd):
        file.write_text(source)
    from bestiary.spec import spec

    made = [recipe().model_copy(update={"pattern": (spec("mixers", str(file)),)}) for file in (good, odd)]
    store = Store(tmp_path / "runs")
    for one in made:
        finished(store, one, 0.5)
    commands = {run["key"]: run["command"] for run in gather_data(store)["runs"]}
    assert str(good) in commands[made[0].key]
    assert "\"'" + str(odd) + "'\"" in str(commands[made[1].key])
    good.unlink()
    shown = gather_data(store)
    assert {run["key"]: run["command"] for run in shown["runs"]} == commands | {made[0].key: None}
    assert {cell["state"] for cell in shown["cells"] if str(good) in cell["mixer"]} == {None}


def test_the_rate_is_chosen_on_the_selection_stream_and_the_number_is_from_the_test_stream(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finished(store, recipe(rate=0.001), 0.3, selection=0.9)
    finished(store, recipe(rate=0.01), 0.8, selection=0.5)
    (cell,) = gather_data(store)["cells"]
    assert (cell["rate"], cell["accuracy"]) == (0.001, 0.3)
    assert [rate for rate, *_ in cell["rates"]] == [0.001, 0.01]
    assert cell["works"] == [0.001, 0.001]


def test_a_point_is_the_mean_over_segments_then_over_seeds_with_an_interval_over_seeds(tmp_path: Path) -> None:
    shown = gather_data(several(tmp_path))
    cell = next(c for c in shown["cells"] if c["mixer"] == "base_conv" and c["dim"] == 16)
    half = 4.303 * 0.005 / 3**0.5
    wanted = pytest.approx((0.405, 0.405 - half, 0.405 + half), abs=1e-4)
    assert (cell["accuracy"], cell["low"], cell["high"]) == wanted
    assert [(place, asked) for place, *_, asked in cell["distances"]] == [(1, 12_000), (2, 12_000), (8, 12_000)]
    assert all(shown == wanted for _, *shown, _ in cell["distances"])
    assert (cell["seeds"], cell["answers"], len(cell["segments"])) == (3, 12_000, 4)
    assert len(shown["cells"]) == 6
    assert len(shown["runs"]) == 36


def test_the_state_is_that_of_the_longest_test_sequence(tmp_path: Path) -> None:
    from bestiary.model import memory

    store = Store(tmp_path)
    made = finished(store, recipe(test=TESTS), 0.5)
    (cell,) = gather_data(store)["cells"]
    assert cell["state"] == memory(made.build, time=48).numbers


def test_a_family_is_that_of_the_last_mixer_that_is_no_plain_convolution() -> None:
    assert family(clean("based, base_conv").json()) == "linear"
    assert family(clean("base_conv, attention").json()) == "softmax"
    assert family(clean("base_conv").json()) == "convolution"


def test_tasks_that_differ_are_kept_apart_and_named_by_what_differs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finished(store, recipe(test=TESTS), 0.5)
    finished(store, recipe(), 0.5)
    labels = [task["label"] for task in gather_data(store)["tasks"]]
    assert len(set(labels)) == 2
    assert "4 segments of mqar(vocab=64), length 28, 48 and pairs 2, 7, trained on mqar(length=28, vocab=64)" in labels
    assert tasks_text(recipe().json()["test"]) == "mqar(length=28, vocab=64)"


def test_segments_that_are_not_all_combinations_are_written_one_by_one() -> None:
    def text(*segments: tuple[int, int]) -> str:
        tests = ", ".join(f"mqar(vocab=64, length={length}, pairs={pairs})" for length, pairs in segments)
        return tasks_text(recipe(test=tests).json()["test"])

    assert text((28, 2), (48, 7), (48, 2)) == "3 segments of mqar(vocab=64), length/pairs 28/2, 48/7, 48/2"
    orders = [(28, 2), (28, 7), (48, 2), (48, 7)], [(28, 2), (48, 2), (28, 7), (48, 7)], [(28, 2), (48, 2), (28, 7)]
    assert len({text(*segments) for segments in orders}) == 3


def test_distances_are_binned_by_powers_of_two_and_only_of_the_test_stream() -> None:
    log = [
        {"split": split, "facet": "distance", "value": value, "right": 1, "asked": 2}
        for split, value in (("test", 1), ("test", 4), ("test", 7), ("test", 8), ("selection", 1))
    ]
    assert distance_counts(log) == {1: (1, 2), 4: (2, 4), 8: (1, 2)}


def test_a_run_that_stopped_keeps_its_last_accuracy_in_the_mean_curve() -> None:
    assert mean_curve([[(10, 0.5), (20, 1.0)], [(10, 0.1), (20, 0.2), (30, 0.4)]]) == [
        (10, pytest.approx(0.3)),
        (20, pytest.approx(0.6)),
        (30, pytest.approx(0.7)),
    ]
    assert mean_curve([[(10, 0.5), (20, 1.0)], []]) == [(10, 0.25), (20, 0.5)]


def test_the_lines_of_theory_stand_for_the_hardest_segment_and_for_mqar_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finished(store, recipe(test=TESTS), 0.5)
    finished(store, recipe(train="induction_heads(length=16)"), 0.5)
    bounds = {task["label"][:9]: task["bounds"] for task in gather_data(store)["tasks"]}
    assert [bound["state"] for bound in bounds["4 segment"]] == [2, pytest.approx(13.62, abs=0.01), 49]  # 35 bits
    assert bounds["induction"] == []


def test_the_summary_says_who_reaches_what_and_with_which_state(tmp_path: Path) -> None:
    words = summary_text(several(tmp_path), finished=36)
    assert "36 finished runs of 3 mixers on 1 task, with 3 seeds (0, 1 and 2)." in words
    assert re.search(r"base_conv, attention has the highest accuracy of 3 mixers, 0\.995 \(95 % interval", words)
    assert re.search(r"reached an accuracy of 0\.99: base_conv, attention, [\d,]+ numbers \(width 16\)", words)
    assert "base_conv and short_conv, gated_delta did not reach 0.99" in words
    assert "No run diverged." in words


def test_the_summary_claims_nothing_that_one_unsolved_run_does_not_carry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finished(store, recipe(), 0.2)
    words = summary_text(store, finished=1)
    assert "1 finished run of 1 mixer on 1 task, with 1 seed (0)." in words
    assert "Every point is from a single seed" in words
    assert "attention did not reach 0.99" in words
    assert "One learning rate was tried" in words
    for claim in ("highest", "lowest", "smallest", "idest", "overlaps", "ranked"):
        assert claim not in words


def test_the_summary_counts_what_diverged_failed_or_was_steered_by_the_test_set(tmp_path: Path) -> None:
    store = Store(tmp_path)
    diverged(store, recipe(rate=1.0))
    finished(store, recipe("base_conv", steer="test"), 0.2)
    words = summary_text(store, diverged=1, finished=1, failed=2)
    assert "1 run diverged and counts as accuracy 0." in words
    assert "Not in the figures: 2 failed." in words
    assert "1 run let the test set decide" in words
    made = report(store)
    assert "on the <em>selection</em> stream; with steer=test on the <em>test</em> set, as" in made.html
    assert "chosen on the selection stream, of base\\_conv on the test set. State" in made.latex
    shown = gather_data(store)
    shown["cells"] = shown["cells"][1:]
    assert "chosen on the test set. State" in latex_tables(shown)
    assert "when to stop, were decided on the <em>test</em> set, as" in page(shown, [], title="", latex="")


def test_a_mixer_whose_runs_all_diverged_is_compared_with_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    diverged(store, recipe("attention"))
    assert "All runs of attention diverged." in (words := summary_text(store))
    assert "interval 0" not in words
    for pattern, accuracy in {"base_conv": 0.5, "gla": 0.6}.items():
        finished(store, recipe(pattern), accuracy)
    words, latex = summary_text(store), report(store).latex
    assert "All runs of attention diverged. gla has the highest accuracy of 2 mixers" in words
    assert "overlap" not in words
    assert "Not above guessing" not in words
    assert re.search(r"attention & 8 & [\d{,}]+ & diverged \\\\", latex)
    assert r"gla & 8" in latex


def test_mixers_and_tasks_of_one_name_and_other_files_are_kept_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for mixer, task in ("aa", "ba", "ab"):
        made = recipe()
        pattern, test = (
            (replace(part, source=digest * 64),) for (part,), digest in ((made.pattern, mixer), (made.test, task))
        )
        finished(store, made.model_copy(update={"pattern": pattern, "test": test}), 0.5)
    shown = gather_data(store)
    named = [(shown["tasks"][c["task"]]["label"].partition("; ")[2], c["mixer"]) for c in shown["cells"]]
    one, other = ("source=aaaaaa", "source=bbbbbb")
    assert sorted(named) == [(one, f"attention; {one}"), (one, f"attention; {other}"), (other, "attention")]


def test_chance_and_plateau_come_first_and_what_is_not_above_them_is_not_ranked(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for pattern, accuracy in {"attention": 0.003, "base_conv": 0.002, "mamba2": 0.001}.items():
        finished(store, recipe(pattern), accuracy)
    words = summary_text(store)
    assert "Chance is 0.031, the plateau (a guess among the answers that occur) 0.250. None of 3 mixers is" in words
    assert "None of 3 mixers is above guessing: accuracies from 0.001 to 0.003, not ranked." in words
    assert "highest" not in words
    assert "mathbf" not in report(store).latex
    for pattern, accuracy in {"hyena": 0.9, "gla": 0.6}.items():
        finished(store, recipe(pattern), accuracy)
    words = summary_text(store)
    assert "hyena has the highest accuracy of the 2 mixers above guessing, 0.900" in words
    assert "The lowest above guessing is that of gla" in words
    assert "Not above guessing, by the interval: attention (0.003), base_conv (0.002) and mamba2 (0.001)." in words
    assert report(store).latex.count("mathbf") == 1


def test_one_mixer_below_the_plateau_is_said_to_be(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finished(store, recipe(), 0.2)
    assert "numbers of state, which is not above guessing." in summary_text(store)


def test_a_report_of_the_smoke_scale_is_marked(tmp_path: Path) -> None:
    store = several(tmp_path)
    marked, plain = report(store, smoke=True), report(store)
    assert '<p class="smoke">smoke scale: not a result</p>' in marked.html
    assert data_of(marked.html)["smoke"] is True
    assert r"\caption{Smoke scale: not a result. Accuracy on" in marked.latex
    assert "not a result</p>" not in plain.html
    assert "Smoke scale" not in plain.latex


def test_a_damaged_run_is_named_and_the_others_are_reported(tmp_path: Path) -> None:
    store = several(tmp_path)
    keys = store.run_keys()
    damages: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
        ("origin.json", lambda _: "{"),
        ("origin.json", lambda _: []),
        ("recipe.json", lambda _: None),
        ("recipe.json", lambda found: found | {"test": [{"text": 1}]}),
        ("log.jsonl", lambda found: {"stop": found.pop("step"), **found}),
    ]
    for key, (name, change) in zip(keys, damages, strict=False):
        place = tmp_path / key / name
        first, _, rest = place.read_text().partition("\n") if name == "log.jsonl" else (place.read_text(), "", "")
        made = change(json.loads(first))
        place.write_text((made if made == "{" else json.dumps(made)) + "\n" + rest)
    found = report(store)
    assert len(found.damaged) == len(damages)
    for key, named in zip(keys, sorted(found.damaged), strict=False):
        assert named.endswith(f"set it aside with: mv {tmp_path / key} {tmp_path / key}.damaged")
    assert len(data_of(found.html)["runs"]) == 36 - len(damages)


def test_a_report_replaces_a_report_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished(Store("runs"), recipe(), 0.5)
    for name in ("page.html", "page.tex"):
        Path(name).write_text("my own words\n")
        assert f"'{name}' exists and is no page of this kind" in run_cli("report", "--out", "page.html", status=2)
        assert [Path(name).read_text(), Path("page.html").exists()] == ["my own words\n", name == "page.html"]
        Path(name).unlink()
    Path("page.html").write_text("my own words\n")
    run_cli("report", "--out", "page.html", "--overwrite")
    run_cli("report", "--out", "page.html")
    assert "Recall report: All runs" in Path("page.html").read_text()
    assert "is the name of the tables" in run_cli("report", "--out", "page.tex", status=2)
    Path("folder").mkdir()
    assert "'folder' is a folder" in run_cli("report", "--out", "folder", status=2)


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:{port}", 200), ("127.0.0.1:{port}", 200), ("[::1]:{port}", 200), ("LOCALHOST", 200)]
    + [("evil.example:{port}", 403), ("127.0.0.1.evil.example:{port}", 403), ("", 403), ("localhost@evil", 403)],
)
def test_a_served_report_answers_to_the_names_of_this_machine_alone(host: str, status: int, tmp_path: Path) -> None:
    store = Store(tmp_path)
    finished(store, recipe(), 0.5)
    with serving(make_server(store, lambda _: "the report", port=0)) as address:
        port = urllib.parse.urlsplit(address).port
        for path in ("/", "/version"):
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.putrequest("GET", path, skip_host=True)
            if host:
                connection.putheader("Host", host.format(port=port))
            connection.endheaders()
            answer = connection.getresponse()
            assert answer.status == status
            assert (b"the report" in answer.read()) == (status == 200 and path == "/")


def test_overlapping_intervals_are_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finished(store, recipe("attention"), 0.500)
    finished(store, recipe("base_conv"), 0.495)
    assert "Its interval overlaps that of base_conv." in summary_text(store)


def test_no_mixer_is_called_the_best_of_equals(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for pattern in ("attention", "base_conv"):
        finished(store, recipe(pattern), 0.5)
    assert "Each of 2 mixers has an accuracy of 0.500." in (words := summary_text(store))
    assert "highest" not in words


def test_latex_marks_the_best_of_each_column_and_escapes_what_is_special(tmp_path: Path) -> None:
    column = [[0.5, 0.4, 0.6], [0.9904, 0.947, 1.0], None]
    wanted = [r"$0.500\ [0.400, 0.600]$", r"$\mathbf{0.990}\ [0.947, 1.000]$", "diverged"]
    assert format_column(column, {"chance": 0.1}) == wanted
    assert not [cell for cell in format_column(column, {"chance": 0.1, "plateau": 0.95}) if "mathbf" in cell]
    assert escape_latex(r"a_b & 50% {\x}") == r"a\_b \& 50\% \{\textbackslash{}x\}"
    tex = report(several(tmp_path)).latex
    assert [tex.count(f"\\{part}\n") for part in ("toprule", "midrule", "bottomrule")] == [1, 2, 1]
    assert tex.count(r"\begin{") == tex.count(r"\end{") == 2
    heads = re.search(r"\\begin\{tabular\}\{(\w+)\}", tex)
    assert heads is not None
    rows = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert {len(re.split(r"(?<!\\) & ", row)) for row in rows} == {len(heads[1])}
    assert len(rows) == 6
    assert rows[1].startswith("Chance &")
    assert rows[2].startswith("Plateau &")
    assert rows[1].endswith(r"& $0.031$ \\")


def test_the_page_holds_all_it_needs_and_asks_for_nothing(tmp_path: Path) -> None:
    html = report(several(tmp_path)).html
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", html)
    assert "default-src 'none'" in html
    assert "connect-src" not in html
    assert "bestiary-version" not in html.partition("<script")[0]
    assert "connect-src 'self'" in report(Store(tmp_path), version="7").html


def test_figures_for_print_name_the_levels_of_guessing_and_what_their_bars_are(tmp_path: Path) -> None:
    shown = gather_data(several(tmp_path))
    drawn = dict(draw_figures(shown["tasks"][0], shown["cells"]))
    assert {"chance", "plateau"} <= {text.get_text() for text in drawn["frontier"].axes[0].texts}
    assert all(drawn[name].get_supxlabel().endswith("bars: 95 % interval") for name in ("frontier", "distance"))
    assert drawn["rates"].get_supxlabel().endswith("bars: lowest to highest seed")


@pytest.mark.slow
def test_each_figure_is_there_as_pdf_the_same_each_time(tmp_path: Path) -> None:
    shown = gather_data(several(tmp_path))
    (drawn,) = pdf_figures(shown)
    assert set(drawn) == {"frontier", "load", "rates", "distance", "learning"}
    assert all(base64.b64decode(found).startswith(b"%PDF") for found in drawn.values())
    assert pdf_figures(shown) == [drawn]
    assert pdf_figures(shown, most=0) == []


def test_the_same_store_gives_the_same_page(tmp_path: Path) -> None:
    store = several(tmp_path)
    assert report(store).html == report(store).html


def test_text_from_a_recipe_never_becomes_markup(tmp_path: Path) -> None:
    from bestiary.spec import spec

    file = tmp_path / "<script>alert(1)<" / "script>.py"
    file.parent.mkdir()
    file.write_text((Path(__file__).parents[1] / "examples" / "my_mixer.py").read_text())
    store = Store(tmp_path / "runs")
    finished(store, recipe().model_copy(update={"pattern": (spec("mixers", str(file)),)}), 0.5)
    made = report(store, title="<i>odd</i>")
    assert "<script>alert" not in made.html
    assert "<i>odd" not in made.html
    assert "<script>alert" in data_of(made.html)["cells"][0]["mixer"]
    assert r"\textless{}script\textgreater{}" in made.latex


def test_of_very_many_seeds_the_lowest_the_highest_and_some_between_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    for seed in range(30):
        finished(store, recipe(seed=seed), 0.5, selection=(7 * seed % 30) / 100)
    (cell,) = gather_data(store)["cells"]
    assert len(cell["curves"]) == 30
    monkeypatch.setattr("bestiary.report.contents.CURVES", 10)
    (cell,) = gather_data(store)["cells"]
    assert [curve[-1][1] for curve in cell["curves"]] == [0, 0.03, 0.06, 0.1, 0.13, 0.16, 0.19, 0.23, 0.26, 0.29]
    assert cell["seeds"] == 30


def test_the_page_says_of_each_run_what_is_known(tmp_path: Path) -> None:
    store = several(tmp_path)
    finished(store, recipe(rate=1 / 3, seed=2**53), 0.5)
    runs = gather_data(store)["runs"]
    assert data_of(report(store).html)["runs"] == runs
    made = next(run for run in runs if run["seed"] == 2**53)
    assert made["command"] == command(recipe(rate=1 / 3, seed=2**53))


def test_the_name_of_the_machine_stays_out_of_the_page(tmp_path: Path) -> None:
    store = several(tmp_path)
    (key, *_) = store.run_keys()
    place, done = tmp_path / key / "origin.json", tmp_path / key / "done"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"host": {"name": "secret-box", "cores": 2}}))
    done.write_text(json.dumps(json.loads(done.read_text()) | {"digests": {}}))  # of version 0.1: the edit is not seen
    html = report(store).html
    assert "secret-box" not in html
    assert {"cores": 2} in [origin.get("host") for origin in data_of(html)["origins"]]


def test_of_very_many_runs_only_those_at_the_best_rates_are_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bestiary.report.contents.MOST", 20)
    shown = gather_data(several(tmp_path))
    assert (shown["total"], len(shown["runs"])) == (36, 18)
    assert {run["rate"] for run in shown["runs"]} == {0.001}


def run_cli(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == status, done.output
    return done.output


def test_the_verb_writes_the_page_and_the_tables_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished(Store("runs"), recipe(), 0.5)
    assert run_cli("report", "--out", "out/page.html").split() == ["out/page.html", "out/page.tex"]
    assert "Recall report: All runs" in (tmp_path / "out/page.html").read_text()
    assert r"\toprule" in (tmp_path / "out/page.tex").read_text()


def test_an_experiment_is_reported_by_its_own_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bestiary.experiments import figure2

    monkeypatch.chdir(tmp_path)
    finished(Store("runs"), recipe(), 0.5)
    made = finished(Store("runs"), next(iter(figure2.recipes("smoke"))), 0.5)
    run_cli("report", "--experiment", "figure2", "--scale", "smoke")
    html = (tmp_path / "report.html").read_text()
    assert [run["key"] for run in data_of(html)["runs"]] == [made.key]
    assert "Not in the figures: 11 to come." in html


def test_the_verb_refuses_in_one_line_where_there_is_nothing_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "there is no folder nowhere" in run_cli("report", "nowhere", status=2)
    (tmp_path / "runs").mkdir()
    assert "no run of it is done" in run_cli("report", status=2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = run_cli("report", "--serve", "--port", port, status=2)
    assert f"port {port} cannot be used" in told
    assert len(told.strip().splitlines()) == 1


def test_a_served_report_follows_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    finished(store, recipe(), 0.5)
    with serving(make_server(store, lambda version: report(store, version=version).html, port=0)) as address:
        before, version = fetch(address), fetch(f"{address}version")
        assert f'content="{version}"' in before
        finished(store, recipe("base_conv"), 0.5)
        assert fetch(f"{address}version") != version
        assert len(data_of(fetch(address))["runs"]) == 2
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(f"{address}../secret")


def test_a_file_that_goes_while_the_store_is_looked_at_changes_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    finished(store, recipe(), 0.5)
    before = store_version(store)
    monkeypatch.setattr(Path, "exists", lambda _: True)  # as it was a moment ago
    (store.folder / next(iter(store.run_keys())) / "done").unlink()
    assert store_version(store) != before


def test_a_report_can_be_served_before_anything_is_done(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with serving(make_server(store, lambda version: report(store, version=version).html, port=0)) as address:
        assert "no run of it is done" in fetch(address)


@contextmanager
def serving(made: ThreadingHTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_address[1]}/"
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


@pytest.mark.slow
def test_the_server_says_where_it_is_and_ends_cleanly_on_interrupt(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-m", "bestiary.cli", "report", "--serve", "--port", "0"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    with subprocess.Popen(command, cwd=tmp_path, preexec_fn=heed, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr is not None
        assert not process.stderr.read()


def fetch(address: str) -> str:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read().decode()


def test_a_run_that_diverged_counts_as_nothing_at_any_rate_or_distance(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seed in range(2):
        finished(store, recipe(seed=seed, rate=1e-3), 0.95)
    finished(store, recipe(seed=0, rate=1e-2), 0.97)
    late = store.claim(recipe(seed=1, rate=1e-2))
    assert late is not None
    with late:
        late.append(line(10, "selection", 0, 0.97))
        late.end("diverged", "the loss is nan at step 20")
    diverged(store, recipe(seed=2, rate=1e-3))
    (cell,) = gather_data(store)["cells"]
    assert [rate[:2] for rate in cell["rates"]] == [[1e-3, pytest.approx(0.95 * 2 / 3)], [1e-2, pytest.approx(0.485)]]
    assert cell["works"] == []
    assert cell["distances"][0][1] == pytest.approx(0.95 * 2 / 3)
