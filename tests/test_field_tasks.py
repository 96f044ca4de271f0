"""The tasks of 2026: each row read anew by the rule of its task, the laws of the draws, what is refused."""

from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
from task_helpers import is_uniform, question_positions, rows_of, sample_rows

from bestiary.spec import parse
from bestiary.tasks._dependency import Sampler, draw_grammar, read_heads
from bestiary.tasks._task import SILENT, stream


def at(facets: dict[str, list[int]], time: int) -> dict[str, int]:
    return {name: facet[time] for name, facet in facets.items()}


UNDO = [
    "undo_flip_flop",
    "undo_flip_flop(length=60, ignore=0.3, undo=0.3)",
    "undo_flip_flop(length=30, shortest=3)",
    "undo_flip_flop.pressure",
    "undo_flip_flop(length=6, form='pressure')",
]


@pytest.mark.parametrize("text", UNDO)
def test_a_read_asks_for_what_the_undos_have_left(text: str) -> None:
    task, batch = sample_rows(text)
    for tokens, targets, facets in rows_of(batch):
        row = "".join("01wriu."[token] for token in tokens)
        assert "." not in row.rstrip(".")
        row = row.rstrip(".")
        assert task.shortest <= len(row) <= task.length
        assert (row[0], row[-1]) == ("w", "r")
        wanted, time = [SILENT] * task.length, 0
        while time < len(row):
            before = row[:time]
            if row[time] == "r":  # the writes that no undo before has taken back, found from the right
                taken, stands, place = 0, -1, time - 1
                while stands < 0:
                    taken += before[place] == "u"
                    if before[place] == "w":
                        stands, taken = (-1, taken - 1) if taken else (place, 0)
                    place -= 1
                wanted[time] = int(row[stands + 1])
                undos = before[before.rindex("w") :].count("u")
                flipped = (int(before[before.rindex("w") + 1]) + undos) % 2
                toggle = flipped == wanted[time]
                assert at(facets, time) == {"distance": time - stands, "undos": undos, "toggle": toggle}
            assert row[time] in "wriu"
            assert before.count("u") + (row[time] == "u") < (before + row[time]).count("w")
            time += 2 if row[time] in "wi" else 1
        assert time == len(row)
        assert targets == wanted


def test_instructions_are_as_frequent_as_told_and_sizes_are_uniform() -> None:
    task, batch = sample_rows("undo_flip_flop(length=50, shortest=41, ignore=0.4, undo=0.2)", 4000)
    size = (batch.tokens < 6).sum(1)
    assert is_uniform(size - 41, 10)
    counts = torch.stack([(batch.tokens[:, 2:30] == kind).sum() for kind in (4, 3)])
    assert (counts[0] / counts.sum()).item() == pytest.approx(0.4 / 0.7, abs=0.01)  # ignore against read
    first = batch.tokens[:, 2]  # with one bit on the stack an undo is replaced by a write
    share = torch.bincount(first, minlength=6)[2:] / len(first)
    torch.testing.assert_close(share, torch.tensor([0.3, 0.3, 0.4, 0.0]), atol=0.035, rtol=0)


def test_the_pressure_test_undoes_all_writes_but_the_first() -> None:
    task, batch = sample_rows("undo_flip_flop.pressure", 4000)
    undos, writes = (batch.tokens == 5).sum(1), (batch.tokens == 2).sum(1)
    assert (writes == undos + 1).all()
    assert is_uniform(undos - 1, 15)
    answers = batch.tokens[:, 1:2].expand_as(batch.targets)
    assert (batch.targets == answers).sum().item() == (batch.targets != SILENT).sum().item() > 4000


@pytest.mark.parametrize("text", ["gapped_mqar", "gapped_mqar(gaps='varied', vocab=60)", "gapped_mqar(gap=0, pairs=6)"])
def test_a_value_follows_its_key_after_the_gap(text: str) -> None:
    task, batch = sample_rows(text)
    third, context = task.third, task.context
    for tokens, targets, facets in rows_of(batch):
        kinds = [min(token // third, 2) for token in tokens]  # filler, key, value
        keys = [t for t in range(context) if kinds[t] == 1]
        values = [t for t in range(context) if kinds[t] == 2]
        assert keys == list(range(0, context, task.gap + 2))
        assert all(key < value < key + task.gap + 2 for key, value in zip(keys, values, strict=True))
        assert task.varied or all(value - key == task.gap + 1 for key, value in zip(keys, values, strict=True))
        assert len({tokens[t] for t in keys}) == len({tokens[t] for t in values}) == task.pairs
        questions = [t for t in range(context, task.length) if kinds[t]]
        assert sorted(tokens[t] for t in questions) == sorted(tokens[t] for t in keys)
        assert question_positions(targets) == questions
        for t in questions:
            pair = next(i for i, key in enumerate(keys) if tokens[key] == tokens[t])
            assert targets[t] == tokens[values[pair]]
            gap, distance = values[pair] - keys[pair] - 1, t - keys[pair]
            assert at(facets, t) == {"gap": gap, "distance": distance, "pair": pair, "load": task.pairs}


def test_gaps_pairs_and_fillers_are_uniform() -> None:
    task, batch = sample_rows("gapped_mqar(gaps='varied', vocab=60, gap=3)", 3000)
    asked = batch.targets != SILENT
    assert is_uniform(batch.facets["gap"][asked].long(), 4)
    assert is_uniform(batch.facets["pair"][asked].view(3000, 4)[:, 0].long(), 4)
    assert is_uniform(batch.tokens[batch.tokens < 20], 20)


@pytest.mark.parametrize("text", ["position_retrieval", "position_retrieval(items=9, prefix=True)"])
def test_the_answer_is_the_place_of_the_item(text: str) -> None:
    task, batch = sample_rows(text)
    n = task.items
    for tokens, targets, facets in rows_of(batch):
        shown, asked = (tokens[3:], tokens[1]) if task.prefix else (tokens[1:-2], tokens[-1])
        marks = [tokens[2], tokens[0]] if task.prefix else [tokens[0], tokens[-2]]
        assert marks == [2 * n, 2 * n + 1]
        assert sorted(shown) == list(range(n))
        place = shown.index(asked)
        assert targets == [SILENT] * (n + 2) + [n + place]
        assert at(facets, n + 2) == {"place": place, "distance": n - 1 - place + 2 * (not task.prefix)}


def test_places_and_items_are_uniform() -> None:
    task, batch = sample_rows("position_retrieval(items=10)", 4000)
    assert is_uniform(batch.targets[:, -1] - 10, 10)
    assert is_uniform(batch.tokens[:, -1], 10)
    assert is_uniform(batch.tokens[:, 3], 10)


NGRAMS = [
    "ngram_retrieval",
    "ngram_retrieval(prefix=True, letters=5, least=7)",
    "ngram_retrieval(query=1, answer=2, letters=12, least=3, most=9)",
    "ngram_retrieval(query=3, answer=1, letters=3, most=30)",
]


@pytest.mark.parametrize("text", NGRAMS)
def test_what_follows_the_query_is_copied(text: str) -> None:
    task, batch = sample_rows(text)
    for tokens, targets, facets in rows_of(batch):
        row = "".join("$?."[token - task.letters] if token >= task.letters else chr(97 + token) for token in tokens)
        row = row.rstrip(".")
        parts = [part.strip("$") for part in row.split("?")]
        query, string = (parts[1].split("$")[0], parts[1].split("$")[1]) if task.prefix else (parts[1], parts[0])
        assert row == (f"?{query}${string}$?{parts[2]}" if task.prefix else f"${string}$?{query}?{parts[2]}")
        assert task.least <= len(string) <= task.most
        begins = [i for i in range(len(string)) if string[i:].startswith(query)]
        assert len(query) == task.query
        assert len(begins) == 1
        answer = string[begins[0] + task.query :][: task.answer]
        assert len(answer) == task.answer
        assert answer[:-1] == parts[2]
        times = question_positions(targets)
        assert times == list(range(len(row) - task.answer, len(row)))
        assert "".join(chr(97 + targets[t]) for t in times) == answer
        where = row.index("$") + 1 + begins[0] + task.query
        for place, t in enumerate(times):
            assert at(facets, t) == {"distance": t - where - place, "place": place, "size": len(string)}


def test_sizes_letters_and_places_of_queries_are_uniform() -> None:
    task, batch = sample_rows("ngram_retrieval(letters=40, least=11, most=14)", 4000)
    size = batch.facets["size"].amax(1).long()
    assert is_uniform(size - 11, 4)
    assert is_uniform(batch.targets[batch.targets != SILENT], 40)
    first = batch.facets["distance"].amax(1)[size == 11] - 5  # of 7 places, from the last
    assert is_uniform(first.long() - first.min(), 7)


LURES = ["interference_recall", "interference_recall(updates=0, lures=9)", "interference_recall(lures=0, pairs=2)"]


@pytest.mark.parametrize("text", LURES)
def test_only_valid_assignments_count(text: str) -> None:
    task, batch = sample_rows(text)
    for tokens, targets, facets in rows_of(batch):
        events = [tuple(tokens[i : i + 3]) for i in range(0, task.body, 3)]
        assert [mark for mark, _, _ in events].count(1) == task.lures
        assert len({value for _, _, value in events}) == len(events)
        assert all(2 <= key < 2 + task.keys <= value for _, key, value in events)
        questions = tokens[task.body :]
        assert len(set(questions)) == task.pairs
        assert {key for mark, key, _ in events if not mark} == set(questions)
        assert question_positions(targets) == list(range(task.body, task.length))
        for t in range(task.body, task.length):
            mine = [(i, mark, value) for i, (mark, key, value) in enumerate(events) if key == tokens[t]]
            place, _, value = [event for event in mine if not event[1]][-1]
            assert targets[t] == value
            lured = mine[-1][1]
            many = sum(mark for _, mark, _ in mine)
            wanted = {"updates": len(mine) - many - 1, "lures": many, "lured": lured, "distance": t - 3 * place - 1}
            assert at(facets, t) == wanted | {"load": task.pairs}


def test_lures_fall_on_any_key_at_any_time() -> None:
    task, batch = sample_rows("interference_recall(pairs=3, updates=3, lures=6)", 4000)
    marks = batch.tokens[:, : task.body : 3]
    assert (marks.double().mean(0) - 0.5).abs().max() < 0.036
    lures = batch.facets["lures"][:, task.body :]
    assert (lures.sum(1) == 6).all()
    assert (lures[:, 0] == 0).double().mean().item() == pytest.approx((2 / 3) ** 6, abs=0.02)


COMPOSITE = [
    "composite_copy",
    "composite_copy(asks='value', agents=9, pool=4, objects=3, events=7)",
    "composite_copy(asks='holder', agents=5, pool=5)",
]


@pytest.mark.parametrize("text", COMPOSITE)
def test_the_value_is_that_of_whoever_was_given_the_object_last(text: str) -> None:
    task, batch = sample_rows(text)
    agents, things = task.agents, task.agents + task.objects
    for tokens, targets, facets in rows_of(batch):
        facts = [tuple(tokens[i : i + 2]) for i in range(0, task.told, 2)]
        gifts = [tuple(tokens[i : i + 2]) for i in range(task.told, task.told + 2 * task.events, 2)]
        mark, thing, *said = tokens[task.told + 2 * task.events :]
        assert all(agent < agents and value >= things for agent, value in facts)
        assert len(dict(facts)) == len(set(dict(facts).values())) == len(facts)
        assert all(agents <= given < things and to < agents for given, to in gifts)
        assert not facts or {to for _, to in gifts} <= set(dict(facts))
        mine = [i for i, (given, _) in enumerate(gifts) if given == thing]
        assert task.events // 10 <= mine[-1] < task.events - 1
        holder = gifts[mine[-1]][1]
        value = dict(facts).get(holder, SILENT)
        assert mark == task.vocab - 1
        answers = {"both": [holder, value], "holder": [holder], "value": [value]}[task.asks]
        assert said == answers[:-1]
        times = question_positions(targets)
        assert times == list(range(task.length - len(answers), task.length))
        for hop, t in enumerate(times, 1 + (task.asks == "value")):
            assert targets[t] == answers[t - times[0]]
            assert at(facets, t) == {"hop": hop, "distance": task.events - 1 - mine[-1], "gifts": len(mine)}


@pytest.mark.parametrize("text", [*COMPOSITE, "composite_copy.v2_4", "composite_copy.binding_16"])
def test_any_gift_of_the_object_scores_the_plateau(text: str) -> None:
    task, batch = sample_rows(text, 3000)
    scores: list[float] = []
    for tokens, targets, _ in rows_of(batch):
        facts = dict(zip(tokens[: task.told : 2], tokens[1 : task.told : 2], strict=True))
        end = task.told + 2 * task.events
        given = [tokens[i + 1] for i in range(task.told, end, 2) if tokens[i] == tokens[end + 1]]
        guesses = {"holder": given, "both": given, "value": [facts.get(agent) for agent in given]}[task.asks]
        scores.append(guesses.count(targets[end + 1]) / len(guesses))
    assert sum(scores) / 3000 == pytest.approx(task.plateau, abs=0.02)


def test_the_gift_that_counts_comes_at_any_time() -> None:
    task, batch = sample_rows("composite_copy(events=11, pool=4, objects=3, asks='holder')", 4000)
    assert is_uniform(batch.facets["distance"][:, -1].long() - 1, 9)  # events 1 to 9 of 0 to 10
    assert is_uniform(batch.tokens[:, -1] - 32, 3)
    assert is_uniform(batch.targets[:, -1], 32)


BINDING = [
    "s5_binding",
    "s5_binding(agents=4, objects=2, events=12, cross=0.9, questions=3)",
    "s5_binding(named='swaps', agents=5, events=9, questions=5)",
    "s5_binding(named='gifts', asks='objects', questions=2, events=20)",
    "s5_binding(asks='objects', questions=6, swaps=0.5)",
]


@pytest.mark.parametrize("text", BINDING)
def test_events_change_both_maps_as_they_say(text: str) -> None:
    task, batch = sample_rows(text)
    crossed = 0
    for tokens, targets, facets in rows_of(batch):
        stated = [tuple(tokens[i : i + 2]) for i in range(0, task.told, 2)]
        points = {a: b for a, b in stated if a < task.agents}
        owner = {o: a for o, a in stated if o >= task.agents}
        assert len(points) == len(set(points.values())) == task.agents * task.pointers
        assert all(a != b for a, b in points.items())
        assert len(owner) == len(set(owner.values())) == task.objects * task.owners
        times: dict[int, list[int]] = {}
        for i in range(task.events):
            mark, what, reference = tokens[task.told + 3 * i : task.told + 3 * i + 3]
            meant = reference if task.named != "none" else {**points, **owner}[reference]
            crossed += (reference >= task.agents) == (mark == task.both)
            if mark == task.both:
                assert meant != what < task.agents
                points[what], points[meant] = points[meant], points[what]
                changed = [what, meant]
            else:
                assert mark == task.both + 1
                assert owner[what] != meant
                owner[what] = meant
                changed = [what]
            for x in changed:
                times.setdefault(x, []).append(i)
        questions = range(task.length - task.questions, task.length)
        assert question_positions(targets) == list(questions)
        assert len({tokens[t] for t in questions}) == task.questions
        for t in questions:
            assert targets[t] == (points if task.asks == "agents" else owner)[tokens[t]]
            mine = times.get(tokens[t], [])
            distance = task.events - 1 - mine[-1] if mine else task.events
            assert at(facets, t) == {"changes": len(mine), "distance": distance}
    if task.named == "none":
        assert crossed / (300 * task.events) == pytest.approx(task.cross, abs=0.06)


def test_a_third_of_the_events_are_swaps_of_any_two_and_answers_are_uniform() -> None:
    task, batch = sample_rows("s5_binding(agents=5, objects=5, events=10)", 4000)
    marks = batch.tokens[:, task.told : -1 : 3]
    assert (marks == 10).double().mean().item() == pytest.approx(1 / 3, abs=0.012)
    assert is_uniform(batch.targets[:, -1], 5)
    assert is_uniform(batch.tokens[:, -1], 5)
    task, batch = sample_rows("s5_binding(agents=4, objects=1, events=1, named='swaps')", 4000)
    first, second = batch.tokens[:, task.told + 1], batch.tokens[:, task.told + 2]
    assert is_uniform((second - first) % 4 - 1, 3)


@pytest.mark.parametrize(("events", "right"), [(16, 0.26), (48, 0.17)])
def test_what_was_stated_first_is_right_as_often_as_said(events: int, right: float) -> None:
    task, batch = sample_rows(f"s5_binding(events={events})", 3000)
    assert min(task.axes["events"]) == 16, "with fewer events recall of what was stated is worth more"
    found = 0
    for tokens, targets, _ in rows_of(batch):
        stated = dict(zip(tokens[: task.told : 2], tokens[1 : task.told : 2], strict=True))
        found += stated[tokens[-1]] == targets[-1]
    assert found / 3000 == pytest.approx(right, abs=0.03)


@pytest.mark.parametrize("text", ["multi_hop(graph='cycle', pairs=7, depth=5, least=2)", "multi_hop.factworld5"])
def test_a_cycle_goes_through_all_keys(text: str) -> None:
    task, batch = sample_rows(text)
    for tokens, targets, _ in rows_of(batch):
        follows = dict(zip(tokens[: 2 * task.pairs : 2], tokens[1 : 2 * task.pairs : 2], strict=True))
        for start in range(2 * task.pairs, task.length, 2):
            way = [tokens[start]]
            while len(way) <= task.pairs:
                way.append(follows[way[-1]])
            assert len(set(way)) == task.pairs
            assert targets[start + 1] == way[tokens[start + 1] - task.symbols + task.least]


def derivations(grammar: Any, symbol: int, most: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """All sentences of a symbol of up to so many words, each with the places of the heads, the last one's missing."""
    if symbol < grammar.words:
        return [((symbol,), (-1,))] if most else []
    found = []
    for rule in grammar.rules[symbol - grammar.words]:
        for parts in product(*(derivations(grammar, part, most - len(rule)) for part in rule)):
            words, heads = [], []
            for below, above in parts:
                heads += [head + len(words) if head >= 0 else -1 for head in above]
                words += below
            heads = [len(words) if head < 0 else head for head in heads]
            for word, weight in enumerate(grammar.heads[symbol - grammar.words]):
                if weight and len(words) < most:
                    found.append(((*words, word), (*heads, -1)))
    return found


@pytest.mark.parametrize("own", [True, False])
def test_trees_are_derivations_of_the_grammar(own: bool) -> None:
    grammar = draw_grammar(4, terminals=2, nonterminals=5, widest=3, rules=3, depth=4, own=own)
    every = {tree for x in range(5) for tree in derivations(grammar, grammar.words + x, 7)}
    trees = Sampler(grammar).trees(2000, 3, 7, (0,), stream("test"))
    drawn = set()
    for words, heads in zip(trees.words.tolist(), trees.heads.tolist(), strict=True):
        size = sum(word >= 0 for word in words)
        assert size >= 3
        assert set(words[size:]) | set(heads[size:]) <= {-1}
        drawn.add((tuple(words[:size]), tuple(heads[:size])))
    assert drawn <= every
    assert len(drawn) > 5
    if own:
        assert all(read_heads(list(words), grammar) == list(heads) for words, heads in every)


PCFG = [
    "dependency_pcfg(kinds='all')",
    "dependency_pcfg(kinds='parent, sibling', language=2, depth=4)",
    "dependency_pcfg(heads='shared', kinds='all', terminals=30)",
]


@pytest.mark.parametrize("text", PCFG)
def test_the_answer_depends_as_it_is_asked(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = sample_rows(text, 1)
    kept, trees = [], task.sampler.trees
    monkeypatch.setattr(task.sampler, "trees", lambda *given: kept.append(trees(*given)) or kept[-1])
    batch = task.sample(400, stream("test", text))
    for row, (tokens, targets, facets) in enumerate(rows_of(batch)):
        words = [word for word in kept[0].words[row].tolist() if word >= 0]
        heads = kept[0].heads[row].tolist()[: len(words)]
        size = len(words)
        assert tokens[:size] == words
        end, word, kind = tokens[size : size + 3]
        assert (end, tokens[size + 3 :]) == (task.words + 3, [task.vocab - 1] * (task.longest - size))
        asked = max(i for i in range(size) if words[i] == word)
        beside = [i for i in range(size) if heads[i] == heads[asked]]
        kind -= task.words
        wanted = [[heads[asked]], [i for i in range(size) if heads[i] == asked], beside[-1:]][kind]
        right = {words[i] for i in wanted}
        assert kind < 2 or words[wanted[0]] not in words[wanted[0] + 1 :]
        assert set(batch.truth["right"][row].nonzero().flatten().tolist()) == right
        assert question_positions(targets) == [size + 2]
        assert targets[size + 2] in right
        assert (facets["kind"][size + 2], facets["size"][size + 2]) == (kind, size)
        assert facets["distance"][size + 2] == size + 2 - asked
        assert facets["span"][size + 2] in {abs(i - asked) for i in wanted}


@pytest.mark.parametrize("text", ["dependency_pcfg", "dependency_pcfg.atr5_20"])
def test_counts_by_what_is_asked_score_the_plateau(text: str) -> None:
    task, fit = sample_rows(text, 2000)
    held, found = task.sample(600, stream("held")), 0
    counts: dict[tuple[int, ...], Counter[int]] = {}
    for row, (tokens, targets, _) in enumerate(rows_of(fit)):
        (end,) = question_positions(targets)
        right = fit.truth["right"][row].nonzero()[:, 0].tolist()
        counts.setdefault(tuple(tokens[end - 1 : end + 1]), Counter()).update(right)
    for row, (tokens, targets, _) in enumerate(rows_of(held)):
        (end,) = question_positions(targets)
        often = counts.get(tuple(tokens[end - 1 : end + 1]), Counter[int]())
        answer = max(tokens[: end - 2], key=lambda word, often=often: often[word])
        found += int(held.truth["right"][row, answer])
    assert found / 600 == pytest.approx(task.plateau, abs=0.06)


REFUSED = [
    ("undo_flip_flop(undo=0.2)", "at most"),
    ("undo_flip_flop(length=2)", "from 3"),
    ("undo_flip_flop(form='pressure', shortest=9)", "leave out shortest"),
    ("gapped_mqar(length=31)", "need 32"),
    ("gapped_mqar(vocab=11)", "need 12"),
    ("position_retrieval(items=1)", "from 2 items"),
    ("ngram_retrieval(least=4)", r"query \+ answer = 5"),
    ("ngram_retrieval(letters=2, query=1, most=40)", "hardly any"),
    ("interference_recall(vocab=25)", "need 26"),
    ("composite_copy(pool=40)", "from 2 to 32"),
    ("composite_copy(objects=1)", "2 objects"),
    ("s5_binding(objects=7)", "7"),
    ("s5_binding(named='gifts')", "no event changes them"),
    ("s5_binding(questions=7)", "6 agents"),
    ("multi_hop(graph='cycle', pairs=2)", "needs 3"),
    ("dependency_pcfg(shortest=60)", "from 3"),
    ("dependency_pcfg(terminals=1, heads='shared')", "hardly any sentence"),
    ("dependency_pcfg(widest=1)", "hardly any sentence"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_impossible_options_say_what_is_possible(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse("tasks", text)[0].build()
