"""Recall asked in text: what copies scores 1, what guesses scores chance, and reading once is reading again."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bestiary.lm.journal import Journal
from bestiary.lm.probe import depth_figure, probe
from bestiary.lm.questions import DRAW, contents, kinds, most_entries, word_list
from bestiary.lm.reader import Reader, Score, cached_step, choose_step, make_reader, uncached_step
from bestiary.runs.intervals import mean_interval, wilson

SMALL: dict[str, Any] = {"entries": (6, 20), "words": (0, 60), "needles": 5, "depths": (0.0, 0.5, 1.0), "contexts": 6}
TINY: dict[str, Any] = SMALL | {"shots": (1,), "entries": (8,), "words": (20,), "depths": (0.5,), "contexts": 8}


def oracle(rows: Sequence[tuple[str, str]]) -> list[Score]:
    """Looks up what follows the last words of the prompt where they stood before."""
    found = []
    for prompt, answer in rows:
        question = re.split(r"\n", prompt)[-1]
        value = prompt.split(question)[1].split()[0].rstrip(".")
        found.append(Score(0.0 if answer == f" {value}" else -9.0, answer == f" {value}"))
    return found


def recording_reader(rows: list[tuple[str, str]]) -> Reader:
    """Answers at random, and keeps what was asked."""
    rng = Random(0)

    def read(asked: Sequence[tuple[str, str]]) -> list[Score]:
        rows.extend(asked)
        return [Score(rng.random(), False) for _ in asked]

    return read


def test_what_looks_up_the_answer_scores_one_everywhere() -> None:
    rows = list(probe(oracle, **SMALL))
    assert {(row.task, row.shots) for row in rows} == {
        (task, shots) for task in ("mqar", "phone_book", "needle") for shots in (0, 2)
    }
    assert all(row.exact == row.ranked == row.high == 1.0 and row.asked == 24 for row in rows)
    assert len(rows) == 2 * (2 * 2 + 2 + 1 + 3)  # one row where nothing is hidden, three depths


def test_what_guesses_scores_chance_and_a_tie_is_a_guess() -> None:
    rows = list(probe(recording_reader([]), **SMALL | {"contexts": 100}))
    assert sum(row.low <= row.chance <= row.high for row in rows) >= 0.85 * len(rows)
    assert {round(1 / row.chance) for row in rows} == {3, 4, 5, 6, 16}
    asked: list[tuple[str, str]] = []
    (row,) = probe(
        recording_reader(asked),
        tasks=("mqar",),
        entries=(9,),
        words=(0,),
        shots=(2,),
        contexts=5,
        questions=3,
        choices=4,
    )
    assert (row.chance, row.asked, len(asked)) == (1 / 4, 15, 60)
    for row in probe(lambda asked: [Score(0.0, False)] * len(asked), **SMALL):
        assert row.ranked == pytest.approx(row.chance)
        assert row.exact == 0.0
        assert (row.low, row.high) == pytest.approx(wilson(row.ranked, row.asked))


def test_the_interval_is_over_contexts_since_answers_about_one_are_right_together() -> None:
    contexts = list[str]()

    def read(asked: Sequence[tuple[str, str]]) -> list[Score]:
        """Right about every second context, wrong about the others."""
        prompts = [prompt for prompt, _ in asked]
        contexts.append(prompts[0])
        first = [prompts.index(prompt) == i for i, prompt in enumerate(prompts)]  # of the choices: the answer
        return [Score(0.0 if answer == (len(contexts) % 2 == 0) else -9.0, False) for answer in first]

    (row,) = probe(read, tasks=("mqar",), entries=(9,), words=(0,), shots=(0,), contexts=8)
    assert (len(contexts), row.asked, row.ranked) == (8, 32, 0.5)
    assert (row.low, row.high) == pytest.approx(mean_interval(4 * [0.0, 1.0]))
    assert row.high - row.low > 2 * (wilson(0.5, 32)[1] - wilson(0.5, 32)[0])


HIDDEN: dict[str, Any] = {
    "tasks": ("updates", "variables", "hops", "meaning"), "words": (0, 60), "needles": 5, "depths": (0.0, 1.0),
    "shots": (0, 1), "contexts": 10, "questions": 1,
}  # fmt: skip


def find_answer(prompt: str, *, careful: bool = True) -> str:
    """What the text says, by the meaning of each template; without care, the first thing that fits."""
    *text, question = re.split(r"\n", prompt)
    told = " ".join(text)

    def after(pattern: str) -> str:
        found = re.findall(pattern, told)
        return found[-1 if careful else 0]

    if key := re.search(r"secret code of (\w+) is$", question):
        return after(rf"code of {key[1]} is (?:changed to )?(\d+)")
    if key := re.search(r"number that (\w+) stands", question):
        middle = after(rf"Let {key[1]} be (\w+)")
        return after(rf"Let {middle} be (\w+)")
    if key := re.search(r"boss of the boss of (\w+) is", question):
        boss = after(rf"The boss of {key[1]} is (\w+)")
        return after(rf"The boss of {boss} is (\w+)") if careful else boss
    key = re.search(r"lives in (\w+) is", question)
    assert key
    return after(rf"From the window, (\w+) sees {re.escape(contents()['landmarks'][key[1]])}")


def test_what_understands_the_text_scores_one_and_what_takes_the_first_that_fits_falls_for_the_lures() -> None:
    def reader(careful: bool) -> Reader:
        def read(rows: Sequence[tuple[str, str]]) -> list[Score]:
            right = [answer == f" {find_answer(prompt, careful=careful)}" for prompt, answer in rows]
            return [Score(0.0 if hit else -9.0, hit) for hit in right]

        return read

    assert set(HIDDEN["tasks"]) | {"mqar", "phone_book", "needle"} == set(DRAW) == set(kinds())
    rows = list(probe(reader(True), **HIDDEN))
    assert all(row.exact == row.ranked == 1.0 for row in rows)
    of = {row.task: row.exact for row in probe(reader(False), **HIDDEN)}
    assert (of["updates"], of["hops"]) == (0.0, 0.0), "the former code, and the boss alone, are among the choices"
    assert (of["variables"], of["meaning"]) == (1.0, 1.0)


def test_what_guesses_scores_chance_on_hidden_facts() -> None:
    rows = list(probe(recording_reader([]), **HIDDEN | {"contexts": 200}))
    assert sum(row.low <= row.chance <= row.high for row in rows) >= 0.8 * len(rows)
    assert {(row.task, row.shots): round(1 / row.chance) for row in rows} == {
        (task, shots): 5 - shots + (task in ("updates", "hops")) for task in HIDDEN["tasks"] for shots in (0, 1)
    }


def test_answers_of_a_question_are_different_and_no_task_is_asked_for_too_much() -> None:
    for task in DRAW:
        rows: list[tuple[str, str]] = []
        entries = min(most_entries(task), 20)
        given = {"entries": (entries,), "needles": entries, "words": (100,), "depths": (0.3,), "shots": (1,)}
        list(probe(recording_reader(rows), tasks=(task,), contexts=4, questions=1, choices=50, **given))
        for prompt in {prompt for prompt, _ in rows}:
            answers = [answer for asked, answer in rows if asked == prompt]
            assert len(set(answers)) == len(answers) > entries - 2


@pytest.mark.parametrize("task", ["updates", "variables", "hops"])
def test_the_last_fact_asked_for_lies_at_its_depth_and_the_others_before_it(task: str) -> None:
    for depth in (0.0, 0.5, 1.0):
        rows: list[tuple[str, str]] = []
        given = {"needles": 4, "shots": (0,), "words": (400,), "depths": (depth,), "contexts": 8, "questions": 1}
        list(probe(recording_reader(rows), tasks=(task,), **given))
        for prompt, answer in {prompt: answer for prompt, answer in reversed(rows)}.items():
            text = prompt.split("\n\n")[0]
            facts = [re.escape(fact).replace(r"\{", "{").replace(r"\}", "}") for fact in kinds()[task].fact]
            asked = kinds()[task].question.replace("{key}", r"(\w+)") + "$"
            key = re.search(asked, prompt)
            assert key
            middle = re.search(rf"boss of {key[1]} is (\w+)|Let {key[1]} be (\w+)", text)
            parts = {"key": key[1], "value": answer.strip(), "old": r"\d+"}
            parts["middle"] = next(filter(None, middle.groups())) if middle else ""
            places = [re.search(fact.format(**parts), text) for fact in facts]
            first, last = (place.start() if place else -1 for place in places)
            assert -1 < first < last
            assert last / len(text) == pytest.approx(depth, abs=0.2)


def test_a_figure_shows_length_by_depth() -> None:
    import pandas as pd

    table = pd.DataFrame(list(probe(recording_reader([]), **HIDDEN)))
    figure = depth_figure(table)
    assert figure is not None
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown == [f"{task}, 60 words, {shots} shots" for task in HIDDEN["tasks"] for shots in (0, 1)]
    assert depth_figure(table[table["words"] == 0]) is None


def test_what_was_answered_before_a_kill_is_not_asked_again(tmp_path: Path) -> None:
    whole, asked, seen = list(probe(recording_reader([]), **TINY)), [], []
    read = recording_reader(asked)

    def interrupted(rows: Sequence[tuple[str, str]]) -> Sequence[Score]:
        if len({prompt for prompt, _ in asked}) >= 20:
            raise KeyboardInterrupt
        return read(rows)

    with Journal(tmp_path / "j.jsonl", {"of": "this"}) as journal, pytest.raises(KeyboardInterrupt):
        list(probe(interrupted, journal=journal, **TINY))
    before = len(asked)
    with Journal(tmp_path / "j.jsonl", {"of": "this"}) as journal:
        rows = list(probe(read, journal=journal, progress=lambda *counts: seen.append(counts), **TINY))
    assert repr(rows) == repr(whole)
    assert len({prompt for prompt, _ in asked}) == len({prompt for prompt, _ in asked[:before]}) + 96 - before // 7
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == ((before // 7, 96), (96, 96))


def test_where_nothing_is_hidden_there_are_no_depths() -> None:
    rows = list(probe(recording_reader([]), **HIDDEN | {"tasks": ("updates",), "shots": (0,)}))
    assert [(row.words, row.depth) for row in rows if row.words] == [(60, 0.0), (60, 1.0)]
    assert [str(row.depth) for row in rows if not row.words] == ["nan"]


def test_other_questions_have_answers_of_their_own(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []
    with Journal(tmp_path / "j.jsonl", {"of": "this"}) as journal:
        counts = []
        for seed in (1, 2, 1):
            list(probe(recording_reader(asked), journal=journal, seed=seed, **TINY))
            counts.append(len(asked))
    assert counts == [counts[0], 2 * counts[0], 2 * counts[0]]


def test_a_model_of_nan_is_refused() -> None:
    import torch

    from bestiary.corpus.tokenizers import open_tokenizer
    from bestiary.model import Model
    from bestiary.spec import parse

    model = Model(257, dim=8, depth=1, pattern=parse("mixers", "attention")).eval()
    with torch.no_grad():
        model.embed.weight[100] = torch.nan
    with pytest.raises(ValueError, match="logits are not numbers"):
        next(probe(model, open_tokenizer("bytes"), **TINY))


def test_the_same_seed_asks_the_same_and_another_asks_otherwise() -> None:
    one, same, other = [], [], []
    for seed, rows in ((0, one), (0, same), (1, other)):
        list(probe(recording_reader(rows), seed=seed, **SMALL))
    assert one == same
    assert not {prompt for prompt, _ in one} & {prompt for prompt, _ in other}


def test_solved_questions_stand_before_the_asked_one_and_their_values_are_no_choices() -> None:
    rows: list[tuple[str, str]] = []
    list(probe(recording_reader(rows), tasks=("phone_book",), shots=(2,), entries=(5,), contexts=1, questions=1))
    book, asked = rows[0][0].split("From the phone book above, the numbers of some people:\n\n")
    *solved, question = asked.split("\n")
    assert len(solved) == 2
    assert question not in solved
    assert all(line in book for line in solved)
    assert not any(line.endswith(answer) for line in solved for _, answer in rows)
    assert sorted(answer in book for _, answer in rows) == [True] * 3


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_the_needle_asked_for_lies_at_its_depth(depth: float) -> None:
    rows: list[tuple[str, str]] = []
    list(
        probe(
            recording_reader(rows), tasks=("needle",), words=(400,), needles=4, shots=(0,), depths=(depth,), contexts=5
        )
    )
    for prompt, _ in rows:
        context, question = prompt.split("\n\n")
        before, after = (part.split() for part in context.split(question))
        assert len(before) / (len(before) + len(after)) == pytest.approx(depth, abs=0.12)
        assert all(sentence[:1].isupper() for sentence in re.split(r"(?<=[.]) ", context))


def test_made_up_text_holds_nothing_that_is_asked_for_and_other_text_is_taken_as_it_is(tmp_path: Path) -> None:
    told = {word.lower() for part in contents()["filler"].values() for word in re.findall(r"\w+", part)}
    lists = [word_list(name) for name in ("nouns", "names", "surnames", "cities")]
    asked = [word.lower() for words in lists for word in words]
    assert not told & set(asked)
    assert all(len({*words}) == len(words) for words in lists)
    (tmp_path / "text.txt").write_text(" ".join(f"w{i}" for i in range(50)))
    rows: list[tuple[str, str]] = []
    list(
        probe(
            recording_reader(rows), tasks=("mqar",), entries=(5,), words=(30,), shots=(0,), text=tmp_path / "text.txt"
        )
    )
    assert all(len(re.findall(r"\bw\d+\b", prompt)) == 30 for prompt, _ in rows)
    with pytest.raises(ValueError, match="has 50 words, 60 are asked for"):
        probe(oracle, words=(60,), text=tmp_path / "text.txt")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": ("mqra",)}, "no probe 'mqra'.*did you mean 'mqar'"),
        ({"entries": (5,), "shots": (4,)}, "two entries more than shots"),
        ({"entries": (10**4,)}, "at most"),
        ({"choices": 1}, "two or more"),
        ({"depths": (1.5,)}, "nor a depth above 1"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe(oracle, **given)


def slow_scores(model: Any, tokenizer: Any, rows: Sequence[tuple[str, str]]) -> list[float]:
    """By definition, a row at a time."""
    import torch

    found = []
    for prompt, answer in rows:
        start, whole = len(tokenizer.encode(prompt)), torch.tensor([tokenizer.encode(prompt + answer)])
        with torch.no_grad():
            chances = model(whole).logits.log_softmax(-1)[0, start - 1 : -1]
        found.append(chances.gather(1, whole[0, start:, None]).sum().item())
    return found


@pytest.mark.hf
@pytest.mark.slow
def test_models_of_transformers_are_read_as_by_definition_and_at_random_score_chance() -> None:
    pytest.importorskip("transformers")
    import torch
    from small_models import SMALL_MODELS, small_tokenizer

    tokenizer = small_tokenizer()
    for made in SMALL_MODELS:
        model = made(len(tokenizer)).double().eval()
        rows: list[tuple[str, str]] = []
        list(probe(recording_reader(rows), **TINY | {"contexts": 1, "questions": 2}))
        rows = rows[:14]  # those of one context
        assert choose_step(model).__qualname__.startswith("cached_step"), "nothing is read twice"
        scores = make_reader(model, tokenizer, rows=3)(rows)
        assert [score.log_likelihood for score in scores] == pytest.approx(slow_scores(model, tokenizer, rows))
    prompt = tokenizer.encode(rows[0][0])
    model = SMALL_MODELS[0](len(tokenizer)).eval()
    written = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=3, pad_token_id=0)[0]
    answer = tokenizer.decode(written[len(prompt) :])
    assert tokenizer.encode(rows[0][0] + answer) == written.tolist()
    score, other = make_reader(model, tokenizer)([(rows[0][0], answer), (rows[0][0], answer + "x")])
    assert score.greedy
    assert score.log_likelihood > other.log_likelihood
    found = list(probe(model, tokenizer, **TINY))
    assert all(row.low <= row.chance <= row.high and row.exact < 0.1 for row in found)
    with pytest.raises(ValueError, match=r"the model reads 256: ask for fewer words"):
        list(probe(model, tokenizer, words=(800,), tasks=("mqar",), contexts=1))


@pytest.mark.hf
@pytest.mark.slow
def test_a_cache_that_forgets_is_not_used() -> None:
    pytest.importorskip("transformers")
    import torch
    from small_models import SMALL_MODELS

    class Forgets:
        """Reads only the last token."""

        def __init__(self, model: Any) -> None:
            self.model, self.device = model, model.device
            self.get_input_embeddings = model.get_input_embeddings

        def __call__(self, *, past_key_values: Any = None, **given: Any) -> Any:
            return self.model(**given)

    model = SMALL_MODELS[0](40).eval()
    with torch.no_grad():
        assert choose_step(model).__qualname__.startswith(cached_step.__name__)
        model.transformer.wpe.weight.mul_(30)
        assert choose_step(Forgets(model)).__qualname__.startswith(uncached_step.__name__)


def test_a_model_of_ours_is_read_as_by_definition() -> None:
    import torch

    from bestiary.corpus.tokenizers import open_tokenizer
    from bestiary.model import Model
    from bestiary.spec import parse

    model = Model(257, dim=16, depth=2, pattern=parse("mixers", "attention, gated_delta")).double().eval()
    rows = [("a: bc, de: fgh, a:", " bc"), ("a: bc, de: fgh, a:", " fgh"), ("a: bc, de: fgh, de:", " x")]
    scores = make_reader(model, open_tokenizer("bytes"), rows=2)(rows)
    for (prompt, answer), score in zip(rows, scores, strict=True):
        tokens = torch.tensor(list((prompt + answer).encode()))
        chances = model.parallel(tokens.unsqueeze(0)).log_softmax(-1)[0, len(prompt) - 1 : -1]
        wanted = chances.gather(1, tokens[len(prompt) :, None]).sum().item()
        assert score.log_likelihood == pytest.approx(wanted)
        assert math.isfinite(wanted)
