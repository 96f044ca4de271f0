"""Whether the rows that a recipe needs can be drawn, found out before anything is trained."""

from functools import lru_cache

from bestiary.spec import Spec
from bestiary.tasks._task import LARGE_SPACE, SPLIT_EIGHTHS, hash_rows, stream

CHUNK = 256  # rows of a selection or test batch; another number would be other data
PROBE = 1024  # rows looked at to see how many belong to a split
ENOUGH = 0.05  # the share of rows from which every batch can be drawn; `Task.draw` gives up at about 0.01


@lru_cache(maxsize=10_000)
def check_rows(part: Spec, split: str, rows: int) -> None:
    """Raises ValueError if a task has no `rows` rows for the stream "selection", "test" or "train".

    A task with few different sequences divides them among the streams, and one of these may get none. Batches are
    drawn for certain where the share of the stream is small, and otherwise not at all.
    """
    task = part.build()
    if task.space >= LARGE_SPACE:
        return
    eighth = hash_rows(task.sample(PROBE, stream("probe", part.key)).tokens) % 8
    mine = sum((eighth == one).float().mean().item() for one in SPLIT_EIGHTHS[split])
    if mine >= ENOUGH:
        return
    try:
        for i in range(-(-rows // CHUNK)):
            task.draw(CHUNK, split, part.key, i)
    except ValueError as fault:
        raise ValueError(f"{part} cannot be trained and scored: {fault}") from None
