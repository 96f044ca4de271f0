"""Reasoning tasks, each row read in plain Python and answered by another way than the task's own."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import permutations

import pytest
import torch

from bestiary.spec import parse
from bestiary.tasks._task import SILENT, Batch, Task, stream
from bestiary.tasks.brevo import Brevo
from bestiary.tasks.depo import Depo
from bestiary.tasks.mano import Mano
from bestiary.tasks.path_star import PathStar

Word = tuple[int, ...]


def spelled(tokens: list[int], letters: int) -> list[Word]:
    """The words of a text of letters."""
    words: list[Word] = []
    word: Word = ()
    for token in tokens:
        assert 0 < token <= 2 * letters
        word = (*word, token)
        if token > letters:
            words, word = [*words, word], ()
    assert not word
    return words


def asked(batch: Batch, row: int) -> dict[int, int]:
    return {time: target for time, target in enumerate(batch.targets[row].tolist()) if target != SILENT}


# Depo


@pytest.mark.parametrize("options", [{}, {"letters": 3, "shortest": 2, "longest": 4}, {"hops": 5, "sizes": "largest"}])
def test_depo_answers_follow_the_cycle(options: dict[str, int]) -> None:
    task = Depo(**options)
    batch, sizes, steps, lengths = task.sample(300, stream("depo")), Counter(), Counter(), Counter()
    for row, tokens in enumerate(batch.tokens.tolist()):
        text = tokens[: tokens.index(0)] if 0 in tokens else tokens
        assert text[0] == task.start
        assert not any(tokens[len(text) :])
        first = next(time for time, token in enumerate(text) if token > task.equals)
        words = spelled(text[1:first], task.letters)
        after = dict(zip(words[::2], words[1::2], strict=True))
        assert len(words) == 2 * len(after)
        assert set(after) == set(after.values())
        word, cycle = words[0], 0
        while cycle == 0 or word != words[0]:
            word, cycle = after[word], cycle + 1
        assert cycle == len(after)
        signs = [time for time, token in enumerate(text) if token > task.equals] + [len(text)]
        assert len(signs) - 1 == min(task.questions, cycle)
        subjects, wanted = set(), {}
        for begin, end in zip(signs, signs[1:], strict=False):
            equals = text.index(task.equals, begin)
            (node,) = spelled(text[begin + 1 : equals], task.letters)
            subjects.add(node)
            hops = text[begin] - task.equals
            for _ in range(hops):
                node = after[node]
            assert tuple(text[equals + 1 : end]) == node
            for letter, target in enumerate(node):
                wanted[equals + letter] = target
                facets = {name: int(facet[row, equals + letter]) for name, facet in batch.facets.items()}
                assert facets == {"hops": hops, "nodes": cycle, "letter": letter}
            steps[hops] += 1
        assert len(subjects) == len(signs) - 1
        assert asked(batch, row) == wanted
        sizes[cycle] += 1
        lengths.update(len(word) for word in after)
    largest = options.get("sizes") == "largest"
    assert set(sizes) == ({12} if largest else set(range(3, 13)))
    assert set(steps) == ({1, 2, 4, 5} if largest else {1, 2, 3, 4})
    assert set(lengths) == set(task.words.lengths)


def test_depo_draws_sizes_with_the_weights_of_the_paper() -> None:
    sizes = Depo(nodes=9, questions=1).sample(20000, stream("sizes")).facets["nodes"][:, 0]
    weights = {n: 1 / (n + 3) for n in range(3, 10)}
    for n, weight in weights.items():
        share = weight / sum(weights.values())
        assert (sizes == n).double().mean().item() == pytest.approx(share, abs=5 * (share / 20000) ** 0.5)


def test_words_differ_though_there_are_few() -> None:
    task = Brevo(nodes=9, letters=9)
    words = task.words.draw(500, 9, stream("words"))[:, :, 0]
    assert (words.sort(1).values == torch.arange(10, 19)).all()
    drawn = Depo(nodes=19, letters=3, shortest=1, longest=3).words.draw(300, 19, stream("words")).tolist()
    assert all(len({tuple(word) for word in row}) == 19 for row in drawn)
    lengths = Counter(sum(letter > 0 for letter in row[0]) for row in drawn)
    assert all(abs(lengths[length] - 100) < 5 * (300 * 2 / 9) ** 0.5 for length in (1, 2, 3))


# Brevo


def graph_of(task: Brevo, tokens: list[int]) -> tuple[dict[Word, set[Word]], Word, list[Word], int]:
    """What each node depends on, the node asked about, the answer shown, and where its sign stands."""
    text = tokens[: tokens.index(0)] if 0 in tokens else tokens
    query, equals = text.index(task.query), text.index(task.equals)
    words = spelled(text[1:query], task.letters)
    needs: dict[Word, set[Word]] = {word: set() for word in words}
    for cause, node in zip(words[::2], words[1::2], strict=True):
        assert cause not in needs[node]
        needs[node].add(cause)
    (node,) = spelled(text[query + 1 : equals], task.letters)
    return needs, node, spelled(text[equals + 1 :], task.letters), equals


def all_needed(needs: dict[Word, set[Word]], node: Word) -> set[Word]:
    return {node}.union(*(all_needed(needs, cause) for cause in needs[node]))


VARIANTS = [Brevo(), Brevo(nodes=6, letters=4, shortest=1, longest=3), Brevo(nodes=7, sizes="largest")]


@pytest.mark.parametrize("task", VARIANTS, ids=lambda task: f"{task.nodes}")
def test_brevo_shows_a_right_order_of_all_that_is_needed(task: Brevo) -> None:
    batch, leaves = task.sample(300, stream("brevo")), Counter()
    for row, tokens in enumerate(batch.tokens.tolist()):
        needs, node, answer, equals = graph_of(task, tokens)
        assert set(answer) == all_needed(needs, node)
        assert len(set(answer)) == len(answer)
        assert all(needs[word] <= set(answer[:place]) for place, word in enumerate(answer))
        assert answer[-1] == node
        assert all(len(causes) <= 4 for causes in needs.values())
        assert max(Counter(cause for causes in needs.values() for cause in causes).values()) <= 4
        letters = [letter for word in answer for letter in word]
        assert asked(batch, row) == dict(enumerate([*letters, task.end], equals))
        size = int(batch.facets["nodes"][row, 0])
        assert len(needs) <= size <= task.nodes
        leaves[sum(not causes for causes in needs.values())] += 1
    assert set(leaves) <= set(range(1, (task.nodes - 1) // 4 + 2))
    assert len(leaves) > 1


@pytest.mark.parametrize("task", VARIANTS, ids=lambda task: f"{task.nodes}")
def test_brevo_counts_as_right_what_some_right_order_goes_on_with(task: Brevo) -> None:
    batch = task.sample(120, stream("legal"))
    every = [task.right(batch, torch.full_like(batch.targets, symbol)) for symbol in range(task.vocab)]
    for row, tokens in enumerate(batch.tokens.tolist()):
        needs, node, answer, equals = graph_of(task, tokens)
        if len(answer) > 6:
            continue
        orders = [
            [letter for word in order for letter in word] + [task.end]
            for order in permutations(answer)
            if all(needs[word] <= set(order[:place]) for place, word in enumerate(order))
        ]
        shown = [letter for word in answer for letter in word]
        for place in range(len(shown) + 1):
            legal = {order[place] for order in orders if order[:place] == shown[:place]}
            found = {symbol for symbol, right in enumerate(every) if right[row, equals + place]}
            assert found == legal
        assert batch.facets["place"][row, equals] == 0
        assert batch.facets["place"][row, equals + len(shown)] == len(answer)
        assert batch.facets["legal"][row, equals] == len({o for o in answer if not needs[o]})
        assert batch.facets["legal"][row, equals + len(shown)] == 1


# Plateaus: what those reach who know the words of a row, and guess the commonest continuation


def share_of(letter_is_right: Callable[[int], bool], words: Iterable[Word], shown: Word) -> float:
    """How often the commonest next letters of these words are right, after what is shown of a word."""
    after = Counter(word[len(shown)] for word in words if word[: len(shown)] == shown)
    best = [letter for letter, times in after.items() if times == max(after.values())]
    return sum(map(letter_is_right, best)) / len(best)


@pytest.mark.parametrize("task", VARIANTS, ids=lambda task: f"{task.nodes}")
def test_the_plateau_of_brevo_is_reached_by_guessing_among_what_is_not_listed_yet(task: Brevo) -> None:
    batch, found = task.sample(800, stream("plateau")), []
    for tokens in batch.tokens.tolist():
        needs, _, answer, _ = graph_of(task, tokens)
        for place, word in enumerate(answer):
            ready = [node for node in answer[place:] if needs[node] <= set(answer[:place])]
            for i in range(len(word)):
                right = {node[i] for node in ready if node[:i] == word[:i]}
                found.append(share_of(right.__contains__, answer[place:], word[:i]))
        found.append(1.0)  # the end
    assert sum(found) / len(found) == pytest.approx(task.plateau, abs=0.02)


@pytest.mark.parametrize("options", [{}, {"nodes": 32, "questions": 3}, {"letters": 3, "shortest": 2, "longest": 4}])
def test_the_plateau_of_depo_is_reached_by_guessing_among_the_words_shown(options: dict[str, int]) -> None:
    task = Depo(**options)
    batch, found = task.sample(600, stream("plateau")), []
    for row, tokens in enumerate(batch.tokens.tolist()):
        words = set(
            spelled(tokens[1 : next(time for time, token in enumerate(tokens) if token > task.equals)], task.letters)
        )
        for word in spelled(list(asked(batch, row).values()), task.letters):
            found += [share_of(letter.__eq__, words, word[:i]) for i, letter in enumerate(word)]
    assert sum(found) / len(found) == pytest.approx(task.plateau, abs=0.015)


# Mano


def evaluated(tokens: list[int], modulus: int) -> tuple[int, int]:
    """Value and depth of an expression in prefix notation, by recursion; the tokens are used up."""
    token = tokens.pop(0)
    if token < modulus:
        return token, 0
    (a, left), (b, right) = evaluated(tokens, modulus), evaluated(tokens, modulus)
    return [a + b, a - b, a * b][(token - modulus - 3) // 2] % modulus, 1 + max(left, right)


@pytest.mark.parametrize("options", [{}, {"operations": 9, "modulus": 7}, {"operations": 5, "sizes": "largest"}])
def test_mano_answers_are_the_values(options: dict[str, int]) -> None:
    task = Mano(**options)
    batch, sizes, signs, roots = task.sample(2000, stream("mano")), Counter(), Counter(), Counter()
    for row, tokens in enumerate(batch.tokens.tolist()):
        size = (tokens[1] - task.signs - 6) // 2 + 1
        end = 3 + 2 * size
        assert tokens[0] - task.modulus in (1, 2)
        assert (tokens[end] - task.signs - 6) // 2 == task.operations + size - 1
        assert set(tokens[end + 1 :]) <= {task.modulus}
        body = tokens[2:end]
        signs.update(token for token in body if token >= task.modulus)
        value, depth = evaluated(body, task.modulus)
        assert not body
        assert asked(batch, row) == {end: value}
        assert (batch.facets["operations"][row, end], batch.facets["depth"][row, end]) == (size, depth)
        sizes[size] += 1
        roots[size, tokens[3] < task.modulus] += 1
    few = range(1, task.operations + 1) if task.least == 1 else [task.operations]
    assert all(abs(sizes[n] - 2000 / len(few)) < 5 * (2000 / len(few)) ** 0.5 for n in few)
    assert set(signs) == set(range(task.signs, task.signs + 6))
    assert max(signs.values()) < 1.25 * min(signs.values())
    for n in few:  # no operation falls to the left with probability 1 / n
        assert abs(roots[n, True] - sizes[n] / n) < 5 * (sizes[n] / n) ** 0.5


def test_the_modulus_is_prime() -> None:
    with pytest.raises(ValueError, match="must be prime; try 11"):
        Mano(modulus=9)
    Mano(modulus=11)


# Path-star


@pytest.mark.parametrize("directed", [True, False])
@pytest.mark.parametrize("backwards", [True, False])
@pytest.mark.parametrize("shown", [True, False])
def test_the_path_leads_from_the_centre_to_the_end(directed: bool, backwards: bool, shown: bool) -> None:
    task = PathStar(branches=3, steps=4, nodes=30, directed=directed, backwards=backwards, shown=shown)
    batch, turned = task.sample(200, stream("star")), 0
    for row, tokens in enumerate(batch.tokens.tolist()):
        edges = [tuple(tokens[i : i + 2]) for i in range(0, 24, 2)]
        mark, centre, end, equals = tokens[24:28]
        assert (mark, equals) == (30, 31)
        degree = Counter(node for edge in edges for node in edge)
        assert sorted(degree.values()) == [1] * 3 + [2] * 9 + [3]
        assert (degree[centre], degree[end]) == (3, 1)
        wanted = list(asked(batch, row).values())
        path = [*wanted[::-1], end] if backwards else [centre, *wanted]
        assert (path[0], path[-1], len(path)) == (centre, end, 5)
        for a, b in zip(path, path[1:], strict=False):
            assert ((a, b) in edges) is not ((b, a) in edges)
            turned += (b, a) in edges
        assert sorted(asked(batch, row)) == [27, 28, 29, 30]
        assert tokens[28:] == (wanted[:3] if shown else [31] * 3)
        assert batch.facets["step"][row, 27:].tolist() == [0, 1, 2, 3]
    assert turned == 0 if directed else abs(turned - 400) < 5 * 200**0.5


# All of them


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (Depo, {"nodes": 2}, "at least 3 nodes"),
        (Depo, {"shortest": 3}, "1 to longest=2"),
        (Depo, {"letters": 3, "nodes": 7}, "7 nodes need 14 words, not 12"),
        (Depo, {"letters": 3, "longest": 40}, "make them shorter"),
        (Brevo, {"nodes": 2}, "at least 3 nodes"),
        (Brevo, {"letters": 7}, "8 nodes need 8 words, not 7"),
        (Mano, {"modulus": 1}, "must be prime; try 2"),
        (PathStar, {"nodes": 20}, "5 branches of 4 steps have 21 nodes"),
    ],
)
def test_impossible_options_say_what_is_possible(build: type[Task], options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_the_least_that_is_said_to_work_does() -> None:
    for task in (Depo(letters=3, nodes=6), Brevo(letters=8), Mano(modulus=2), PathStar(nodes=21)):
        assert task.sample(3, stream("least")).tokens.shape == (3, task.length)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("depo.depo1_375", {"nodes": 375, "hops": 8, "letters": 50, "width": 2}),
        ("depo(hops=32, sizes='largest')", {"steps": [1, 2, 4, 8, 16, 24, 32]}),
        ("depo.depo2_125", {"nodes": 125, "hops": 16, "letters": 3, "width": 7}),
        ("brevo.brevo1_110", {"nodes": 110, "width": 1}),
        ("brevo.brevo2_50", {"nodes": 50, "letters": 4, "width": 4}),
        ("mano.l16", {"operations": 16, "modulus": 23, "length": 36}),
        ("path_star.g2_20", {"branches": 2, "steps": 19, "edges": 38}),
    ],
)
def test_presets_are_the_sizes_of_the_papers(text: str, wanted: dict[str, object]) -> None:
    (found,) = parse("tasks", text)
    task = found.build()
    assert {name: getattr(task, name) for name in wanted} == wanted
    assert math.isfinite(task.chance)
