"""Verbs that make runs and read them: train, run, status and plot."""

import ast
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bestiary.cli._app import (
    Backend,
    Company,
    Device,
    Figures,
    Folder,
    Gpus,
    Keep,
    Question,
    Ray,
    Scale,
    Size,
    Slurm,
    Together,
    Track,
    app,
    complain,
    further,
    opened,
    question,
    recipes_of,
    refuse,
    trained,
    user_input,
)

if TYPE_CHECKING:
    import pandas as pd

    from bestiary.runs.store import Store
    from bestiary.sweep import Event
    from bestiary.training.recipe import Recipe


@app.command()
def train(
    settings: Annotated[
        list[str] | None, typer.Argument(help="Fields of the recipe: dim=128 rate=1e-3 seed=2 ...")
    ] = None,
    task: Annotated[str, typer.Option(help="The task, as in 'mqar(length=128, pairs=8)'.")] = "",
    layers: Annotated[str, typer.Option(help="The pattern of mixers, as in 'base_conv, attention'.")] = "attention",
    recipe: Annotated[str, typer.Option(help="A named recipe to start from (see `bestiary list recipes`).")] = "clean",
    store: Folder = Path("runs"),
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the run; one for each core if not given.")
    ] = None,
    device: Device = "cpu",
    backend: Backend = "auto",
    keep: Keep = False,
    track: Track = "",
) -> None:
    """Train one model on one task and score it."""
    from bestiary.sweep import cores

    with user_input():
        made = based_on(recipe, layers, settings or (), task)
    how = {"workers": 1, "threads": threads or cores(), "device": device, "backend": backend, "keep": keep}
    finish(*carry_out("train", [made], store, **how, track=track, detail=True))


def based_on(recipe: str, layers: str, settings: Iterable[str], task: str = "") -> "Recipe":
    """A named recipe with its changes."""
    from bestiary.spec import nearest
    from bestiary.training.recipe import NAMED

    if recipe not in NAMED:
        raise LookupError(f"there is no recipe {recipe!r} {nearest(recipe, NAMED)}")
    return NAMED[recipe](layers, **(dict(setting(text) for text in settings) | ({"train": task} if task else {})))


def setting(text: str) -> tuple[str, Any]:
    """`rate=1e-3` as a name and a value; text stays text."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"{text!r} is not a setting; write name=value, as in dim=128")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


@app.command()
def run(
    experiment: Question,
    scale: Size = Scale.small,
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at a time; one for each core if not given.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each run.")] = 1,
    store: Folder = Path("runs"),
    figures: Figures = Path("figures"),
    device: Device = "cpu",
    backend: Backend = "auto",
    together: Company = Together.auto,
    ray: Ray = "",
    gpus: Gpus = None,
    slurm: Slurm = "",
    track: Track = "",
    keep: Keep = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the runs, with an estimate of their time.")
    ] = False,
) -> None:
    """Carry out an experiment and draw its figures. The same command again goes on where it stopped."""
    with user_input():
        asked = question(experiment)
        recipes = [] if hasattr(asked, "measure") else list(asked.recipes(scale))
    stem = figures / f"{Path(experiment).stem}-{scale}"
    if hasattr(asked, "measure"):
        if workers is not None or device != "cpu" or ray or slurm:
            refuse(
                f"{experiment} measures by itself, on this machine: --workers, --device, --ray, --slurm are for others"
            )
        if dry_run:
            typer.echo(f"{experiment} measures by itself, with no list of runs; without --dry-run it is carried out")
            return
        finish(0, measured(asked, scale, threads), asked, stem)
        return
    if dry_run:
        estimate(recipes, device, threads)
        return
    how = {"workers": workers, "threads": threads, "device": device, "backend": backend, "keep": keep}
    how |= {"together": together.value, "ray": ray, "gpus": gpus, "slurm": slurm, "track": track}
    failed, table = carry_out(f"{experiment} {scale}", recipes, store, **how)
    while more := further(asked, table, scale, recipes):
        typer.echo(f"{len(more)} runs more, after those")
        recipes += more
        failed, table = carry_out(f"{experiment} {scale}", recipes, store, **how)
    finish(failed, faceted(asked, table, store), asked, stem)


@app.command()
def status(
    experiment: Annotated[str, typer.Argument(help="An experiment; every run in the store if left out.")] = "",
    scale: Size = Scale.small,
    store: Folder = Path("runs"),
    every: Annotated[bool, typer.Option("--all", help="A line for every run, not only for those not done.")] = False,
) -> None:
    """Say how many runs are done or to come, and which are at work, interrupted or failed, and why."""
    from bestiary.cli._stands import SHOWN, failures, lines
    from bestiary.runs.table import run_states

    with user_input():
        recipes = recipes_of(trained(question(experiment)), scale, opened(store)) if experiment else None
    rows, damaged = run_states(opened(store), recipes)
    counts = Counter(row["state"].partition(":")[0] for row in rows)
    failed = [row for row in rows if row["state"] == "failed"]
    others = [row for row in rows if row["state"] not in ("failed", "to come") and (every or not row["outcome"])]
    told = [*lines(others), *failures(opened(store), failed, most=None if every else SHOWN)]
    told.append(", ".join(f"{count:,} {state}" for state, count in counts.most_common()) or f"no runs in {store}")
    typer.echo("\n".join(told))
    complain(damaged)
    if damaged:
        raise typer.Exit(1)


@app.command()
def plot(
    experiment: Question,
    scale: Size = Scale.small,
    store: Folder = Path("runs"),
    figures: Figures = Path("figures"),
) -> None:
    """Draw an experiment's figures from the runs that are done."""
    from bestiary.runs.table import results

    with user_input():
        asked = trained(question(experiment))
        recipes = recipes_of(asked, scale, opened(store))
    table, damaged = results(opened(store), [made.key for made in recipes])
    complain(damaged)
    if table.empty:
        refuse(f"no run of it is done in {store}; first: bestiary run {experiment} --scale {scale}")
    finish(bool(damaged), faceted(asked, table, store), asked, figures / f"{Path(experiment).stem}-{scale}")


def faceted(asked: ModuleType, table: "pd.DataFrame", folder: Path) -> "pd.DataFrame":
    """The table that an experiment reads: by a facet if it names one."""
    from bestiary.runs.facets import by_facet

    if not hasattr(asked, "facet") or table.empty:
        return table
    with user_input():
        return by_facet(opened(folder), table["key"].unique(), asked.facet)[0]


def measured(asked: ModuleType, scale: str, threads: int) -> "pd.DataFrame":
    """The table of an experiment that measures by itself, row by row, and the news that it tells on the way."""
    import pandas as pd
    import torch

    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []
    with user_input():
        for row in asked.measure(scale):
            if news := row.pop("news", ""):
                typer.echo(news, err=True)
            rows += [row] if row else []
            if sys.stderr.isatty():
                typer.echo(f"\rmeasured {len(rows)} rows ", nl=False, err=True)
    typer.echo(f"\rmeasured {len(rows)} rows", err=True)
    return pd.DataFrame(rows)


def carry_out(
    name: str,
    recipes: "Sequence[Recipe]",
    folder: Path,
    *,
    workers: int | None,
    threads: int,
    device: str,
    backend: str,
    keep: bool,
    together: str = "auto",
    ray: str = "",
    gpus: float | None = None,
    slurm: str = "",
    track: str = "",
    detail: bool = False,
) -> "tuple[int, pd.DataFrame]":
    """Check every recipe, run what is not done, and read the results: how many failed, and the table."""
    from bestiary.cli.console import Watch
    from bestiary.runs.table import results
    from bestiary.sweep.trackers import follow_events, make_sinks

    store = opened(folder)
    how = {"workers": workers, "threads": threads, "device": device, "backend": backend, "keep": keep}
    with user_input():
        checked(recipes, device, backend, elsewhere=bool(ray or slurm))
        told = make_sinks(track, group=name, folder=folder.absolute().parent / "tensorboard")
        events = begun(recipes, store, **how, together=together, ray=ray, gpus=gpus, slurm=slurm)
    done = sum(made in store for made in recipes)
    if done:
        typer.echo(f"{done} of {len(recipes)} runs are done already, in {folder}")
    watch, events = Watch(name, total=len(recipes), done=done, detail=detail), follow_events(events, told)
    try:
        failed = watch.follow(events)
    except KeyboardInterrupt:
        typer.echo(
            f"stopped after {watch.done} of {len(recipes)} runs; the same command goes on from there",
            err=True,
        )
        raise
    finally:
        events.close()
    table, damaged = results(store, [made.key for made in recipes])
    complain(damaged)
    if failed:
        explain(store, watch.failures)
    return failed + len(damaged), table


def checked(recipes: "Sequence[Recipe]", device: str, backend: str, *, elsewhere: bool) -> None:
    """Raise ValueError if a recipe cannot be built, or if there is no such device or backend here."""
    from bestiary.ops.backend import use
    from bestiary.training.train import find_device

    if not elsewhere:
        find_device(device)
        use(backend)
    for made in {made.shape_key: made for made in recipes}.values():
        made.check()


def begun(
    recipes: "Sequence[Recipe]", store: "Store", *, ray: str, gpus: float | None, slurm: str, **how: Any
) -> "Generator[Event]":
    """What happens while the recipes are carried out here, on Ray or by Slurm."""
    if ray and slurm:
        raise ValueError("--ray and --slurm are two places; give one")
    if gpus is not None and not ray:
        raise ValueError("--gpus is for --ray; by Slurm give gpus_per_node in --slurm")
    from bestiary.sweep import sweep

    if not (ray or slurm) or all(made in store for made in recipes):
        return sweep(recipes, store, **how)
    if slurm:
        from bestiary.sweep.slurm import slurm_sweep

        return slurm_sweep(recipes, store, slurm, **how)
    from bestiary.sweep.jobs import WorkerConfig
    from bestiary.sweep.ray_cluster import RayCluster

    given = WorkerConfig(str(store.folder.absolute()), how["backend"], how["keep"], how["threads"])
    executor = RayCluster(ray, given, device=how["device"], gpus=gpus, workers=how["workers"])
    return sweep(recipes, store, **how, executor=executor)


def explain(store: "Store", failures: "Sequence[Recipe]") -> None:
    """Each fault once, with its traceback and how many runs ended by it."""
    from bestiary.cli._stands import alike

    for said, trace, keys in alike(store, [made.key for made in failures]):
        typer.echo(f"failed {'once' if len(keys) == 1 else f'{len(keys):,} times'}: {said}\n{trace}", err=True)


def finish(failed: int, table: "pd.DataFrame", asked: ModuleType | None = None, stem: Path = Path()) -> None:
    """Print the table; write it and the figures, for an experiment; exit with 1 if anything failed."""
    from bestiary.cli.console import show as show_table
    from bestiary.runs.table import brief

    if not table.empty:
        shown = brief(table) if asked is None else asked.summary(table)
        show_table(shown)
        if asked is not None:
            from bestiary.report.plot import save

            stem.parent.mkdir(parents=True, exist_ok=True)
            shown.to_csv(stem.with_name(f"{stem.name}.csv"), index=False)
            typer.echo(f"{stem}.csv")
            for name, figure in asked.figures(table):
                for path in save(figure, stem.with_name(stem.name + name)):
                    typer.echo(str(path))
            for path in asked.pages(table, stem) if hasattr(asked, "pages") else ():
                typer.echo(str(path))
    if failed:
        refuse(f"{failed} runs failed; their tracebacks are in failure.txt in their folders", status=1)


def estimate(recipes: "Sequence[Recipe]", device: str, threads: int) -> None:
    """List what would be run, with the time it would take by a measured step of each shape."""
    import pandas as pd
    import torch

    from bestiary.cli.console import show as show_table
    from bestiary.training.train import step_seconds

    torch.set_num_threads(threads)
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for made in recipes:
        line = {"task": str(made.train[0]), "pattern": ", ".join(map(str, made.pattern))}
        line |= {"dim": made.dim, "depth": made.depth}
        row = rows.setdefault(
            tuple(line.values()),
            {**line, "runs": 0, "steps": made.steps, "seconds a step": 0.0, "hours": 0.0},
        )
        if not row["runs"]:
            typer.echo(f"\rmeasuring a step of shape {len(rows)} ...", nl=False, err=True)
            row["seconds a step"] = step_seconds(made, device=device)
        row["runs"] += 1
        row["hours"] += made.steps * row["seconds a step"] / 3600
    typer.echo("", err=True)
    table = pd.DataFrame(rows.values())
    show_table(table)
    typer.echo(
        f"{len(recipes)} runs, about {table['hours'].sum():.1f} hours of one process, less where runs stop early"
    )
