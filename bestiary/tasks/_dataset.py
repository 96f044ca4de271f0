"""The batches of a task as a PyTorch data set, for training loops that are not ours."""

from collections.abc import Iterator
from itertools import count

from torch.utils.data import IterableDataset, get_worker_info

from bestiary.spec import Spec, nearest
from bestiary.spec import parse as parse_specs
from bestiary.tasks._task import Batch, Task, concatenate

SPLITS = ("train", "selection", "test")


class TaskDataset(IterableDataset[Batch]):
    """Batches without end: batch i is `task.draw(batch, split, seed, i)`, as a recipe with this seed trains on it.

    Give it to `DataLoader(dataset, batch_size=None, num_workers=n)`: the workers draw different batches, and the loader
    hands them out in the order in which a single process draws them.
    """

    def __init__(self, task: Task, split: str = "train", batch: int = 64, seed: int = 0) -> None:
        if batch < 1:
            raise ValueError(f"a batch has at least one row, not {batch}")
        check_split(split)
        self.task, self.split, self.batch, self.seed = task, split, batch, seed

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for i in count(first, every):
            yield self.task.draw(self.batch, self.split, self.seed, i)


def dataset(task: str | Spec | Task, *, split: str = "train", batch: int = 64, seed: int = 0) -> TaskDataset:
    """The batches of a task, given as text ("mqar(pairs=8)", "my_task.py"), as a spec or as the task itself.

    Rows of "train", "selection" and "test" never meet. Raises LookupError for an unknown task and ValueError or
    TypeError for options that it cannot have.
    """
    return TaskDataset(find_task(task), split, batch, seed)


def draw_rows(task: str | Spec | Task, rows: int, *, split: str = "test", batch: int = 256, seed: int = 0) -> Batch:
    """The first rows of a stream of a task: those that training with this seed and batch size sees, or scoring.

    Scoring sees them if the task is given as text or spec, whose key names its stream, and `batch` is 256; a task that
    is built has no key, and its rows of "selection" and "test" are of the stream of the seed.

    Raises ValueError for fewer than one row, and as `dataset` does.
    """
    if rows < 1:
        raise ValueError(f"at least one row is drawn, not {rows}")
    check_split(split)
    found = task if isinstance(task, Spec | Task) else only_spec(task)
    built = find_task(found)
    path = seed if split == "train" or isinstance(found, Task) else found.key  # scoring knows no seed
    parts = [built.draw(batch, split, path, i) for i in range(-(-rows // batch))]
    return concatenate(parts).rows(slice(rows))


def check_split(split: str) -> None:
    """Raise LookupError for a split that there is not, which would have rows of others."""
    if split not in SPLITS:
        raise LookupError(f"there is no split {split!r} {nearest(split, SPLITS)}")


def find_task(task: str | Spec | Task) -> Task:
    """The task that is named. Raises LookupError or ValueError."""
    if isinstance(task, Task):
        return task
    return (only_spec(task) if isinstance(task, str) else task).build()


def only_spec(text: str) -> Spec:
    """The one task that a text names. Raises LookupError or ValueError."""
    found = parse_specs("tasks", text)
    if len(found) != 1:
        raise ValueError(f"one task is wanted, and {text!r} names {len(found)}")
    return found[0]
