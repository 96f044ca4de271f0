"""The six tasks of MAD: rows read in plain Python, the laws of their draws, and the settings of its sweeps."""

import math

import pytest
import torch
from task_helpers import is_uniform, rows_of, sample_rows

from bestiary.spec import locate, parse, spec
from bestiary.tasks._count import mean_inverse_distinct
from bestiary.tasks._mad import PairRecall
from bestiary.tasks._task import SILENT, stream

PAIRS = [
    "in_context_recall",
    "in_context_recall(vocab=9, length=40, multi_query=False)",
    "noisy_recall(vocab=14, noise_vocab=4, length=40, noise=0.5)",
    "noisy_recall(multi_query=False, length=24)",
]


@pytest.mark.parametrize("text", PAIRS)
def test_pairs_keep_their_map_and_just_the_returning_keys_are_asked(text: str) -> None:
    task, batch = sample_rows(text)
    ordinary = task.vocab - task.noise_vocab - (not task.multi_query)
    for tokens, targets, facets in rows_of(batch):
        marks = [t for t, token in enumerate(tokens) if token == task.vocab - 1] if not task.multi_query else []
        assert marks == ([] if task.multi_query else [len(tokens) - 2])
        value_of, seen, wanted = {}, {}, [SILENT] * len(tokens)
        for t in [*range(0, len(tokens) - 2, 2), len(tokens) - 1]:
            token, last = tokens[t], t == len(tokens) - 1
            if token >= ordinary:
                assert tokens[t + 1] >= ordinary
                continue
            assert token < ordinary // 2
            if token in seen and (last or task.multi_query):
                wanted[t] = value_of[token]
                found = {"distance": t - seen[token][-1], "shown": len(seen[token]), "load": len(seen)}
                assert {name: x[t] for name, x in facets.items()} == found
            seen.setdefault(token, []).append(t)
            if not last:
                assert ordinary // 2 <= tokens[t + 1] < ordinary
                assert value_of.setdefault(token, tokens[t + 1]) == tokens[t + 1]
        assert targets == wanted
        assert targets[-1] != SILENT


def test_mad_counts_the_value_that_is_not_read() -> None:
    assert (
        sample_rows("in_context_recall")[0].length,
        sample_rows("in_context_recall(multi_query=False)")[0].length,
    ) == (
        127,
        128,
    )


def test_the_probe_is_any_key_shown_however_often() -> None:
    task, batch = sample_rows("in_context_recall(vocab=4, length=16)", 8000)
    keys = batch.tokens[:, ::2]
    times = (keys[:, :-1] == 0).sum(1)
    skewed = (times == 1) | (times == 2)  # of seven
    assert (keys[skewed, -1] == 0).double().mean().item() == pytest.approx(0.5, abs=0.04)


def test_keys_values_and_noise_are_uniform() -> None:
    task, batch = sample_rows("noisy_recall", 4000)
    first = batch.tokens[:, :2]
    pairs, noise = first[first[:, 0] < 16], first[first[:, 0] >= 16]
    assert is_uniform(pairs[:, 0], 8)
    assert is_uniform(pairs[:, 1] - 8, 8)
    assert is_uniform(noise - 16, 16)


def test_noise_takes_its_share_of_all_slots_but_one() -> None:
    task, batch = sample_rows("noisy_recall(noise=0.6)", 2000)
    share = (batch.tokens[:, 0:126:2] >= 16).double().mean().item()
    assert share == pytest.approx(0.6 * 62 / 63, abs=5 * (0.24 / 126000) ** 0.5)


def test_under_any_noise_one_slot_holds_a_pair_and_each_is_as_likely() -> None:
    task, batch = sample_rows("noisy_recall(noise=0.999999, length=12)", 4000)
    held = batch.tokens[:, 0:10:2] < 16
    assert held.any(1).all()
    assert is_uniform(held.byte().argmax(1), 5)


@pytest.mark.parametrize("text", ["in_context_recall", "noisy_recall", "fuzzy_recall"])
def test_training_asks_for_the_next_token_everywhere(text: str) -> None:
    (task, train), (_, test) = (
        (made, made.sample(50, stream("same")))
        for made in (sample_rows(f"{text}(scored={s!r})")[0] for s in ("all", "answer"))
    )
    assert torch.equal(train.tokens, test.tokens)
    assert torch.equal(train.targets[:, :-1], train.tokens[:, 1:])
    assert torch.equal(train.targets[:, -1], test.targets[:, -1])
    for made, batch in ((task, train), sample_rows(f"{text}.train", 50)):
        answers = made.solve(batch.tokens)
        assert torch.equal(batch.targets[:, :-1], batch.tokens[:, 1:])
        assert ((answers == batch.targets) | (answers == SILENT)).all()


@pytest.mark.parametrize("text", [*PAIRS, "fuzzy_recall"])
def test_no_answer_that_is_tested_is_open(text: str) -> None:
    task, batch = sample_rows(text)
    asked = batch.targets != SILENT
    assert torch.equal(task.solve(batch.tokens)[asked], batch.targets[asked])


def test_one_map_of_different_values_holds_for_all_rows() -> None:
    task, batch = sample_rows("memorisation(vocab=33)", 3000)
    keys, values = batch.tokens[:, ::2], batch.targets[:, 1::2]
    assert (batch.tokens[:, 1::2] == 32).all()
    assert (batch.targets[:, ::2] == SILENT).all()
    pairs = set(zip(keys.flatten().tolist(), values.flatten().tolist(), strict=True))
    assert len(pairs) == len(dict(pairs)) == len({value for _, value in pairs}) == 16
    assert all(key < 16 <= value < 32 for key, value in pairs)
    assert is_uniform(keys, 16)
    assert dict(pairs) == dict(enumerate(sample_rows("memorisation(vocab=33, length=8)")[0].value_of))
    assert dict(pairs) != dict(enumerate(sample_rows("memorisation(vocab=33, seed=1)")[0].value_of))


def test_memorisation_counts_how_often_a_key_was_asked() -> None:
    for tokens, _, facets in rows_of(sample_rows("memorisation(vocab=9)", 20)[1]):
        for t in range(1, 32, 2):
            assert (facets["key"][t], facets["shown"][t]) == (tokens[t - 1], tokens[: t - 1 : 2].count(tokens[t - 1]))


@pytest.mark.parametrize("options", ["length=30, copied=5", "length=30, copied=5, gaps='even', mark='each'"])
def test_what_stands_among_blanks_is_asked_in_order(options: str) -> None:
    task, batch = sample_rows(f"selective_copying({options})")
    once = "each" not in options
    for tokens, targets, facets in rows_of(batch):
        text, blank, mark = 24 if once else 25, 14, 15
        read = [(t, token) for t, token in enumerate(tokens[:text]) if token != blank]
        assert tokens[text:] == ([mark] + [blank] * 5 if once else [mark] * 5)
        assert targets == [SILENT] * 25 + [token for _, token in read]
        assert all(token < blank for _, token in read)
        assert facets["distance"][25:] == [25 + i - t for i, (t, _) in enumerate(read)]
        assert facets["place"][25:] == [0, 1, 2, 3, 4]


def test_mad_puts_each_blank_before_a_token_and_even_gaps_choose_any_places() -> None:
    _, mad = sample_rows("selective_copying(length=60, copied=4)", 4000)
    where = (mad.tokens[:, :55] != 14).nonzero()[:, 1].view(4000, 4)
    gaps = torch.diff(where, dim=1, prepend=torch.full((4000, 1), -1)) - 1
    assert (where[:, -1] == 54).all()
    torch.testing.assert_close(gaps.double().mean(0), torch.full((4,), 51 / 4).double(), atol=0.25, rtol=0)
    torch.testing.assert_close(gaps.double().var(0), torch.full((4,), 51 * 3 / 16).double(), atol=0.9, rtol=0)
    _, even = sample_rows("selective_copying(length=60, copied=4, gaps='even')", 4000)
    assert is_uniform((even.tokens[:, :55] != 14).nonzero()[:, 1], 55)


def test_the_preset_of_mamba_reads_4096_and_answers_16() -> None:
    task, batch = sample_rows("selective_copying.mamba", 3)
    assert ((batch.tokens[:, :4096] != 14).sum(1) == 16).all()
    assert (batch.tokens[:, 4096:] == 15).all()
    assert batch.tokens.shape == (3, 4112)
    assert task.vocab == 16


def test_compression_asks_for_everything_through_one_position() -> None:
    task, batch = sample_rows("compression", 4000)
    assert type(task).bottleneck
    assert torch.equal(batch.targets, batch.tokens)
    assert (batch.tokens[:, -1] == 15).all()
    assert is_uniform(batch.tokens[:, :-1], 15)
    assert batch.facets["distance"][7].tolist() == list(range(31, -1, -1))


@pytest.mark.parametrize("text", PAIRS)
def test_knowing_only_the_values_shown_scores_the_stated_plateau(text: str) -> None:
    task, batch = sample_rows(text, 2000)
    hits, asked = 0.0, 0
    for tokens, targets, _ in rows_of(batch):
        shown = {token for token in tokens if task.keys <= token < task.ordinary}
        questions = sum(target != SILENT for target in targets)
        hits, asked = hits + questions / len(shown), asked + questions
    assert isinstance(task, PairRecall)
    assert hits / asked == pytest.approx(task.plateau, abs=0.035)


@pytest.mark.parametrize(("draws", "among"), [(1, 7), (16, 14), (128, 63), (30, 1000), (500, 8)])
def test_the_mean_of_one_over_the_different_is_about_right(draws: int, among: int) -> None:
    ordered = torch.randint(among, (4000, draws), generator=stream("guess")).sort(1).values
    different = 1 + (ordered.diff(dim=1) > 0).sum(1)
    assert mean_inverse_distinct(draws, among) == pytest.approx((1 / different).mean().item(), rel=0.01)


def test_the_axes_make_the_66_settings_of_mad() -> None:
    def settings(name: str, sizes: int) -> int:
        task = locate("tasks", name)
        defaults = dict(spec("tasks", name).options)
        assert all(defaults[axis] == values[0] for axis, values in task.axes.items())
        return 1 + sizes + sum(len(values) - 1 for values in task.axes.values())

    names = "in_context_recall", "noisy_recall", "fuzzy_recall", "selective_copying", "compression"
    counts = [settings(name, sizes=4) for name in names] + [settings("memorisation", sizes=0)]
    assert counts == [11, 14, 11, 13, 11, 6]
    assert sum(counts) == 66
    assert math.prod(locate("tasks", "selective_copying").axes["copied"]) == 16 * 32 * 64 * 96


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("in_context_recall(vocab=1)", "need a vocabulary of 2"),
        ("in_context_recall(vocab=2, multi_query=False)", "need a vocabulary of 3"),
        ("in_context_recall(length=33)", "even length from 4; try 128"),
        ("noisy_recall(vocab=17)", "need a vocabulary of 18"),
        ("noisy_recall(length=2)", "even length from 4"),
        ("fuzzy_recall(vocab=6)", "words of 3 and 3 letters need 7"),
        ("fuzzy_recall(vocab=7, multi_query=False)", "need 8"),
        ("fuzzy_recall(length=17)", "pairs of 6 tokens need a length of 18"),
        ("fuzzy_recall(vocab=100, key_size=12, length=128)", "49 letters make too many keys"),
        ("memorisation(length=3)", "must be even; try 4"),
        ("memorisation(vocab=4)", "need 5"),
        ("selective_copying(vocab=3)", "need 4"),
        ("selective_copying(length=32)", "copying 16 tokens needs a length of 33"),
        ("selective_copying(length=31, mark='each')", "needs a length of 32"),
        ("compression(vocab=2)", "need 3"),
        ("compression(length=1)", "need a length of 2"),
    ],
)
def test_impossible_options_say_what_is_possible(text: str, message: str) -> None:
    (found,) = parse("tasks", text)
    with pytest.raises(ValueError, match=message):
        found.build()


@pytest.mark.parametrize(
    "text",
    [
        "in_context_recall(vocab=2, length=4)",
        "in_context_recall(vocab=3, length=4, multi_query=False)",
        "noisy_recall(vocab=18, length=4)",
        "fuzzy_recall(vocab=7, length=18)",
        "fuzzy_recall(vocab=8, length=18, multi_query=False)",
        "memorisation(vocab=5, length=2)",
        "selective_copying(vocab=4, length=33)",
        "selective_copying(length=32, mark='each')",
        "compression(vocab=3, length=2)",
    ],
)
def test_the_least_that_is_said_to_work_does(text: str) -> None:
    task, batch = sample_rows(text, 50)
    asked = batch.targets != SILENT
    assert asked.any(1).all()
    assert torch.equal(task.solve(batch.tokens)[asked], batch.targets[asked])
