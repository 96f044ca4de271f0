"""Recall of long answers: needles in haystacks, numbers in phone books, classes of vectors."""

import math

import pytest
import torch
from task_helpers import at_questions, draw_rows, is_uniform

from bestiary.spec import parse
from bestiary.tasks._count import choice_bits, guess_accuracy
from bestiary.tasks._haystack import draw_prose, insert_sentences, sentence_starts
from bestiary.tasks._task import SILENT, Task, stream
from bestiary.tasks.needle import IS, NEEDLE, STOP, WHAT, WORDS, Needle
from bestiary.tasks.phone_book import COLON, NEWLINE, PhoneBook
from bestiary.tasks.vector_retrieval import VectorRetrieval
from bestiary.tasks.vector_retrieval import value_vectors as classes_of

ROWS = 4000


def test_sentences_lie_apart_in_the_order_of_their_group() -> None:
    starts = sentence_starts(ROWS, 40, groups=2, size=3, width=5, rng=stream("test"))
    flat = starts.flatten(1).sort(dim=1).values
    assert flat.min() >= 0
    assert flat.max() <= 35
    assert (flat.diff(dim=1) >= 5).all()
    assert (starts.diff(dim=2) > 0).all()
    assert is_uniform((starts[:, 0, 0] > starts[:, 1, 0]).long(), 2)
    gaps = flat - 5 * torch.arange(6)  # others before each sentence: the order of six numbers from 0 to 10
    assert gaps.double().mean().item() == pytest.approx(5, abs=0.1)


def test_one_sentence_has_every_depth() -> None:
    assert is_uniform(sentence_starts(ROWS, 20, groups=1, size=1, width=5, rng=stream("test")), 16)


def test_a_haystack_keeps_its_order_around_what_is_buried() -> None:
    haystack = torch.arange(10).repeat(2, 1)
    sentences = torch.tensor([[[50, 51, 52], [60, 61, 62]]]).repeat(2, 1, 1)
    insert_sentences(haystack, sentences, torch.tensor([[[0, 7]], [[5, 1]]]))
    assert haystack.tolist() == [[50, 51, 52, 0, 1, 2, 3, 60, 61, 62], [0, 60, 61, 62, 1, 50, 51, 52, 2, 3]]


def test_prose_follows_zipf() -> None:
    words = draw_prose(200, 500, 30, stream("test"))
    weight = 1 / torch.arange(1, 31)
    share = torch.bincount(words.flatten(), minlength=30) / words.numel()
    torch.testing.assert_close(share, weight / weight.sum(), atol=0.004, rtol=0)


def test_choices_are_counted_in_bits() -> None:
    assert choice_bits(7, 3) == pytest.approx(math.log2(7 * 6 * 5))
    assert choice_bits(5, 5) == pytest.approx(math.log2(120))


@pytest.mark.parametrize(("candidates", "sizes"), [(1, [4, 4]), (5, [6]), (4, [3, 4, 2])])
def test_guessing_among_answers_is_as_good_as_computed(candidates: int, sizes: list[int]) -> None:
    known = torch.stack([torch.randint(size, (40000, candidates)) for size in sizes], dim=2)
    right, agree = 0.0, torch.ones(40000, candidates)
    for place in range(len(sizes)):
        guess = known[:, :, place].gather(1, torch.multinomial(agree, 1))
        right += (guess == known[:, :1, place]).double().mean().item()
        agree = agree * (known[:, :, place] == known[:, :1, place])
    assert guess_accuracy(candidates, sizes) == pytest.approx(right / len(sizes), abs=0.01)


CASES = [
    {"value": "word", "filler": "repeated"},
    {"keys": 3, "values": 2, "queries": 2, "filler": "prose"},
    {"value": "uuid", "filler": "prose", "length": 160},
    {"key": "uuid", "filler": "needles", "length": 200},
    {"value": "word", "filler": "needles", "values": 3, "queries": 4},
]
SIZE = {"word": 1, "number": 7, "uuid": 32}


@pytest.mark.parametrize("options", CASES, ids=str)
def test_a_haystack_holds_what_is_asked(options: dict[str, str | int]) -> None:
    task = Needle(**({"vocab": 120, "length": 140} | options))
    value, values = SIZE[str(options.get("value", "number"))], options.get("values", 1)
    for tokens, targets, facets in draw_rows(task):
        end = tokens.index(WHAT)
        values_of: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        rest, time = list[int](), 0
        while time < end:
            if tokens[time] != NEEDLE:
                rest.append(tokens[time])
                time += 1
                continue
            equals, stop = tokens.index(IS, time), tokens.index(STOP, time)
            assert stop == equals + 1 + value
            values_of.setdefault(tuple(tokens[time + 1 : equals]), []).append((time, tokens[equals + 1 : stop]))
            time = stop + 1
        assert {len(found) for found in values_of.values()} == {values}
        assert all(len(key) == SIZE[str(options.get("key", "word"))] for key in values_of)
        if options["filler"] == "needles":
            assert len(rest) < task.width * task.values
        else:
            assert len(values_of) == options.get("keys", 1)
        assert all(70 <= word < 120 for word in rest)
        if options["filler"] != "prose":
            assert rest == [70 + i % 20 for i in range(len(rest))]
        wanted, keys, time = [SILENT] * end, set[tuple[int, ...]](), end
        while time < task.length:
            equals = tokens.index(IS, time)
            keys.add(key := tuple(tokens[time + 1 : equals]))
            answer = [digit for _, digits in values_of[key] for digit in digits]
            wanted += [SILENT] * (equals - time) + answer + [SILENT]
            assert tokens[equals + 1 : equals + 1 + len(answer)] in (answer, answer[:-1])
            for i in range(len(answer)):
                assert facets["depth"][equals + i] == 10 * values_of[key][i // value][0] // (end - task.width + 1)
                assert facets["place"][equals + i] == i % value
            time = equals + 1 + len(answer)
        assert wanted[:-1] == targets
        assert len(keys) == options.get("queries", 1)
        assert facets["load"] == [sum(map(len, values_of.values()))] * task.length


def test_numbers_and_uuids_are_uniform() -> None:
    numbers = Needle(length=64).sample(ROWS, stream("test"))
    digits = at_questions(numbers, numbers.targets).view(ROWS, 7)
    assert is_uniform(digits[:, 0] - 1, 9)
    assert is_uniform(digits[:, 1:], 10)
    uuids = Needle(length=128, value="uuid").sample(ROWS, stream("test"))
    assert is_uniform(at_questions(uuids, uuids.targets), 16)
    words = Needle(vocab=80, length=64, value="word").sample(ROWS, stream("test"))
    assert is_uniform(at_questions(words, words.targets) - WORDS, 30)


def test_needles_are_asked_at_every_depth() -> None:
    batch = Needle(vocab=80, length=117, value="word").sample(ROWS, stream("test"))
    assert is_uniform(at_questions(batch, batch.facets["depth"]).long(), 10)


PRESETS = {  # sentences, tokens of a value, questions, and what else RULER says
    "s1": (1, 7, 1, {"filler": "repeated"}),
    "s2": (1, 7, 1, {"filler": "prose"}),
    "s3": (1, 32, 1, {"filler": "prose"}),
    "mk1": (4, 7, 1, {"filler": "prose"}),
    "mk2": (1015 // 11, 7, 1, {"filler": "needles"}),
    "mk3": (14, 32, 1, {"filler": "needles"}),
    "mv": (4, 7, 1, {"filler": "prose", "values": 4}),
    "mq": (4, 7, 4, {"filler": "prose", "queries": 4}),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_presets_are_the_settings_of_ruler(preset: str) -> None:
    (found,) = parse("tasks", f"needle.{preset}")
    task, (load, size, queries, more) = found.build(), PRESETS[preset]
    assert (task.length, task.load, len(task.value), task.queries) == (1024, load, size, queries)
    assert more.items() <= dict(found.options).items()


def test_a_phone_book_is_read_as_printed() -> None:
    for tokens, targets, facets in draw_rows(PhoneBook(names=30, lines=5, examples=2)):
        lines = [tokens[start : start + 13] for start in range(0, len(tokens) - 12, 13)]
        assert len(lines) == 7
        for name, colon, first, *others, newline in lines:
            assert 12 <= name < 42
            assert (colon, newline) == (COLON, NEWLINE)
            assert 6 <= first <= 9
            assert len(others) == 9
            assert max(others) <= 9
        book, examples, asked_for = lines[:5], lines[5:], tokens[91]
        assert len({line[0] for line in book}) == 5
        assert all(line in book for line in examples)
        assert len({line[0] for line in examples} | {asked_for}) == 3
        (place,) = (i for i, line in enumerate(book) if line[0] == asked_for)
        assert targets == [SILENT] * 92 + book[place][2:12]
        assert tokens[92:] == book[place][1:11]
        assert facets["line"][92:] == [place] * 10
        assert facets["place"][92:] == list(range(10))
        assert facets["distance"][92:] == [92 - 13 * place - 1] * 10


def test_every_line_and_digit_is_asked_as_often() -> None:
    batch = PhoneBook(names=30, lines=5).sample(ROWS, stream("test"))
    assert is_uniform(batch.facets["line"][:, -1].long(), 5)
    digits = at_questions(batch, batch.targets).view(ROWS, 10)
    assert is_uniform(digits[:, 0] - 6, 4)
    assert is_uniform(digits[:, 1:], 10)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_answer_is_the_class_of_the_value_of_the_most_similar_key(noise: float) -> None:
    task = VectorRetrieval(width=6, pairs=5, classes=9, questions=2, noise=noise)
    batch = task.sample(300, stream("test"))
    torch.testing.assert_close(batch.tokens.norm(dim=2), torch.full((300, 12), 6**0.5))
    keys, shown, queries = batch.tokens[:, :10:2], batch.tokens[:, 1:10:2], batch.tokens[:, 10:]
    nearest = (queries.unsqueeze(2) - keys.unsqueeze(1)).norm(dim=3).argmin(2)
    wanted = shown.gather(1, nearest.unsqueeze(2).expand(-1, -1, 6))
    assert torch.equal(classes_of(9, 6)[batch.targets[:, 10:]], wanted)
    assert (batch.targets[:, :10] == SILENT).all()
    assert torch.equal(batch.facets["pair"][:, 10:].long(), nearest)
    assert torch.equal(batch.facets["distance"][:, 10:].long(), torch.tensor([10, 11]) - 2 * nearest)
    exact = (queries == keys.gather(1, nearest.unsqueeze(2).expand(-1, -1, 6))).all()
    assert exact == (noise == 0)
    assert (nearest[:, 0] != nearest[:, 1]).all() or noise > 0


def test_vectors_have_any_direction_and_classes_are_uniform() -> None:
    task = VectorRetrieval(width=4, pairs=5, classes=9)
    batch = task.sample(ROWS, stream("test"))
    keys = batch.tokens[:, :10:2].flatten(0, 1)
    torch.testing.assert_close(keys.T @ keys / len(keys), torch.eye(4), atol=0.05, rtol=0)
    assert keys.mean(0).abs().max() < 0.04
    assert is_uniform(batch.targets[:, -1], 9)
    assert is_uniform(batch.facets["pair"][:, -1].long(), 5)
    shown = (batch.tokens[:, 1:10:2].unsqueeze(2) == classes_of(9, 4)).all(3).long()
    assert (shown.sum(1) <= 1).all()
    assert (shown.sum(2) == 1).all()


IMPOSSIBLE = [
    (Needle, {"vocab": 59}, "need 60"),
    (Needle, {"length": 19}, "need 20"),
    (Needle, {"length": 130, "keys": 4, "queries": 4, "values": 2}, "need 155"),
    (Needle, {"queries": 2}, "at most all 1 keys"),
    (Needle, {"vocab": 100, "length": 256, "keys": 41, "value": "word"}, "41 keys of one word need 102"),
    (PhoneBook, {"names": 9}, "10 lines need as many"),
    (PhoneBook, {"lines": 2}, "another line need 3"),
    (VectorRetrieval, {"width": 1}, "a width of 2"),
    (VectorRetrieval, {"classes": 15}, "different values need 16"),
    (VectorRetrieval, {"questions": 17}, "at most 16"),
    (VectorRetrieval, {"noise": math.nan}, "a number from 0 on"),
]


@pytest.mark.parametrize(("task", "options", "message"), IMPOSSIBLE)
def test_impossible_options_say_what_is_possible(
    task: type[Task], options: dict[str, str | int | float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        task(**options)


def test_the_least_that_is_said_to_work_does() -> None:
    least = [
        Needle(vocab=60, length=20),
        Needle(length=155, keys=4, queries=4, values=2),
        Needle(vocab=102, length=256, keys=41, value="word"),
        PhoneBook(names=10),
        PhoneBook(lines=3),
        VectorRetrieval(width=2, classes=16, questions=16),
    ]
    assert all(len(task.sample(3, stream("test")).targets) == 3 for task in least)
