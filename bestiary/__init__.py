"""Bestiary: a laboratory for recall in sequence models.

What needs torch is loaded when it is first used, so that importing the package is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bestiary._version import __version__
from bestiary.spec import Spec, names, parse, spec

if TYPE_CHECKING:
    from bestiary.cli.card import card
    from bestiary.laws.report import check
    from bestiary.mixers._mixer import Mixer
    from bestiary.mixers._wrap import Rereading
    from bestiary.model import Model, memory
    from bestiary.runs.reading import read_results
    from bestiary.runs.store import Store
    from bestiary.sweep.run import run_recipes
    from bestiary.tasks._dataset import dataset
    from bestiary.tasks._task import Task
    from bestiary.training.recipe import Recipe
    from bestiary.training.train import score, train
    from bestiary.training.whole import WholeModel

__all__ = [
    "Mixer",
    "Model",
    "Recipe",
    "Rereading",
    "Spec",
    "Store",
    "Task",
    "WholeModel",
    "__version__",
    "card",
    "check",
    "dataset",
    "memory",
    "names",
    "parse",
    "read_results",
    "run_recipes",
    "score",
    "spec",
    "train",
]

HOME = {
    "Mixer": "mixers._mixer",
    "Model": "model",
    "Recipe": "training.recipe",
    "Rereading": "mixers._wrap",
    "Store": "runs.store",
    "Task": "tasks._task",
    "WholeModel": "training.whole",
    "card": "cli.card",
    "check": "laws.report",
    "dataset": "tasks._dataset",
    "memory": "model",
    "read_results": "runs.reading",
    "run_recipes": "sweep.run",
    "score": "training.train",
    "train": "training.train",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module 'bestiary' has no attribute {name!r}")
    return getattr(import_module(f"bestiary.{HOME[name]}"), name)
