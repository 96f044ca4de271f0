"""Verbs that choose: search, for learning rates, and match, for widths at which models are equally large."""

import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bestiary.cli._app import Backend, Device, Folder, app, refuse, user_input
from bestiary.cli.runs import based_on, carry_out, finish

if TYPE_CHECKING:
    import pandas as pd

    from bestiary.training.recipe import Recipe

Layers = Annotated[str, typer.Option(help="The pattern of mixers, as in 'base_conv, attention'.")]
Named = Annotated[str, typer.Option(help="A named recipe to start from (see `bestiary list recipes`).")]
Task = Annotated[str, typer.Option(help="The task, as in 'mqar(length=128, pairs=8)'.")]


class By(StrEnum):
    """How rates are looked for."""

    grid = "grid"
    halving = "halving"
    optuna = "optuna"


class Count(StrEnum):
    """What is counted where sizes are matched."""

    state = "state"
    parameters = "parameters"
    flops = "flops"


@app.command()
def search(
    settings: Annotated[list[str] | None, typer.Argument(help="Fields of the recipe: dim=128 steps=500 ...")] = None,
    task: Task = "",
    layers: Layers = "attention",
    recipe: Named = "clean",
    low: Annotated[float, typer.Option(help="The lowest learning rate.")] = 1e-4,
    high: Annotated[float, typer.Option(help="The highest learning rate.")] = 1e-1,
    coarse: Annotated[int, typer.Option(min=2, help="Rates of the first grid (grid and halving).")] = 7,
    refine: Annotated[int, typer.Option(min=0, help="How often the window's edges are halved (grid).")] = 2,
    trials: Annotated[int, typer.Option(min=1, help="Rates that Optuna asks for.")] = 20,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each rate.")] = 3,
    by: Annotated[By, typer.Option(help="A grid refined at its edges, successive halving, or Optuna.")] = By.grid,
    store: Folder = Path("runs"),
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at a time; one for each core if not given.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each run.")] = 1,
    device: Device = "cpu",
    backend: Backend = "auto",
) -> None:
    """Find the learning rates that work, and how wide their window is."""
    from bestiary.sweep.search import halving, make_study, optuna_rates, rates

    with user_input():
        made = based_on(recipe, layers, settings or [], task)
        if chosen := [text for text in settings or [] if text.partition("=")[0] in ("rate", "seed")]:
            raise ValueError(f"the search chooses rate and seed ({chosen[0]}); give --low, --high and --seeds")
        grid = [at(made, rate, seed) for rate in rates(low, high, coarse) for seed in range(seeds)]
        if by == By.optuna:
            make_study(0)  # says now if it is missing
    failed = 0
    how = {"workers": workers, "threads": threads, "device": device, "backend": backend, "keep": False}

    def carry(recipes: "list[Recipe]") -> "pd.DataFrame":
        nonlocal failed
        faults, table = carry_out(f"search {layers}", recipes, store, **how)
        failed += faults
        return table

    match by:
        case By.grid:
            table = refined_grid(grid, carry, within=(high / low) ** (0.5**refine / (coarse - 1)))
        case By.halving:
            table = halving(grid, carry)
        case By.optuna:
            asked = [at(made, low, seed) for seed in range(seeds)]
            table = optuna_rates(lambda rate, _: moved(asked, rate), carry, low=low, high=high, trials=trials)
    told(table)
    finish(failed, table.head(0))


def at(recipe: "Recipe", rate: float, seed: int) -> "Recipe":
    return recipe.model_copy(update={"rate": rate, "seed": seed})


def moved(recipes: "list[Recipe]", rate: float) -> "list[Recipe]":
    """The recipes at another rate."""
    return [at(made, rate, made.seed) for made in recipes]


def refined_grid(
    grid: "list[Recipe]", carry: "Callable[[list[Recipe]], pd.DataFrame]", *, within: float
) -> "pd.DataFrame":
    """The results of a grid and of its refinements, until each edge is known to within the factor."""
    import pandas as pd

    from bestiary.sweep.search import refine

    table, asked = carry(grid), {made.key for made in grid}
    while new := [made for made in refine(grid, table, within=within) if made.key not in asked]:
        asked |= {made.key for made in new}
        table = pd.concat([table, carry(new)], ignore_index=True)
    return table


def told(table: "pd.DataFrame") -> None:
    """Each rate with its accuracy over seeds, and a sentence about the window; of longest runs, if lengths differ."""
    from bestiary.cli.console import show as show_table
    from bestiary.runs.table import curve, diverged_as_zero
    from bestiary.sweep.search import window

    if table.empty:
        return
    table = diverged_as_zero(table)
    group = [*(name for name in ("share", "task") if name in table and table[name].nunique() > 1), "rate"]
    selection = table.groupby(group, as_index=False)["selection"].mean()
    rows = selection.merge(curve(table, group=group), on=group).sort_values(group)
    show_table(rows.drop(columns=["solved", "seconds"]))
    if "share" in table:
        table = table[table["share"] == table["share"].max()]
    scores = {float(rate): float(score) for rate, score in table.groupby("rate")["selection"].mean().items()}
    typer.echo(f"best rate {max(scores, key=lambda rate: scores[rate]):g}; {window(scores).describe()}")


@app.command()
def match(
    patterns: Annotated[list[str], typer.Argument(help="Patterns of mixers, and fields of the recipe: dim=128 ...")],
    like: Annotated[str, typer.Option(help="The pattern whose size is matched, as in 'base_conv, based'.")],
    by: Annotated[Count, typer.Option(help="What is to be equal.")] = Count.state,
    task: Task = "",
    recipe: Named = "clean",
    tolerance: Annotated[float, typer.Option(min=0, help="How far from it is still a match.")] = 0.2,
) -> None:
    """Say at which widths patterns have the state, the parameters or the work of another."""
    import pandas as pd

    from bestiary.cli.console import show as show_table
    from bestiary.training.size import Match, match_widths, size

    texts = [text for text in patterns if not re.match(r"\s*\w+=", text)]
    with user_input():
        wanted = based_on(recipe, like, [text for text in patterns if text not in texts], task)
        if not texts:
            refuse("give patterns to match, as in bestiary match 'attention' --like 'base_conv, based'")
        wanted.check()
        found = {like: Match(wanted, 1.0)} | match_widths(texts, wanted, match=by.value, tolerance=tolerance)
    rows: list[dict[str, Any]] = [
        {"pattern": text, "dim": one.recipe.dim, **size(one.recipe)._asdict(), "ratio": f"{one.ratio:.3f}"}
        for text, one in found.items()
    ]
    show_table(pd.DataFrame(rows).rename(columns={"flops": "flops a token"}))
