"""Tasks, one file each, and what a task of your own is made from: `from bestiary.tasks import SILENT, Batch, Task`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bestiary.tasks._task import SILENT, Batch, Task, stream

__all__ = ["SILENT", "Batch", "Task", "stream"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'bestiary.tasks' has no attribute {name!r}")
    from bestiary.tasks import _task

    return getattr(_task, name)
