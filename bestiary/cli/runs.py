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
    Device,
    ExperimentName,
    FiguresFolder,
    Gpus,
    Keep,
    Ray,
    Scale,
    ScaleOption,
    Slurm,
    StoreFolder,
    Together,
    TogetherOption,
    Track,
    app,
    load_experiment,
    load_with_recipes,
    next_recipes,
    open_store,
    recipes_of,
    refuse,
    user_input,
    warn_damaged,
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
    store: StoreFolder = Path("runs"),
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
        chosen = build_recipe(recipe, layers, settings or (), task)
    how = {"workers": 1, "threads": threads or cores(), "device": device, "backend": backend, "keep": keep}
    show_results(*run_recipes("train", [chosen], store, **how, track=track, detail=True))


def build_recipe(recipe: str, layers: str, settings: Iterable[str], task: str = "") -> "Recipe":
    """A named recipe with some of its fields changed. Raises LookupError or ValueError."""
    from bestiary.spec import nearest
    from bestiary.training.recipe import NAMED

    if recipe not in NAMED:
        raise LookupError(f"there is no recipe {recipe!r} {nearest(recipe, NAMED)}")
    return NAMED[recipe](layers, **(dict(parse_setting(text) for text in settings) | ({"train": task} if task else {})))


def parse_setting(text: str) -> tuple[str, Any]:
    """`rate=1e-3` as a name and a value; what is no literal of Python stays text. Raises ValueError."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"{text!r} is not a setting; write name=value, as in dim=128")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


@app.command()
def run(
    experiment: ExperimentName,
    scale: ScaleOption = Scale.small,
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at a time; one for each core if not given.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each run.")] = 1,
    store: StoreFolder = Path("runs"),
    figures: FiguresFolder = Path("figures"),
    device: Device = "cpu",
    backend: Backend = "auto",
    together: TogetherOption = Together.auto,
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
        module = load_experiment(experiment)
        recipes = [] if hasattr(module, "measure") else list(module.recipes(scale))
    stem = figures / f"{Path(experiment).stem}-{scale}"
    if hasattr(module, "measure"):
        if workers is not None or device != "cpu" or ray or slurm:
            refuse(
                f"{experiment} measures by itself, on this machine: --workers, --device, --ray, --slurm are for others"
            )
        if dry_run:
            typer.echo(f"{experiment} measures by itself, with no list of runs; without --dry-run it is carried out")
            return
        show_results(0, measure_rows(module, scale, threads), module, stem)
        return
    if dry_run:
        estimate_time(recipes, device, threads)
        return
    how = {"workers": workers, "threads": threads, "device": device, "backend": backend, "keep": keep}
    how |= {"together": together.value, "ray": ray, "gpus": gpus, "slurm": slurm, "track": track}
    failed, table = run_recipes(f"{experiment} {scale}", recipes, store, **how)
    while more := next_recipes(module, table, scale, recipes):
        typer.echo(f"{len(more)} runs more, after those")
        recipes += more
        failed, table = run_recipes(f"{experiment} {scale}", recipes, store, **how)
    show_results(failed, split_by_facet(module, table, store), module, stem)


@app.command()
def status(
    experiment: Annotated[str, typer.Argument(help="An experiment; every run in the store if left out.")] = "",
    scale: ScaleOption = Scale.small,
    store: StoreFolder = Path("runs"),
    every: Annotated[bool, typer.Option("--all", help="A line for every run, not only for those not done.")] = False,
) -> None:
    """Say how many runs are done or to come, and which are at work, interrupted or failed, and why."""
    from bestiary.cli._status import SHOWN, failure_lines, run_lines
    from bestiary.runs.table import run_states

    with user_input():
        recipes = recipes_of(load_with_recipes(experiment), scale, open_store(store)) if experiment else None
    rows, damaged = run_states(open_store(store), recipes)
    counts = Counter(row["state"].partition(":")[0] for row in rows)
    failed = [row for row in rows if row["state"] == "failed"]
    others = [row for row in rows if row["state"] not in ("failed", "to come") and (every or not row["outcome"])]
    lines = [*run_lines(others), *failure_lines(open_store(store), failed, most=None if every else SHOWN)]
    if unchecked := sum(not row.get("checked", True) for row in rows):
        runs = "1 run is" if unchecked == 1 else f"{unchecked:,} runs are"
        lines.append(f"{runs} unchecked: version 0.1 wrote no digests of files")
    lines.append(", ".join(f"{count:,} {state}" for state, count in counts.most_common()) or f"no runs in {store}")
    typer.echo("\n".join(lines))
    warn_damaged(damaged)
    if damaged:
        raise typer.Exit(1)


@app.command()
def plot(
    experiment: ExperimentName,
    scale: ScaleOption = Scale.small,
    store: StoreFolder = Path("runs"),
    figures: FiguresFolder = Path("figures"),
) -> None:
    """Draw an experiment's figures from the runs that are done."""
    from bestiary.runs.table import results

    with user_input():
        module = load_with_recipes(experiment)
        recipes = recipes_of(module, scale, open_store(store))
    table, damaged = results(open_store(store), [recipe.key for recipe in recipes])
    warn_damaged(damaged)
    if table.empty:
        refuse(f"no run of it is done in {store}; first: bestiary run {experiment} --scale {scale}")
    show_results(
        bool(damaged), split_by_facet(module, table, store), module, figures / f"{Path(experiment).stem}-{scale}"
    )


def split_by_facet(experiment: ModuleType, table: "pd.DataFrame", folder: Path) -> "pd.DataFrame":
    """The table that an experiment reads: one row for each value of its facet, if it names one."""
    from bestiary.runs.facets import by_facet

    if not hasattr(experiment, "facet") or table.empty:
        return table
    with user_input():
        return by_facet(open_store(folder), table["key"].unique(), experiment.facet)[0]


def measure_rows(experiment: ModuleType, scale: str, threads: int) -> "pd.DataFrame":
    """The table of an experiment that measures by itself; its messages are printed on the way."""
    import pandas as pd
    import torch

    torch.set_num_threads(threads)
    rows: list[dict[str, Any]] = []
    with user_input():
        for row in experiment.measure(scale):
            if news := row.pop("news", ""):
                typer.echo(news, err=True)
            rows += [row] if row else []
            if sys.stderr.isatty():
                typer.echo(f"\rmeasured {len(rows)} rows ", nl=False, err=True)
    typer.echo(f"\rmeasured {len(rows)} rows", err=True)
    return pd.DataFrame(rows)


def run_recipes(
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
    """Check every recipe, run what is not done, and read the results. Returns how many failed, and the table."""
    from bestiary.cli.console import ProgressDisplay
    from bestiary.runs.table import results
    from bestiary.sweep.trackers import follow_events, make_sinks

    store = open_store(folder)
    how = {"workers": workers, "threads": threads, "device": device, "backend": backend, "keep": keep}
    with user_input():
        check_recipes(recipes, device, backend, elsewhere=bool(ray or slurm))
        trackers = make_sinks(track, group=name, folder=folder.absolute().parent / "tensorboard")
        events = start_sweep(recipes, store, **how, together=together, ray=ray, gpus=gpus, slurm=slurm)
    done = sum(recipe in store for recipe in recipes)
    if done:
        typer.echo(f"{done} of {len(recipes)} runs are done already, in {folder}")
    display, events = (
        ProgressDisplay(name, total=len(recipes), done=done, detail=detail),
        follow_events(events, trackers),
    )
    try:
        failed = display.follow(events)
    except KeyboardInterrupt:
        typer.echo(
            f"stopped after {display.done} of {len(recipes)} runs; the same command goes on from there",
            err=True,
        )
        raise
    finally:
        events.close()
    table, damaged = results(store, [recipe.key for recipe in recipes])
    warn_damaged(damaged)
    if failed:
        print_failures(store, display.failures)
    return failed + len(damaged), table


def check_recipes(recipes: "Sequence[Recipe]", device: str, backend: str, *, elsewhere: bool) -> None:
    """Raise ValueError if a recipe cannot be built, or if there is no such device or backend here."""
    from bestiary.ops.backend import use
    from bestiary.training.train import find_device

    if not elsewhere:
        find_device(device)
        use(backend)
    for recipe in {recipe.shape_key: recipe for recipe in recipes}.values():
        recipe.check()


def start_sweep(
    recipes: "Sequence[Recipe]", store: "Store", *, ray: str, gpus: float | None, slurm: str, **how: Any
) -> "Generator[Event]":
    """The events of a sweep that runs the recipes here, on Ray or by Slurm. Raises ValueError if options clash."""
    if ray and slurm:
        raise ValueError("--ray and --slurm are two places; give one")
    if gpus is not None and not ray:
        raise ValueError("--gpus is for --ray; by Slurm give gpus_per_node in --slurm")
    from bestiary.sweep import sweep

    if not (ray or slurm) or all(recipe in store for recipe in recipes):
        return sweep(recipes, store, **how)
    if slurm:
        from bestiary.sweep.slurm import slurm_sweep

        return slurm_sweep(recipes, store, slurm, **how)
    from bestiary.sweep.jobs import WorkerConfig
    from bestiary.sweep.ray_cluster import RayCluster

    config = WorkerConfig(str(store.folder.absolute()), how["backend"], how["keep"], how["threads"])
    executor = RayCluster(ray, config, device=how["device"], gpus=gpus, workers=how["workers"])
    return sweep(recipes, store, **how, executor=executor)


def print_failures(store: "Store", failures: "Sequence[Recipe]") -> None:
    """Print each error once, with its traceback and how many runs failed by it."""
    from bestiary.cli._status import group_failures

    for last_line, trace, keys in group_failures(store, [recipe.key for recipe in failures]):
        typer.echo(f"failed {'once' if len(keys) == 1 else f'{len(keys):,} times'}: {last_line}\n{trace}", err=True)


def show_results(failed: int, table: "pd.DataFrame", experiment: ModuleType | None = None, stem: Path = Path()) -> None:
    """Print the table, and write it with the figures of an experiment. Exits with status 1 if a run failed."""
    from bestiary.cli.console import print_table
    from bestiary.runs.table import brief

    if not table.empty:
        shown = brief(table) if experiment is None else experiment.summary(table)
        print_table(shown)
        if experiment is not None:
            from bestiary.report.plot import save_figure

            stem.parent.mkdir(parents=True, exist_ok=True)
            shown.to_csv(stem.with_name(f"{stem.name}.csv"), index=False)
            typer.echo(f"{stem}.csv")
            for name, figure in experiment.figures(table):
                for path in save_figure(figure, stem.with_name(stem.name + name)):
                    typer.echo(str(path))
            for path in experiment.pages(table, stem) if hasattr(experiment, "pages") else ():
                typer.echo(str(path))
    if failed:
        refuse(f"{failed} runs failed; their tracebacks are in failure.txt in their folders", status=1)


def estimate_time(recipes: "Sequence[Recipe]", device: str, threads: int) -> None:
    """List what would be run, with the time it would take: a training step of each shape is measured."""
    import pandas as pd
    import torch

    from bestiary.cli.console import print_table
    from bestiary.training.train import step_seconds

    torch.set_num_threads(threads)
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for recipe in recipes:
        line = {"task": str(recipe.train[0]), "pattern": ", ".join(map(str, recipe.pattern))}
        line |= {"dim": recipe.dim, "depth": recipe.depth}
        row = rows.setdefault(
            tuple(line.values()),
            {**line, "runs": 0, "steps": recipe.steps, "seconds a step": 0.0, "hours": 0.0},
        )
        if not row["runs"]:
            typer.echo(f"\rmeasuring a step of shape {len(rows)} ...", nl=False, err=True)
            row["seconds a step"] = step_seconds(recipe, device=device)
        row["runs"] += 1
        row["hours"] += recipe.steps * row["seconds a step"] / 3600
    typer.echo("", err=True)
    table = pd.DataFrame(rows.values())
    print_table(table)
    typer.echo(
        f"{len(recipes)} runs, about {table['hours'].sum():.1f} hours of one process, less where runs stop early"
    )
