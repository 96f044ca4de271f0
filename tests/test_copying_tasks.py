"""Copying, looking up, stacks, flip-flops and n-back: rows read in plain Python, and the laws of their draws."""

import math
from typing import Any

import pytest
import torch
from task_helpers import at_questions, is_uniform, rows_of, sample_rows

from bestiary.spec import parse
from bestiary.tasks._task import LARGE_SPACE, SILENT

COPY = [
    "copy(noise=9)",
    "copy(noise=9, copied=5, variable=True)",
    "copy(vocab=20, copied=4, least=2, repeats=3, noise=2)",
    "copy(copied=4, least=1, noise=3, variable=True)",
]
FORMS = [
    "repeat_after_me",
    "repeat_after_me(letters=3, answer=4)",
    "repeat_after_me(form='prefix', letters=4, gram=2, most=12)",
    "repeat_after_me(form='prefix', letters=4, gram=1, least=4, most=4)",  # of some strings no letter occurs once
    "repeat_after_me(form='suffix', letters=6, gram=2, most=14, least=9, answer=3)",
    "repeat_after_me(form='duplicate', gram=2, least=4, most=12)",
]


@pytest.mark.parametrize("text", COPY)
def test_a_copy_is_asked_so_often_and_then_its_end(text: str) -> None:
    task, batch = sample_rows(text)
    mark, text_size = task.vocab - 1, task.copied + task.noise
    for tokens, targets, facets in rows_of(batch):
        read = [(t, token) for t, token in enumerate(tokens[:text_size]) if token]
        assert all(0 <= token <= task.letters for token in tokens[:text_size])
        assert task.variable or [t for t, _ in read] == list(range(len(read)))
        times, start = 1, text_size
        if task.repeats > 1:
            times, start = tokens[text_size] - task.letters, text_size + 1
        assert 1 <= times <= task.repeats
        assert task.least <= len(read) <= task.copied
        assert tokens[start:] == [mark] * (task.copied * task.repeats + task.ends)
        answers = read * times
        end = [mark] * task.ends
        wanted = [token for _, token in answers] + end
        assert [target for target in targets if target != SILENT] == wanted
        assert targets[start : start + len(wanted)] == wanted
        distance = [start + i - t for i, (t, _) in enumerate(answers)] + [0] * task.ends
        assert facets["distance"][start : start + len(wanted)] == distance
        assert facets["place"][start : start + len(wanted)] == list(range(len(wanted)))


def test_sizes_times_places_and_letters_of_copies_are_uniform() -> None:
    task, batch = sample_rows("copy(vocab=20, copied=5, least=2, repeats=4, noise=3, variable=True)", 4000)
    text = batch.tokens[:, :8]
    assert is_uniform((text != 0).sum(1) - 2, 4)
    assert is_uniform(batch.tokens[:, 8] - 15, 4)
    assert is_uniform(text[text != 0] - 1, 14)
    assert is_uniform((text != 0).nonzero()[:, 1], 8)


def strings(task: Any, tokens: list[int]) -> tuple[list[str], int]:
    """The parts between bars, as strings, and where the padding begins."""
    end = tokens.index(task.padding) if task.padding in tokens else len(tokens)
    assert all(token == task.padding for token in tokens[end:])
    assert tokens[0] == task.start
    row = "".join("|" if token == task.bar else chr(97 + token) for token in tokens[1:end])
    return row.split("|"), end


@pytest.mark.parametrize("text", FORMS)
def test_a_string_is_repeated_from_where_it_is_asked(text: str) -> None:
    task, batch = sample_rows(text)
    for tokens, targets, facets in rows_of(batch):
        parts, end = strings(task, tokens)
        string, said = parts[-2:]
        assert len(parts) == 2 + (task.form == "prefix")
        assert task.least <= len(string) <= task.most
        begin = shown = 0
        if task.look_up:
            given = parts[0] if task.form == "prefix" else said[: task.gram]
            said = said[task.gram :] if task.form == "suffix" else said
            assert len(given) == task.gram
            begin = string.index(given) + task.gram
            occurs = [
                sum(string[j:].startswith(string[i : i + task.gram]) for j in range(len(string)))
                for i in range(len(string) - task.gram - (task.answer or 1) + 1)
            ]
            shown = sum(string[i:].startswith(given) for i in range(len(string)))
            assert shown == 1 or 1 not in occurs
        answer = string[begin : begin + task.answer] if task.answer else string[begin:]
        assert said == answer
        first = end - len(answer) - 1
        assert [t for t, target in enumerate(targets) if target != SILENT] == list(range(first, end))
        assert targets[first:end] == [ord(letter) - 97 for letter in answer] + [task.stop]
        stands = 1 + (task.gram + 1) * (task.form == "prefix") + begin
        assert facets["distance"][first:end] == [first - stands] * len(answer) + [0]
        assert facets["place"][first:end] == list(range(len(answer) + 1))
        assert set(facets["size"][first:end]) == {len(string)}
        assert set(facets["shown"][first:end]) == {shown}


def test_a_duplicate_stands_twice_in_every_string_and_chance_doubles_few() -> None:
    def share(text: str) -> float:
        task, batch = sample_rows(text)
        found = [strings(task, tokens)[0][0] for tokens in batch.tokens.tolist()]
        twice = [any(s[i : i + 4] in s[i + 4 :] for i in range(len(s) - 7)) for s in found]
        return sum(twice) / len(twice)

    assert share("repeat_after_me(form='duplicate', least=8, gram=4)") == 1
    assert share("repeat_after_me(least=8, gram=4)") < 0.02


def test_lengths_letters_and_places_of_strings_are_uniform() -> None:
    task, batch = sample_rows("repeat_after_me(form='suffix', gram=4, least=9, most=12)", 4000)
    size = batch.facets["size"].amax(1)
    assert is_uniform(size - 9, 4)
    assert is_uniform(batch.tokens[:, 1:9], 26)
    rest = (batch.targets != SILENT).sum(1) - 1
    assert is_uniform(12 - 4 - rest[size == 12], 8)


def test_the_overwritten_letters_may_be_any_that_do_not_overlap() -> None:
    task, batch = sample_rows("repeat_after_me(form='duplicate', letters=1000, gram=2, least=6, most=6)", 3000)
    pairs = [[s[i : i + 2] for i in range(5)] for s in batch.tokens[:, 1:7].tolist()]
    found = [next((i, j) for i in range(5) for j in range(i + 2, 5) if row[i] == row[j]) for row in pairs]
    assert is_uniform(
        torch.tensor([{(0, 2): 0, (0, 3): 1, (0, 4): 2, (1, 3): 3, (1, 4): 4, (2, 4): 5}[f] for f in found]), 6
    )


def test_a_palindrome_is_asked_but_for_its_first_token() -> None:
    task, batch = sample_rows("palindrome(length=20, vocab=8)", 2000)
    for tokens, targets, facets in rows_of(batch):
        string = tokens[:10]
        assert tokens == [*string, 7, *string[:0:-1]]
        assert targets == [SILENT] * 11 + string[-2::-1]
        assert facets["place"][11:] == list(range(8, -1, -1))
        assert facets["distance"][11:] == [3, 5, 7, 9, 11, 13, 15, 17, 19]
    assert is_uniform(batch.tokens[:, :10], 7)


@pytest.mark.parametrize(
    "text", ["stacks(stacks=3, elements=5, operations=25)", "stacks", "stacks(stacks=1, operations=2)"]
)
def test_a_pop_asks_for_the_newest_of_its_stack(text: str) -> None:
    task, batch = sample_rows(text, 200)
    for tokens, targets, facets in rows_of(batch):
        held: dict[int, list[tuple[int, int]]] = {}
        wanted = [SILENT] * len(tokens)
        for t in range(0, len(tokens), 3):
            act, stack, element = tokens[t : t + 3]
            assert act < 2 <= stack < 2 + task.stacks <= element < task.vocab
            mine = held.setdefault(stack, [])
            if act == 1:
                told = {"height": len(mine), "load": sum(map(len, held.values()))}
                pushed, wanted[t + 1] = mine.pop()
                assert {name: x[t + 1] for name, x in facets.items()} == told | {"distance": t - pushed}
                assert element == wanted[t + 1]
            else:
                mine.append((t, element))
        assert targets == wanted
        assert set(targets) != {SILENT}


def test_pops_come_as_often_as_said_from_any_stack_that_holds_something() -> None:
    task, batch = sample_rows("stacks(stacks=2, elements=7, operations=60, pops=0.3)", 1000)
    pops, stacks, elements = batch.tokens[:, ::3], batch.tokens[:, 1::3] - 2, batch.tokens[:, 2::3] - 4
    assert pops[:, 20:-1].double().mean().item() == pytest.approx(0.3, abs=0.01)
    assert is_uniform(stacks[pops == 0], 2)
    assert is_uniform(elements[pops == 0], 7)
    late = pops[:, 40:59] == 1  # by then neither is empty in all but few rows
    assert is_uniform(stacks[:, 40:59][late], 2)


@pytest.mark.parametrize("text", ["stacks", "stacks(stacks=8, elements=16, pops=0.3, operations=30)"])
def test_the_newest_element_that_was_not_popped_scores_the_plateau(text: str) -> None:
    task, batch = sample_rows(text, 2000)
    popped_at = torch.full((2000, task.operations), task.operations)  # by the push
    pops, now = batch.tokens[:, ::3] == 1, torch.arange(task.operations)
    rows, times = pops.nonzero().unbind(1)
    popped_at[rows, times - batch.facets["distance"][rows, 3 * times + 1] // 3] = times
    held = (popped_at[rows] >= times[:, None]) & ~pops[rows] & (now < times[:, None])
    newest = torch.where(held, now, -1).amax(1)
    elements = batch.tokens[:, 2::3]
    found = (elements[rows, newest] == elements[rows, times]).double().mean().item()
    assert found == pytest.approx(task.plateau, abs=0.02)


def test_at_the_defaults_four_elements_are_held() -> None:
    _, batch = sample_rows("stacks", 1000)
    assert at_questions(batch, batch.facets["load"]).double().mean().item() == pytest.approx(3.8, abs=0.3)


def test_a_row_without_a_pop_ends_with_one() -> None:
    _, batch = sample_rows("stacks(operations=3, pops=0.000001)", 100)
    assert batch.tokens[:, ::3].tolist() == [[0, 0, 1]] * 100


def test_a_read_asks_for_the_bit_written_last() -> None:
    task, batch = sample_rows("flip_flop(pairs=40, ignore=0.5)", 500)
    for tokens, targets, facets in rows_of(batch):
        writes, wanted = [], [SILENT] * 80
        for t in range(0, 80, 2):
            if tokens[t] == 2:
                writes.append(t)
            elif tokens[t] == 3:
                wanted[t] = tokens[t + 1]
                assert tokens[t + 1] == tokens[writes[-1] + 1]
                assert {name: x[t] for name, x in facets.items()} == {"distance": t - writes[-1], "writes": len(writes)}
            assert tokens[t + 1] < 2 <= tokens[t] <= 4
        assert targets == wanted
        assert (tokens[0], tokens[-2]) == (2, 3)


def test_flip_flops_ignore_as_often_as_said_and_write_and_read_alike() -> None:
    for text, ignored in {"flip_flop.train": 0.8, "flip_flop.sparse": 0.98, "flip_flop.dense": 0.1}.items():
        task, batch = sample_rows(text, 300)
        acts, bits = batch.tokens[:, 2:-2:2], batch.tokens[:, 3:-2:2]
        assert task.length == 512
        wanted = torch.tensor([(1 - ignored) / 2, (1 - ignored) / 2, ignored])
        torch.testing.assert_close(torch.bincount(acts.flatten() - 2) / acts.numel(), wanted, atol=0.01, rtol=0)
        assert is_uniform(bits[acts != 3], 2)


@pytest.mark.parametrize("options", ["", "back=1, symbols=3", "back=3, lures=0.7, length=60", "matches=0.0, lures=1.0"])
def test_so_many_symbols_match_and_no_others(options: str) -> None:
    task, batch = sample_rows(f"n_back({options})")
    back, symbols = task.back, task.symbols
    for tokens, targets, facets in rows_of(batch):
        wanted = [tokens[t] == tokens[t - back] for t in range(back, task.length)]
        assert targets == [SILENT] * back + [symbols + match for match in wanted]
        assert sum(wanted) == task.hits
        for t in range(back, task.length):
            near = back > 1 and tokens[t] == tokens[t - back + 1]
            far = t > back and tokens[t] == tokens[t - back - 1]
            match = tokens[t] == tokens[t - back]
            assert (facets["match"][t], facets["lure"][t]) == (match, 0 if match else 1 if near else 2 * far)


def test_three_in_ten_positions_of_n_back_match_anywhere_and_symbols_are_uniform() -> None:
    task, batch = sample_rows("n_back", 4000)
    match = batch.targets[:, 2:] == 9
    assert (match.sum(1) == 8).all()  # round(0.3 * 28)
    assert is_uniform(match.nonzero()[:, 1], 28)
    assert is_uniform(batch.tokens[:, 11], 8)
    steps = (batch.tokens[:, 2:] - batch.tokens[:, :-2])[~match] % 8
    assert is_uniform(steps - 1, 7)


def test_lures_come_as_often_as_said_from_either_side() -> None:
    task, batch = sample_rows("n_back(symbols=1000, lures=0.4, length=40, back=4)", 2000)
    lure = batch.facets["lure"][:, 20:][batch.facets["match"][:, 20:] == 0]
    share = torch.bincount(lure) / lure.numel()
    assert share[1].item() == pytest.approx(share[2].item(), abs=0.02)
    assert 0.3 < 1 - share[0].item() <= 0.4  # less where the lure would match


def test_rows_of_few_lured_symbols_are_few_and_never_meet() -> None:
    task, _ = sample_rows("n_back(symbols=2, lures=1.0)", 1)
    assert task.space == pytest.approx(math.comb(28, 8) * 2**2)  # what does not match has one way to differ
    task, _ = sample_rows("n_back(symbols=2, lures=1.0, length=14)", 1)
    train, test = (set(map(tuple, task.draw(2000, split, 0).tokens.tolist())) for split in ("train", "test"))
    assert not train & test
    assert all(sample_rows(f"n_back(lures={lures})", 1)[0].space > LARGE_SPACE for lures in (0.0, 0.25, 0.5))


def test_presets_have_the_sizes_of_the_papers() -> None:
    lengths = {
        text: sample_rows(text, 2)[0].length
        for text in (
            "copy.s4",
            "copy.ntm",
            "copy.ntm_repeat",
            "palindrome.kimi",
            "palindrome.kimi_long",
            "stacks.kimi",
            "stacks.kimi_long",
            "repeat_after_me.train",
            "repeat_after_me.test",
            "n_back",
        )
    }
    assert list(lengths.values()) == [1020, 41, 112, 256, 2048, 255, 2046, 602, 2002, 30]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("copy(vocab=3)", "need 4"),
        ("copy(vocab=6, repeats=3)", "need 7"),
        ("copy(least=11)", "try 10"),
        ("repeat_after_me(least=30)", "copy needs 1 <= least <= most"),
        ("repeat_after_me(form='prefix', least=3)", "prefix needs 4 <= least"),
        ("repeat_after_me(form='suffix', answer=4)", "suffix needs 7 <= least"),
        ("repeat_after_me(form='duplicate')", "duplicate needs 6 <= least"),
        ("repeat_after_me(letters=1)", "2 or more"),
        ("repeat_after_me(form='prefix', letters=2)", "3 make 20 to"),
        ("palindrome(vocab=2)", "need 3"),
        ("palindrome(length=9)", "try 256"),
        ("stacks(operations=1)", "takes 2"),
        ("stacks(elements=1)", "try 2"),
        ("flip_flop(pairs=1)", "takes 2 pairs"),
        ("n_back(symbols=1)", "needs 2"),
        ("n_back(back=30)", "30 back needs a length of 31"),
    ],
)
def test_impossible_options_say_what_is_possible(text: str, message: str) -> None:
    (found,) = parse("tasks", text)
    with pytest.raises(ValueError, match=message):
        found.build()
