"""What every task inherits: splits that never meet, several right answers, vectors, a bottleneck, presets."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bestiary.laws import TASK_LAWS
from bestiary.model import Model
from bestiary.runs.table import extra_scores
from bestiary.spec import locate, parse, spec
from bestiary.tasks._task import SILENT, Batch, Task, hash_rows, stream
from bestiary.tasks.mqar import MQAR
from bestiary.training.recipe import Recipe
from bestiary.training.train import score, train


class Bits(Task):
    """The first of a few bits; `several` calls any answer right."""

    def __init__(self, *, length: int = 10, several: bool = False) -> None:
        self.vocab, self.length, self.chance, self.plateau, self.space = 2, length, 0.5, 0.5, 2.0**length
        self.several = several

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        tokens = torch.randint(2, (count, self.length), generator=rng)
        targets = torch.full_like(tokens, SILENT)
        targets[:, 2:4] = tokens[:, :1]
        return Batch(tokens, targets, {}, {"first": tokens[:, 0]})

    def solve(self, tokens: Tensor) -> Tensor:
        return tokens[:, :1].expand_as(tokens)

    def right(self, batch: Batch, answers: Tensor) -> Tensor:
        return torch.ones_like(answers, dtype=torch.bool) if self.several else super().right(batch, answers)

    def extra_scores(self, batch: Batch, logits: Tensor) -> dict[str, Tensor]:
        return {"doubt": batch.truth["first"].repeat_interleave(2) + 0 * logits[:, 0]}


def rows(batch: Batch) -> set[tuple[int, ...]]:
    return {tuple(row) for row in batch.tokens.tolist()}


def test_the_splits_of_a_small_space_never_meet_and_cover_it() -> None:
    found = {split: rows(Bits().draw(12000, split, 0)) for split in ("train", "selection", "test")}
    assert not found["train"] & found["test"]
    assert not found["train"] & found["selection"]
    assert not found["selection"] & found["test"]
    assert len(set().union(*found.values())) == 1024
    assert 90 < len(found["test"]) < 170


def test_a_batch_of_a_small_space_has_its_rows_whole() -> None:
    batch = Bits().draw(300, "test", 0)
    assert batch.tokens.shape == (300, 10)
    assert torch.equal(batch.truth["first"], batch.tokens[:, 0])
    assert torch.equal(batch.targets[:, 2], batch.tokens[:, 0])


def test_a_space_without_test_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="hardly any falls to the test rows"):
        Constant().draw(9, "test")


class Constant(Bits):
    """Always the same sequence, which falls to training."""

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        return super().sample(1, rng.manual_seed(0)).rows(torch.zeros(count, dtype=torch.long))


@pytest.mark.parametrize("split", ["validation", "tests", "dev", "eval", ""])
@pytest.mark.parametrize("task", [Bits(), MQAR()])
def test_a_split_that_there_is_not_is_refused(task: Task, split: str) -> None:
    with pytest.raises(LookupError, match=f"there is no split '{split}'"):  # its rows would be training rows
        task.draw(3, split, 0)


def test_hashes_differ_where_rows_do() -> None:
    every = torch.cartesian_prod(*[torch.arange(4)] * 6)
    assert len(set(hash_rows(every).tolist())) == len(every)
    share = torch.bincount(hash_rows(every) % 8) / len(every)
    assert (share - 1 / 8).abs().max() < 0.02
    assert len(set(hash_rows(torch.randn(500, 3)).tolist())) == 500


def test_a_large_space_is_drawn_as_its_stream_says() -> None:
    assert torch.equal(MQAR().draw(5, "train", 3).tokens, MQAR().sample(5, stream("train", 3)).tokens)


FILE = """
from tests.test_tasks import Bits

class Mine(Bits):
    def __init__(self, *, length: int = 10, several: bool = {several}):
        super().__init__(length=length, several=several)
"""


@pytest.mark.parametrize("several", [True, False])
def test_a_task_decides_what_is_right_and_adds_scores(several: bool, tmp_path: Path) -> None:
    model = Model(2, dim=16, depth=1, pattern=parse("mixers", "attention"))
    (found,) = score(model, parse("tasks", mine(tmp_path, several)), "test", 300)
    assert found.asked == 600
    assert found.extra["rows"] == 300
    assert (found.right == 600) is several
    assert (found.extra["whole"] == 300) is several
    assert extra_scores(found._asdict())["doubt"] == pytest.approx(0.5, abs=0.1)


def mine(folder: Path, several: bool = False) -> str:
    file = folder / "mine.py"
    file.write_text(FILE.format(several=several))
    return str(file)


def test_whole_sequences_are_counted_over_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(50, dim=16, depth=1, pattern=parse("mixers", "attention"))
    tasks = parse("tasks", "mqar(vocab=50, length=16, pairs=2)")
    (one, *_), _ = list(score(model, tasks, "test", 300)), monkeypatch.setattr("bestiary.training.train.LOGITS", 1)
    (two, *_) = score(model, tasks, "test", 300)
    assert one.extra["rows"] == two.extra["rows"] == 300
    assert one.extra["whole"] == two.extra["whole"]


def test_presets_are_options_under_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MQAR, "presets", {"long": "length=256, pairs=64"})
    assert parse("tasks", "mqar.long") == parse("tasks", "mqar(length=256, pairs=64)")
    assert parse("tasks", "2*mqar.long(pairs=8)") == 2 * parse("tasks", "mqar(length=256, pairs=8)")
    with pytest.raises(LookupError, match="no preset 'wide' among \\['long'\\]"):
        parse("tasks", "mqar.wide")
    with pytest.raises(LookupError, match="no preset"):
        parse("mixers", "attention.wide")


class Vectors(Task):
    """The sign of the first number of three."""

    features = 3

    def __init__(self) -> None:
        self.vocab, self.length, self.chance, self.plateau = 2, 4, 0.5, 0.5

    def sample(self, count: int, rng: torch.Generator) -> Batch:
        tokens = torch.randn(count, 4, 3, generator=rng)
        return Batch(tokens, (tokens[:, :, 0] > 0).long(), {})

    def solve(self, tokens: Tensor) -> Tensor:
        return (tokens[:, :, 0] > 0).long()


def test_a_model_reads_vectors() -> None:
    model = Model(2, dim=16, depth=1, pattern=parse("mixers", "attention"), features=3)
    batch = Vectors().sample(5, torch.Generator())
    logits, targets = model.answer(batch)
    assert logits.shape == (20, 2)
    assert torch.equal(targets, batch.targets.flatten())
    whole, _ = model(batch.tokens)
    torch.testing.assert_close(logits, whole.flatten(0, 1))


def test_with_a_bottleneck_only_the_last_output_is_read() -> None:
    model = Model(20, dim=16, depth=2, pattern=parse("mixers", "attention(window=1)"), bottleneck=6)
    tokens = torch.randint(20, (3, 6))
    other = tokens.clone()
    other[:, :5] = 0
    batch = Batch(tokens, tokens, {})
    logits, _ = model.answer(batch)
    assert logits.shape == (18, 20)
    torch.testing.assert_close(model.answer(batch._replace(tokens=other))[0], logits)
    assert not torch.allclose(logits[0], logits[1])


def test_tasks_that_disagree_on_what_is_read_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "vectors.py"
    file.write_text("from tests.test_tasks import Vectors\nclass Mine(Vectors): ...\n")
    with pytest.raises(ValueError, match="must agree on what a model reads"):
        Recipe(train=f"mqar, {file}", pattern="attention").build()


def test_long_sequences_are_read_in_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(20, dim=16, depth=2, pattern=parse("mixers", "attention(window=5), mamba")).double().eval()
    batch = MQAR(vocab=70, length=64, pairs=4).sample(3, stream("test"))
    batch = batch._replace(tokens=batch.tokens % 20, targets=batch.targets.clamp(max=19))
    whole, _ = model.answer(batch)
    monkeypatch.setattr("bestiary.model.SEGMENT", 10)
    torch.testing.assert_close(model.answer(batch)[0], whole)


def test_what_steers_can_differ_from_what_is_tested() -> None:
    tiny, long = "mqar(vocab=20, length=12, pairs=2)", "mqar(vocab=40, length=24, pairs=4)"
    plain = Recipe(train=tiny, pattern="attention", dim=8, steps=2, every=1, stop=None)
    steered = plain.model_copy(update={"test": parse("tasks", long), "select": parse("tasks", tiny)})
    assert "select" not in plain.json()
    assert Recipe(**steered.json()) == steered
    assert steered.key != plain.key
    looks = [m for m in train(steered) if not m.facet]
    asked = {split: {m.asked for m in looks if m.split == split} for split in ("selection", "test")}
    assert asked == {"selection": {2 * 512}, "test": {4 * 3000}}


BY_TOKEN = (
    "associative_recall",
    "fuzzy_recall",
    "in_context_recall",
    "induction_heads",
    "noisy_recall",
    "reverse_recall",
)


@pytest.mark.parametrize("name", BY_TOKEN)
def test_only_who_asks_for_every_token_may_be_silent(name: str) -> None:
    asks_all = spec("tasks", name, scored="all")
    assert not spec("tasks", name).build().open
    assert asks_all.build().open
    for law in ("oracle", "prefix"):
        TASK_LAWS[law](asks_all)


@pytest.mark.parametrize("name", BY_TOKEN)
def test_who_asks_for_every_token_says_of_what_chance_is(name: str) -> None:
    doc = " ".join((locate("tasks", name).__doc__ or "").split())
    wanted = "are those of `in_context_recall`" if name == "noisy_recall" else "`chance` and `plateau` are those of the"
    assert wanted in doc
    asked, all_of_it = spec("tasks", name).build(), spec("tasks", name, scored="all").build()
    assert (asked.chance, asked.plateau) == (all_of_it.chance, all_of_it.plateau)
