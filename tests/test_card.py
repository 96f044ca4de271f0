"""The protocol v1, what is said of a mixer beside the field, and the card as the command line writes it."""

import hashlib
import math
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browsing import Reader
from stores import finished
from typer.testing import CliRunner

from bestiary.cli import app
from bestiary.cli.card import card, check_names
from bestiary.experiments import protocol_v1
from bestiary.experiments._protocol import (
    MODEL,
    RATES_THAT_WORK,
    Part,
    best_rate,
    first_runs,
    place,
    rows_of_parts,
)
from bestiary.results.card import Card, figure, markdown, next_steps, page
from bestiary.results.causes import causes
from bestiary.results.facts import broken_laws, measure
from bestiary.results.reference import mixer_of, reference_runs, stored_scores
from bestiary.results.verdict import Entry, Score, ordinal, recall_neighbours, scores_of, verdict
from bestiary.runs.store import Store
from bestiary.runs.table import results
from bestiary.spec import load, parse
from bestiary.spec.loading import TRUSTED
from bestiary.training.recipe import Recipe

EXAMPLES = Path(__file__).parents[1] / "examples"


def entry(name: str, recall: float, state: float, **more: float) -> Entry:
    """A mixer that recalls so much at width 64; other columns by their first word."""
    scores = {"recall 64": Score(recall, recall - 0.02, recall + 0.02, 0.01, 3)}
    scores |= {column: Score(value, value, value, 0.5, 3) for column, value in more.items()}
    facts = {"state 64": float(state), "train beside attention": 1.5, "decode beside attention": 0.5, "growth": 1.0}
    return Entry(name, "kda", "delta", scores, facts)


DEAD = Score(0.0, 0.0, 1.0, 0.01, 3)  # where all runs diverged


def runs_of_part(pattern: str, part: Part, found: dict[tuple[float, int], tuple[float, float]]) -> pd.DataFrame:
    """Rows as `results` gives them: by rate and seed the selection accuracy and that of every test segment."""
    tests = list(enumerate(map(str, parse("tasks", part.settings["test"]))))
    same = {"pattern": place(pattern, behind=part.behind), "asked": 1000}
    same |= dict(zip(MODEL, part.model, strict=True))
    return pd.DataFrame(
        same
        | {"key": f"{pattern} {part.name} {rate} {seed}", "task": task, "segment": segment, "rate": rate, "seed": seed}
        | {"outcome": "finished"}
        | {"selection": selection, "accuracy": accuracy}
        for (rate, seed), (selection, accuracy) in found.items()
        for segment, task in tests
    )


def test_the_recipes_of_v1_never_change() -> None:
    """What is run of five mixers. If this fails the protocol has changed: that is v2, beside v1, and not a new v1."""
    chosen = ("attention", "kda", "rwkv7", "lstm", "base_conv")
    keys = [recipe.key for name in chosen for part in protocol_v1.PARTS for recipe in first_runs(part, name)]
    assert (len(keys), hashlib.sha256("".join(keys).encode()).hexdigest()[:12]) == (145, "7ff8580908f1")


def test_a_mixer_stands_in_both_layers_or_behind_a_short_convolution() -> None:
    assert place("kda", behind=False) == "kda"
    assert place("kda(heads=1)", behind=True) == "base_conv, kda(heads=1)"
    assert place("rwkv7", behind=False) == "rwkv7(layers=2), rwkv7(layer=1, layers=2)"
    assert place("rwkv7(layer=1)", behind=True) == "base_conv, rwkv7(layer=1)"
    assert place("base_conv, kda", behind=True) == "base_conv, kda"


@pytest.mark.parametrize("name", ["kda", "rwkv7", "lightning", "gated_delta(init='short')", "base_conv"])
@pytest.mark.parametrize("behind", [True, False])
def test_the_mixer_is_found_in_the_pattern_that_was_run(name: str, behind: bool) -> None:
    with_texts = ", ".join(map(str, parse("mixers", place(name, behind=behind))))
    assert mixer_of(with_texts) == name


def test_of_equal_rates_the_lowest_is_chosen_whatever_the_order_of_the_table() -> None:
    part = protocol_v1.PARTS[0]
    runs = runs_of_part("kda", part, {(rate, 0): (1.0, 0.5) for rate in part.rates})
    for table in (runs, runs.iloc[::-1], runs.sample(frac=1, random_state=0)):
        assert best_rate(rows_of_parts(table, protocol_v1.PARTS)(part, "kda")) == min(part.rates)


def test_a_pattern_of_several_mixers_is_its_own_name() -> None:
    assert mixer_of("attention, kda") == "attention, kda"


def test_not_told_apart_more_less_and_between() -> None:
    field = {one.name: one for one in (entry("low", 0.3, 1000), entry("high", 0.8, 1500), entry("large", 0.5, 9000))}
    said = {value: verdict(entry("mine", value, 1200), field)[0] for value in (0.81, 0.5, 0.1, 0.95)}
    assert "numbers: not told apart from high, but above low, of about equal state." in said[0.81]
    assert "between low and high" in said[0.5]
    assert "less than any of 2 mixers of about equal state, of which low is next" in said[0.1]
    assert "more than any of 2 mixers of about equal state, of which high is next" in said[0.95]
    assert "no mixer of the field has about as much" in verdict(entry("mine", 0.5, 100), field)[0]
    assert recall_neighbours(entry("mine", 0.5, 1200), field) == ["low", "high"]
    best = {"best": entry("best", 0.95, 1200)} | {f"low {i}": entry(f"low {i}", i / 10, 1200) for i in range(1, 5)}
    assert (
        "not told apart from high, but below best, and above low 4, low, low 3 and 2 more, of about equal state."
        in verdict(entry("mine", 0.81, 1200), field | best)[0]
    )
    alone = {"low": field["low"]}
    assert (
        "width 64, with a state of 1,200 numbers: more than low, of about equal state."
        in verdict(entry("mine", 0.5, 1200), alone)[0]
    )
    assert ": less than low, of about equal state." in verdict(entry("mine", 0.1, 1200), alone)[0]


def test_a_mixer_whose_runs_all_diverged_is_like_none() -> None:
    dead = entry("dead", 0.5, 1000)._replace(scores=dict.fromkeys(("recall 64", "parity"), DEAD))
    said = verdict(dead, {"low": entry("low", 0.02, 1000)})
    assert said[0] == "All runs diverged at width 64, with a state of 1,000 numbers."
    assert "Does not learn within this budget: parity (all runs diverged)." in said
    assert recall_neighbours(dead, {"low": entry("low", 0.02, 1000)}) == []
    assert "no mixer of the field has about as much" in verdict(entry("mine", 0.5, 1000), {"dead": dead})[0]
    assert "| recall 64 | diverged |" in markdown(Card([dead], [], pd.DataFrame()))


def test_the_rank_counts_those_above() -> None:
    field = {name: entry(name, value, 1000) for name, value in (("a", 0.9), ("b", 0.8), ("c", 0.2))}
    assert "it is 3rd of 4." in verdict(entry("mine", 0.5, 1000), field)[1]
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 21, 102)] == [
        "1st",
        "2nd",
        "3rd",
        "4th",
        "11th",
        "12th",
        "21st",
        "102nd",
    ]


def test_what_it_solves_and_what_it_does_not() -> None:
    scores = {"parity": 1.0, "parity, longer": 0.55, "S3": 0.8, "flip-flop": 0.52}
    said = " ".join(verdict(entry("mine", 0.5, 1000, **scores), {}))
    assert "Solves parity (not beyond the trained length: 0.55)." in said
    assert "Learns in part: products in S3 (0.80)." in said
    assert "Does not learn within this budget: flip-flop (0.52)." in said


def test_no_rate_that_works_is_said() -> None:
    assert "None of the six learning rates" in " ".join(
        verdict(entry("m", 0.5, 9, **{"rates that work": math.nan}), {})
    )
    assert "Works at one of six" in " ".join(verdict(entry("m", 0.5, 9, **{"rates that work": 0.0}), {}))
    assert "Works over 1.5 decades" in " ".join(verdict(entry("m", 0.5, 9, **{"rates that work": 1.5}), {}))


def test_the_page_needs_nothing_else_and_shows_what_it_was_given_as_text() -> None:
    runs = runs_of_part("kda", protocol_v1.PARTS[0], {(2e-3, 0): (0.5, 0.5)})
    card = Card([entry("<b>mine</b>", 0.5, 1000)], [entry("other", 0.5, 1000)], runs)
    html = page(card)
    assert "<b>mine" not in html
    assert "bestiary train --task" in html
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert "| | <b>mine</b> | other |" in markdown(card)
    assert "The first seed’s run behind each number" in html
    assert "and the other seeds run at the best;" in html
    assert "of one seed" not in html
    quick = [one._replace(scores={"recall 64": Score(0.5, 0.48, 0.52, 0.01, 1)}) for one in card.own]
    html = page(card._replace(own=quick))
    assert "and no other seed was run for this card;" in html
    assert "Those of one seed are Wilson’s" in html
    board = page(Card([], card.field, pd.DataFrame()))
    assert 'id="verdict"' not in board
    assert 'id="recall"' in board


def test_the_figure_has_every_score_of_any_mixer_of_the_card() -> None:
    drawn = figure(Card([entry("a", 0.5, 1000), entry("b", 0.5, 1000, parity=0.9)], [], pd.DataFrame()))
    assert [label.get_text() for label in drawn.axes[1].get_yticklabels()] == ["recall 64", "parity"]


@pytest.mark.slow
def test_the_page_names_each_mixer_of_the_card_and_sorts_what_is_missing_last(browser: Any, tmp_path: Path) -> None:
    own = [
        entry("a", 0.5, 1000),
        entry("b", 0.4, 1000, parity=0.9),
        entry("c", 0.3, 1000)._replace(scores={"parity": DEAD}),
    ]
    field = [entry("field", 0.45, 1000)._replace(facts={})]
    runs = runs_of_part("kda", protocol_v1.PARTS[0], {(2e-3, 0): (0.5, 0.5)})
    (tmp_path / "card.html").write_text(page(Card(own, field, runs)))
    opened = Reader(browser, (tmp_path / "card.html").as_uri())
    words = opened.page.locator("#scores svg text.soft").all_text_contents()
    assert {"a: 0.50 (0.48 to 0.52), 1 of 3", "b: 0.90 (0.90 to 0.90), 1 of 2", "c: diverged, 2 of 2"} <= {*words}
    assert "1.5" in opened.page.locator("#cost svg text.soft").all_text_contents()

    def column(n: int) -> list[str]:
        return opened.page.locator(f"#table tbody tr td:nth-child({n})").all_text_contents()

    for _ in range(2):
        opened.page.locator("#table th button", has_text="state 64").focus()
        opened.page.keyboard.press("Enter")
        assert opened.page.evaluate("document.activeElement.textContent") == "state 64"
        assert column(1)[-1] == "field"
    assert opened.errors == []


def test_low_scores_have_causes_and_like_ones_stand_together(tmp_path: Path) -> None:
    store = Store(tmp_path)
    named = {part.name: part for part in protocol_v1.PARTS}
    reached = {"parity": 0.5, "S3": 1 / 6, "flip-flop": 0.99}
    made = [
        finished(store, named[name].recipe("lstm", rate, 0), share)
        for name, share in reached.items()
        for rate in named[name].rates
    ]
    table, _ = results(store, [one.key for one in made])
    scores = scores_of(protocol_v1.scores(table, mixers={"lstm": "lstm"}), "lstm")
    (cause,) = causes(Entry("lstm", "lstm", "recurrent", scores, {}), table, store)
    assert cause.columns == ["parity", "S3"]
    assert cause.finding.name == "at chance"
    card = Card([entry("lstm", 0.5, 1000)], [], table, causes={"lstm": [cause]})
    assert "parity and S3: " in page(card)


@pytest.mark.slow
def test_facts_are_measured() -> None:
    found = measure("linear_attention")
    assert found["parameters"] == 4 * 64 * 64
    assert found["state 64"] > found["state 32"] > found["state 16"] > 0
    assert all(found[f"{what} beside attention"] > 0 for what in ("train", "decode"))


@pytest.mark.slow
def test_facts_of_a_pattern_are_the_mean_of_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, small in {"ROUNDS": 1, "LENGTH": 64, "LENGTHS": (64, 128)}.items():
        monkeypatch.setattr(f"bestiary.results.facts.{name}", small)
    alone = [sum(x.numel() for x in mixer.build(64).parameters()) for mixer in parse("mixers", "gla, attention")]
    assert alone[0] != alone[1]
    assert measure("gla, attention")["parameters"] == sum(alone) / 2


@pytest.mark.slow
def test_a_card_from_the_command_line(tmp_path: Path) -> None:
    arguments = ["card", str(EXAMPLES / "my_mixer.py"), "--scale", "smoke", "--store", str(tmp_path / "runs")]
    found = CliRunner().invoke(app, [*arguments, "--figures", str(tmp_path / "figures"), "--workers", "1"])
    assert found.exit_code == 0, found.output
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} >= {".html", ".md", ".png", ".svg"}
    assert "Recalls" in found.output


def test_a_mixer_that_leaks_has_no_card(tmp_path: Path) -> None:
    assert broken_laws(parse("mixers", str(EXAMPLES / "leaky_mixer.py"))[0])
    found = CliRunner().invoke(app, ["card", str(EXAMPLES / "leaky_mixer.py"), "--store", str(tmp_path / "runs")])
    assert found.exit_code == 2
    assert "causality: the output at position 0 changes when the input at position 1 does" in found.output
    assert not (tmp_path / "runs").exists()


def test_a_card_of_nothing_is_refused_and_leaves_the_protocol() -> None:
    before = len(protocol_v1.MIXERS)
    with pytest.raises(ValueError, match="name a mixer or several"):
        card()
    assert len(protocol_v1.MIXERS) == before


def test_mixers_that_would_have_one_name_are_refused(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("kda.py", "one/mine.py", "other/mine.py", "same/mine.py")]
    for number, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        file.write_text((EXAMPLES / "my_mixer.py").read_text() + f"# {min(number, 2)}\n")
    built_in, one, other, same = map(str, files)
    with pytest.raises(ValueError, match="kda.py' has the name of the built-in mixer kda; rename the file"):
        card(built_in, store=tmp_path / "runs")
    for pair in ((one, other), (one, f"{one}(slowest=2.0)")):
        with pytest.raises(ValueError, match="two mixers would be called mine on the card; give each a file"):
            card(*pair, store=tmp_path / "runs")
    check_names([other, same, "kda", f"kda, {one}"], protocol_v1.MIXERS)


def test_a_mixer_that_keeps_nothing_has_no_equals_but_a_verdict() -> None:
    assert "width 64" in verdict(entry("mine", 0.5, 0), {"other": entry("other", 0.5, 1000)})[0]


def test_an_unknown_budget_or_column_is_refused() -> None:
    found = CliRunner().invoke(app, ["card", "kda", "--budget", "huge"])
    assert (found.exit_code, "it is quick or full" in found.stderr) == (2, True)
    found = CliRunner().invoke(app, ["board", "--sort", "recal 64"])
    assert (found.exit_code, "the board has no column 'recal 64'" in found.stderr) == (2, True)


@pytest.mark.parametrize(("column", "best_first"), [("recall 64", -1), ("state 64", 1)])
def test_the_board_is_sorted_with_the_best_first(
    column: str, best_first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[pd.DataFrame] = []
    monkeypatch.setattr("bestiary.cli.console.print_table", shown.append)
    assert CliRunner().invoke(app, ["board", "--sort", column, "--store", str(tmp_path / "none")]).exit_code == 0
    (table,) = shown
    known = (best_first * table[column].dropna()).tolist()
    assert known == sorted(known)
    assert known[0] < known[-1]


@pytest.mark.parametrize(("budget", "seeds"), [("quick", {0}), ("full", {0, 1, 2})])
def test_a_quick_card_trains_the_first_seed_alone(
    budget: str, seeds: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, trained = Store(tmp_path), list[Recipe]()

    def run_recipes(_name: str, recipes: list[Recipe], _folder: Path, **_how: Any) -> tuple[int, pd.DataFrame]:
        trained.extend(finished(store, made, 0.5) for made in recipes if made not in store)
        return 0, results(store, [made.key for made in recipes])[0]

    monkeypatch.setattr("bestiary.cli.runs.run_recipes", run_recipes)
    monkeypatch.setattr("bestiary.cli.card.check_and_measure", lambda _: pd.DataFrame())
    monkeypatch.setattr("bestiary.cli.card.compare", lambda *_: Card([], [], pd.DataFrame()))
    card("kda", budget=budget, store=tmp_path, scale="smoke")
    assert {made.seed for made in trained} == seeds


def test_the_board_shows_runs_of_the_protocol_alone_and_of_files_that_are_named(tmp_path: Path) -> None:
    store, mine = Store(tmp_path), str(EXAMPLES / "my_mixer.py")
    parse("mixers", mine)
    part, other = protocol_v1.PARTS[:2]
    tried = [*first_runs(part, mine), *first_runs(part, "kda(heads=1)")[:1], other.recipe("kda(heads=1)", 5e-3, 1)]
    tried.append(part.recipe("kda(heads=3, key=8)", 5e-3, 0).model_copy(update={"steps": 9}))
    for recipe in tried:
        finished(store, recipe, 0.5)
    TRUSTED.clear()
    board = ["board", "--store", str(tmp_path)]
    found = CliRunner().invoke(app, board)
    assert found.exit_code == 0
    assert found.stderr.count("my_mixer.py' is a file of code, run only if you name it") == 1
    assert "my_mixer" not in found.stdout
    found = CliRunner().invoke(app, [*board, "--trust-files", mine, "--page", str(tmp_path / "board.html")])
    assert "my_mixer.py" in found.stdout
    assert f'{{"name":"{mine}","family":' in (tmp_path / "board.html").read_text()
    assert "kda(heads" not in found.stdout, "not all rates have been tried"


def test_a_run_with_an_option_that_is_gone_is_left_out_of_the_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = reference_runs()[:1].assign(pattern="attention(gone=3)")
    monkeypatch.setattr("bestiary.results.reference.results", lambda *_: (table, []))
    scores, faults = stored_scores(Store(tmp_path), {})
    assert scores.empty
    assert [fault.partition(" among")[0] for fault in faults] == ["attention has no option 'gone'"]


def test_a_board_replaces_a_board_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "pages" / "board.html"
    board = ["board", "--store", str(tmp_path / "none"), "--page", str(page)]
    for _ in range(2):
        assert CliRunner().invoke(app, board).exit_code == 0
    page.write_text("my own words\n")
    refused = CliRunner().invoke(app, board)
    assert (refused.exit_code, page.read_text()) == (2, "my own words\n")
    assert "is no page of this kind; give another name, or --overwrite" in refused.stderr
    assert CliRunner().invoke(app, [*board, "--overwrite"]).exit_code == 0
    assert "<title>Board: " in page.read_text()


def test_a_card_with_failed_runs_says_so_ends_with_1_and_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = str(EXAMPLES / "my_mixer.py")
    made = Card([entry(mine, 0.5, 100)], [], pd.DataFrame(), failed=2)
    assert made.verdicts()[mine][-1] == "Left out: 2 runs that failed."
    monkeypatch.setattr("bestiary.cli.card.card", lambda *_, **__: made)
    monkeypatch.setattr("bestiary.cli.card.write_card", lambda *_: None)
    monkeypatch.setattr("bestiary.cli.card.write_contribution", lambda *_: pytest.fail("it is sent"))
    found = CliRunner().invoke(app, ["card", mine, "--send", str(tmp_path / "sent")])
    assert (found.exit_code, found.stderr) == (
        1,
        "bestiary: 2 runs failed or cannot be read; tracebacks are in failure.txt in the folders of the runs\n",
    )


def test_the_first_seed_chooses_the_rate_and_all_seeds_are_scored() -> None:
    part = protocol_v1.PARTS[0]
    low, high = part.rates[:2]
    runs = {
        (low, 0): (0.5, 0.9),
        (high, 0): (0.6, 0.3),
        (high, 1): (0.1, 0.4),
        (high, 2): (0.1, 0.5),
        (low, 1): (0.9, 0.9),
    }
    found = protocol_v1.scores(runs_of_part("kda", part, runs), mixers={"mine": "kda"}).iloc[0]
    assert found["mixer"] == "mine"
    assert found["column"] == "recall 64"
    assert (found["value"], found["seeds"], found["rate"]) == (pytest.approx(0.4), 3, high)
    assert found["low"] < 0.4 < found["high"]
    assert 0 < found["chance"] < 0.02


def test_a_run_that_diverged_scores_nothing_and_is_not_chosen() -> None:
    part = protocol_v1.PARTS[4]
    low, high = part.rates
    table = runs_of_part("kda", part, {(low, 0): (0.2, 0.2), (high, 0): (0.9, 0.8)})
    table.loc[table["rate"] == high, ["outcome", "accuracy", "asked"]] = ["diverged", math.nan, math.nan]
    found = protocol_v1.scores(table, mixers={"kda": "kda"}).iloc[0]
    assert (found["value"], found["rate"]) == (pytest.approx(0.2), low)


def test_rates_that_work_are_counted_in_decades() -> None:
    part = protocol_v1.PARTS[3]
    runs = {
        (rate, seed): (0.95 if rate in (3e-3, 1e-2, 3e-2) else 0.5, 0.0) for rate in part.rates for seed in range(3)
    }
    found = protocol_v1.scores(runs_of_part("kda", part, runs), mixers={"kda": "kda"}).iloc[0]
    assert (found["value"], found["seeds"]) == (pytest.approx(1.0), 3)
    nothing = {at: (0.1, 0.1) for at in runs}
    assert math.isnan(protocol_v1.scores(runs_of_part("kda", part, nothing), mixers={"kda": "kda"}).iloc[0]["value"])


def test_other_seeds_run_at_the_best_rate_once_all_rates_were_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol_v1, "MIXERS", {"kda": "kda"})
    part = protocol_v1.PARTS[0]
    tried = {(rate, 0): (rate, 0.5) for rate in part.rates}
    more = protocol_v1.next_recipes(runs_of_part("kda", part, tried), "small")
    assert [(recipe.rate, recipe.seed) for recipe in more] == [(part.rates[-1], 1), (part.rates[-1], 2)]
    tried.popitem()
    assert protocol_v1.next_recipes(runs_of_part("kda", part, tried), "small") == []


def test_commands_of_the_card_can_be_pasted_into_a_shell() -> None:
    mine = entry("mine", 0.5, 1000)._replace(pattern="kda(heads=1)")
    commands = [command for _, command in next_steps(mine)]
    assert all(shlex.split(command)[-1] == "kda(heads=1)" for command in commands)
    assert "bestiary run distance --with 'kda(heads=1)'" in commands


def test_experiments_that_the_card_names_take_a_mixer() -> None:
    scores = dict.fromkeys(("parity", "S3", "copying, longer", RATES_THAT_WORK), 0.5)
    commands = [shlex.split(command) for _, command in next_steps(entry("mine", 0.5, 1000, **scores))]
    named = [words[2] for words in commands if words[1] == "run"]
    assert len(named) == 4
    assert all(hasattr(load("experiments", name), "MIXERS") for name in named)
