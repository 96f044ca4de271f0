"""What `bestiary show` says about a mixer, a task, an experiment, a recipe or a run, line by line."""

import ast
import inspect
import json
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pandas as pd
import torch

from bestiary.laws.report import target_specs
from bestiary.mixers._mixer import Mixer
from bestiary.model import memory, memory_after
from bestiary.ops.backend import ENGINES, record_engines
from bestiary.runs.store import Store
from bestiary.spec import Spec, load, locate, names, parse, schema
from bestiary.spec.loading import file_path
from bestiary.tasks._task import LARGE_SPACE, SILENT, Task
from bestiary.training.recipe import NAMED, SPECS, Recipe

LENGTHS = (1, 100, 1000, 10000)
SCALES = ("smoke", "small", "paper")


def describe(text: str, *, dim: int) -> Iterator[str]:
    """Lines about everything of this name, under headings if there are several things. Raises LookupError."""
    name = text.partition("(")[0].strip()
    parts: list[tuple[str, Iterator[str]]] = []
    if text in NAMED:
        parts.append((f"recipe {name}", recipe_lines(text)))
    if text in names("experiments") or is_experiment_file(text):
        parts.append((f"experiment {name}", experiment_lines(text)))
    if not parts or name in [*names("mixers"), *names("tasks")]:
        for found in dict.fromkeys(target_specs(text, others=all_names())):
            lines = task_lines(found) if found.kind == "tasks" else mixer_lines(found, dim=dim)
            parts.append((f"{found.kind.removesuffix('s')} {found}", lines))
    for what, lines in parts:
        if len(parts) > 1:
            yield f"--- {what} ---"
        yield from lines


def is_experiment_file(text: str) -> bool:
    """Whether this is a file that says which runs answer a question, rather than one of a mixer or task."""
    path = file_path(text, missing_ok=True)
    if path is None:
        return False
    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError):  # said by whoever runs it
        return False
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    return bool(defined & {"recipes", "measure"})


def all_names() -> list[str]:
    """Every name that `bestiary show` knows."""
    return sorted({*names("mixers"), *names("tasks"), *names("experiments"), *NAMED})


def docstring_lines(kind: str, name: str) -> Iterator[str]:
    """The docstrings of a file and of its class, as text."""
    found = load(kind, name)
    built = locate(kind, name)
    if isinstance(found, ModuleType):
        yield inspect.getdoc(found) or ""
        yield ""
    yield f"{built.__name__}: {inspect.getdoc(built) or ''}"


def option_lines(found: Spec) -> Iterator[str]:
    """A line for each option: its value, its type and its default if another was chosen."""
    known = schema(found.kind, found.name)
    if known:
        yield ""
        yield "options"
    for option, value in found.options:
        kind, default = known[option]
        given = "" if value == default else f"  (default {default!r})"
        yield f"  {option:10} {value!r:12} {type_text(kind)}{given}"


PLAIN_TYPES = (
    (r"typing\.", ""),
    (r", Le\(le=9007199254740992\)", ""),
    (r"Annotated\[int, Gt\(gt=0\)\]", "positive int"),
    (r"Annotated\[int, Ge\(ge=0\)\]", "int from 0"),
    (r"Annotated\[float, Ge\(ge=0\), Le\(le=1\)\]", "float from 0 to 1"),
    (r"Annotated\[tuple\[.*Spec.*", "mixers"),
    (r"Literal\[(.*?)\]", r"\1"),
    (r"Optional\[(.*)\]", r"\1 or None"),
    (r"Annotated\[(\w+), (.*)\]", r"\1, \2"),
    (r", Ge\(ge=(.*?)\)", r" from \1"),
    (r", Gt\(gt=(.*?)\)", r" above \1"),
    (r", Le\(le=(.*?)\)", r" to \1"),
    (r", Lt\(lt=(.*?)\)", r", below \1"),
    (r" \| ", " or "),
)


def type_text(kind: Any) -> str:
    """A type annotation as a person would write it."""
    text = kind.__name__ if isinstance(kind, type) else str(kind)
    for pattern, plain in PLAIN_TYPES:
        text = re.sub(pattern, plain, text)
    return text


def mixer_lines(found: Spec, *, dim: int) -> Iterator[str]:
    """A mixer's docstring, options, weights, and its state measured after growing lengths."""
    yield from docstring_lines(found.kind, found.name)
    yield from option_lines(found)
    weights = sum(weight.numel() for weight in found.build(dim).parameters())
    yield ""
    yield f"at width {dim}: {weights:,} weights; the most that the state of one sequence holds, measured, up to"
    with torch.device("meta"):
        shrinks = any(part.largest_state(64) < 64 for part in found.build(dim).modules() if isinstance(part, Mixer))
    before = None
    for length in LENGTHS:
        size = memory(lambda: found.build(dim), time=length, dim=dim)
        counts = {"token": (6, length), "number": (12, size.numbers), "byte": (12, size.bytes)}
        line = "".join(
            f"  {count:>{wide},} {what}{' ' if count == 1 else 's'}" for what, (wide, count) in counts.items()
        )
        if shrinks:
            with torch.device("meta"):
                least = memory_after(found.build(dim), 1 << (length.bit_length() - 1), dim).numbers
            line += f"  (at some lengths only {least:,})" if least < size.numbers else ""
        yield line
        if size == before and length >= 1000:  # it has stopped growing; longer would take minutes for some mixers
            break
        before = size


def mixer_table(*, dim: int = 128, time: int = 1024) -> pd.DataFrame:
    """One row for each mixer: family, year, state after `time` tokens (measured), weights, and faster backends."""
    rows = []
    for name in names("mixers"):
        (found,) = parse("mixers", name)
        family, year, line = source_of("mixers", name)
        with torch.device("meta"):
            weights = sum(weight.numel() for weight in found.build(dim).parameters())
        with record_engines() as engines:
            state = memory(lambda found=found: found.build(dim), time=time, dim=dim).numbers
        faster = ", ".join(sorted({backend for engine in engines - {"norm"} for backend in ENGINES[engine]}))
        rows.append((name, family, year, state, weights, faster, line))
    columns = ["name", "family", "year", f"state at {time:,}", "weights", "faster by", "what"]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(["family", "year", "name"])


def source_of(kind: str, name: str) -> tuple[str, str, str]:
    """The family, the year of the source, and the line that names it."""
    built, module = locate(kind, name), load(kind, name)
    line = (inspect.getdoc(module) or "").splitlines()[0] if isinstance(module, ModuleType) else built.__module__
    year = re.search(r"(19|20)\d\d", line)
    return getattr(built, "family", None) or "(none given)", year[0] if year else "", line


def task_table() -> pd.DataFrame:
    """One row for each task: its family, year, how many positions of how many are scored, and the chance."""
    rows = []
    for name in names("tasks"):
        (found,), (family, year, line) = parse("tasks", name), source_of("tasks", name)
        task: Task = found.build()
        scored = (task.draw(64, "show", 0).targets != SILENT).sum(1).double().mean().item()
        rows.append((name, family, year, f"{scored:.4g} of {task.length:,}", task.chance, line))
    table = pd.DataFrame(rows, columns=["name", "family", "year", "scored", "chance", "what"])
    return table.sort_values(["family", "year", "name"])


def task_lines(found: Spec) -> Iterator[str]:
    """A task's docstring, options, chance level, and one of its sequences."""
    yield from docstring_lines(found.kind, found.name)
    yield from option_lines(found)
    built: Task = found.build()
    yield ""
    yield f"vocabulary {built.vocab:,}, length {built.length:,}, chance {built.chance:.2g}, plateau {built.plateau:.3g}"
    if built.space < LARGE_SPACE:
        yield f"about {built.space:.3g} sequences, split by their hash: 3/4 to train, 1/8 to select, 1/8 to test on"
    if built.open:
        yield f"not every answer can be known: {built.open}"
    for kind, given in (("preset", built.presets), ("axis", built.axes)):
        for name, value in given.items():
            yield f"{kind} {name:12} {value if isinstance(value, str) else ', '.join(map(str, value))}"
    yield "scored positions and one sequence of it:"
    batch = built.draw(1, "show", 0)
    read = [
        f"({', '.join(f'{x:.1f}' for x in token[:2])} ..)" if built.features else token
        for token in batch.tokens[0].tolist()
    ]
    row, answers = read[:40], batch.targets[0].tolist()[:40]
    width = max(len(str(token)) for token in row + answers if token != SILENT)
    yield ("  tokens   " + " ".join(f"{token:>{width}}" for token in row) + (" ..." if built.length > 40 else ""))
    yield "  targets  " + " ".join(f"{'.' if answer == SILENT else answer:>{width}}" for answer in answers)


def experiment_lines(name: str) -> Iterator[str]:
    """An experiment's docstring, and how many runs it has at each scale."""
    found = load("experiments", name)
    yield inspect.getdoc(found) or ""
    yield ""
    for scale in SCALES:
        runs = None if hasattr(found, "measure") else len(list(found.recipes(scale)))
        yield f"  {scale:6} " + (
            "measured, nothing is trained" if runs is None else f"{runs:>5} run{'' if runs == 1 else 's'}"
        )


def recipe_lines(name: str) -> Iterator[str]:
    """A named recipe's docstring, and its fields for attention."""
    build = NAMED[name]
    yield inspect.getdoc(build) or ""
    yield ""
    for field, value in build("attention").json().items():
        shown = ", ".join(part["text"] for part in value) if field in SPECS else repr(value)
        yield f"  {field:15} {shown}"


def run_lines(store: Store, key: str) -> Iterator[str]:
    """A run's recipe, origin and results. Raises DamagedRun."""
    from bestiary.runs.table import is_on_text

    record = store.read(key)
    origin = store.folder / key / "origin.json"
    for field, value in record.recipe.items():
        shown = ", ".join(part["text"] for part in value) if field in SPECS else repr(value)
        yield f"  {field:15} {shown}"
    yield ""
    yield json.dumps(json.loads(origin.read_text())) if origin.exists() else ""
    yield f"ended: {record.ended}" if record.ended else "not done"
    for line in record.log:
        if line["split"] == "test" and is_on_text(record):
            yield f"  test: {line['loss']:.4f} nats a token, {line['targets']:,} tokens"
        elif line["split"] == "test" and not line["facet"]:
            yield f"  test segment {line['segment']}: {line['right']} of {line['asked']} right"
    if (failure := store.failure(key)) is not None:
        yield failure


def diagnosis(store: Store, key: str, *, brief: bool = False) -> Iterator[str]:
    """What may be wrong with a run; `brief` in one line, and nothing of a run that has solved its task.

    Raises ValueError or LookupError for a run that cannot be read.
    """
    from bestiary.report.command import pattern_text
    from bestiary.report.doctor import diagnose, finding_lines
    from bestiary.runs.table import is_on_text, unfinished_state

    record = store.read(key)
    if is_on_text(record):
        return
    recipe = Recipe.read(record.recipe)
    if not record.ended:
        yield f"{key}: not judged, as it has not ended: {unfinished_state(store, key)}"
        if not brief and (failure := store.failure(key)) is not None:
            yield failure
        return
    found = diagnose(recipe, record.log)
    if brief:
        if found:
            what = f"{pattern_text(recipe.pattern)}, dim={recipe.dim} rate={recipe.rate:g} seed={recipe.seed}"
            yield f"{key}  {what}: {', '.join(finding.name for finding in found)}"
        return
    yield f"{key}: {len(found)} found, the likeliest cause first" if found else f"{key}: nothing found"
    yield from (f"  {line}" for line in finding_lines(found))
