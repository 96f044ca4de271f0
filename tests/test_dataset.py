"""Tasks as a PyTorch data set: the same batches as `draw`, with any number of workers."""

from functools import partial
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

import bestiary
from bestiary import dataset
from bestiary.spec import parse
from bestiary.tasks import SILENT, Batch, Task
from bestiary.tasks._dataset import draw_rows
from bestiary.training.recipe import clean
from bestiary.training.train import batches

MQAR = "mqar(vocab=64, length=32, pairs=4)"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_loader_hands_out_what_a_recipe_trains_on(workers: int) -> None:
    recipe = clean("attention", train=MQAR, batch=8, steps=7, seed=3)
    loader = DataLoader(dataset(MQAR, batch=8, seed=3), batch_size=None, num_workers=workers)
    found = list(islice(loader, 7))
    assert all(isinstance(batch, Batch) for batch in found)
    for one, other in zip(found, batches(recipe), strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.targets, other.targets)


def test_a_task_is_named_in_any_way() -> None:
    (spec,) = parse("tasks", MQAR)
    first = [next(iter(dataset(task, batch=2))).tokens for task in (MQAR, spec, spec.build())]
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2])
    assert isinstance(dataset(MQAR).task, Task)
    assert (next(iter(dataset(MQAR, batch=2))).targets == SILENT).any()


def test_splits_and_seeds_differ() -> None:
    streams = [{"split": "train", "seed": 0}, {"split": "train", "seed": 1}, {"split": "test", "seed": 0}]
    first = [next(iter(dataset(MQAR, batch=4, **given))).tokens for given in streams]
    assert not any(torch.equal(first[i], first[j]) for i, j in [(0, 1), (0, 2), (1, 2)])


def test_rows_of_a_spec_are_those_of_scoring_and_rows_of_a_task_those_of_the_seed() -> None:
    (part,) = parse("tasks", MQAR)
    task = part.build()
    for given, name in ((MQAR, part.key), (part, part.key), (task, 3)):
        assert torch.equal(draw_rows(given, 5, seed=3).tokens, task.draw(256, "test", name, 0).tokens[:5])


def test_what_is_no_task_is_refused() -> None:
    with pytest.raises(LookupError, match="nothing"):
        dataset("nothing")
    with pytest.raises(ValueError, match="names 2"):
        dataset("mqar, copy")
    with pytest.raises(ValueError, match="at least one row"):
        dataset("mqar", batch=0)
    for drawn in (dataset, partial(draw_rows, rows=3)):
        with pytest.raises(LookupError, match="there is no split 'validation'"):  # its rows would be of others
            drawn("mqar", split="validation")


def test_every_public_name_can_be_had() -> None:
    assert dir(bestiary) == sorted(bestiary.__all__)
    assert all(getattr(bestiary, name) is not None for name in bestiary.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bestiary.nothing  # noqa: B018
    for room in (bestiary.tasks, bestiary.mixers):
        assert all(getattr(room, name) is not None for name in room.__all__)
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            room.nothing  # noqa: B018
