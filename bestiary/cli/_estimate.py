"""How long runs will take, by a measured training step; and what guessing would score beside a result."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from bestiary.cli._progress import StatusLine, format_seconds

if TYPE_CHECKING:
    import pandas as pd

    from bestiary.runs.store import Store
    from bestiary.training.recipe import Recipe


def run_seconds(recipe: "Recipe", step: float) -> float:
    """About how long a run takes that does not stop early, evaluations included, where a mean step takes so long."""
    from bestiary.sweep.cost import PASSES, scored_tokens, training_tokens

    return step * recipe.steps * (1 + scored_tokens(recipe) / PASSES / training_tokens(recipe))


def print_estimate(recipe: "Recipe", *, device: str, threads: int) -> None:
    """Say how long a run will take, before it begins. A model that fails here fails in its run, with a traceback."""
    import torch

    from bestiary.report.words import count_noun
    from bestiary.training.train import step_seconds

    torch.set_num_threads(threads)
    try:
        step = step_seconds(recipe, device=device)
    except Exception:
        return
    finally:
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    total, steps = format_seconds(run_seconds(recipe, step)), count_noun(recipe.steps, "step")
    typer.echo(f"about {total}: {steps} of {format_seconds(step)} and the evaluations, less if it stops early")


def list_left(recipes: "Sequence[Recipe]", store: "Store", *, device: str, threads: int) -> None:
    """List what a store does not have yet, as `list_runs` does."""
    from bestiary.report.words import count_noun

    left = [recipe for recipe in recipes if recipe not in store]
    if len(left) < len(recipes):
        typer.echo(f"{len(recipes) - len(left)} of {count_noun(len(recipes), 'run')} done already, in {store.folder}")
    if left:
        list_runs(left, device=device, threads=threads)


def list_runs(recipes: "Sequence[Recipe]", *, device: str, threads: int) -> None:
    """List what would be run, with the time it would take: a training step of each shape is measured."""
    import pandas as pd
    import torch

    from bestiary.cli.console import print_table
    from bestiary.report.words import count_noun
    from bestiary.training.train import step_seconds

    torch.set_num_threads(threads)
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    with StatusLine() as progress:
        for recipe in recipes:
            row = {"task": str(recipe.train[0]), "pattern": ", ".join(map(str, recipe.pattern))}
            row |= {"dim": recipe.dim, "depth": recipe.depth, "optimizer": recipe.optimizer}
            shape = (*row.values(), recipe.train)
            row = rows.setdefault(shape, {**row, "runs": 0, "steps": recipe.steps, "total": 0.0})
            if not row["runs"]:
                progress.show(f"measuring a step of shape {len(rows)} ...")
                row["step"] = step_seconds(recipe, device=device)
            row["runs"] += 1
            row["total"] += run_seconds(recipe, row["step"])
    table = pd.DataFrame(rows.values())
    seconds = table["total"].sum()
    times = {"a step": table.pop("step").map(format_seconds), "all runs": table.pop("total").map(format_seconds)}
    print_table(table.assign(**times))
    typer.echo(
        f"{count_noun(len(recipes), 'run')}, about {format_seconds(seconds)} of one process, less where runs stop early"
    )


def print_levels(recipe: "Recipe", table: "pd.DataFrame") -> None:
    """Say what guessing scores on each test segment, and whether the result is above it."""
    from bestiary.report.levels import level_text, task_levels, verdict
    from bestiary.runs.intervals import wilson

    for row in table.itertuples():
        levels = task_levels([recipe.test[int(row.segment)].build()])
        if not levels:
            continue
        line = level_text(levels)
        if row.asked == row.asked:  # a run that diverged has no answers
            low, high = wilson(row.accuracy, int(row.asked))
            line += f" The accuracy {row.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f}) {verdict(low, levels)}."
        typer.echo(f"{row.task}: {line}" if len(table) > 1 else line)


def print_diagnosis(recipe: "Recipe", store: "Store") -> None:
    """Say why a run may not have learnt its task; nothing if it has."""
    from bestiary.report.doctor import diagnose, finding_lines

    if found := diagnose(recipe, store.read(recipe.key).log):
        typer.echo("why it may not have learnt the task, the likeliest cause first:")
        for line in finding_lines(found):
            typer.echo(f"  {line}")
