"""Training: a pure stream of measurements, and the data it is drawn from."""

import math
import pickle
from collections import Counter
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bestiary.cli._estimate import run_seconds
from bestiary.spec import names
from bestiary.tasks._task import SILENT, Batch
from bestiary.training import state, together
from bestiary.training import train as training
from bestiary.training.recipe import Recipe, clean
from bestiary.training.train import (
    Diverged,
    Measurement,
    Optimizers,
    accuracy,
    batches,
    decay_groups,
    final_scores,
    find_device,
    learning_rate,
    make_optimizer,
    new_state,
    score,
    step_seconds,
    train,
    update,
)

SMALL: dict[str, Any] = {
    "train": "mqar(vocab=20, length=12, pairs=2)",
    "dim": 8,
    "batch": 16,
    "steps": 6,
    "every": 2,
    "selection_rows": 40,
    "test_rows": 60,
}


def recipe(**changes: Any) -> Recipe:
    return clean("attention", **(SMALL | changes))


def test_the_same_recipe_measures_the_same() -> None:
    assert list(train(recipe())) == list(train(recipe()))
    assert list(train(recipe())) != list(train(recipe(seed=1)))


@pytest.mark.parametrize("pattern", ["attention", "kda", "mamba"])
def test_products_in_bfloat16_train_nearly_alike(pattern: str) -> None:
    half_precision_trains_nearly_alike(pattern, apart=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", names("mixers"))
def test_every_mixer_trains_nearly_alike_in_bfloat16(pattern: str) -> None:
    half_precision_trains_nearly_alike(pattern, apart=0.6)  # some magnify rounding: two_mamba by most, to 0.43


def half_precision_trains_nearly_alike(pattern: str, *, apart: float) -> None:
    """The losses are nearly equal, and so are the changes of the weights, which a run that learns nothing lacks."""
    made = clean(pattern, **(SMALL | {"dim": 32, "steps": 2, "every": 1, "warmup": 0}))
    half = made.model_copy(update={"precision": "bfloat16"})
    assert half.key != made.key
    begun, exact, model = made.build(), made.build(), half.build()
    wanted, found = [m.loss for m in train(made, exact)], [m.loss for m in train(half, model)]
    assert wanted[0] != found[0]
    assert found == pytest.approx(wanted, rel=0.02)
    due, change = (flat_weights(trained) - flat_weights(begun) for trained in (exact, model))
    assert (change - due).norm() <= apart * due.norm()
    assert {weight.dtype for weight in model.parameters()} <= {torch.float32, torch.complex64}


def flat_weights(model: torch.nn.Module) -> torch.Tensor:
    """All weights in one row of real numbers."""
    parts = [torch.view_as_real(w) if w.is_complex() else w for w in model.parameters()]
    return torch.cat([part.detach().flatten() for part in parts])


def test_the_rate_falls_by_the_schedule_from_its_height_to_the_floor() -> None:
    made = recipe(steps=100, warmup=10, rate=1.0)
    seen = {}
    for schedule in ("cosine", "linear", "constant"):
        for floor in (0.0, 0.2):
            paced = made.model_copy(update={"schedule": schedule, "floor": floor})
            seen[schedule, floor] = [learning_rate(paced, step) for step in (1, 10, 51, 101)]
    assert seen["constant", 0.0] == [0.1, 1.0, 1.0, 1.0]
    assert seen["linear", 0.0] == pytest.approx([0.1, 0.91, 0.5, 0.0])
    assert seen["cosine", 0.0] == pytest.approx([0.1, 0.5 * (1 + math.cos(0.09 * math.pi)), 0.5, 0.0])
    assert seen["linear", 0.2] == pytest.approx([0.1, 0.2 + 0.8 * 0.91, 0.6, 0.2])
    assert seen["cosine", 0.2][2:] == pytest.approx([0.6, 0.2])


def test_a_curriculum_gives_each_task_its_part_of_the_steps_in_order() -> None:
    tasks = ", ".join(f"mqar(vocab=40, length={length}, pairs=2)" for length in (12, 16, 20))
    lengths = [batch.tokens.shape[1] for batch in batches(recipe(train=tasks, curriculum=True, steps=7))]
    assert lengths == [12, 12, 12, 16, 16, 20, 20]
    with pytest.raises(ValueError, match="a curriculum is of fresh data"):
        recipe(curriculum=True, distinct=(2,))


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_another_optimizer_takes_the_hidden_maps_and_adamw_the_rest(name: str) -> None:
    made = clean("mamba", **SMALL, optimizer=name, betas=(0.8, 0.9), weight_decay=0.3)
    model = made.build()
    optimizer = make_optimizer(made, model)
    assert isinstance(optimizer, Optimizers)
    other, adam = optimizer.parts
    assert type(other).__name__.lower() == name
    names = {id(weight): name for name, weight in model.named_parameters()}
    taken, rest = ({names[id(w)] for group in part.param_groups for w in group["params"]} for part in (other, adam))
    assert {name.rpartition(".mixer.")[2] for name in taken} == {
        f"{part}.weight" for part in ("into", "gate", "low", "dt", "out")
    }
    assert taken.isdisjoint(rest)
    assert taken | rest == set(names.values())
    assert "embed.weight" in rest
    assert {group["weight_decay"] for group in other.param_groups} == {0.3}
    assert {group["betas"] for group in adam.param_groups} == {(0.8, 0.9)}
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    update(made, model, optimizer, next(batches(made)), 25, "cpu")
    moved = {name for name, weight in model.named_parameters() if not torch.equal(before[name], weight)}
    assert moved == set(names.values())
    sizes = {name: (model.get_parameter(name) - before[name]).square().mean().sqrt().item() for name in taken}
    rate = learning_rate(made, 25)
    assert all(0.05 * rate < size < rate for size in sizes.values())


def test_the_global_stream_is_left_alone() -> None:
    before = torch.get_rng_state()
    list(train(recipe(dropout=0.5)))
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_is_drawn_from_a_named_stream() -> None:
    torch.manual_seed(1)
    one = list(train(recipe(dropout=0.5)))
    torch.manual_seed(2)
    assert one == list(train(recipe(dropout=0.5)))
    assert one != list(train(recipe(dropout=0.4)))


def test_measurements_come_in_order_and_add_up() -> None:
    seen = list(train(recipe()))
    assert [m.step for m in seen if m.split == "selection"] == [2, 4, 6]
    assert [(m.step, m.asked) for m in seen if m.split == "train"] == [(2, 64), (4, 64), (6, 64)]
    assert all(m.asked == 80 for m in seen if m.split == "selection")
    test = [m for m in seen if m.split == "test"]
    (whole,) = (m for m in test if not m.facet)
    assert whole.asked == 120
    for facet in ("distance", "pair", "load"):
        parts = [m for m in test if m.facet == facet]
        assert sum(m.asked for m in parts) == whole.asked
        assert sum(m.right for m in parts) == whole.right
        assert sum(m.loss for m in parts) == pytest.approx(whole.loss)
    assert {m.value for m in test if m.facet == "pair"} == {0, 1}


def test_a_step_is_that_of_a_plain_loop() -> None:
    made = recipe(clip=0.5, steps=4)
    ours, theirs = made.build(), made.build()
    optimizer = torch.optim.AdamW(decay_groups(made, ours), lr=1.0, fused=True)
    plain = torch.optim.AdamW(decay_groups(made, theirs), lr=1.0)
    for step, batch in enumerate(batches(made), start=1):
        update(made, ours, optimizer, batch, step, "cpu")
        logits, _ = theirs(batch.tokens)
        plain.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=SILENT).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        for group in plain.param_groups:
            group["lr"] = learning_rate(made, step)
        plain.step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_weight_decay_leaves_vectors_and_marked_weights_alone() -> None:
    made = clean("mamba", **SMALL)
    model = made.build()
    names = {id(weight): name for name, weight in model.named_parameters()}
    decayed, rest = ({names[id(w)] for w in group["params"]} for group in decay_groups(made, model))
    assert {"embed.weight", "layers.0.mixer.into.weight", "layers.0.mixer.conv.filter"} <= decayed
    assert {"norm.weight", "layers.0.mixer.rate", "layers.0.mixer.skip", "layers.0.mixer.dt.bias"} <= rest
    everything, nothing = decay_groups(clean("mamba", **SMALL, decay="all"), model)
    assert len(everything["params"]) == len(names)
    assert nothing["params"] == []


def decayed_names(model: torch.nn.Module) -> set[str]:
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {names[id(weight)] for weight in decay_groups(clean("mamba", **SMALL), model)[0]["params"]}


@pytest.mark.parametrize(("mixer", "maps"), [("rwkv6", "r k v gate out"), ("rwkv7", "r k v out")])
def test_weight_decay_spares_the_low_rank_maps_of_rwkv(mixer: str, maps: str) -> None:
    """As in the authors' code, which decays parameters named `.weight` alone, and its low-rank maps are not."""
    found = {name for name in decayed_names(clean(mixer, **SMALL).build()) if name.startswith("layers.0.mixer.")}
    assert found == {f"layers.0.mixer.{name}.weight" for name in maps.split()}


@pytest.mark.parametrize("mixer", ["mamba", "s4d", "titans", "rwkv6", "parallel('mamba3, h3')"])
def test_weight_decay_spares_the_same_weights_of_any_copy(mixer: str) -> None:
    model = clean(mixer, **SMALL).build()
    wanted = decayed_names(model)
    loaded = clean(mixer, **SMALL).build()
    loaded.load_state_dict(model.state_dict(), assign=True)
    for copy in (deepcopy(model), loaded, pickle.loads(pickle.dumps(model)), deepcopy(model).to(torch.float64)):
        assert decayed_names(copy) == wanted


def test_training_stops_early_on_the_selection_stream() -> None:
    made = recipe(stop=0.0)
    assert {m.step for m in train(made)} == {2}
    assert {m.step for m in train(recipe(stop=None))} == {2, 4, 6}


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    seen = []
    with pytest.raises(Diverged, match="the loss is nan at step"):
        for measurement in train(recipe(rate=1e30, clip=None)):
            seen.append(measurement)
    assert seen[-1].split == "train"
    assert not math.isfinite(seen[-1].loss)


def test_a_model_that_its_last_step_breaks_has_diverged() -> None:
    seen = []
    with pytest.raises(Diverged, match="the loss is nan on the test stream, after step 1"):
        for measurement in train(recipe(rate=1e20, clip=None, steps=1)):
            seen.append(measurement)
    assert [(one.split, math.isfinite(one.loss)) for one in seen] == [("train", True), ("selection", False)]


def test_a_model_that_overflows_on_one_of_two_segments_has_not_diverged() -> None:
    seen = [Measurement(0, "test", segment, "", 0, loss, 1, 2) for segment, loss in enumerate((1.0, math.nan))]
    assert [(one.step, one.segment) for one in final_scores(seen, 9)] == [(9, 0), (9, 1)]


def test_fresh_batches_take_segments_in_turn_and_depend_on_the_seed() -> None:
    made = recipe(train="mqar(vocab=20, length=12, pairs=2), mqar(vocab=20, length=14, pairs=2)")
    drawn = list(batches(made))
    assert [b.tokens.shape[1] for b in drawn] == [12, 14, 12, 14, 12, 14]
    assert not torch.equal(drawn[0].tokens, drawn[2].tokens)
    other = next(batches(made.model_copy(update={"seed": 1})))
    assert not torch.equal(drawn[0].tokens, other.tokens)


def rows(drawn: list[Batch]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(row) for batch in drawn for row in torch.cat(list(batch[:2]), dim=1).tolist())


@pytest.mark.parametrize("shuffle", ["none", "batches", "rows"])
def test_a_finite_set_is_seen_once_in_each_epoch(shuffle: str) -> None:
    made = recipe(distinct=(5,), shuffle=shuffle, steps=10)
    drawn = list(batches(made))
    first, second = drawn[:5], drawn[5:]
    fresh = list(batches(recipe(steps=5)))
    assert rows(first) == rows(second) == rows(fresh)
    same = [torch.equal(a.tokens, b.tokens) for a, b in zip(first, second, strict=True)]
    assert all(same) if shuffle == "none" else not all(same)
    kept = {tuple(sorted(rows([batch]))) for batch in fresh}
    assert (shuffle == "rows") != all(tuple(sorted(rows([batch]))) in kept for batch in first)


def test_unshuffled_segments_follow_each_other() -> None:
    two = "mqar(vocab=20, length=12, pairs=2), mqar(vocab=20, length=14, pairs=2)"
    drawn = list(batches(recipe(train=two, distinct=(2, 3), steps=10)))
    assert [b.tokens.shape[1] for b in drawn] == [12, 12, 14, 14, 14] * 2


def test_dealing_rows_keeps_segments_apart() -> None:
    two = "mqar(vocab=20, length=12, pairs=2), mqar(vocab=20, length=14, pairs=2)"
    drawn = list(batches(recipe(train=two, distinct=(2, 3), steps=5, shuffle="rows")))
    assert sorted(b.tokens.shape[1] for b in drawn) == [12, 12, 14, 14, 14]


def test_scores_do_not_depend_on_how_logits_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe()
    model = made.build()
    whole = list(score(model, made.test, "test", 300))
    monkeypatch.setattr("bestiary.training.train.LOGITS", 100)
    for one, two in zip(whole, score(model, made.test, "test", 300), strict=True):
        assert one._replace(loss=0) == two._replace(loss=0)
        assert one.loss == pytest.approx(two.loss)


def test_more_rows_begin_with_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe()
    model, read = made.build(), list[torch.Tensor]()
    answer = model.answer
    monkeypatch.setattr(model, "answer", lambda batch: (read.append(batch.tokens), answer(batch))[1])
    rows = []
    for count in (200, 256, 512):
        read.clear()
        list(score(model, made.test, "test", count))
        rows.append(torch.cat(read))
        assert len(rows[-1]) == count
    assert all(torch.equal(few, rows[-1][: len(few)]) for few in rows)
    assert not torch.equal(rows[-1][:256], rows[-1][256:])


def test_the_mean_over_segments_weighs_them_equally() -> None:
    made = recipe(test="mqar(vocab=20, length=12, pairs=1), mqar(vocab=20, length=12, pairs=2)")
    looks = list(score(made.build(), made.test, "test", 50))
    shares = [m.right / m.asked for m in looks if not m.facet]
    assert accuracy(looks) == pytest.approx(sum(shares) / 2)


def test_a_device_that_does_not_exist_is_named() -> None:
    assert find_device("cpu").type == "cpu"
    for name in ("cuda:99", "gpu"):
        with pytest.raises(ValueError, match=f"there is no device {name!r} here; there are"):
            find_device(name)


class NoDoubles(TorchDispatchMode):
    """A device without float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        found = func(*args, **(kwargs or {}))
        assert getattr(found, "dtype", None) != torch.float64, f"{func} gives float64"
        return found


def test_training_can_do_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (training, state, together):
        monkeypatch.setattr(module, "exact", lambda x: x)  # as on a device that has none
    made = [recipe(rate=rate) for rate in (1e-3, 1e-2)]
    stack = together.Stack(made, [one.build() for one in made])
    batch, stacked = next(batches(made[0])), next(together.stacked_batches(stack))
    with NoDoubles():
        alone = new_state(made[0])
        alone.sums += update(made[0], alone.model, alone.optimizers[0], batch, 1, "cpu")
        assert stack.update(stacked, 1)[0].tolist() == pytest.approx(alone.sums.tolist())


def test_a_step_can_be_timed() -> None:
    assert 0 < step_seconds(recipe()) < 60


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_time_of_a_step_is_the_mean_over_segments_with_the_optimizer_of_the_recipe(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, used = [0.0], set[type]()

    def update(_recipe: Recipe, _model: Any, optimizer: Any, batch: Batch, *_: Any) -> torch.Tensor:
        used.add(type(optimizer))
        clock[0] += batch.tokens.numel()
        return torch.zeros(3)

    monkeypatch.setattr(training, "update", update)
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    segments = [f"mqar(vocab=64, length={length}, pairs=2)" for length in (12, 24)]
    for tasks, distinct, length in ((segments, (), 18), (segments[::-1], (), 18), (segments, (3, 1), 15)):
        made = recipe(train=", ".join(tasks), distinct=distinct, optimizer=optimizer)
        assert step_seconds(made) == pytest.approx(16 * length)
    assert used == {torch.optim.AdamW if optimizer == "adamw" else Optimizers}


def test_the_time_of_a_run_counts_the_tokens_that_are_scored() -> None:
    made = recipe(steps=10, every=5, test="mqar(vocab=64, length=48, pairs=2)")
    scored = (2 * 40 + 60) * 48 / (16 * 12)
    assert run_seconds(made, 2.0) == pytest.approx(2.0 * (10 + scored / 3))
