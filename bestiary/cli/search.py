"""Verbs that choose: search finds learning rates, match finds widths at which models are equally large."""

import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bestiary.cli._app import Backend, Device, StoreFolder, app, refuse, user_input
from bestiary.cli.runs import build_recipe, run_recipes, show_results

if TYPE_CHECKING:
    import pandas as pd

    from bestiary.training.recipe import Recipe

Layers = Annotated[str, typer.Option(help="The pattern of mixers, as in 'base_conv, attention'.")]
RecipeName = Annotated[str, typer.Option(help="A named recipe to start from (see `bestiary list recipes`).")]
Task = Annotated[str, typer.Option(help="The task, as in 'mqar(length=128, pairs=8)'.")]


class SearchMethod(StrEnum):
    """How learning rates are searched."""

    grid = "grid"
    halving = "halving"
    optuna = "optuna"


class MatchedSize(StrEnum):
    """What is to be equal where sizes are matched."""

    state = "state"
    parameters = "parameters"
    flops = "flops"


@app.command()
def search(
    settings: Annotated[list[str] | None, typer.Argument(help="Fields of the recipe: dim=128 steps=500 ...")] = None,
    task: Task = "",
    layers: Layers = "attention",
    recipe: RecipeName = "clean",
    low: Annotated[float, typer.Option(help="The lowest learning rate.")] = 1e-4,
    high: Annotated[float, typer.Option(help="The highest learning rate.")] = 1e-1,
    coarse: Annotated[int, typer.Option(min=2, max=1000, help="Rates of the first grid (grid and halving).")] = 7,
    refine: Annotated[int, typer.Option(min=0, max=16, help="How often the window's edges are halved (grid).")] = 2,
    trials: Annotated[int, typer.Option(min=1, max=10_000, help="Rates that Optuna asks for.")] = 20,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Seeds of each rate.")] = 3,
    by: Annotated[
        SearchMethod, typer.Option(help="A grid refined at its edges, successive halving, or Optuna.")
    ] = SearchMethod.grid,
    store: StoreFolder = Path("runs"),
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at a time; one for each core if not given.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each run.")] = 1,
    device: Device = "cpu",
    backend: Backend = "auto",
) -> None:
    """Find the learning rates that work, and how wide their window is."""
    from bestiary.sweep.search import halving, make_study, optuna_rates, rates

    with user_input():
        base = build_recipe(recipe, layers, settings or [], task)
        if chosen := [text for text in settings or [] if text.partition("=")[0] in ("rate", "seed")]:
            raise ValueError(f"the search chooses rate and seed ({chosen[0]}); give --low, --high and --seeds")
        if base.floor > low:
            raise ValueError(f"rates from --low={low:g} on cannot end at floor={base.floor:g}, which is higher")
        grid = [at_rate_and_seed(base, rate, seed) for rate in rates(low, high, coarse) for seed in range(seeds)]
        if by == SearchMethod.optuna:
            make_study(0)  # says now if it is missing
    failed = 0
    how = {"workers": workers, "threads": threads, "device": device, "backend": backend, "keep": False}

    def run_all(recipes: "list[Recipe]") -> "pd.DataFrame":
        nonlocal failed
        faults, table = run_recipes(f"search {layers}", recipes, store, **how)
        failed += faults
        return table

    match by:
        case SearchMethod.grid:
            table = run_refined_grid(grid, run_all, within=(high / low) ** (0.5**refine / (coarse - 1)))
        case SearchMethod.halving:
            table = halving(grid, run_all)
        case SearchMethod.optuna:
            at_low = [at_rate_and_seed(base, low, seed) for seed in range(seeds)]
            table = optuna_rates(lambda rate, _: at_rate(at_low, rate), run_all, low=low, high=high, trials=trials)
    print_rates(table)
    show_results(failed, table.head(0))


def at_rate_and_seed(recipe: "Recipe", rate: float, seed: int) -> "Recipe":
    """The recipe at another learning rate and seed."""
    return recipe.model_copy(update={"rate": rate, "seed": seed})


def at_rate(recipes: "list[Recipe]", rate: float) -> "list[Recipe]":
    """The recipes at another learning rate."""
    return [at_rate_and_seed(recipe, rate, recipe.seed) for recipe in recipes]


def run_refined_grid(
    grid: "list[Recipe]", run_all: "Callable[[list[Recipe]], pd.DataFrame]", *, within: float
) -> "pd.DataFrame":
    """The results of a grid and of its refinements, until each edge is known to within the factor."""
    import pandas as pd

    from bestiary.sweep.search import refine

    table, known = run_all(grid), {recipe.key for recipe in grid}
    while new := [recipe for recipe in refine(grid, table, within=within) if recipe.key not in known]:
        known |= {recipe.key for recipe in new}
        table = pd.concat([table, run_all(new)], ignore_index=True)
    return table


def print_rates(table: "pd.DataFrame") -> None:
    """Print the accuracy of each rate over seeds, and the window of rates that work.

    Where runs differ in length (`share`), the longest count, and there is no window: few rates got so far. Rates of
    which seeds are missing are named, and not compared.
    """
    from bestiary.cli.console import print_table
    from bestiary.runs.table import curve, diverged_as_zero
    from bestiary.sweep.search import window, with_all_seeds

    if table.empty:
        return
    table = diverged_as_zero(table)
    group = [*(name for name in ("share", "task") if name in table and table[name].nunique() > 1), "rate"]
    selection = table.groupby(group, as_index=False)["selection"].mean()
    rows = selection.merge(curve(table, group=group), on=group).sort_values(group)
    print_table(rows.drop(columns=["solved", "seconds"]))
    if "share" in table:
        table = table[table["share"] == table["share"].max()]
    known = with_all_seeds(table)
    scores = {float(rate): float(score) for rate, score in known.groupby("rate")["selection"].mean().items()}
    halved = "share" in table
    found = "halving finds no window of rates that work, --by grid does" if halved else window(scores).describe()
    typer.echo(f"best rate {max(scores, key=lambda rate: scores[rate]):g}; {found}")
    if lacking := sorted(set(table["rate"]) - scores.keys()):
        typer.echo(f"left out, as seeds are missing: {', '.join(f'{rate:g}' for rate in lacking)}")


@app.command()
def match(
    patterns: Annotated[list[str], typer.Argument(help="Patterns of mixers, and fields of the recipe: dim=128 ...")],
    like: Annotated[str, typer.Option(help="The pattern whose size is matched, as in 'base_conv, based'.")],
    by: Annotated[MatchedSize, typer.Option(help="What is to be equal.")] = MatchedSize.state,
    task: Task = "",
    recipe: RecipeName = "clean",
    tolerance: Annotated[float, typer.Option(min=0, help="How far from it is still a match.")] = 0.2,
) -> None:
    """Say at which widths patterns have the state, the parameters or the work of another."""
    import pandas as pd

    from bestiary.cli.console import print_table
    from bestiary.spec import parse
    from bestiary.training.size import Match, match_width, size

    layer_patterns = [text for text in patterns if not re.match(r"\s*\w+=", text)]
    with user_input():
        reference = build_recipe(recipe, like, [text for text in patterns if text not in layer_patterns], task)
        if not layer_patterns:
            refuse("give patterns to match, as in bestiary match 'attention' --like 'base_conv, based'")
        reference.check()
        matches, misses = {like: Match(reference, 1.0)}, []
        for text in layer_patterns:
            parse("mixers", text)  # what is no pattern ends this; what has no match is told beside the others
            try:
                matches[text] = match_width(text, reference, match=by.value, tolerance=tolerance)
            except ValueError as fault:
                misses.append(str(fault))
    rows: list[dict[str, Any]] = [
        {"pattern": text, "dim": one.recipe.dim, **size(one.recipe)._asdict(), "ratio": f"{one.ratio:.3f}"}
        for text, one in matches.items()
    ]
    print_table(pd.DataFrame(rows).rename(columns={"flops": "flops a token"}))
    if misses:
        refuse("\nbestiary: ".join(misses), status=1)
