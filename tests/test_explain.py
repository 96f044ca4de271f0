"""What `explain` finds is what was built in: in models whose weights are written down, and by doing it by hand."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from bestiary.cli import app
from bestiary.constructions._construction import Construction, Stack
from bestiary.constructions.memories import memory_of
from bestiary.constructions.softmax_attention import softmax_attention
from bestiary.corpus.tokenizers import open_tokenizer
from bestiary.experiments import _opened
from bestiary.experiments._opened import open_runs
from bestiary.experiments.formation import watch_smoke
from bestiary.explain.ablation import ablation_tables, looking_back_no_more, parts_of
from bestiary.explain.blocks import take_apart
from bestiary.explain.cases import Cases, draw_cases, find_pairs, find_questions
from bestiary.explain.edits import edit_table, edited_rows
from bestiary.explain.errors import answers_by_kind, error_table, facet_table, kinds_of_tokens
from bestiary.explain.explanation import binding_words, explain_model, words
from bestiary.explain.memory import (
    effective_rank,
    filter_table,
    half_life,
    previous_token_table,
    readback_table,
    weight_table,
    weights_between_positions,
)
from bestiary.explain.page import page
from bestiary.explain.patching import PLACES, effect, matrix_of, patch_states, patch_streams, positions, stands_alone
from bestiary.explain.player import played_row
from bestiary.explain.pretrained import Pretrained, WordPairs
from bestiary.explain.watching import first_steps, watch, watch_figure
from bestiary.mixers._mixer import ShortConv
from bestiary.model import Model
from bestiary.spec import parse, spec
from bestiary.tasks._task import Batch, Task
from bestiary.training.recipe import Recipe, clean
from bestiary.training.train import train

VOCAB, LENGTH = 32, 26


def task() -> Task:
    return spec("tasks", "mqar", vocab=VOCAB, length=LENGTH, pairs=4).build()


def construction(name: str) -> Construction:
    return softmax_attention(VOCAB, LENGTH) if name == "softmax" else memory_of(name, VOCAB)


def small_model(pattern: str = "base_conv, gated_delta(init='short')", **changes: Any) -> Model:
    torch.manual_seed(0)
    return Model(
        VOCAB, **({"dim": 16, "depth": 2, "pattern": parse("mixers", pattern), "channel": "mlp"} | changes)
    ).eval()


@pytest.fixture(scope="module")
def cases() -> Cases:
    return draw_cases(task(), 24)


class OffByOne(nn.Module):
    """A model that answers with the value of the pair behind the right one, or of the first pair after the last."""

    def answer(self, batch: Batch) -> tuple[Tensor, Tensor]:
        questions, _ = find_questions(batch)
        pairs = find_pairs(batch).key
        shown = [batch.tokens[row, pairs[row] + 1] for row in range(len(pairs))]
        given = []
        for row, key in zip(questions.row.tolist(), questions.key.tolist(), strict=True):
            place = pairs[row].tolist().index(key)
            given.append(shown[row][(place + 1) % pairs.shape[1]])
        return nn.functional.one_hot(torch.stack(given), VOCAB).float(), questions.answer


def test_questions_are_found_with_their_pairs() -> None:
    batch = task().draw(8, "test", 0)
    questions, count = find_questions(batch)
    assert count == len(questions.row) == 32
    assert torch.equal(batch.tokens[questions.row, questions.key], batch.tokens[questions.row, questions.at])
    assert torch.equal(batch.tokens[questions.row, questions.key + 1], questions.answer)
    assert find_pairs(batch).key.tolist() == [[0, 2, 4, 6]] * 8


def test_exchanging_keys_or_values_exchanges_the_answers(cases: Cases) -> None:
    solved = task()
    rows = torch.arange(len(cases.at))
    assert torch.equal(solved.solve(cases.tokens)[rows, cases.at], cases.right)
    for what in ("keys", "values"):
        assert torch.equal(solved.solve(cases.swapped(what))[rows, cases.at], cases.wrong)
    assert (cases.at > torch.maximum(cases.key, cases.other) + 1).all()


def test_edits_ask_what_the_solver_says(cases: Cases) -> None:
    rows = torch.arange(len(cases.at))
    for name, changed, expected in edited_rows(cases):
        said = task().solve(changed.tokens)[rows[: len(changed.at)], changed.at]
        if name in ("none", "values exchanged", "keys exchanged", "pairs exchanged", "new value"):
            assert torch.equal(said, expected), name
        if name == "key removed":
            assert (expected == -1).all()
            assert (changed.tokens[:, :8] != changed.tokens[rows, changed.at].unsqueeze(1)).all()


@pytest.mark.parametrize(
    ("name", "binds"),
    [
        ("softmax", {1: "value", 2: "question"}),  # layer 0 moves the key to the value, layer 1 reads it from there
        ("linear", {1: "value", 2: "question"}),  # the short convolution does, then linear attention reads
        ("delta", {1: "question"}),  # its own convolution does, so that one layer is all
    ],
)
def test_the_binding_is_found_where_it_was_put(name: str, binds: dict[int, str], cases: Cases) -> None:
    found = matrix_of(patch_streams(construction(name), cases, "keys"), "place", PLACES)
    assert found.loc[0, "key"] == pytest.approx(1, abs=1e-6)
    for layer, place in binds.items():
        assert found.loc[layer, place] == pytest.approx(1, abs=1e-6)
        assert found.loc[layer].dropna().drop(place).abs().max() < 1e-6
    states = patch_states(construction(name), cases, "keys").set_index(["layer", "cut"])["effect"]
    carries = max(binds) - 1
    assert states[carries, "before the question"] == pytest.approx(1, abs=1e-6)
    assert all(abs(states[layer, "before the question"]) < 1e-6 for layer in range(carries))


@pytest.mark.parametrize("name", ["softmax", "delta", "linear"])
def test_constructions_answer_rightly_and_follow_every_edit(name: str, cases: Cases) -> None:
    errors = error_table(construction(name), task(), rows=16).set_index("answer")["share"]
    assert errors["right"] == 1
    found = edit_table(construction(name), cases).set_index("edit")["follows"]
    followed = ["none", "values exchanged", "keys exchanged", "pairs exchanged", "another pair replaced", "new value"]
    assert (found[followed] == 1).all()


def test_a_planted_off_by_one_shows_as_the_neighbours_value() -> None:
    found = error_table(OffByOne(), task(), rows=32).set_index("answer")
    assert found.loc["neighbour's value", "share"] == pytest.approx(0.75)
    assert found.loc["first value", "share"] == pytest.approx(0.25)
    assert found.loc["right", "share"] == 0
    assert found["guess"].sum() == pytest.approx(1)
    assert found.loc["right", "guess"] == pytest.approx(0.25)


def test_kinds_go_from_the_most_to_the_least_special() -> None:
    tokens = [1, 11, 2, 12, 3, 13, 4, 14, 1, 15, 5, 1]  # key 1 was given 11, then 15
    found = kinds_of_tokens(tokens, [2, 4, 6, 8], 11, 8)
    assert found[15] == "right"
    assert found[11] == "earlier value"
    assert found[14] == "neighbour's value"
    assert found[12] == "first value"
    assert found[13] == "another value"
    assert found[3] == "a key"
    assert found[5] == "another token shown"
    assert 9 not in found


@pytest.mark.parametrize("what", ["keys", "values"])
@torch.no_grad()
def test_patching_is_what_is_done_by_hand_row_by_row(what: Any, cases: Cases) -> None:
    model = small_model().double()
    ten = Cases(*(column[:10] for column in cases))
    found = patch_streams(model, ten, what).set_index(["layer", "place"])["effect"]
    second = ten.swapped(what)
    sums, whole = dict.fromkeys(found.index, 0.0), dict.fromkeys(found.index, 0.0)
    for row in range(10):
        streams = [take_apart(model).stream(tokens[row : row + 1]) for tokens in (ten.tokens, second)]
        right, wrong, at = int(ten.right[row]), int(ten.wrong[row]), int(ten.at[row])

        def margin(x: Tensor, right: int = right, wrong: int = wrong, at: int = at) -> float:
            logits = model.norm(x[0, at]) @ model.embed.weight.T
            return float(logits[right] - logits[wrong])

        low, high = margin(streams[1][-1]), margin(streams[0][-1])
        for layer, place in sums:
            if not stands_alone(ten, place)[row]:
                continue
            whole[layer, place] += high - low
            x = streams[1][layer].clone()
            for position in positions(ten, place)[row].tolist():
                x[0, position] = streams[0][layer][0, position]
            for one in model.layers[layer:]:
                x = one(x, None)[0]
            sums[layer, place] += margin(x) - low
    for index, total in sums.items():
        assert found[index] == pytest.approx(total / whole[index], abs=1e-8)


def test_exchanging_all_states_before_the_question_and_the_whole_stream_is_the_other_run(cases: Cases) -> None:
    for pattern in ("base_conv, gated_delta(init='short')", "attention", "mamba", "lstm"):
        found = patch_states(small_model(pattern).double(), cases, "keys")
        every = found[(found["layer"] == "all") & (found["cut"] != "in the middle")]
        assert every["effect"].to_numpy() == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("pattern", ["attention(heads=2)", "attention(window=7, heads=2, kv_heads=1, sinks=2)"])
def test_the_weights_of_attention_give_its_output(pattern: str) -> None:
    (made,) = parse("mixers", pattern)
    mixer = made.build(16).double()
    x = torch.randn(2, 12, 16, dtype=torch.float64)
    weights = weights_between_positions(mixer, x)
    assert weights is not None
    v = mixer.split(mixer.v(x), mixer.kv_heads).repeat_interleave(2 // mixer.kv_heads, 1)
    assert torch.allclose(mixer.out((weights @ v).transpose(1, 2).flatten(2)), mixer(x)[0], atol=1e-8)


@pytest.mark.parametrize(
    "pattern", ["gated_delta(init='short')", "delta_net", "kda", "gla", "linear_attention", "retnet"]
)
def test_the_weights_of_a_matrix_memory_give_what_is_read(pattern: str) -> None:
    (made,) = parse("mixers", pattern)
    mixer = made.build(16).double()
    x = torch.randn(2, 12, 16, dtype=torch.float64)
    weights = weights_between_positions(mixer, x)
    assert weights is not None
    drive, _ = mixer.drive(x, None)
    read = (weights @ drive.v.transpose(1, 2)).transpose(1, 2)
    assert torch.allclose(mixer.read(read, x), mixer(x)[0], atol=1e-8)


def test_a_memory_that_takes_several_steps_for_a_token_has_no_weights_between_tokens() -> None:
    (made,) = parse("mixers", "delta_product(heads=1)")
    mixer = made.build(16)
    assert weights_between_positions(mixer, torch.randn(2, 12, 16)) is None
    model = small_model("delta_product(heads=1)")
    chosen = draw_cases(task(), 8)
    assert weight_table(model, chosen).empty
    assert readback_table(model, find_pairs(task().draw(8, "test", 0))).empty
    played = played_row(model, chosen)
    assert played is not None
    assert (played["weights"], played["matrices"]) == (None, None)


def test_what_a_construction_reads_and_holds(cases: Cases) -> None:
    weights = weight_table(construction("softmax"), cases).set_index("layer")
    assert weights.loc[1, "value"] == pytest.approx(1, abs=1e-6)
    assert weights.loc[1, "most on the right pair"] == 1
    held = readback_table(construction("delta"), find_pairs(task().draw(8, "test", 0))).set_index("written at")
    assert held.loc["value", "named"] == 1
    assert held.loc["value", "cosine"] == pytest.approx(1, abs=1e-6)
    assert held.loc["value", "least squares"] == pytest.approx(1, abs=1e-6)


def test_rank_and_half_life() -> None:
    assert effective_rank(torch.eye(5).view(1, 1, 5, 5)).item() == pytest.approx(5)
    assert effective_rank(torch.ones(1, 1, 4, 4)).item() == pytest.approx(1)
    g = torch.tensor([0.5, 0.25]).log().expand(1, 3, 2).unsqueeze(3)
    assert half_life(g, 2)["half-life"].tolist() == pytest.approx([1, 0.5])
    assert half_life(None, 1)["half-life"].item() == float("inf")
    spread = torch.tensor([0.5 ** (1 / life) for life in range(1, 12)]).log().view(1, 11, 1, 1)
    lives = half_life(spread, 3)
    for name, expected in (("half-life 10 %", 2), ("half-life", 6), ("half-life 90 %", 10)):
        assert lives[name].tolist() == pytest.approx([expected] * 3)
    assert half_life(g[:, :1, :1].expand(1, 2**24 + 1, 1, 1), 1)["half-life"].item() == pytest.approx(1)


def test_what_a_convolution_looks_at_is_where_its_weights_are() -> None:
    model = small_model("base_conv, attention")
    assert list(filter_table(model)["layer"]) == [0]
    with torch.no_grad():
        model.layers[0].mixer.filter.filter.zero_()[0] = -2.0
    assert filter_table(model).loc[0, "now"] == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        model.layers[0].mixer.filter.filter[2, :8] = 4.0
    shares = filter_table(model).loc[0, ["now", "1 back", "2 back"]].tolist()
    assert shares == pytest.approx([0.5, 0, 0.5], abs=1e-6)


def shares_of(pattern: str, change: Callable[[Any], None]) -> list[float]:
    """What a model's long filter looks at, now to three tokens back and farther, after a change to its mixer."""
    model = small_model(pattern)
    with torch.no_grad():
        change(model.layers[0].mixer)
    found = filter_table(model).query("layer == 0 and convolution != 'shift' and farther.notna()")
    assert len(found) == 1
    return found[["now", "1 back", "2 back", "3 back", "farther"]].iloc[0].tolist()


def far_and_near(taps: Tensor) -> None:
    """Three quarters of the weight three tokens back and a quarter thirty back."""
    taps.zero_()
    taps[3], taps[30] = -3.0, 1.0


def steady(mixer: Any) -> None:
    """A system of one real mode that keeps a half at each step: (1 - dt / 2) / (1 + dt / 2) with dt = 2 / 3."""
    part = mixer.diagonal
    part.log_dt.fill_(math.log(2 / 3))
    for of in (part.decay, part.turn, part.c):
        of.zero_()
    part.c[0, :, 0] = 1.0


def windowed(mixer: Any) -> None:
    """A filter that is its window alone, which leaves a half at each step."""
    made = mixer.filter
    made.last = nn.Linear(made.last.in_features, made.last.out_features)
    made.last.weight.zero_()
    made.last.bias.fill_(1.0)
    made.window = 0.5 ** torch.arange(len(made.window)).unsqueeze(1).expand_as(made.window)


def test_what_a_long_filter_looks_at_is_where_its_weights_are() -> None:
    far = [0, 0, 0, 0.75, 0.25]
    assert shares_of("long_conv(squash=0.0)", lambda mixer: far_and_near(mixer.weight)) == pytest.approx(far)

    def explicit(mixer: Any) -> None:
        far_and_near(mixer.filter.weight)
        mixer.filter.weight[0] = -1.0  # which takes the skip away

    assert shares_of("base_conv(filter='explicit', taps=64)", explicit) == pytest.approx(far)
    halves = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16]
    for pattern, change in {"s4d": steady, "h3": steady, "hyena": windowed, "multi_head_hyena": windowed}.items():
        assert shares_of(pattern, change) == pytest.approx(halves, abs=1e-6), pattern


def test_what_h3_shifts_by_is_both_of_its_filters() -> None:
    model = small_model("h3(init='zoology23')")
    shift: Any = model.layers[0].mixer.shift
    with torch.no_grad():
        for taps, place in ((shift.filter, 5), (shift.b, 2)):
            taps.zero_()
            taps[place] = 1.0
    found = filter_table(model).query("layer == 0 and convolution == 'shift'").iloc[0]
    assert found[["now", "1 back", "2 back", "3 back", "farther"]].tolist() == pytest.approx([0, 0, 0, 1, 0], abs=1e-6)


class NearOnly(nn.Module):
    """A model that answers rightly up to a distance, and beyond with a token that was never shown."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def answer(self, batch: Batch) -> tuple[Tensor, Tensor]:
        questions, _ = find_questions(batch)
        shown = [{*batch.tokens[row].tolist()} for row in questions.row.tolist()]
        never = torch.tensor([min(set(range(VOCAB)) - tokens) for tokens in shown])
        near = questions.at - questions.key - 1 <= self.most
        answers = torch.where(near, questions.answer, never)
        return nn.functional.one_hot(answers, VOCAB).float(), questions.answer


def test_mistakes_are_found_where_they_are() -> None:
    batch = task().draw(64, "test", 0)
    found = facet_table(answers_by_kind(NearOnly(7), batch))
    back = found[found["by"] == "tokens back"].set_index("from")
    assert back["right"].to_dict() == {low: float(low < 8) for low in back.index}
    assert {8} < set(back.index)
    assert set(back["mistake"]) == {"none", "never shown"}
    unseen = 1.96**2 / (back["asked"] + 1.96**2)  # Wilson's interval ends there if all are alike
    assert back["low"].to_list() == pytest.approx(list(back["right"] * (1 - unseen)))
    assert back["high"].to_list() == pytest.approx(list(back["right"] + (1 - back["right"]) * unseen))
    for name, part in found.groupby("by"):
        assert part["asked"].sum() == 4 * 64, name
    assert set(found[found["by"] == "which pair"]["from"]) == {1, 2, 4}
    assert set(found[found["by"] == "pairs before"]["from"]) == {4}


def watched_recipe() -> Recipe:
    given = {"dim": 16, "steps": 6, "every": 3, "batch": 8, "selection_rows": 8, "test_rows": 8}
    return clean("delta_net, attention", train=f"mqar(vocab={VOCAB}, length={LENGTH}, pairs=4)", **given)


def test_a_run_is_watched_on_the_task_that_is_asked() -> None:
    recipe, other = watched_recipe(), spec("tasks", "mqar", vocab=VOCAB, length=16, pairs=2).build()
    *_, seen = watch(recipe, every=6, task=other, cases=8, rows=8, seed=3)
    model = recipe.build()
    list(train(recipe, model))
    kinds = answers_by_kind(model.eval(), other.draw(8, "test", "watch", 3)).kinds
    assert seen["never shown"] == kinds.count("never shown") / len(kinds)


def test_watching_changes_nothing_and_sees_what_explain_sees() -> None:
    recipe = watched_recipe()
    model, plain = recipe.build(), recipe.build()
    steps: list[tuple[int, int]] = []
    rows = list(watch(recipe, every=2, model=model, cases=8, rows=8, progress=lambda *done: steps.append(done)))
    list(train(recipe, plain))
    assert all(torch.equal(weight, plain.state_dict()[name]) for name, weight in model.state_dict().items())
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    assert steps == [(step, 6) for step in range(1, 7)]
    model.eval()
    cases = draw_cases(recipe.test[0].build(), 8)
    read, before = weight_table(model, cases), previous_token_table(model, cases)
    assert rows[-1]["the pair"] == pytest.approx((read["key"] + read["value"]).max())
    assert rows[-1]["the token before"] == pytest.approx(before["the token before"].max())
    batch = recipe.test[0].build().draw(8, "test", "watch", 0)
    held = readback_table(model, find_pairs(batch))
    assert rows[-1]["named"] == pytest.approx(held["named"].max())
    assert rows[-1]["effective rank"] == pytest.approx(held["effective rank"].max() / 8), "two heads of 8"
    kinds = answers_by_kind(model, batch).kinds
    assert rows[-1]["right"] == kinds.count("right") / len(kinds)
    figure = watch_figure(pd.DataFrame(rows))
    assert [axis.get_title() for axis in figure.axes] == ["Answers", "Weights", "Memory"]


def test_what_formed_first_is_the_half_way_step() -> None:
    table = pd.DataFrame({"step": [0, 10, 20, 30], "right": [0.1, 0.1, 0.4, 0.9], "the pair": [0.2, 0.6, 0.9, 0.8]})
    table["the token before"], table["named"] = [0.50, 0.52, 0.55, 0.51], float("nan")
    table["a value of the row"] = [0.0, 0.6, 0.4, 0.1]
    found = first_steps(table)
    assert (found["right"], found["the pair"], found["a value of the row"]) == (30, 10, 10)
    assert str(found["the token before"]) == str(found["named"]) == "nan"


@pytest.mark.slow
def test_experiments_on_opened_models_keep_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [watched_recipe().model_copy(update={"seed": seed}) for seed in (0, 1)]
    how: dict[str, Any] = {"kind": "test", "folder": tmp_path / "opened", "workers": 1}
    rows = list(open_runs(recipes, watch_smoke, **how))
    found = [row for row in rows if "news" not in row]
    assert len(rows) - len(found) == 2
    assert [(row["seed"], row["step"]) for row in found] == [(0, 0), (0, 6), (1, 0), (1, 6)]
    assert repr(list(open_runs(recipes, watch_smoke, **how))) == repr(found), "nothing is trained again"
    with monkeypatch.context() as later:
        later.setattr(_opened, "FORMAT", _opened.FORMAT + 1)
        again = open_runs(recipes, watch_smoke, **how)
        assert "news" in next(again), "what meant something else is found again"
        again.close()
    file = next((tmp_path / "opened").iterdir())
    file.write_text(file.read_text().replace("0", "1", 1))
    with pytest.raises(ValueError, match=file.name):
        list(open_runs(recipes, watch_smoke, **how))


@pytest.mark.slow
def test_experiments_on_opened_models_take_other_mixers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bestiary.cli._app import choose_mixers
    from bestiary.experiments import formation

    monkeypatch.chdir(tmp_path)
    with_other = choose_mixers(formation, ["short_conv, attention"], "attention")  # reloads the module
    rows = [row for row in with_other.measure("smoke") if "news" not in row]
    assert {row["name"]: row["mixer"] for row in rows} == {
        "attention": "attention(heads=2)",
        "short_conv, attention": "short_conv, attention",
    }


def test_a_scale_that_an_experiment_does_not_have_is_refused_and_not_made_smaller() -> None:
    from bestiary.experiments import formation, mechanism

    for experiment in (formation, mechanism):
        with pytest.raises(LookupError, match="no scale 'paper', only smoke and small"):
            list(experiment.measure("paper"))


def opened_rows(name: str, right: float, seed: int, rate: float) -> list[dict[str, Any]]:
    about = {"name": name, "seed": seed, "rate": rate, "mixer": name, "key": "k", "scale": "small"}
    numbers = [("right", -1, "", right), ("without", 0, "convolution conv", 0.2), ("without", 1, "mixer", 0.0)]
    numbers += [("key at", 1, place, value) for place, value in (("key", 0.0), ("value", 0.8), ("question", 0.1))]
    numbers += [("state at", layer, "before the question", value) for layer, value in ((0, 0.1), (1, 0.9))]
    return [about | dict(zip(("what", "layer", "place", "value"), row, strict=True)) for row in numbers]


def test_the_table_of_mechanisms_is_of_the_seeds_that_recall_at_the_better_rate() -> None:
    from bestiary.experiments import mechanism

    runs = [("a", 1.0, 0, 0.1), ("a", 0.3, 1, 0.1), ("a", 0.5, 0, 0.2), ("a", 0.5, 1, 0.2), ("b", 0.2, 0, 0.1)]
    table = pd.DataFrame([row for run in runs for row in opened_rows(*run)])
    a, b = mechanism.summary(table).to_dict("records")
    assert (a["rate"], a["recall"], a["right"]) == (0.1, "1 of 2", 0.65)
    assert (a["after layer 0"], a["effect"]) == ("value (1)", 0.8)
    assert (a["state of layer 1"], a["without a convolution"]) == (0.9, 0.2)
    assert b["recall"] == "0 of 1"
    assert b["state of layer 1"] != b["state of layer 1"]
    (figure,) = [figure for _, figure in mechanism.figures(table)]
    assert [axis.get_title() for axis in figure.axes] == ["a"]


def test_the_table_of_formation_says_what_came_first() -> None:
    from bestiary.experiments import formation

    rows = [
        {"name": "a", "seed": seed, "step": step, "right": right, "the pair": pair, "the token before": before}
        for seed in (0, 1)
        for step, right, pair, before in ((0, 0.0, 0.0, 0.0), (25, 0.0, 0.1, 0.9), (50, 0.9, 0.8, 0.9))
    ]
    table = pd.DataFrame(rows).assign(named=float("nan"), **{"effective rank": float("nan")})
    table = table.assign(**{"a value of the row": 0.1, "never shown": 0.0})
    found = formation.summary(table)
    assert list(found["order"]) == ["the token before < right = the pair"] * 2
    assert [suffix for suffix, _ in formation.figures(table)] == ["", "-weights"]


@pytest.mark.parametrize("pattern", ["short_conv", "h3(init='zoology23')"])
def test_a_convolution_that_is_taken_out_looks_back_no_more(pattern: str) -> None:
    model = small_model(pattern).double()
    convolution = next(part for part in model.layers[0].mixer.modules() if isinstance(part, ShortConv))
    x = torch.randn(3, 9, 16, dtype=torch.float64)
    alone = torch.stack([convolution(x[:, [place]], None)[0][:, 0] for place in range(9)], dim=1)
    assert (convolution(x, None)[0] - alone)[:, 1:].abs().min() > 1e-6
    with looking_back_no_more(convolution):
        torch.testing.assert_close(convolution(x, None)[0], alone)
    assert (convolution(x, None)[0] - alone)[:, 1:].abs().min() > 1e-6


def test_ablation_leaves_the_model_as_it_was_and_counts_its_parts() -> None:
    model = small_model("base_conv, gated_delta(init='short', heads=2)")
    batch = task().draw(16, "test", 0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    table, removed = ablation_tables(model, batch)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not model.layers[1].mixer.out._forward_pre_hooks
    named = sorted(zip(table["layer"], table["part"], strict=True))
    expected = [(0, "channel mixer"), (0, "convolution filter"), (0, "mixer"), (1, "channel mixer")]
    expected += [(1, "convolution conv"), (1, "gate"), (1, "head 0"), (1, "head 1"), (1, "mixer")]
    assert named == expected
    assert removed["without"].tolist() == [0, 1, 2, 3, 4, 5]


def test_heads_are_those_that_the_map_of_a_mixer_reads() -> None:
    """A mixture of memories has more of them than heads."""
    model = small_model("mom(memories=3, heads=2, init='short')", depth=1)
    named = [part.name for part in parts_of(model, task().draw(4, "test", 0))]
    assert [name for name in named if name.startswith("head ")] == ["head 0", "head 1"]


def test_a_part_that_is_taken_out_gives_its_mean() -> None:
    model = small_model("attention(heads=2)", depth=1, channel="none").double()
    batch = task().draw(4, "test", 0)
    (x,) = take_apart(model).stream(batch.tokens)[:1]
    mixer = model.layers[0].mixer
    seen: list[Tensor] = []
    handle = mixer.out.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    mixer(model.layers[0].before_mixer(x))
    handle.remove()
    read = seen[0].clone()
    read[..., :8] = seen[0][..., :8].mean((0, 1))
    expected = model.norm(x + mixer.out(read)) @ model.embed.weight.T
    (part,) = [part for part in parts_of(model, batch) if part.name == "head 0"]
    with part.without():
        assert torch.allclose(take_apart(model).logits(batch.tokens), expected, atol=1e-8)


def test_the_words_say_what_was_built() -> None:
    said = " ".join(words(explain_model(construction("softmax"), task(), cases=16, rows=16)))
    assert "It answers 1.00 of the questions rightly." in said
    assert "Layer 0 binds: it brings the key to its value's place" in said
    assert "Layer 1 recalls: it brings what stands at the value's place to the question" in said
    assert "The state of layer 1 carries the pairs to the question" in said
    once = explain_model(construction("delta"), task(), cases=16, rows=16)
    assert "Layer 0 binds and recalls at once" in " ".join(binding_words(once))


def test_a_model_that_knows_nothing_is_explained_too() -> None:
    found = explain_model(small_model("mamba"), task(), cases=8, rows=8)
    assert found.errors["share"].sum() == pytest.approx(1)
    assert "It answers" in next(iter(words(found)))


@pytest.mark.parametrize("name", ["parity", "group_words", "continuous_mqar", "compression"])
def test_tasks_without_pairs_are_refused_in_one_line(name: str) -> None:
    chosen = spec("tasks", name).build()
    with pytest.raises(ValueError, match=r"explain is for tasks of that kind|reads vectors"):
        draw_cases(chosen, 8)


def test_models_without_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="no stack of layers"):
        take_apart(nn.Linear(2, 2))
    assert isinstance(construction("delta"), Stack)


def test_the_page_stands_alone_and_plays_the_row(cases: Cases) -> None:
    model = small_model()
    found = explain_model(model, task(), name="<b>mine</b>", cases=8, rows=8)
    html = page([found._replace(task="mqar")], [played_row(model, cases)])
    assert "<b>mine" not in html
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org", "")
    shown = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)
    assert shown is not None
    (data,) = json.loads(shown[1])
    assert len(data["row"]["chance"]) == LENGTH
    assert len(data["row"]["matrices"]["cells"]) == LENGTH
    assert data["row"]["tokens"][data["row"]["key"]] == data["row"]["tokens"][data["row"]["at"]]
    longer = cases._replace(tokens=cases.tokens.repeat(1, 12))
    assert played_row(model, longer) is None
    row = played_row(model, cases, lambda tokens: f" w{tokens[0]}")
    assert row is not None
    assert row["words"][row["right"]] == f"w{row['right']}"
    assert {*row["tokens"], *row["says"]} <= row["words"].keys()


@pytest.mark.slow
def test_the_command_explains_a_run_and_says_what_is_missing(tmp_path: Path) -> None:
    run = ["--task", f"mqar(vocab={VOCAB}, length={LENGTH}, pairs=4)", "--layers", "base_conv, attention", "dim=8"]
    run += ["steps=2", "every=2", "batch=4", "selection_rows=8", "test_rows=8"]
    run += ["--store", str(tmp_path / "runs"), "--threads", "1"]
    keys = []
    for more in (["--keep"], ["seed=1"]):
        trained = CliRunner().invoke(app, ["train", *run, *more])
        assert trained.exit_code == 0, trained.output
        keys += [place.name for place in (tmp_path / "runs").iterdir() if place.is_dir() and place.name not in keys]
    given = ["--store", str(tmp_path / "runs"), "--cases", "8", "--rows", "8", "--out", str(tmp_path / "page.html")]
    found = CliRunner().invoke(app, ["explain", keys[0], *given])
    assert found.exit_code == 0, found.output
    assert "of the questions rightly" in found.output
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    found = CliRunner().invoke(app, ["explain", keys[0], *given, "--watch", "1"])
    assert found.exit_code == 0, found.output
    assert "While it learnt" in (tmp_path / "page.html").read_text()
    for arguments, said in (
        ([keys[1], *given], "kept no weights; train it with them in another store: bestiary train"),
        (["nothing", *given], "there is no run 'nothing'"),
        ([keys[0], *given, "--task", "parity(length=8)"], "explain is for tasks"),
        ([keys[0], *given, "--task", "mqar"], "has 8192 tokens"),
    ):
        refused = CliRunner().invoke(app, ["explain", *arguments])
        assert refused.exit_code == 2, refused.output
        assert said in " ".join(refused.output.split())
    (tmp_path / "mine.html").write_text("mine")
    refused = CliRunner().invoke(app, ["explain", keys[0], *given[:-1], str(tmp_path / "mine.html")])
    assert refused.exit_code == 2
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_effects_have_the_interval_of_their_mean_over_cases() -> None:
    margins = torch.linspace(0, 1, 400).repeat(2) ** 2
    found = effect(2 * margins + 1, torch.full_like(margins, 3.0), torch.ones_like(margins))  # of two units in all
    assert found["effect"] == pytest.approx(margins.mean().item())
    half = 1.96 * margins.double().std().item() / 800**0.5
    assert found["effect"] - found["low"] == pytest.approx(half, rel=0.1)
    assert found["high"] - found["effect"] == pytest.approx(half, rel=0.1)


# Language models of others


def test_pairs_of_words_are_a_task_like_any_other() -> None:
    pytest.importorskip("transformers")
    from small_models import small_tokenizer

    words_task = WordPairs(small_tokenizer(3000), pairs=3)
    batch = words_task.draw(40, "test", 0)
    assert torch.equal(words_task.solve(batch.tokens), batch.targets)
    halves = small_tokenizer(3000).decode(batch.tokens[0]).split(".")
    assert len(halves) == 7
    assert sorted(halves[:3]) == sorted(halves[3:6])
    chosen = draw_cases(words_task, 16)
    rows = torch.arange(16)
    assert torch.equal(chosen.tokens[rows, chosen.key], chosen.tokens[rows, chosen.at])
    assert torch.equal(chosen.tokens[rows, chosen.key + 1], chosen.right)
    with pytest.raises(ValueError, match="nouns are one token each"):
        WordPairs(open_tokenizer("bytes"))


@pytest.mark.hf
@pytest.mark.slow
def test_a_model_of_transformers_is_taken_apart_and_its_streams_exchanged_as_by_hand() -> None:
    pytest.importorskip("transformers")
    from small_models import small_gpt2, small_mamba, small_tokenizer

    words_task = WordPairs(small_tokenizer(3000), pairs=3)
    chosen = draw_cases(words_task, 20)
    for built in (small_gpt2, small_mamba):
        torch.manual_seed(0)
        theirs = built(len(small_tokenizer(3000))).double().eval()
        model = Pretrained(theirs)
        parts = take_apart(model)
        streams = parts.stream(chosen.tokens)
        assert len(streams) == 3
        assert torch.allclose(model.logits_of(streams[-1]).double(), theirs(chosen.tokens).logits.double(), atol=1e-5)
        other = chosen.swapped("keys")
        second = parts.stream(other)
        for layer in (0, 1):
            mixed = second[layer].clone()
            for row, at in enumerate(chosen.at.tolist()):
                mixed[row, at] = streams[layer][row, at]
            x = mixed
            for block in model.layers[layer:]:
                given = block(x)
                x = given[0] if isinstance(given, tuple) else given
            assert torch.allclose(parts.finish(mixed, layer, other), x, atol=1e-8)
        found = patch_streams(model, chosen, "keys", layers=(0, 2)).set_index(["layer", "place"])["effect"]
        assert found[2, "question"] == pytest.approx(1)
        assert found[0, "key"] == pytest.approx(1)
    found = explain_model(model, words_task, name="theirs", cases=8, rows=8)
    assert found.states.empty
    assert "theirs" in page([found], [played_row(model, chosen)])


@pytest.mark.hf
@pytest.mark.slow
def test_the_command_explains_a_language_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from small_models import small_gpt2, small_tokenizer

    small_gpt2(len(small_tokenizer(3000))).save_pretrained(tmp_path / "theirs")
    small_tokenizer(3000).save_pretrained(tmp_path / "theirs")
    given = ["explain", "--probe", str(tmp_path / "theirs"), "--cases", "8", "--rows", "8"]
    found = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "page.html")])
    assert found.exit_code == 0, found.output
    assert "theirs, on pairs of words" in found.output
    refused = CliRunner().invoke(app, [*given, "--watch", "3", "--out", str(tmp_path / "page.html")])
    assert refused.exit_code == 2
    assert "leave out --task and --watch" in " ".join(refused.output.split())
