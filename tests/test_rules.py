"""Rules learnt in context, of symbols: new automata and an ambiguous grammar; and bad options of the family."""

from collections import Counter
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bestiary.spec import parse
from bestiary.tasks._task import SILENT, Task, stream
from bestiary.tasks.dynamic_ngrams import DynamicNgrams
from bestiary.tasks.linear_regression import LinearRegression
from bestiary.tasks.regbench import RegBench
from bestiary.tasks.selective_grammar import SelectiveGrammar

# RegBench


def automata(task: RegBench, rows: int) -> list[list[dict[int, int]]]:
    """For each row and state, where each letter leads."""
    degree, letters, onward = (part.tolist() for part in task.automata(rows, stream("automata")))
    return [
        [dict(zip(row[s][:d], to[s][:d], strict=True)) for s, d in enumerate(degrees)]
        for degrees, row, to in zip(degree, letters, onward, strict=True)
    ]


def met(automaton: list[dict[int, int]]) -> set[int]:
    """The states that can be reached from the start."""
    found, todo = {0}, {0}
    while todo:
        todo = {to for state in todo for to in automaton[state].values()} - found
        found |= todo
    return found


def test_automata_have_the_stated_ranges_and_differ() -> None:
    drawn = automata(RegBench(), 400)
    for automaton in drawn:
        assert len(met(automaton)) <= 12
        letters: set[int] = set()
        for state in met(automaton):
            edges = automaton[state]
            assert 1 <= len(edges) <= 3
            assert len(set(edges.values())) == len(edges), "edges go to different states"
            assert state not in edges.values(), "no edge goes round"
            letters |= set(edges)
        assert len(letters) <= 18
        assert all(letter < 18 for letter in letters)
    assert len({str([automaton[s] for s in sorted(met(automaton))]) for automaton in drawn}) == 400
    assert max(len(met(automaton)) for automaton in drawn) >= 11
    out = Counter(len(automaton[0]) for automaton in drawn)
    assert all(abs(out[size] - 400 / 3) < 5 * (400 * 2 / 9) ** 0.5 for size in (1, 2, 3))


def test_automata_use_a_uniform_part_of_states_and_letters() -> None:
    _, used, onward = RegBench(states=12, letters=18).automata(2000, stream("ranges"))
    for part, most in ((onward, 12), (used, 18)):
        found = torch.tensor([len(set(row)) for row in part.flatten(1).tolist()])
        assert (found.min(), found.max()) == (4, most)
        share = (found == 4).double().mean().item()  # of four, all are nearly always used
        assert share == pytest.approx(1 / (most - 3), abs=5 * (1 / (most - 3) / 2000) ** 0.5)


def test_strings_are_walks_and_the_legal_letters_are_their_edges() -> None:
    task = RegBench(strings=10, least=4, longest=8)
    batch, drawn = task.sample(200, stream("automata")), automata(task, 200)
    sizes: Counter[int] = Counter()
    strings: Counter[int] = Counter()
    for row, automaton in enumerate(drawn):
        tokens, targets = batch.tokens[row].tolist(), batch.targets[row].tolist()
        legal, visits = batch.truth["legal"][row].tolist(), batch.facets["visits"][row].tolist()
        text = tokens[: tokens.index(19)] if 19 in tokens else tokens
        assert all(token == 19 for token in tokens[len(text) :])
        state, left, size, string = 0, Counter(), 0, 0
        for time, token in enumerate(text):
            if token == 18:
                sizes[size] += 1
                state, size, string = 0, 0, string + 1
            else:
                left[state] += 1
                state, size = automaton[state][token], size + 1
            asked = time + 1 < len(text) and text[time + 1] != 18
            assert targets[time] == (text[time + 1] if asked else SILENT)
            if asked:
                assert legal[time] == sum(1 << letter for letter in automaton[state])
                assert batch.facets["legal"][row, time] == len(automaton[state])
                assert visits[time] == left[state]
                assert (batch.facets["string"][row, time], batch.facets["place"][row, time]) == (string, size)
        assert all(target == SILENT for target in targets[len(text) :])
        strings[string + 1] += 1
    assert set(sizes) == set(range(1, 9))
    assert set(strings) == set(range(4, 11))
    assert all(abs(count - sizes.total() / 8) < 4.5 * (sizes.total() * 7 / 64) ** 0.5 for count in sizes.values())


def test_edges_of_a_state_are_equally_likely() -> None:
    task = RegBench(states=4, letters=4, longest=3, strings=20, least=19)
    first = task.sample(1000, stream("automata")).tokens[:, 0].tolist()
    taken = Counter(
        (len(automaton[0]), list(automaton[0]).index(letter))
        for automaton, letter in zip(automata(task, 1000), first, strict=True)
    )
    for size in (2, 3):
        of = [taken[size, edge] for edge in range(size)]
        assert all(abs(count - sum(of) / size) < 4.5 * (sum(of) / size) ** 0.5 for count in of)


def test_every_legal_letter_is_right_and_no_other() -> None:
    task = RegBench()
    batch = task.sample(50, stream("right"))
    asked = batch.targets != SILENT
    right = sum(task.right(batch, torch.full_like(batch.targets, symbol))[asked].long() for symbol in range(task.vocab))
    assert torch.equal(right, batch.facets["legal"][asked].long())
    assert task.right(batch, batch.targets)[asked].all()
    assert not task.right(batch, torch.full_like(batch.targets, SILENT)).any()


def test_the_variation_distance_is_that_to_the_uniform_distribution() -> None:
    task = RegBench()
    batch = task.sample(20, stream("tvd"))
    legal = batch.facets["legal"][batch.targets != SILENT].double()
    flat = task.extra_scores(batch, torch.zeros(len(legal), task.vocab))["tvd"]
    torch.testing.assert_close(flat.double(), 1 - legal / task.vocab)
    best = torch.nn.functional.one_hot(batch.targets[batch.targets != SILENT], task.vocab) * 100.0
    torch.testing.assert_close(task.extra_scores(batch, best)["tvd"].double(), 1 - 1 / legal)


def test_the_paper_has_long_strings() -> None:
    (paper,) = parse("tasks", "regbench.paper")
    task: Task = paper.build()
    assert (task.length, task.vocab) == (19 * 49 + 18, 20)


# SelectivBench


def read(task: SelectiveGrammar, tokens: list[int]) -> tuple[list[int], list[list[int]]]:
    """The symbols of a row, and their gaps' positions."""
    symbols, gaps = [], []
    for time, token in enumerate(tokens):
        if token == task.blank:
            gaps[-1].append(time)
        else:
            symbols.append(token)
            gaps.append([])
    return symbols, gaps


def test_the_grammar_has_its_form() -> None:
    task = SelectiveGrammar(symbols=10, depth=5)
    onward = task.onward
    assert onward.shape == (51, 11)
    for state, row in enumerate(onward.tolist()):
        assert all(to == -1 or 1 + 5 * (symbol - 1) <= to <= 5 * symbol for symbol, to in enumerate(row) if symbol)
        assert row[0] in (-1, 0)
        assert max(row) >= 0
        assert state or sum(to >= 0 for to in row) == 4
    edges = (onward[1:, 1:] >= 0).double().mean().item()
    assert edges == pytest.approx(0.4, abs=5 * (0.24 / 500) ** 0.5)
    assert not torch.equal(onward, SelectiveGrammar(symbols=10, depth=5, seed=1).onward)
    ends = {0}
    while more := {s for s, row in enumerate(onward.tolist()) if ends & set(row)} - ends:
        ends |= more
    assert len(ends) == 51


@pytest.mark.parametrize("options", [{}, {"least": 2, "gap": 5}, {"noise": 0.5, "clean": 4}])
def test_rows_are_walks_of_the_grammar_with_gaps(options: dict[str, int]) -> None:
    task = SelectiveGrammar(symbols=5, depth=3, elements=12, **options)
    batch, onward = task.sample(100, stream("walks")), task.onward.tolist()
    odd, lengths = 0, set()
    for row, tokens in enumerate(batch.tokens.tolist()):
        state, since, asked = 0, 0, {}
        symbols, gaps = read(task, tokens)
        assert len(symbols) == 12
        for place, (symbol, gap) in enumerate(zip(symbols, gaps, strict=True)):
            since = since + 1 if symbol else 0
            facets = {name: int(facet[row, gap[0]]) for name, facet in batch.facets.items()}
            assert (facets["element"], facets["since"]) == (place, since)
            lengths.add(facets["gap"])
            if onward[state][symbol] < 0:
                assert place >= task.clean
                assert symbol > 0
                odd += 1
            else:
                state = onward[state][symbol]
                asked[gap[facets["gap"] - 1]] = state
        assert {t: target for t, target in enumerate(batch.targets[row].tolist()) if target != SILENT} == asked
    assert lengths == set(range(task.least, task.gap + 1))
    assert (odd > 0) is ("noise" in options)
    if odd:
        assert odd / (100 * 8) == pytest.approx(0.5, abs=0.1)


def test_the_tasks_of_selectivbench_are_presets() -> None:
    for text, gap in (("selective_grammar.task1_40", 1), ("selective_grammar.task2", 10)):
        (found,) = parse("tasks", text)
        task: SelectiveGrammar = found.build()
        assert (task.elements, task.least, task.gap, task.length) == (200, 1, gap, 200 * (gap + 1))
        size = 40 if gap == 1 else 20
        assert task.onward.shape == (size**2 + 1, size + 1)


def test_symbols_that_may_follow_are_equally_likely() -> None:
    task = SelectiveGrammar(symbols=5, depth=1, elements=20, gap=1)
    pairs = Counter(zip([0] * 2000, task.sample(2000, stream("start")).tokens[:, 0].tolist(), strict=True))
    assert len(pairs) == 4
    assert all(abs(count - 500) < 5 * (2000 * 3 / 16) ** 0.5 for count in pairs.values())


def test_the_stated_chance_is_that_of_an_exact_walk() -> None:
    task = SelectiveGrammar(symbols=4, depth=2, elements=3, gap=1)
    onward, asked = task.onward.tolist(), Counter()
    there = {0: Fraction(1)}
    for _ in range(3):
        came: Counter[int] = Counter()
        for state, share in there.items():
            legal = [to for to in onward[state] if to >= 0]
            for to in legal:
                came[to] += share / len(legal)  # type: ignore[assignment]
        there = came
        asked.update(came)
    assert task.chance == pytest.approx(float(max(asked.values()) / 3))


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (RegBench, {"states": 3}, "4 or more states"),
        (RegBench, {"letters": 3}, "4 to 62 letters"),
        (RegBench, {"least": 11}, "from 2 to strings=10"),
        (LinearRegression, {"points": 4}, "need 5 points"),
        (LinearRegression, {"bins": 1}, "needs 2 bins"),
        (DynamicNgrams, {"context": 1}, "2 to 16 bits"),
        (DynamicNgrams, {"length": 8}, "need a length of 9"),
        (SelectiveGrammar, {"least": 4}, "at most gap=3"),
        (SelectiveGrammar, {"noise": 1.0}, "from 0 to below 1"),
        (SelectiveGrammar, {"symbols": 1, "depth": 30}, "hardly any grammar ends"),
    ],
)
def test_impossible_options_say_what_is_possible(build: type[Task], options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_the_least_that_is_said_to_work_does() -> None:
    tasks = [
        RegBench(states=4, letters=4, strings=2, least=2, longest=1),
        LinearRegression(dim=1, points=2, bins=2),
        DynamicNgrams(context=2, length=5),
        SelectiveGrammar(symbols=2, depth=1, elements=1, gap=1),
    ]
    for task in tasks:
        drawn: Tensor = task.sample(3, stream("least")).targets
        assert drawn.shape == (3, task.length)
