"""The relatives of MQAR, each read by the definition: its layout, its facets, what is uniform, what is refused."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bestiary.spec import parse
from bestiary.tasks._task import SILENT, Batch, Task, stream
from bestiary.tasks.compositional_mqar import CompositionalMQAR
from bestiary.tasks.continuous_mqar import ContinuousMQAR, fixed_values, vectors
from bestiary.tasks.just_read_twice import JustReadTwice
from bestiary.tasks.listed_mqar import ListedMQAR
from bestiary.tasks.overwriting_mqar import OverwritingMQAR
from bestiary.tasks.set_disjointness import SetDisjointness

ZOOLOGY = ((64, 4), (64, 9), (128, 9), (128, 16), (256, 16), (256, 25), (256, 36), (512, 64), (1024, 144), (2048, 256))


class Row(NamedTuple):
    tokens: list[int]
    answers: dict[int, int]  # by position, where something is asked
    facets: dict[str, list[int]]


def rows(batch: Batch) -> Iterator[Row]:
    facets = {name: facet.tolist() for name, facet in batch.facets.items()}
    for i, (tokens, targets) in enumerate(zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True)):
        answers = {t: target for t, target in enumerate(targets) if target != SILENT}
        yield Row(tokens, answers, {name: facet[i] for name, facet in facets.items()})


def uniform(drawn: Tensor, among: int) -> bool:
    """Whether each number below `among` is drawn as often as the others, within 4.5 sigma."""
    share = torch.bincount(drawn.flatten(), minlength=among).double() / drawn.numel()
    return len(share) == among and bool((share - 1 / among).abs().max() < 4.5 * (1 / among / drawn.numel()) ** 0.5)


def asked(batch: Batch, facet: str) -> Tensor:
    """A facet at the questions of each row, in order."""
    return batch.facets[facet][batch.targets != SILENT].view(len(batch.targets), -1).long()


@pytest.mark.parametrize("options", [{}, {"mode": "paper"}, {"filler": "zero"}])
def test_a_composition_is_a_grid_of_keys_asked_whole(options: dict[str, Any]) -> None:
    task = CompositionalMQAR(vocab=32, length=58, pairs=9, **options)
    for tokens, answers, facets in rows(task.sample(200, stream("test"))):
        triples = [tuple(tokens[i : i + 3]) for i in range(0, 27, 3)]
        ones, twos, values = (set(part) for part in zip(*triples, strict=True))
        assert ones <= set(range(1, 10))
        assert twos <= set(range(10, 20))
        assert values <= set(range(20, 32))
        assert [len(ones), len(twos), len(values)] == [3, 3, 9]
        assert {triple[:2] for triple in triples} == {(one, two) for one in ones for two in twos}
        assert sorted((tokens[t - 1], tokens[t], answer) for t, answer in answers.items()) == sorted(triples)
        for t, answer in answers.items():
            back = t - facets["distance"][t]
            assert t % 3 == 1
            assert tokens[back - 1 : back + 2] == [tokens[t - 1], tokens[t], answer]
            assert facets["pair"][t] == triples.index((tokens[t - 1], tokens[t], answer))
            assert facets["load"][t] == 9
        rest = {tokens[t] for t in range(27, 58) if t not in answers and t + 1 not in answers}
        assert rest == {0} if "filler" in options else options or not rest & (ones | twos)


def test_a_composition_is_shown_and_asked_in_uniform_order() -> None:
    batch = CompositionalMQAR(length=54, pairs=9).sample(6000, stream("test"))
    assert uniform(asked(batch, "pair")[:, 0], 9)
    same = (batch.tokens[:, 0] == batch.tokens[:, 3]).double().mean().item()
    assert same == pytest.approx(2 / 8, abs=0.025)  # of 8 other cells 2 lie in the same row of the grid
    assert uniform(CompositionalMQAR(vocab=30).sample(4000, stream("test")).tokens[:, 2] - 20, 10)


def replayed(tokens: list[int], assignments: int) -> dict[int, list[tuple[int, int]]]:
    """The place and value of each assignment of each key."""
    history: dict[int, list[tuple[int, int]]] = {}
    for place in range(assignments):
        history.setdefault(tokens[2 * place], []).append((place, tokens[2 * place + 1]))
    return history


@pytest.mark.parametrize("options", [{}, {"mode": "paper"}, {"filler": "zero"}])
def test_the_last_assignment_counts(options: dict[str, Any]) -> None:
    task = OverwritingMQAR(vocab=40, length=50, pairs=6, updates=5, **options)
    for tokens, answers, facets in rows(task.sample(200, stream("test"))):
        history = replayed(tokens, 11)
        assert set(history) <= set(range(1, 20))
        assert all(20 <= value < 40 for past in history.values() for _, value in past)
        assert {tokens[t]: answer for t, answer in answers.items()} == {k: past[-1][1] for k, past in history.items()}
        assert len(answers) == len(history) == 6
        for t in answers:
            past = history[tokens[t]]
            assert t % 2 == 0
            assert (t - facets["distance"][t]) // 2 == facets["pair"][t] == past[-1][0]
            assert (facets["updates"][t], facets["load"][t]) == (len(past) - 1, 6)
        values, rest = tokens[1:22:2], {tokens[t] for t in range(22, 50) if t not in answers}
        if "mode" in options:
            assert len(set(tokens[0:12:2])) == len(set(values[:6])) == 6
            assert len(set(tokens[12:22:2])) == 5
        else:
            assert len(set(values)) == 11
            assert rest == {0} if "filler" in options else not rest & set(history)


def test_updates_fall_on_any_key_at_any_time() -> None:
    batch = OverwritingMQAR(pairs=4, updates=6).sample(5000, stream("test"))
    times, place = asked(batch, "updates"), asked(batch, "pair")
    assert (times.sum(1) == 6).all()
    for found in (0, 1):  # binomial
        wanted = {0: 0.75**6, 1: 6 * 0.25 * 0.75**5}[found]
        assert (times == found).double().mean().item() == pytest.approx(wanted, abs=0.012)
    assert uniform(place[times == 0], 10)  # an untouched key may stand anywhere, a late one too
    order = asked(batch, "distance") + 2 * place
    assert not (order.diff(dim=1) < 0).any()


def test_updates_of_the_paper_may_change_nothing_and_come_last() -> None:
    batch = OverwritingMQAR(vocab=32, pairs=4, updates=3, mode="paper").sample(3000, stream("test"))
    kept, changed = 0, 0
    for tokens, _, _ in rows(batch):
        for past in replayed(tokens, 7).values():
            changed += len(past) - 1
            kept += len(past) == 2 and past[0][1] == past[1][1]
    assert kept / changed == pytest.approx(3 / 4 / 15, abs=0.008)
    times, place = asked(batch, "updates"), asked(batch, "pair")
    assert ((place >= 4) == (times == 1)).all()
    assert times.max() == 1


def test_values_of_the_paper_recur_and_its_questions_keep_some_order() -> None:
    batch = OverwritingMQAR(pairs=8, updates=0, mode="paper", length=32).sample(3000, stream("test"))
    clean = OverwritingMQAR(pairs=8, updates=0, length=32).sample(3000, stream("test"))
    assert (asked(batch, "pair")[:, 0] == 0).double().mean() > 0.25
    assert uniform(asked(clean, "pair")[:, 0], 8)


@pytest.mark.parametrize("options", [{}, {"pairing": "fixed"}, {"passes": 3}])
def test_vectors_hold_a_key_and_its_value(options: dict[str, Any]) -> None:
    task = ContinuousMQAR(vocab=20, width=6, pairs=5, **options)
    keys, values, passes = vectors("keys", 20, 6), vectors("values", 20, 6), task.passes
    batch = task.sample(100, stream("test"))
    number = (batch.tokens[:, :, :6] @ keys.T).argmax(2)
    meaning = (batch.tokens[:, :, 6:] @ values.T).argmax(2)
    torch.testing.assert_close(batch.tokens[:, :, :6], keys[number], rtol=0, atol=0)
    torch.testing.assert_close(batch.tokens[:, : 5 * passes, 6:], values[meaning[:, : 5 * passes]], rtol=0, atol=0)
    assert (batch.tokens[:, 5 * passes :, 6:] == 0).all()
    for row, (_, answers, facets) in enumerate(rows(batch)):
        value_of = dict(zip(number[row, :5].tolist(), meaning[row, :5].tolist(), strict=True))
        assert len(value_of) == len(set(value_of.values())) == 5
        for part in number[row].split(5):
            assert set(part.tolist()) == set(value_of)
        assert sorted(answers) == list(range(5 * passes, 5 * passes + 5))
        for t, answer in answers.items():
            shown = [s for s in range(5 * passes) if number[row, s] == number[row, t]]
            assert all(meaning[row, s] == answer for s in shown)
            assert (facets["distance"][t], facets["load"][t]) == (t - shown[-1], 5)
            if "pairing" in options:
                assert answer == fixed_values(20)[number[row, t]]


def test_tables_are_fixed_directions() -> None:
    keys, values = vectors("keys", 500, 40), vectors("values", 500, 40)
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(500))
    assert keys.mean(0).abs().max() < 4.5 / (500 * 40) ** 0.5
    assert (keys @ values.T).abs().max() < 0.8
    vectors.cache_clear()
    assert torch.equal(vectors("keys", 500, 40), keys)
    assert sorted(fixed_values(50).tolist()) == list(range(50))
    assert (fixed_values(50) != torch.arange(50)).sum() > 40


def test_vectors_are_asked_in_any_order() -> None:
    batch = ContinuousMQAR(vocab=30, width=4, pairs=6, passes=2).sample(6000, stream("test"))
    assert uniform((asked(batch, "distance")[:, 0] - 1), 6)
    assert uniform(batch.targets[:, 12], 30)
    again = (batch.tokens[:, 0] == batch.tokens[:, 6]).all(1).double().mean().item()
    assert again == pytest.approx(1 / 6, abs=0.022)


SMALL: list[tuple[Task, int]] = [  # and how many sequences there are, by hand
    (CompositionalMQAR(vocab=8, length=12, pairs=1, filler="zero"), 1 * 2 * 4 * 3),
    (OverwritingMQAR(vocab=8, length=8, pairs=1, updates=1, filler="zero"), 3 * 4 * 3 * 2),
    (ContinuousMQAR(vocab=3, width=2, pairs=2), 3 * 2 * 3 * 2 * 2),
    (ContinuousMQAR(vocab=3, width=2, pairs=2, pairing="fixed"), 3 * 2 * 2),
    (ContinuousMQAR(vocab=3, width=2, pairs=2, pairing="fixed", passes=2), 3 * 2 * 2 * 2),
    (JustReadTwice(vocab=8, pairs=2, queries=1), 2 * 4 * 3 * 2),
    (ListedMQAR(vocab=6, pairs=2), 2 * 3 * 2 * 2),
    (SetDisjointness(vocab=9, first=2, second=2), 5 * 4 * 3 * 2 * 2),
]


@pytest.mark.parametrize(("task", "wanted"), SMALL)
def test_small_spaces_are_counted(task: Task, wanted: int) -> None:
    assert task.space == pytest.approx(wanted)
    assert len(task.sample(3000, stream("test")).tokens.unique(dim=0)) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compositional_mqar(pairs=7)", r"try \[4, 9\]"),
        ("compositional_mqar(length=23)", "4 triples and questions need 24"),
        ("compositional_mqar(vocab=8)", "4 pairs need 10 tokens"),
        ("compositional_mqar(vocab=24, length=60, pairs=9)", "9 pairs need 25 tokens"),
        ("overwriting_mqar(length=23)", "4 pairs, 4 updates need 24"),
        ("overwriting_mqar(mode='paper', updates=5)", "at most one for each of 4 pairs"),
        ("overwriting_mqar(vocab=15)", "4 pairs and 4 updates need 16"),
        ("overwriting_mqar(vocab=9, updates=0)", "4 pairs and 0 updates need 10"),
        ("continuous_mqar(vocab=3)", "try vocab=4"),
        ("continuous_mqar(width=1)", "try width=2"),
        ("continuous_mqar(width=2, vocab=60000)", r"continuous_mqar\(width=2\): 60000 directions .*; try width=3"),
        ("just_read_twice(pairs=1)", "ask for at most 1"),
        ("just_read_twice(vocab=19)", "8 pairs need 20 tokens"),
        ("listed_mqar(queries=17)", "ask for at most 16"),
        ("listed_mqar(vocab=33)", "16 pairs need 34 tokens"),
        ("set_disjointness(vocab=83)", "lists of 16 and 64 need 84"),
    ],
)
def test_impossible_options_say_what_is_possible(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse("tasks", text)[0].build()


LEAST = (
    "compositional_mqar(length=24, vocab=10), compositional_mqar(vocab=25, length=54, pairs=9), "
    "overwriting_mqar(length=24, vocab=16), overwriting_mqar(vocab=10, updates=0), "
    "overwriting_mqar(length=24, vocab=16, mode='paper'), continuous_mqar(vocab=4, width=2), "
    "just_read_twice(vocab=20), listed_mqar(vocab=34), set_disjointness(vocab=84)"
)


def test_the_least_that_is_said_to_work_does() -> None:
    for spec in parse("tasks", LEAST):
        assert (spec.build().sample(3, stream("test")).targets != SILENT).any(1).all()


def test_presets_are_the_sizes_of_the_papers() -> None:
    for length, pairs in ZOOLOGY:
        for name in ("compositional_mqar", "overwriting_mqar"):
            options = dict(parse("tasks", f"{name}.zoology{length}_{pairs}")[0].options)
            assert options["mode"] == "paper"
            assert (options["length"], options["pairs"], options["vocab"]) == (length, pairs, 8192)
            assert options.get("updates", 4) == 4
    for length in (256, 512, 1024, 2048):
        assert length - 2 <= parse("tasks", f"listed_mqar.kimi{length}")[0].build().length <= length
    for pairs in (4, 8, 16, 32, 64, 128, 256):
        assert parse("tasks", f"continuous_mqar.zoology{pairs}")[0].build().length == 2 * pairs
    sizes = [parse("tasks", f"set_disjointness.{name}")[0].build() for name in SetDisjointness.presets]
    assert {(task.first, task.second) for task in sizes} >= {(4, 256), (256, 4), (768, 16), (1, 32), (16, 64)}
    assert (len(sizes), {task.vocab for task in sizes}) == (26, {2048})
    assert parse("tasks", "just_read_twice.twice")[0].build().length == 2 * (16 + 2 + 2) + 3
