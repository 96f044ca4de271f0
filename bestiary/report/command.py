"""The command that does a run again."""

import shlex
from collections.abc import Mapping
from typing import Any

from bestiary.spec import reading_data
from bestiary.training.recipe import Recipe, clean

SHOWN = ("dim", "rate", "seed")  # said even where they are the defaults


@reading_data()
def command(recipe: Recipe | Mapping[str, Any]) -> str:
    """`bestiary train ...`, which makes exactly this recipe: the same key, given the same files of the user's own.

    Takes a recipe, or what is stored of one. Raises ValueError, TypeError or LookupError if no command line says it:
    a file that is gone or has changed since, or one whose name cannot stand in a pattern.
    """
    made = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)
    changes = settings(made)
    train, pattern = text(made.train), text(made.pattern)
    if clean(pattern, train=train, **changes).key != made.key:
        raise ValueError(f"no command line says {pattern} on {train} with {changes}")
    said = " ".join(quoted(f"{name}={value}") for name, value in changes.items())
    return f"bestiary train --task {quoted(train)} --layers {quoted(pattern)} {said}"


def settings(recipe: Recipe) -> dict[str, Any]:
    """The fields in which a recipe differs from the defaults, tasks as text."""
    fields = {name: getattr(recipe, name) for name in Recipe.model_fields if name not in ("train", "pattern")}
    plain = {name: Recipe.model_fields[name].default for name in fields} | {"test": recipe.train}
    shown = {name: value for name, value in fields.items() if name in SHOWN or value != plain[name]}
    return {name: text(value) if name in ("test", "select") else value for name, value in shown.items()}


def text(specs: Any) -> str:
    """Specs as they are written, `3*gated_delta` for three of the same in a row."""
    found: list[tuple[str, int]] = []
    for part in map(str, specs):
        last, times = found[-1] if found else ("", 0)
        found[-1:] = [(last, times + 1)] if part == last else [*found[-1:], (part, 1)]
    return ", ".join(f"{times}*{part}" if times > 1 else part for part, times in found)


def quoted(word: str) -> str:
    """A word for a shell, in double quotes where it holds single ones and nothing that those would change."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)
