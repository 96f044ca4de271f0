"""Lano's sentences against a chart parser, and what may come next against the whole language."""

from collections import Counter
from functools import cache
from itertools import product

import pytest
import torch

from bestiary.spec import parse
from bestiary.tasks._grammar import GRAMMARS, rules
from bestiary.tasks._task import SILENT, Task, stream
from bestiary.tasks.lano import Lano


def parses(task: Lano, sentence: tuple[int, ...]) -> bool:
    """Whether the grammar derives a sentence, by a chart of spans from the bottom (CYK with rules of two and three)."""
    spans = {(i, i + 1, token - 1) for i, token in enumerate(sentence)}
    for level in reversed(task.rules):
        begun: dict[tuple[int, int], set[int]] = {}
        for i, j, symbol in spans:
            begun.setdefault((i, symbol), set()).add(j)
        found = set()
        for symbol, of in enumerate(level):
            for rule in of:
                for i in range(len(sentence)):
                    ends = {i}
                    for part in rule:
                        ends = {k for j in ends for k in begun.get((j, part), ())}
                    found |= {(i, j, symbol) for j in ends}
        spans = found
    return (0, len(sentence), 0) in spans


@cache
def language(grammar: str, levels: int) -> frozenset[tuple[int, ...]]:
    """All sentences."""
    below: list[set[tuple[int, ...]]] = [{(token,)} for token in (1, 2, 3)]
    for level in reversed(rules(grammar)[-levels:]):
        below = [
            {sum(parts, ()) for rule in of for parts in product(*(below[symbol] for symbol in rule))} for of in level
        ]
    return frozenset(below[0])


def sentences(tokens: list[int]) -> list[tuple[int, ...]]:
    """The whole sentences of a row."""
    ends = [time for time, token in enumerate(tokens) if token == 0]
    return [tuple(tokens[a + 1 : b]) for a, b in zip(ends, ends[1:], strict=False)]


@pytest.mark.parametrize("task", [Lano(length=200), Lano(levels=4, length=300), Lano(grammar="cfg3k", length=200)])
def test_every_sentence_is_parsed_and_a_changed_one_mostly_not(task: Lano) -> None:
    batch, wrong = task.sample(10, stream("sentences")), 0
    for tokens in batch.tokens.tolist():
        assert tokens[0] == 0
        found = sentences(tokens)
        assert len(found) >= 2
        for sentence in found:
            assert 2**task.levels <= len(sentence) <= 3**task.levels
            assert parses(task, sentence)
            wrong += not parses(task, sentence[:-1])
    assert wrong > 10


@pytest.mark.parametrize(("grammar", "levels"), [("cfg3f", 1), ("cfg3f", 2), ("cfg3j", 2), ("cfg3k", 2)])
def test_what_may_come_is_what_some_sentence_goes_on_with(grammar: str, levels: int) -> None:
    whole = {(*sentence, 0) for sentence in language(grammar, levels)}
    onward: dict[tuple[int, ...], set[int]] = {}
    for sentence in whole:
        for time, token in enumerate(sentence):
            onward.setdefault(sentence[:time], set()).add(token)
    task = Lano(grammar=grammar, levels=levels, length=60)
    every = Lano(grammar=grammar, levels=levels, length=60, scored="all")
    batch, open_batch = task.sample(60, stream("next")), every.sample(60, stream("next"))
    assert torch.equal(batch.tokens, open_batch.tokens)
    right = [every.right(open_batch, torch.full_like(batch.targets, token)) for token in range(4)]
    met = set()
    for row, tokens in enumerate(batch.tokens.tolist()):
        for time in range(60):
            begun = time - tokens[time::-1].index(0)
            read = tuple(tokens[begun + 1 : time + 1])
            legal = onward[read]
            met.add(read)
            assert {token for token in range(4) if right[token][row, time]} == legal
            target = int(open_batch.targets[row, time])
            assert target in legal
            assert time == 59 or target == tokens[time + 1]
            assert batch.targets[row, time] == (target if len(legal) == 1 else SILENT)
            assert batch.facets["place"][row, time] == len(read)
    assert len(met) > 0.3 * len(onward) or len(met) > 300


def test_rules_are_drawn_uniformly() -> None:
    found = Counter(
        s for row in Lano(levels=1, length=40).sample(500, stream("rules")).tokens.tolist() for s in sentences(row)[:5]
    )
    assert len(found) == 4
    assert all(abs(count - found.total() / 4) < 5 * (found.total() * 3 / 16) ** 0.5 for count in found.values())


def test_boundaries_count_the_phrases_that_end() -> None:
    batch = Lano(levels=3, length=150).sample(50, stream("bounds"))
    for tokens, bounds in zip(batch.tokens.tolist(), batch.facets["boundary"].tolist(), strict=True):
        ends = [time for time, token in enumerate(tokens) if token == 0]
        for begin, end in zip(ends, ends[1:], strict=False):
            inside = bounds[begin + 1 : end]
            assert inside[-1] == 3
            assert max(inside[:-1]) == 2, "only the last token ends the sentence"
            assert bounds[begin] == 0
            for depth in (1, 2, 3):  # two or three phrases make one of the next level
                places = [t for t, bound in enumerate(inside) if bound >= depth]
                below = [t for t, bound in enumerate(inside) if bound >= depth - 1]
                sizes = [sum(a < t <= b for t in below) for a, b in zip([-1, *places], places, strict=False)]
                assert set(sizes) <= {2, 3}


def test_illegal_is_the_probability_of_what_may_not_come() -> None:
    task = Lano()
    batch = task.sample(20, stream("illegal"))
    asked = batch.targets[batch.targets != SILENT]
    flat = task.extra_scores(batch, torch.zeros(len(asked), 4))["illegal"]
    torch.testing.assert_close(flat, torch.full_like(flat, 0.75))
    sure = torch.nn.functional.one_hot(asked, 4) * 100.0
    assert task.extra_scores(batch, sure)["illegal"].max() < 1e-6


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_grammars_have_the_form_of_the_paper(grammar: str) -> None:
    levels = rules(grammar)
    assert len(levels) == (6 if grammar == "cfg3f" else 7)
    for depth, level in enumerate(levels):
        assert len(level) == (3 if depth else 1)
        every = [rule for of in level for rule in of]
        assert len(set(every)) == len(every), "no right-hand side occurs twice in a level"
        assert all(len(of) in ((3,) if grammar == "cfg3j" else (3, 4)) for of in level)
        assert all(len(rule) in (2, 3) and set(rule) <= {0, 1, 2} for rule in every)


def test_the_lowest_rules_of_cfg3f_are_those_of_the_figure() -> None:
    written = [{"".join(str(1 + s) for s in rule) for rule in of} for of in rules("cfg3f")[-1]]
    assert written == [{"221", "322", "312", "32"}, {"311", "12", "331"}, {"121", "33", "11"}]


def test_whole_grammars_are_presets() -> None:
    for grammar, levels, length in (("cfg3f", 6, 512), ("cfg3j", 7, 1536), ("cfg3k", 7, 1536)):
        (found,) = parse("tasks", f"lano.{grammar}")
        task: Task = found.build()
        assert isinstance(task, Lano)
        assert (task.rules, task.levels, task.length) == (rules(grammar), levels, length)


def test_chance_of_a_whole_grammar_is_measured_on_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, sample = [], Lano.sample
    monkeypatch.setattr("bestiary.tasks._count.MEASURED", {})
    monkeypatch.setattr(Lano, "sample", lambda task, count, rng: drawn.append(count) or sample(task, count, rng))
    assert Lano(levels=6, length=512).chance == pytest.approx(0.57, abs=0.02)
    assert drawn == [16]


def test_the_commonest_answer_after_two_tokens_is_right_as_often_as_said() -> None:
    fit, held = (Lano().sample(1000, stream(name)) for name in ("fit", "held"))
    after = [4 * batch.tokens[:, :-1] + batch.tokens[:, 1:] for batch in (fit, held)]
    asked = [batch.targets[:, 1:] != SILENT for batch in (fit, held)]
    counts = torch.bincount(4 * after[0][asked[0]] + fit.targets[:, 1:][asked[0]], minlength=64).view(16, 4)
    found = counts.argmax(1)[after[1][asked[1]]] == held.targets[:, 1:][asked[1]]
    assert found.double().mean().item() == pytest.approx(0.70, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 7}, "cfg3f has 6 levels"),
        ({"length": 16}, "need a length of 17 or more"),
        ({"length": 17}, "rows so short may ask nothing; try length=34"),
        ({"grammar": "cfg3k", "length": 20}, "may ask nothing; try length=40"),
    ],
)
def test_impossible_options_say_what_is_possible(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lano(**options)


def test_a_length_at_which_every_row_asks_something_is_taken() -> None:
    for task in (Lano(levels=2, length=9), Lano(levels=1, length=40), Lano(), Lano(length=17, scored="all")):
        assert (task.sample(200, stream("short")).targets != SILENT).any(1).all()
