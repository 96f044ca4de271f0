"""Bestiary: a laboratory for recall in sequence models.

What needs torch is loaded when it is first used, so that importing the package is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bestiary._version import __version__
from bestiary.spec import Spec, names, parse, spec

if TYPE_CHECKING:
    from bestiary.cli.card import card
    from bestiary.mixers._mixer import Mixer
    from bestiary.model import Model, memory
    from bestiary.runs.store import Store
    from bestiary.tasks._dataset import dataset
    from bestiary.tasks._task import Task
    from bestiary.training.recipe import Recipe
    from bestiary.training.train import score, train

__all__ = [
    "Mixer",
    "Model",
    "Recipe",
    "Spec",
    "Store",
    "Task",
    "__version__",
    "card",
    "dataset",
    "memory",
    "names",
    "parse",
    "score",
    "spec",
    "train",
]

HOME = {
    "Mixer": "mixers._mixer",
    "Model": "model",
    "Recipe": "training.recipe",
    "Store": "runs.store",
    "Task": "tasks._task",
    "card": "cli.card",
    "dataset": "tasks._dataset",
    "memory": "model",
    "score": "training.train",
    "train": "training.train",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module 'bestiary' has no attribute {name!r}")
    return getattr(import_module(f"bestiary.{HOME[name]}"), name)
