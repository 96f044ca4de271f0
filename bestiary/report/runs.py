"""The runs of a store in one table: a row for each test segment, with its cell, the recipe without rate and seed."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bestiary.report.command import pattern_text
from bestiary.runs.files import no_collections
from bestiary.runs.health import Health
from bestiary.runs.store import DamagedRun, Store, damaged_run
from bestiary.runs.table import report_parts
from bestiary.spec import locate
from bestiary.training.recipe import SPECS, Recipe

CELL_FIELDS = ("train", "test", "select", "pattern", "dim")  # what names a cell; rate and seed tell its runs apart
HELPER_MIXERS = ("base_conv", "short_conv", "token_shift", "long_conv")  # mixers that stand before the one that matters
UNBUILDABLE = (LookupError, ValueError, TypeError, ImportError, SyntaxError)  # a user's file is gone or is another now

BROKEN = (OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)  # of one run


class RunData(NamedTuple):
    """What the report needs to know about the runs of a store."""

    rows: pd.DataFrame  # those of `table.results` in REPORTED, with `cell` and `task`
    recipes: dict[str, dict[str, Any]]  # of each cell, as stored, without rate and seed
    curves: dict[str, list[tuple[int, float]]]  # of each run, accuracy on the selection stream by step
    distances: dict[str, dict[int, tuple[int, int]]]  # of each run, right and asked by the power of two of a distance
    health: dict[str, Health]  # of each run, how its training went
    origins: dict[str, dict[str, Any]]  # of each run, without the name of the machine
    damaged: list[str]


@no_collections()
def gather_runs(store: Store, keys: Iterable[str]) -> RunData:
    """The finished runs among the keys."""
    known = set(store.run_keys())
    keys = [key for key in dict.fromkeys(keys) if key in known]
    parts = report_parts(store, keys)
    cells: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    data = RunData(pd.DataFrame(), {}, {}, {}, {}, {}, [])
    for key in keys:
        part = parts.pop(key, None)
        try:
            if isinstance(part, DamagedRun):
                data.damaged.append(str(part))
            elif part is not None:
                rows += add_run(data, key, part, store, cells)
        except BROKEN as fault:
            data.damaged.append(str(damaged_run(store.folder / key, fault)))
    lines = task_lines(data.recipes)
    return data._replace(rows=pd.DataFrame([{**row, "task": lines[row["cell"]]} for row in rows]))


def add_run(
    data: RunData, key: str, part: Mapping[str, Any], store: Store, cells: dict[str, str]
) -> list[dict[str, Any]]:
    """Add a run to the data, and return its rows. Nothing is added if something of the run cannot be read.

    `cells` holds the name of each cell, by its recipe as JSON.
    """
    text = part["recipe"]
    if text not in cells:
        recipe = json.loads(text)
        check_stored(recipe)
        name = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
        for written in (task_line, source_text):
            written(recipe)  # raises here, where the run can be left out
        cells[text], data.recipes[name] = name, recipe
    data.origins[key] = read_origin(store.folder / key / "origin.json")
    data.curves[key] = [(step, share) for step, share in part["curve"]]
    data.distances[key] = {place: (right, asked) for place, right, asked in part["distances"]}
    data.health[key] = Health(**part["health"])
    return [{**row, "cell": cells[text]} for row in part["rows"]]


def check_stored(recipe: Mapping[str, Any]) -> None:
    """Raise ValueError if the tasks and mixers of a stored recipe are not of the form that a report reads."""
    for field in SPECS:
        for part in recipe.get(field, ()) if field == "select" else recipe[field]:
            if not (
                isinstance(part["text"], str) and isinstance(part["name"], str) and isinstance(part["options"], dict)
            ):
                raise ValueError(f"its {field} is no list of tasks or mixers")
            if part["name"] == "mqar" and not all(
                isinstance(part["options"][name], int) for name in ("pairs", "vocab")
            ):
                raise ValueError(f"its {field} has no whole number of pairs or no vocabulary")


def read_origin(place: Path) -> dict[str, Any]:
    """What made a run, without the name of the machine; empty if nothing is stored. Raises ValueError."""
    try:
        origin = json.loads(place.read_text()) if place.is_file() else {}
        origin.get("host", {}).pop("name", None)
    except (ValueError, AttributeError, TypeError, RecursionError) as fault:
        raise ValueError(f"{place.name}: {fault}") from None
    return origin


def task_lines(recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What each cell is trained and tested on, in one line; equal exactly where results may be compared.

    Tasks of one text that were made with other files or packages have these named.
    """
    alike: dict[str, dict[str, str]] = {}
    for cell, recipe in recipes.items():
        parts = [recipe.get(name, ()) for name in ("test", "train", "select")]
        alike.setdefault(task_line(recipe), {})[cell] = source_text(parts)
    return {
        cell: f"{line}; source={made}" if len({*cells.values()}) > 1 else line
        for line, cells in alike.items()
        for cell, made in cells.items()
    }


def source_text(stored: Any) -> str:
    """The files within stored specs by the beginning of their digest, packages by name and version."""
    return "/".join(dict.fromkeys(text if " " in text else text[:6] for text in sources(stored)))


def sources(stored: Any) -> Iterator[str]:
    """What tells the files and packages within stored specs from other versions of these."""
    if isinstance(stored, Mapping):
        if stored.get("source") and "options" in stored:
            yield str(stored["source"])
        stored = list(stored.values())
    if isinstance(stored, list | tuple):
        for part in stored:
            yield from sources(part)


def task_line(recipe: Mapping[str, Any]) -> str:
    """What a recipe is trained and tested on, in one line, whatever the files hold."""
    tested, trained, select = (tasks_text(recipe.get(name, ())) for name in ("test", "train", "select"))
    text = tested if tested == trained else f"{tested}, trained on {trained}"
    return f"{text}, selected on {select}" if select not in ("", tested) else text


def tasks_text(parts: Iterable[Mapping[str, Any]]) -> str:
    """Tasks in one line: `4 segments of mqar(vocab=64), length 24, 48 and pairs 2, 4` for all combinations of these.

    Of others each is written: `3 segments of mqar(vocab=64), length/pairs 24/2, 48/4, 48/2`.
    """
    specs = list(parts)
    if len(specs) < 2 or len({part["name"] for part in specs}) > 1:
        return pattern_text(part["text"] for part in specs)
    differ = [name for name in specs[0]["options"] if len({str(part["options"].get(name)) for part in specs}) > 1]
    texts = {part["text"].partition("(")[2].removesuffix(")") for part in specs}
    shared = [item for item in split_options(min(texts)) if item.partition("=")[0] not in differ]
    if not differ:
        return pattern_text(part["text"] for part in specs)
    rows = [tuple(str(part["options"][name]) for name in differ) for part in specs]
    values = [list(dict.fromkeys(column)) for column in zip(*rows, strict=True)]
    varying = " and ".join(f"{name} {', '.join(found)}" for name, found in zip(differ, values, strict=True))
    if rows != list(product(*values)):
        varying = f"{'/'.join(differ)} {', '.join(map('/'.join, rows))}"
    return (
        f"{len(specs)} segments of {specs[0]['name']}" + (f"({', '.join(shared)})" if shared else "") + f", {varying}"
    )


def split_options(options: str) -> list[str]:
    """The options of `a=1, b='x, y'`, split at the commas between them."""
    found: list[str] = []
    for part in options.split(", "):
        if found and "=" not in part:
            found[-1] += f", {part}"
        elif part:
            found.append(part)
    return found


def segment_label(part: Mapping[str, Any], among: Iterable[Mapping[str, Any]]) -> str:
    """What distinguishes a test segment from the others: `length 48, pairs 4`; its full text if its name does."""
    others = list(among)
    if len({other["name"] for other in others}) > 1 or len(others) < 2:
        return part["text"]
    differ = [name for name in part["options"] if len({str(other["options"].get(name)) for other in others}) > 1]
    return ", ".join(f"{name} {part['options'][name]}" for name in differ) or part["text"]


def mixer_names(
    recipes: Mapping[str, Mapping[str, Any]], pattern_name: Callable[[str], str] = lambda pattern: pattern
) -> dict[str, str]:
    """The name of each cell's mixer: its pattern, and the settings and files in which cells of that pattern differ.

    Width is not among them: the cells of one name are one line along it.
    """
    lines = task_lines(recipes)
    alike: dict[tuple[str, str], list[str]] = {}
    for cell, recipe in recipes.items():
        pattern = ", ".join(part["text"] for part in recipe["pattern"])
        name = pattern_name(pattern)
        shown = pattern_text(part["text"] for part in recipe["pattern"]) if name == pattern else name
        alike.setdefault((lines[cell], shown), []).append(cell)
    names = {}
    for (_, pattern), cells in alike.items():
        rest = {
            cell: {n: v for n, v in recipes[cell].items() if n not in CELL_FIELDS}
            | {"source": source_text(recipes[cell]["pattern"])}
            for cell in cells
        }
        fields = dict.fromkeys(name for settings in rest.values() for name in settings)
        differ = [name for name in fields if len({str(settings.get(name)) for settings in rest.values()}) > 1]
        for cell in cells:
            names[cell] = "; ".join([pattern, *(f"{name}={rest[cell].get(name)}" for name in differ)])
    return names


def family(recipe: Mapping[str, Any]) -> str:
    """The family of the last mixer of a pattern that is not a plain convolution, or else of the last mixer."""
    names = [part["name"] for part in recipe["pattern"]]
    chosen = next((name for name in reversed(names) if name not in HELPER_MIXERS), names[-1])
    try:
        return getattr(locate("mixers", chosen), "family", None) or "other"
    except UNBUILDABLE:
        return "other"


SIZES: dict[str, tuple[int, int]] = {}  # what was measured, by shape


def model_size(recipe: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Numbers in the state after the longest test sequence, and parameters; None if the model cannot be built now."""
    from bestiary.training.size import parameters, state_size

    try:
        built = Recipe.read(recipe)
        if built.shape_key not in SIZES:
            SIZES[built.shape_key] = state_size(built)[0], parameters(built)
        return SIZES[built.shape_key]
    except UNBUILDABLE:
        return None, None
