"""MQAR in both modes: the paper's semantics with its bias, and the clean one without."""

import pytest
import torch
from torch import Tensor

from bestiary.spec import parse
from bestiary.tasks._draw import distinct, repeats_earlier
from bestiary.tasks._task import SILENT, stream
from bestiary.tasks.mqar import MQAR

ROWS = 4000


def asked(task: MQAR, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """For each row, the pairs in the order in which they are asked, and their slots."""
    batch = task.sample(rows, stream("test"))
    where = (batch.targets != SILENT).nonzero()[:, 1].view(rows, task.pairs)
    return batch.facets["pair"].gather(1, where), (where - task.context) // 2


def rank_correlation(order: Tensor) -> float:
    places = torch.arange(order.shape[1], dtype=torch.float64).expand(order.shape)
    return float(torch.corrcoef(torch.stack([order.double().flatten(), places.flatten()]))[0, 1])


@pytest.mark.parametrize("task", [MQAR(), MQAR(pairs=16), MQAR(length=256, pairs=16), MQAR(pairs=3, passes=3)])
def test_clean_queries_come_in_uniform_order(task: MQAR) -> None:
    order, _ = asked(task)
    assert abs(rank_correlation(order)) < 0.02
    share, wanted = torch.bincount(order[:, 0], minlength=task.pairs) / ROWS, 1 / task.pairs
    assert (share - wanted).abs().max() < 4.5 * (wanted / ROWS) ** 0.5


@pytest.mark.parametrize(
    ("length", "pairs", "correlation", "first"), [(64, 4, 0.13, 0.33), (128, 8, 0.16, None), (64, 16, 0.51, 0.29)]
)
def test_paper_queries_have_the_order_bias_of_the_original(
    length: int, pairs: int, correlation: float, first: float
) -> None:
    order, _ = asked(MQAR(length=length, pairs=pairs, mode="paper"))
    assert rank_correlation(order) == pytest.approx(correlation, abs=0.03)
    if first is not None:
        assert (order[:, 0] == 0).double().mean().item() == pytest.approx(first, abs=0.03)


@pytest.mark.parametrize("mode", ["clean", "paper"])
def test_slots_follow_the_power_law(mode: str) -> None:
    task = MQAR(length=64, pairs=1, mode=mode)  # one pair: its slot has the law itself
    _, slots = asked(task, 20000)
    weight = torch.arange(1, 32, dtype=torch.float64) ** (0.01 - 1)
    share = torch.bincount(slots.flatten(), minlength=31) / 20000
    torch.testing.assert_close(share.double(), weight / weight.sum(), atol=0.012, rtol=0)


def test_the_first_slot_of_four_pairs_is_taken_as_often_as_reported() -> None:
    torch.manual_seed(0)
    task = MQAR(mode="paper")
    drawn = task.slots(20000, stream("slots"))
    assert (drawn[:, 0] == 0).double().mean().item() == pytest.approx(0.251, abs=0.01)


def test_clean_filler_never_repeats_a_key_and_is_otherwise_uniform() -> None:
    task = MQAR(vocab=40, length=32, pairs=4)
    batch = task.sample(ROWS, stream("test"))
    keys, rest = batch.tokens[:, : task.context : 2], batch.tokens[:, task.context :].clone()
    filler = rest[batch.targets[:, task.context :] == SILENT].view(ROWS, -1)
    assert not (filler.unsqueeze(2) == keys.unsqueeze(1)).any()
    share = torch.bincount(filler.flatten(), minlength=40) / filler.numel()
    never = torch.tensor([0 < token < 20 for token in range(40)])
    wanted = torch.where(never, 1 - 4 / 19, 1.0) / 36
    torch.testing.assert_close(share, wanted, atol=0.002, rtol=0)


def test_paper_filler_may_repeat_keys_of_its_context() -> None:
    task = MQAR(vocab=40, length=32, pairs=4, mode="paper")
    batch = task.sample(200, stream("test"))
    silent = batch.targets[:, task.context :] == SILENT
    keys, rest = batch.tokens[:, : task.context : 2], batch.tokens[:, task.context :]
    assert (silent.unsqueeze(2) & (rest.unsqueeze(2) == keys.unsqueeze(1))).any()


@pytest.mark.parametrize("mode", ["clean", "paper"])
def test_rows_are_laid_out_as_drawn(mode: str) -> None:
    task = MQAR(vocab=16, length=14, pairs=2, passes=2, filler="zero", mode=mode)
    batch = task.sample(50, stream("test"))
    for tokens, targets, distance in zip(*(x.tolist() for x in (*batch[:2], batch.facets["distance"])), strict=True):
        assert tokens[:4] == tokens[4:8]
        value_of = {tokens[0]: tokens[1], tokens[2]: tokens[3]}
        assert all(1 <= key < 8 <= value < 16 for key, value in value_of.items())
        places = [t for t, target in enumerate(targets) if target != SILENT]
        assert sorted(tokens[t] for t in places) == sorted(value_of)
        for t in places:
            assert t % 2 == 0
            assert targets[t] == value_of[tokens[t]]
            assert tokens[t - distance[t]] == tokens[t]
            assert tokens[t] not in tokens[t - distance[t] + 1 : t]
        assert all(tokens[t] == 0 for t in range(8, 14) if t not in places)


def test_keys_and_values_are_distinct_and_uniform() -> None:
    drawn = distinct(5000, 20, 30, stream("draw"))
    assert (drawn.sort(1).values.diff(dim=1) > 0).all()
    for column in (0, 19):
        share = torch.bincount(drawn[:, column], minlength=30) / 5000
        assert (share - 1 / 30).abs().max() < 4.5 * (1 / 30 / 5000) ** 0.5


@pytest.mark.parametrize("size", [5, 17, 40])
def test_repeats_are_found_either_way(size: int) -> None:
    drawn = torch.randint(30, (50, size))
    wanted = [[row[i] in row[:i] for i in range(size)] for row in drawn.tolist()]
    assert repeats_earlier(drawn, 30).tolist() == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 63}, "must be even; try 64"),
        ({"length": 14}, "4 pairs and their questions need a length of 16"),
        ({"length": 32, "pairs": 4, "passes": 4}, "need a length of 40"),
        ({"vocab": 8, "length": 16}, "need 17"),
        ({"vocab": 100, "length": 1000, "pairs": 60}, "need 1001"),
    ],
)
def test_impossible_options_say_what_is_possible(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MQAR(**options)


def test_the_least_that_is_said_to_work_does() -> None:
    MQAR(length=16, pairs=4, vocab=17).sample(3, stream("test"))
    MQAR(length=4, pairs=1, vocab=5).sample(3, stream("test"))


def preset(name: str) -> MQAR:
    return parse("tasks", f"mqar.{name}")[0].build()


def test_presets_have_the_sizes_of_the_papers() -> None:
    sizes = {name: (task.length, task.pairs) for name in MQAR.presets for task in [preset(name)]}
    figure2 = [(64, 4), (128, 8), (256, 16), (512, 64)]
    assert [sizes[f"zoology{length}"] for length, _ in figure2] == figure2
    assert [sizes[f"rwkv{length}"] for length, _ in figure2] == figure2
    assert sizes["rwkv2048"] == sizes["xlstm256"] == (2048, 256)
    trained = {(64, 4), (128, 8), (256, 16), (256, 32), (256, 64)}
    tested = {(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256), (2048, 512)}
    based = {size for name, size in sizes.items() if name.startswith("based")}
    assert based == trained | tested
    assert all(name == f"based{length}_{pairs}" for name, (length, pairs) in sizes.items() if name.startswith("based"))
    stages = {size for name, size in sizes.items() if name.startswith("mamba2")}
    assert stages == {(length, length // part) for length in (256, 512, 1024) for part in (32, 16, 8, 4)}


def test_presets_are_of_the_paper_and_only_figure_2_is_filled_with_zeros() -> None:
    for name in MQAR.presets:
        task = preset(name)
        batch = task.sample(2, stream("test"))
        silent = batch.tokens[:, task.context :][batch.targets[:, task.context :] == SILENT]
        assert (task.vocab, task.mode, task.power) == (8192, "paper", 0.01)
        assert (silent == 0).all() if name.startswith("zoology") else (silent != 0).double().mean() > 0.9


def test_small_spaces_are_counted() -> None:
    task = MQAR(vocab=9, length=8, pairs=2, filler="zero")
    assert task.space == pytest.approx(3 * 2 * 5 * 4 * 2)
    assert len(task.sample(4000, stream("test")).tokens.unique(dim=0)) == round(task.space)
    assert MQAR(vocab=9, length=8, pairs=2).space == pytest.approx(task.space * 7**2)
    assert MQAR().space > 2**50
