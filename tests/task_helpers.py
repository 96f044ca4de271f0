"""Rows of tasks in plain Python, and whether what is in them is uniform."""

from typing import Any

import torch
from torch import Tensor

from bestiary.spec import parse
from bestiary.tasks._task import SILENT, Batch, Task, stream


def draw_rows(task: Task, rows: int = 50) -> list[tuple[list[int], list[int], dict[str, list[int]]]]:
    """Rows of tokens, targets and facets in plain Python."""
    batch = task.sample(rows, stream("test"))
    facets = {name: facet.tolist() for name, facet in batch.facets.items()}
    return [
        (tokens, targets, {name: facet[row] for name, facet in facets.items()})
        for row, (tokens, targets) in enumerate(zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True))
    ]


def question_positions(targets: list[int]) -> list[int]:
    return [time for time, target in enumerate(targets) if target != SILENT]


def is_uniform(values: Tensor, among: int) -> bool:
    """Whether numbers below `among` are each as frequent, within 4.5 sigma."""
    share = torch.bincount(values.flatten(), minlength=among) / values.numel()
    return len(share) == among and bool((share - 1 / among).abs().max() < 4.5 * (1 / among / values.numel()) ** 0.5)


def at_questions(batch: Batch, x: Tensor) -> Tensor:
    return x[batch.targets != SILENT]


def sample_rows(text: str, rows: int = 300) -> tuple[Any, Batch]:
    """A task by its text, and rows of it."""
    task: Task = parse("tasks", text)[0].build()
    return task, task.sample(rows, stream("test", text))


def rows_of(batch: Batch) -> list[tuple[Any, ...]]:
    """Tokens, targets and facets of each row, as lists."""
    facets = {name: x.tolist() for name, x in batch.facets.items()}
    told = [{name: x[i] for name, x in facets.items()} for i in range(len(batch.targets))]
    return list(zip(batch.tokens.tolist(), batch.targets.tolist(), told, strict=True))
