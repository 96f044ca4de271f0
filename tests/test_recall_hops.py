"""Recall in several steps: hops in a text, chains of look-ups, chains of assignments."""

from typing import Any

import pytest
import torch
from task_helpers import at_questions, draw_rows, is_uniform, question_positions

from bestiary.tasks._task import SILENT, Task, stream
from bestiary.tasks.multi_hop import MultiHop
from bestiary.tasks.p_hop import PHop
from bestiary.tasks.variable_tracking import GETS, STOP, WHAT, VariableTracking

ROWS = 4000


def hop(text: list[int], at: int | None) -> int | None:
    """One hop by the definition of the paper: the latest j <= i with text[j - 1] == text[i]."""
    if at is None:
        return None
    return max((j for j in range(1, at + 1) if text[j - 1] == text[at]), default=None)


def test_hops_are_those_of_the_definition() -> None:
    for tokens, targets, facets in draw_rows(PHop(letters=4, length=60, hops=5, least=2)):
        number, text = tokens[0] - 5 + 2, tokens[1:]
        assert 2 <= number <= 5
        assert max(text) < 4
        assert all(a != b for a, b in zip(text, text[1:], strict=False))
        assert targets[0] == SILENT
        for place in range(len(text)):
            at: int | None = place
            for _ in range(number):
                at = hop(text, at)
            assert targets[place + 1] == (4 if at is None else text[at])
            assert facets["none"][place + 1] == (at is None)
            assert facets["distance"][place + 1] == (0 if at is None else place - at)
            assert facets["hops"][place + 1] == number


def test_the_drawing_of_p_hop_is_true() -> None:
    task = PHop(letters=4, length=8, hops=2)
    a, b, c, none = 0, 1, 2, 4
    answers = task.solve(torch.tensor([[5, a, b, c, a, c, b, c]]))
    assert answers.tolist() == [[SILENT, none, none, none, none, b, none, c]]


def test_letters_and_numbers_of_hops_are_uniform() -> None:
    tokens = PHop(letters=5, length=30, hops=3, least=0).sample(ROWS, stream("test")).tokens
    assert is_uniform(tokens[:, 0] - 6, 4)
    assert is_uniform(tokens[:, 1], 5)
    assert is_uniform((tokens[:, 2:] - tokens[:, 1:-1]) % 5 - 1, 4)


@pytest.mark.parametrize("task", [PHop(hops=8), PHop(letters=3, length=50, hops=3), PHop(hops=3, scored="last")])
def test_none_is_as_frequent_as_computed(task: PHop) -> None:
    batch = task.sample(ROWS, stream("test"))
    found = (at_questions(batch, batch.targets) == task.letters).view(ROWS, -1).double().mean(1)
    assert abs(found.mean() - task.none_probability()) < 4.5 * max(found.std() / ROWS**0.5, 0.001)


def test_p_hop_asks_at_the_last_letter_only_if_told_so() -> None:
    for _, targets, _ in draw_rows(PHop(hops=2, scored="last")):
        assert question_positions(targets) == [99]


@pytest.mark.parametrize("options", [{}, {"graph": "chains", "pairs": 12, "depth": 4}, {"path": True}])
def test_hops_follow_the_pairs(options: dict[str, str | int | bool]) -> None:
    task = MultiHop(**({"symbols": 40, "pairs": 8, "depth": 3, "least": 1, "questions": 2} | options))
    for tokens, targets, facets in draw_rows(task):
        body = 2 * task.pairs
        follows = dict(zip(tokens[:body:2], tokens[1:body:2], strict=True))
        assert len(follows) == task.pairs
        if task.graph == "map":
            assert set(follows.values()) <= set(follows)
        starts = [tokens[time] for time in range(body, task.length, task.width)]
        assert len(set(starts)) == 2
        for time in range(body, task.length, task.width):
            hops, at, seen = tokens[time + 1] - 40 + 1, tokens[time], list[int]()
            assert 1 <= hops <= task.depth
            for _ in range(hops):
                at = follows[at]
                seen.append(at)
            if task.path:
                assert targets[time : time + 4] == [SILENT, *seen, *[SILENT] * (3 - hops)]
                assert tokens[time + 2 : time + 4] == (seen + [43] * 3)[:2]
                assert facets["hop"][time + 1 : time + 1 + hops] == list(range(1, hops + 1))
            else:
                assert targets[time : time + 2] == [SILENT, seen[-1]]
                assert facets["hop"][time + 1] == hops
            assert facets["hops"][time + 1] == hops


def test_chains_begin_at_the_asked_starts_and_have_their_depth() -> None:
    for tokens, _, _ in draw_rows(MultiHop(symbols=60, pairs=20, depth=4, graph="chains", questions=5)):
        follows = dict(zip(tokens[:40:2], tokens[1:40:2], strict=True))
        starts = set(follows) - set(follows.values())
        assert starts == {tokens[time] for time in range(40, 50, 2)}
        assert len({*follows, *follows.values()}) == 25
        for start in starts:
            assert follows[follows[follows[follows[start]]]] not in follows


def test_symbols_of_a_map_are_uniform_and_lead_anywhere() -> None:
    batch = MultiHop(symbols=12, pairs=6, depth=2).sample(ROWS, stream("test"))
    assert is_uniform(batch.tokens[:, :12], 12)
    loops = (batch.tokens[:, :12:2] == batch.tokens[:, 1:12:2]).double().mean().item()
    assert loops == pytest.approx(1 / 6, abs=0.012)
    values = batch.tokens[:, 1:12:2].sort(dim=1).values
    reached = 1 + (values.diff(dim=1) > 0).sum(1).double().mean().item()
    assert reached == pytest.approx(6 * (1 - (5 / 6) ** 6), abs=0.06)


@pytest.mark.parametrize("chains", [1, 3])
def test_variables_are_tracked_through_their_chain(chains: int) -> None:
    task = VariableTracking(vocab=123, length=100, chains=chains, hops=3)
    for tokens, targets, facets in draw_rows(task):
        gets = [time for time in range(94) if tokens[time] == GETS]
        assert len(gets) == 4 * chains
        assert all(tokens[time + 2] == STOP for time in gets)
        source_of = {tokens[time - 1]: tokens[time + 1] for time in gets}
        assert len(source_of) == 4 * chains
        assert all(23 <= name < 73 for name in source_of)
        numbers = [source for source in source_of.values() if source >= 73]
        assert len(set(numbers)) == chains
        chain = [tokens[95]]
        while len(chain) < 5:
            (name,) = (name for name, source in source_of.items() if source == chain[-1])
            chain.append(name)
        assert tokens[94:] == [WHAT, chain[0], GETS, *chain[1:4]]
        assert targets == [SILENT] * 96 + chain[1:]
        starts = [tokens.index(name) for name in chain[1:]]
        assert starts == sorted(starts)
        assert facets["distance"][96:] == [96 + i - start for i, start in enumerate(starts)]
        assert facets["hop"][96:] == [0, 1, 2, 3]
        assert facets["load"] == [4 * chains] * 100
        rest = [t for time, t in enumerate(tokens[:94]) if not any(g - 1 <= time <= g + 2 for g in gets)]
        assert rest == [3 + i % 20 for i in range(len(rest))]


def test_chains_are_mixed_and_names_uniform() -> None:
    task = VariableTracking(vocab=63, length=60, chains=2, hops=1)
    batch = task.sample(ROWS, stream("test"))
    assert is_uniform(at_questions(batch, batch.targets) - 23, 20)
    gets = (batch.tokens[:, :56] == GETS).nonzero()[:, 1].view(ROWS, 4)
    first = batch.tokens.gather(1, gets + 1) == batch.tokens[:, 57:58]  # where the asked number is assigned
    share = torch.bincount(first.long().argmax(1), minlength=4) / ROWS
    wanted = torch.tensor([3, 2, 1, 0]) / 6  # the first of two among four assignments
    assert (share - wanted).abs().max() < 0.035


IMPOSSIBLE = [
    (VariableTracking, {"vocab": 32}, "5 variables need 33"),
    (VariableTracking, {"length": 26}, "5 assignments and a question need 27"),
    (PHop, {"letters": 2}, "takes 3"),
    (PHop, {"length": 1}, "need 2"),
    (PHop, {"hops": 2, "least": 3}, "at most hops=2"),
    (MultiHop, {"pairs": 10, "depth": 3, "graph": "chains"}, "a multiple, such as 30"),
    (MultiHop, {"symbols": 23}, "need 24"),
    (MultiHop, {"pairs": 12, "depth": 6, "graph": "chains", "questions": 3}, "2 starts"),
    (MultiHop, {"least": 3}, "at most depth=2"),
]


@pytest.mark.parametrize(("task", "options", "message"), IMPOSSIBLE)
def test_impossible_options_say_what_is_possible(
    task: type[Task], options: dict[str, str | int | float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        task(**options)


def test_the_least_that_is_said_to_work_does() -> None:
    least = [
        VariableTracking(vocab=33, length=27),
        PHop(letters=3, length=2),
        MultiHop(symbols=24),
    ]
    assert all(len(task.sample(3, stream("test")).targets) == 3 for task in least)


@pytest.mark.parametrize(
    "options",
    [
        {"symbols": 3, "pairs": 2, "depth": 1, "questions": 1},
        {"symbols": 4, "pairs": 3, "depth": 2, "questions": 1},
        {"symbols": 4, "pairs": 2, "depth": 1, "questions": 1, "graph": "chains"},
        {"symbols": 5, "pairs": 3, "depth": 2, "questions": 2, "graph": "cycle"},
    ],
)
def test_space_counts_every_row_of_multi_hop_once(options: dict[str, Any]) -> None:
    task = MultiHop(**options)
    rows = task.sample(30_000, stream("test")).tokens.unique(dim=0)
    assert task.space == pytest.approx(len(rows))
