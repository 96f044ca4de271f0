"""Bestiary: a laboratory for recall in sequence models.

What needs torch is loaded when it is first used, so that importing the package is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bestiary.spec import Spec, names, parse, spec

if TYPE_CHECKING:
    from bestiary.model import Model, memory
    from bestiary.recipe import Recipe
    from bestiary.store import Store
    from bestiary.training import train

__version__ = "0.1.0"
__all__ = ["Model", "Recipe", "Spec", "Store", "memory", "names", "parse", "spec", "train"]

HOME = {"Model": "model", "memory": "model", "Recipe": "recipe", "Store": "store", "train": "training"}


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module 'bestiary' has no attribute {name!r}")
    return getattr(import_module(f"bestiary.{HOME[name]}"), name)
