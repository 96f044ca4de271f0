"""Verbs that make runs and read them: train, run, status and plot."""

import ast
import os
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
    Known,
    Only,
    OptionalExperiment,
    Ray,
    Scale,
    ScaleOption,
    Slurm,
    StoreFolder,
    Together,
    TogetherOption,
    Track,
    With,
    app,
    choose_mixers,
    existing_store,
    known_keys,
    known_results,
    load_experiment,
    load_with_recipes,
    next_recipes,
    open_store,
    recipes_of,
    refuse,
    split_by_facet,
    user_input,
    warn_damaged,
)
from bestiary.cli._errors import refuse_failed
from bestiary.cli._measuring import measure_rows
from bestiary.cli._trust import reading_store

if TYPE_CHECKING:
    from types import ModuleType

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
        int | None, typer.Option(min=1, help="Threads of the run; OMP_NUM_THREADS or one for each core if not given.")
    ] = None,
    device: Device = "cpu",
    backend: Backend = "auto",
    keep: Keep = False,
    track: Track = "",
) -> None:
    """Train one model on one task and score it, beside what guessing scores."""
    from bestiary.cli._estimate import print_diagnosis, print_estimate, print_levels
    from bestiary.sweep import default_threads

    threads = threads or default_threads()
    with user_input():
        chosen = build_recipe(recipe, layers, settings or (), task)
        check_recipes([chosen], device, backend, elsewhere=False)
        done = chosen in open_store(store)
    if not done and backend != "compiled":  # which would be compiled to be measured
        print_estimate(chosen, device=device, threads=threads)
    how = {"workers": 1, "threads": threads, "device": device, "backend": backend, "keep": keep}
    failed, table = run_recipes("train", [chosen], store, **how, track=track, detail=True)
    if not table.empty:
        print_levels(chosen, table)
        print_diagnosis(chosen, open_store(store))
    show_results(failed, table)


def build_recipe(recipe: str, layers: str, settings: Iterable[str], task: str = "") -> "Recipe":
    """A named recipe with some of its fields changed. Raises LookupError or ValueError."""
    from bestiary.spec import nearest
    from bestiary.training.recipe import NAMED

    if recipe not in NAMED:
        raise LookupError(f"there is no recipe {recipe!r} {nearest(recipe, NAMED)}")
    found = parse_settings(settings)
    if task and "train" in found:
        raise ValueError(f"two tasks are given: --task {task} and train={found['train']}")
    return NAMED[recipe](layers, **(found | ({"train": task} if task else {})))


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Settings by name. Raises ValueError for one that is given twice, and for the pattern, which is no setting."""
    found: dict[str, Any] = {}
    for text in settings:
        name, value = parse_setting(text)
        if name == "pattern":
            raise ValueError(f"{text}: mixers are given by --layers, or to `pretrain` before the settings")
        if name in found:
            raise ValueError(f"{name} is given twice: {name}={found[name]} and {text}")
        found[name] = value
    return found


def parse_setting(text: str) -> tuple[str, Any]:
    """`rate=1e-3` as a name and a value; what is no literal of Python stays text. Raises ValueError."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"{text!r} is not a setting; write name=value, as in dim=128")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return name, value


@app.command()
def run(
    experiment: ExperimentName,
    scale: ScaleOption = Scale.small,
    added: With = None,
    only: Only = "",
    known: Known = None,
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
    patience: Annotated[
        float | None,
        typer.Option(min=1, help="End a worker that has given no measurement for so many seconds, and try again."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the runs, with an estimate of their time.")
    ] = False,
) -> None:
    """Carry out an experiment and draw its figures. The same command again goes on where it stopped."""
    from bestiary.cli._estimate import list_left
    from bestiary.report.words import count_noun
    from bestiary.runs.exports import add_known

    with user_input():
        module, recipes = choose_recipes(experiment, scale, added, only)
        before = known_results(known, module)
    stem = figures / f"{Path(experiment).stem}-{scale}"
    how = {"workers": workers, "threads": threads, "device": device, "backend": backend, "keep": keep}
    how |= {"together": together.value, "ray": ray, "gpus": gpus, "slurm": slurm, "track": track, "patience": patience}
    if hasattr(module, "measure"):
        usual = {"threads": threads, "device": "cpu", "backend": "auto", "together": "auto", "store": Path("runs")}
        if given := [f"--{name}" for name, one in (how | {"store": store}).items() if one and one != usual.get(name)]:
            refuse(f"{experiment} measures by itself, on this machine, and takes no {', '.join(given)}")
        if dry_run:
            typer.echo(f"{experiment} measures by itself, with no list of runs; without --dry-run it is carried out")
            return
        show_results(0, measure_rows(module, scale, threads, before), module, stem, smoke=scale == Scale.smoke)
        return
    elsewhere = known_keys(before, recipes, known)
    if dry_run:
        left = [recipe for recipe in recipes if recipe.key not in elsewhere]
        with user_input():
            check_recipes(left, device, backend, elsewhere=False)
            list_left(left, open_store(store), device=device, threads=threads)
        return
    while True:
        left = [recipe for recipe in recipes if recipe.key not in elsewhere]
        failed, table = run_recipes(f"{experiment} {scale}", left, store, **how)
        table = add_known(split_by_facet(module, table, store), before, [recipe.key for recipe in recipes])
        more = next_recipes(module, table, scale, recipes)
        if not more:
            break
        typer.echo(f"{count_noun(len(more), 'run')} more, after those")
        recipes += more
    show_results(failed, table, module, stem, smoke=scale == Scale.smoke)


def choose_recipes(
    name: str, scale: str, added: "Sequence[str] | None", only: str
) -> "tuple[ModuleType, list[Recipe]]":
    """An experiment with the mixers that are chosen, and its recipes, none if it measures by itself.

    Raises ValueError where the choice changes nothing, as at scales that run what was published.
    """
    own = load_experiment(name)
    module = choose_mixers(own, added, only)
    if hasattr(module, "measure"):
        return module, []
    recipes = list(module.recipes(scale))
    chosen = module is not own and (not hasattr(own, "MIXERS") or module.MIXERS != own.MIXERS)
    if chosen and [recipe.key for recipe in recipes] == [recipe.key for recipe in own.recipes(scale)]:
        raise ValueError(f"{name} runs the same at scale {scale}, whatever --with and --only choose")
    return module, list({recipe.key: recipe for recipe in recipes}.values())  # a mixer may be put beside itself


@app.command()
def status(
    experiment: OptionalExperiment = "",
    scale: ScaleOption = Scale.small,
    store: StoreFolder = Path("runs"),
    added: With = None,
    only: Only = "",
    every: Annotated[bool, typer.Option("--all", help="A line for every run, not only for those not done.")] = False,
) -> None:
    """Say how many runs are done or to come, and which are at work, interrupted or failed, and why."""
    from bestiary.cli._status import SHOWN, failure_lines, run_lines
    from bestiary.runs.table import run_states

    with user_input():
        module = choose_mixers(load_with_recipes(experiment), added, only) if experiment else None
        runs = existing_store(store)
        recipes = None if module is None else recipes_of(module, scale, runs)
    rows, damaged = run_states(runs, recipes)
    counts = Counter(row["state"].partition(":")[0] for row in rows)
    failed = [row for row in rows if row["state"] == "failed"]
    others = [row for row in rows if row["state"] not in ("failed", "to come") and (every or not row["outcome"])]
    lines = [*run_lines(others), *failure_lines(runs, failed, most=None if every else SHOWN)]
    if unchecked := sum(not row.get("checked", True) for row in rows):
        count = "1 run is" if unchecked == 1 else f"{unchecked:,} runs are"
        lines.append(f"{count} unchecked: version 0.1 wrote no digests of files")
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
    added: With = None,
    only: Only = "",
    known: Known = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A .csv file of `bestiary export EXPERIMENT`, in place of a store.")
    ] = None,
) -> None:
    """Draw an experiment's figures from the runs that are done, or from a file of their results."""
    from bestiary.runs.exports import add_known
    from bestiary.runs.table import results

    if source is not None:
        if added or only or known is not None:
            refuse("--from has all its results from one file; --with, --only and --known do not go with it")
        plot_file(experiment, source, figures)
        return
    with user_input():
        module = choose_mixers(load_with_recipes(experiment), added, only)
        if not store.exists():
            raise LookupError(f"no run of it is done: {store} does not exist; {first(experiment, scale, store)}")
        runs, before = existing_store(store), known_results(known, module)
        keys = [recipe.key for recipe in recipes_of(module, scale, runs, before)]
    table, damaged = results(runs, keys)
    table = add_known(split_by_facet(module, table, store), before, keys)
    warn_damaged(damaged)
    if table.empty:
        refuse(f"no run of it is done in {store}; {first(experiment, scale, store)}")
    stem = figures / f"{Path(experiment).stem}-{scale}"
    show_results(0, table, module, stem, smoke=scale == Scale.smoke)
    if damaged:
        raise typer.Exit(1)


def plot_file(experiment: str, source: Path, figures: Path) -> None:
    """Print and draw the results in a file of `export`; the figures are named like the file."""
    from bestiary.runs.exports import describe_origin, read_table

    with user_input():
        module = load_experiment(experiment)
        table = read_table(source)
        if table.empty:
            raise ValueError(f"{str(source)!r} has no rows")
    show_results(0, table, module, figures / source.stem, smoke=source.stem.endswith("-smoke"), pages=False)
    typer.echo(describe_origin(table))


def first(experiment: str, scale: str, store: Path) -> str:
    """The command that makes the runs of an experiment, as the end of a message."""
    where = "" if store == Path("runs") else f" --store {store}"
    return f"first: bestiary run {experiment} --scale {scale}{where}"


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
    patience: float | None = None,
    detail: bool = False,
) -> "tuple[int, pd.DataFrame]":
    """Check every recipe, run what is not done, and read the results. Returns how many failed, and the table."""
    from bestiary.cli.console import ProgressDisplay
    from bestiary.report.words import count_noun
    from bestiary.runs.table import results
    from bestiary.sweep import start_server
    from bestiary.sweep.trackers import follow_events, make_sinks

    store = open_store(folder)
    done = sum(recipe in store for recipe in recipes)
    if done < len(recipes) and not (ray or slurm):
        start_server()  # it takes seconds, in which the recipes are checked
    how = {"workers": workers, "threads": threads, "device": device, "backend": backend, "keep": keep}
    with user_input():
        check_recipes(recipes, device, backend, elsewhere=bool(ray or slurm))
        trackers = make_sinks(track, group=name, folder=folder.absolute().parent / "tensorboard")
        how |= {"together": together, "patience": patience}
        events = start_sweep(recipes, store, **how, ray=ray, gpus=gpus, slurm=slurm)
    if done:
        typer.echo(f"{done} of {count_noun(len(recipes), 'run')} done already, in {folder}")
    display, events = (
        ProgressDisplay(name, recipes, done=done, detail=detail),
        follow_events(events, trackers),
    )
    try:
        failed = display.follow(events)
    except KeyboardInterrupt:
        typer.echo(
            f"stopped after {display.done} of {count_noun(len(recipes), 'run')}; the same command goes on from there",
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

    config = WorkerConfig(str(store.folder.absolute()), **{name: how[name] for name in ("backend", "keep", "threads")})
    executor = RayCluster(ray, config, device=how["device"], gpus=gpus, workers=how["workers"])
    return sweep(recipes, store, **how, executor=executor)


def print_failures(store: "Store", failures: "Sequence[Recipe]") -> None:
    """Print each error once, with its traceback and how many runs failed by it."""
    from bestiary.cli._status import group_failures

    for last_line, trace, keys in group_failures(store, [recipe.key for recipe in failures]):
        typer.echo(f"failed {'once' if len(keys) == 1 else f'{len(keys):,} times'}: {last_line}\n{trace}", err=True)


@reading_store()
def show_results(
    failed: int,
    table: "pd.DataFrame",
    experiment: ModuleType | None = None,
    stem: Path = Path(),
    *,
    smoke: bool = False,
    pages: bool = True,
) -> None:
    """Print the table, and write it with the figures of an experiment. Exits with status 1 if a run failed.

    Figures of the `smoke` scale are marked as such: their models are hardly trained. Further `pages` of an experiment
    may read more than the table.
    """
    from bestiary.cli.console import print_table
    from bestiary.runs.table import brief

    if not table.empty:
        try:
            shown = brief(table) if experiment is None else experiment.summary(table)
        except KeyError as fault:
            if os.environ.get("BESTIARY_TRACEBACK"):
                raise
            refuse(f"`summary` asks for {fault}, which is no column of the results; those are {', '.join(table)}")
        print_table(shown)
        if experiment is not None:
            from bestiary.cli.data import write_summary
            from bestiary.report.plot import mark_smoke, save_figure

            with user_input():
                write_summary(shown, stem.with_name(f"{stem.name}.csv"))
            typer.echo(f"{stem}.csv")
            for name, figure in experiment.figures(table):
                if smoke:
                    mark_smoke(figure)
                for path in save_figure(figure, stem.with_name(stem.name + name)):
                    typer.echo(str(path))
            for path in experiment.pages(table, stem) if pages and hasattr(experiment, "pages") else ():
                typer.echo(str(path))
    refuse_failed(failed)
