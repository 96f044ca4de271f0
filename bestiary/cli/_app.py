"""What all verbs share: the application, common options, and how the user's faults are told."""

import errno
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    import pandas as pd

    from bestiary.runs.store import Store
    from bestiary.training.recipe import Recipe

app = typer.Typer(
    help="A laboratory for recall in sequence models.",
    no_args_is_help=True,
    add_completion=False,
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


Company = Annotated[
    Together,
    typer.Option("--together", help="Train recipes of one shape as one program: auto does where it is faster."),
]
Folder = Annotated[Path, typer.Option("--store", help="Folder of the runs.")]
Figures = Annotated[Path, typer.Option("--figures", help="Folder for the figures.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Backend = Annotated[
    str, typer.Option(help="Who computes the engines: torch, native (CPU), compiled, fla (CUDA), or auto: by device.")
]
Ray = Annotated[str, typer.Option(help="Carry the runs out on a Ray cluster: auto, host:port or ray://host:port.")]
Gpus = Annotated[float | None, typer.Option(min=0, help="GPUs of each worker on Ray, as in 0.25.")]
Slurm = Annotated[str, typer.Option(help="Carry the runs out by Slurm, as in 'partition=gpu,timeout_min=60,jobs=8'.")]
Track = Annotated[str, typer.Option(help="Trackers to tell, between commas: tensorboard, wandb, trackio.")]
Keep = Annotated[bool, typer.Option("--keep", help="Write the trained weights beside the log.")]
Size = Annotated[Scale, typer.Option("--scale", help="smoke: seconds. small: minutes. paper: the published grid.")]
Question = Annotated[str, typer.Argument(help="An experiment (see `bestiary list experiments`), or a file.")]


def main() -> None:
    """Run the command line; faults of the user and of the disk are one line."""
    for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):  # so that workers and jobs elsewhere are stopped too
        signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):
            told = f"the disk is full ({fault}); free some and give the same command again"
        elif fault.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            told = f"the store is read-only ({fault}); name a folder that can be written with --store or --figures"
        else:
            raise
        typer.echo(f"bestiary: {told}", err=True)
        sys.exit(1)


@contextmanager
def user_input() -> Iterator[None]:
    """Faults in here are the user's: one line, exit status 2."""
    try:
        yield
    except (ValueError, TypeError, LookupError, OSError, SyntaxError, ImportError) as fault:
        refuse(str(fault.args[0]) if isinstance(fault, LookupError) else str(fault))


def refuse(message: str, *, status: int = 2) -> NoReturn:
    typer.echo(f"bestiary: {message}", err=True)
    raise typer.Exit(status)


def complain(damaged: Sequence[str]) -> None:
    for line in damaged:
        typer.echo(f"bestiary: {line}", err=True)


def opened(folder: Path) -> "Store":
    from bestiary.runs.store import Store

    return Store(folder)


def question(name: str) -> ModuleType:
    """An experiment's module. Raises LookupError."""
    from bestiary.spec import load

    found = load("experiments", name)
    parts = ("measure" if hasattr(found, "measure") else "recipes", "summary", "figures")
    if not isinstance(found, ModuleType) or not all(hasattr(found, part) for part in parts):
        raise LookupError(f"{name} is no experiment: it must define recipes (or measure), summary and figures")
    return found


def trained(asked: ModuleType) -> ModuleType:
    """An experiment that leaves runs in a store. Raises LookupError for one that measures by itself."""
    if hasattr(asked, "measure"):
        name = asked.__name__.rpartition(".")[2]
        raise LookupError(f"{name} leaves no runs in a store; `bestiary run {name}` measures and draws it")
    return asked


def further(asked: ModuleType, table: "pd.DataFrame", scale: str, recipes: "Sequence[Recipe]") -> "list[Recipe]":
    """What an experiment wants to know after it has seen so much."""
    if not hasattr(asked, "further") or table.empty:
        return []
    known = {made.key for made in recipes}
    return [made for made in asked.further(table, scale) if made.key not in known]


def recipes_of(asked: ModuleType, scale: str, store: "Store") -> "list[Recipe]":
    """The recipes of an experiment, with those that it asked for after it had seen some and that are done."""
    from bestiary.runs.table import results

    found, more = list(asked.recipes(scale)), True
    while more and hasattr(asked, "further"):
        table, _ = results(store, [made.key for made in found])
        more = [made for made in further(asked, table, scale, found) if made in store]
        found += more
    return found
