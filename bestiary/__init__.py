"""Bestiary: a laboratory for recall in sequence models.

What needs torch is loaded when it is first used, so that importing the package is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bestiary._version import __version__
from bestiary.spec import Spec, names, parse, spec

if TYPE_CHECKING:
    from bestiary.model import Model, memory
    from bestiary.runs.store import Store
    from bestiary.training.recipe import Recipe
    from bestiary.training.train import train

__all__ = ["Model", "Recipe", "Spec", "Store", "__version__", "memory", "names", "parse", "spec", "train"]

HOME = {
    "Model": "model",
    "memory": "model",
    "Recipe": "training.recipe",
    "Store": "runs.store",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module 'bestiary' has no attribute {name!r}")
    return getattr(import_module(f"bestiary.{HOME[name]}"), name)
