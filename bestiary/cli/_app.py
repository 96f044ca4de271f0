"""What all verbs share: the application, common options, and how errors are reported."""

import errno
import inspect
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import partial
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bestiary.cli._errors import ErrorGroup, explain, print_any_text, refuse, user_input, warn_damaged
from bestiary.cli._trust import reading_store

if TYPE_CHECKING:
    import pandas as pd

    from bestiary.runs.store import Store
    from bestiary.training.recipe import Recipe

__all__ = ["app", "main", "refuse", "user_input", "warn_damaged"]

app = typer.Typer(
    cls=ErrorGroup,
    help="A laboratory for recall in sequence models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class Scale(StrEnum):
    """How much of an experiment is carried out."""

    smoke = "smoke"
    small = "small"
    paper = "paper"


class Together(StrEnum):
    """Whether recipes of one shape are trained as one program."""

    auto = "auto"
    always = "always"
    never = "never"


TogetherOption = Annotated[
    Together,
    typer.Option("--together", help="Train recipes of one shape as one program: auto does where it is faster."),
]
StoreFolder = Annotated[Path, typer.Option("--store", help="Folder of the runs.")]
FiguresFolder = Annotated[Path, typer.Option("--figures", help="Folder for the figures.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Backend = Annotated[
    str, typer.Option(help="Who computes the engines: torch, native (CPU), compiled, fla (CUDA), or auto: by device.")
]
Ray = Annotated[str, typer.Option(help="Carry the runs out on a Ray cluster: auto, host:port or ray://host:port.")]
Gpus = Annotated[float | None, typer.Option(min=0, help="GPUs of each worker on Ray, as in 0.25.")]
Slurm = Annotated[str, typer.Option(help="Carry the runs out by Slurm, as in 'partition=gpu,timeout_min=60,jobs=8'.")]
Track = Annotated[str, typer.Option(help="Trackers to tell, between commas: tensorboard, wandb, trackio.")]
Keep = Annotated[bool, typer.Option("--keep", help="Write the trained weights beside the log.")]
ScaleOption = Annotated[
    Scale, typer.Option("--scale", help="smoke: seconds. small: minutes. paper: the published grid.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write over an existing file, whatever it is.")]


With = Annotated[
    list[str] | None,
    typer.Option("--with", metavar="PATTERN", help="A mixer to compare too: a pattern or a file; once for each."),
]
Only = Annotated[str, typer.Option("--only", metavar="NAMES", help="Only these of its mixers, or of its numbers.")]
Known = Annotated[
    Path | None,
    typer.Option("--known", metavar="FILE.csv", help="Results that were exported: these runs are not made again."),
]


def complete_experiment(start: str) -> Iterable[str]:
    """The experiments whose name begins so, for the shell."""
    from bestiary.spec import names

    return [name for name in names("experiments") if name.startswith(start)]


ExperimentName = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        help="An experiment (see `bestiary list experiments`), or a file.",
        autocompletion=complete_experiment,
    ),
]
OptionalExperiment = Annotated[
    str,
    typer.Argument(help="An experiment; every run in the store if left out.", autocompletion=complete_experiment),
]


def main() -> None:
    """Run the command line. Errors of the user and of the disk are told in one line."""
    for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):  # exit cleanly, so that workers and cluster jobs stop too
        signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
    print_any_text()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as fault:
        typer.echo(f"bestiary: {explain(fault)}", err=True)
        sys.exit(1)


def open_store(folder: Path) -> "Store":
    """The store of runs in a folder, which need not exist yet."""
    from bestiary.runs.store import Store

    return Store(folder)


def existing_store(folder: Path) -> "Store":
    """The store in a folder. Raises LookupError if there is no such folder."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise LookupError(f"the store {folder} {what}; name the folder of the runs with --store, or make some first")
    return open_store(folder)


def check_page(place: Path, mark: str, *, overwrite: bool) -> None:
    """Raise ValueError or OSError if a page cannot be written there, or would replace a file without the mark of ours.

    Makes its folder, so that nothing is lost to a place that cannot be written after long work.
    """
    if place.is_dir():
        raise ValueError(f"{str(place)!r} is a folder, where a file is to be written")
    place.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(place if place.exists() else place.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
    if overwrite or not place.exists():
        return
    with place.open("rb") as file:
        start = file.read(4096).decode(errors="replace")
    if start and mark not in start:
        raise ValueError(f"{str(place)!r} exists and is no page of this kind; give another name, or --overwrite")


def load_experiment(name: str) -> ModuleType:
    """The module of an experiment, by its name or file. Raises LookupError if it is none."""
    from bestiary.spec import load

    experiment = load("experiments", name)
    parts = ("measure", "summary", "figures") if hasattr(experiment, "measure") else ("recipes",)
    if not isinstance(experiment, ModuleType) or not all(hasattr(experiment, part) for part in parts):
        raise LookupError(f"{name} is no experiment: it must define recipes, or else measure, summary and figures")
    return with_defaults(experiment)


def with_defaults(experiment: ModuleType) -> ModuleType:
    """The experiment, with a table and figures if it defines recipes alone."""
    if not hasattr(experiment, "summary") or not hasattr(experiment, "figures"):
        from bestiary.experiments._default import default_figures, default_summary

        mixers = getattr(experiment, "MIXERS", None)
        given = {"summary": default_summary, "figures": default_figures}
        defaults = {name: partial(function, mixers=mixers) for name, function in given.items()}
        vars(experiment).update(defaults | vars(experiment))
    return experiment


def choose_mixers(experiment: ModuleType, added: "Sequence[str] | None", only: str) -> ModuleType:
    """The experiment with other mixers to compare: some of its own, and those that are added, as patterns or files.

    An experiment that has `ONLY` is given there what was chosen of its `choices()`. Raises ValueError if it compares
    none by name, LookupError for an unknown one.
    """
    from bestiary.spec import is_file, parse, plain_name

    if not added and not only:
        return experiment
    if hasattr(experiment, "ONLY") and not added:
        return with_constants(experiment, ONLY=tuple(find_names(only, experiment.choices())))
    known = getattr(experiment, "MIXERS", None)
    if not isinstance(known, dict):
        short = experiment.__name__.rpartition(".")[2]
        raise ValueError(f"{short} has no table of mixers to choose from, so --with and --only do not go with it")
    chosen = {name: known[name] for name in find_names(only, list(known))} if only else dict(known)
    for text in added or ():
        parts = parse("mixers", text)
        own = len(parts) == 1 and is_file(parts[0].name)
        name, pattern = plain_name(parts[0].name) if own else text, ", ".join(map(str, parts))
        chosen[name if chosen.get(name, pattern) == pattern else text] = pattern
    return with_constants(experiment, MIXERS=chosen)


def with_constants(experiment: ModuleType, **constants: object) -> ModuleType:
    """The experiment, loaded once more, with some constants of its own. Raises ValueError if it cannot be."""
    made = experiment.__spec__
    if made is None or made.loader is None:
        raise ValueError(f"{experiment.__name__} cannot be loaded once more, so --with and --only do not go with it")
    fresh = module_from_spec(made)
    made.loader.exec_module(fresh)
    vars(fresh).update(constants)
    return with_defaults(fresh)


def find_names(text: str, known: "Sequence[str]") -> list[str]:
    """The names in a list between commas, which names may hold too. Raises LookupError for an unknown one."""
    from bestiary.spec import nearest

    parts, found = [part.strip() for part in text.split(",")], []
    folded = {name.casefold(): name for name in known}
    while parts:
        for count in range(len(parts), 0, -1):
            name = folded.get(", ".join(parts[:count]).casefold())
            if name:
                found.append(name)
                parts = parts[count:]
                break
        else:
            raise LookupError(f"there is no {parts[0]!r} in this experiment {nearest(parts[0], known)}")
    return found


def load_with_recipes(name: str) -> ModuleType:
    """An experiment that trains and leaves runs in a store. Raises LookupError for one that measures by itself."""
    experiment = load_experiment(name)
    if hasattr(experiment, "measure"):
        short = experiment.__name__.rpartition(".")[2]
        raise LookupError(f"{short} leaves no runs in a store; `bestiary run {short}` measures and draws it")
    return experiment


def find_hook(experiment: ModuleType, name: str, old: str) -> Any:
    """An optional function of an experiment, None if it has none; under its former name it works with a notice."""
    if not hasattr(experiment, name) and hasattr(experiment, old):
        if (experiment.__name__, old) not in NOTICED:
            NOTICED.add((experiment.__name__, old))
            typer.echo(f"bestiary: {experiment.__file__}: `{old}` is now called `{name}`; please rename it", err=True)
        return getattr(experiment, old)
    return getattr(experiment, name, None)


NOTICED: set[tuple[str, str]] = set()  # experiments and former names that a notice was printed about


def next_recipes(
    experiment: ModuleType, table: "pd.DataFrame", scale: str, recipes: "Sequence[Recipe]"
) -> "list[Recipe]":
    """The recipes that an experiment asks for after seeing these results, without those already known."""
    ask = find_hook(experiment, "next_recipes", "further")
    if ask is None or table.empty:
        return []
    known = {recipe.key for recipe in recipes}
    with reading_store():  # a table holds text from the store
        return [recipe for recipe in ask(table, scale) if recipe.key not in known]


def recipes_of(
    experiment: ModuleType, scale: str, store: "Store", known: "pd.DataFrame | None" = None
) -> "list[Recipe]":
    """The recipes of an experiment, and those of its later requests (`next_recipes`) that are already done."""
    from bestiary.runs.exports import add_known
    from bestiary.runs.table import results

    recipes, more = list(experiment.recipes(scale)), True
    elsewhere = set() if known is None else {*known["key"]}
    while more and find_hook(experiment, "next_recipes", "further") is not None:
        keys = [recipe.key for recipe in recipes]
        table = add_known(results(store, keys)[0], known, keys)
        found = next_recipes(experiment, table, scale, recipes)
        more = [recipe for recipe in found if recipe in store or recipe.key in elsewhere]
        recipes += more
    return recipes


def split_by_facet(experiment: ModuleType, table: "pd.DataFrame", folder: Path) -> "pd.DataFrame":
    """The table that an experiment reads: one row for each value of its facet, if it names one."""
    from bestiary.runs.facets import by_facet

    if not hasattr(experiment, "facet") or table.empty:
        return table
    with user_input():
        return by_facet(open_store(folder), table["key"].unique(), experiment.facet)[0]


def known_results(file: Path | None, experiment: ModuleType | None) -> "pd.DataFrame | None":
    """The table in a file of `--known`, None without one. Raises ValueError or OSError if it is no such file.

    Also raises ValueError for an experiment that cannot go on from earlier results.
    """
    from bestiary.runs.exports import read_known, read_table

    if file is None:
        return None
    if experiment is None:
        raise ValueError("--known is for the results of an experiment")
    if not hasattr(experiment, "measure"):
        return read_known(file)
    if not takes_known(experiment):
        raise ValueError(f"{experiment.__name__.rpartition('.')[2]} measures by itself and cannot go on from results")
    return read_table(file)


def takes_known(experiment: ModuleType) -> bool:
    """Whether an experiment that measures by itself can go on from earlier results."""
    return "known" in inspect.signature(experiment.measure).parameters


def known_keys(known: "pd.DataFrame | None", recipes: "Sequence[Recipe]", file: Path | None) -> set[str]:
    """The keys of runs whose results are known; prints how many of the recipes they are."""
    from bestiary.report.words import count_noun

    keys = set() if known is None else {*known["key"]}
    if known is not None:
        count = sum(recipe.key in keys for recipe in recipes)
        typer.echo(f"{count} of {count_noun(len(recipes), 'run')} known, from {file}")
    return keys
