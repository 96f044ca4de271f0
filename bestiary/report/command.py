"""The command line that repeats a run."""

import shlex
from collections.abc import Mapping
from typing import Any

from bestiary.spec import reading_data
from bestiary.training.recipe import Recipe, clean

SHOWN = ("dim", "rate", "seed")  # said even where they are the defaults


def command(recipe: Recipe | Mapping[str, Any]) -> str:
    """The `bestiary train ...` that makes exactly this recipe: the same key, given the same files of the user.

    Takes a recipe, or a recipe as stored. Raises ValueError, TypeError or LookupError if no command line says it,
    because a file is gone, has changed, or has a name that cannot stand in a pattern.
    """
    seed = recipe.seed if isinstance(recipe, Recipe) else recipe["seed"]
    return str(seed).join(command_around_seed(recipe))


@reading_data()
def command_around_seed(recipe: Recipe | Mapping[str, Any]) -> tuple[str, str]:
    """What `command` gives before and after the seed: the same for runs that differ in their seeds alone."""
    built = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)
    changes = settings(built)
    train, pattern = pattern_text(built.train), pattern_text(built.pattern)
    if clean(pattern, train=train, **changes).key != built.key:
        raise ValueError(f"no command line says {pattern} on {train} with {changes}")
    words = {name: shell_quote(f"{name}={value}") for name, value in changes.items()}
    before, _, after = " ".join({**words, "seed": "\0"}.values()).partition("\0")
    return f"bestiary train --task {shell_quote(train)} --layers {shell_quote(pattern)} {before}seed=", after


def settings(recipe: Recipe) -> dict[str, Any]:
    """The fields in which a recipe differs from the defaults; tasks as text."""
    fields = {name: getattr(recipe, name) for name in Recipe.model_fields if name not in ("train", "pattern")}
    defaults = {name: Recipe.model_fields[name].default for name in fields} | {"test": recipe.train}
    shown = {name: value for name, value in fields.items() if name in SHOWN or value != defaults[name]}
    return {name: pattern_text(value) if name in ("test", "select") else value for name, value in shown.items()}


def pattern_text(specs: Any) -> str:
    """Specs as a user writes them, `3*gated_delta` for three of the same in a row."""
    found: list[tuple[str, int]] = []
    for part in map(str, specs):
        last, times = found[-1] if found else ("", 0)
        found[-1:] = [(last, times + 1)] if part == last else [*found[-1:], (part, 1)]
    return ", ".join(f"{times}*{part}" if times > 1 else part for part, times in found)


def shell_quote(word: str) -> str:
    """A word quoted for a shell; in double quotes if it holds single ones and nothing that these would expand."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)
