"""The verb that says what a model does when it recalls."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.cli._app import Overwrite, StoreFolder, app, existing_store, refuse, user_input
from bestiary.cli._progress import StatusLine
from bestiary.cli._trust import TrustFiles

if TYPE_CHECKING:
    import pandas as pd

    from bestiary.model import Model
    from bestiary.runs.store import Store
    from bestiary.training.recipe import Recipe

MARK = "<title>Explanation: "  # by which a page of ours is known


@app.command()
def explain(
    keys: Annotated[list[str], typer.Argument(help="Keys of runs that kept their weights, to compare if several.")],
    task: Annotated[str, typer.Option(help="Another task than the one of the run's test.")] = "",
    cases: Annotated[int, typer.Option(min=8, help="Rows that are changed and patched.")] = 64,
    rows: Annotated[int, typer.Option(min=8, help="Rows that are answered.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the rows, from the test stream.")] = 0,
    watch: Annotated[
        int | None, typer.Option(min=1, help="Train the runs once more, and look every so many steps what forms.")
    ] = None,
    store: StoreFolder = Path("runs"),
    out: Annotated[Path, typer.Option(help="The page.")] = Path("explanation.html"),
    overwrite: Overwrite = False,
    _files: TrustFiles = None,
) -> None:
    """Say what trained models do when they recall, and write it as a page.

    Counts mistakes by kind, changes rows and sees whether the answers follow, exchanges streams and states between
    rows to find where a pair is bound and what carries it, takes parts out, and reads the memory. For tasks in which an
    answer stood behind an earlier occurrence of the asked token. A run keeps its weights with --keep.
    """
    from bestiary.cli.console import print_table
    from bestiary.explain.cases import draw_cases
    from bestiary.explain.explanation import explain_model, words
    from bestiary.explain.page import page
    from bestiary.explain.player import played_row
    from bestiary.report.command import pattern_text
    from bestiary.spec import parse

    with user_input():
        if out.exists() and not overwrite and MARK not in out.read_text(encoding="utf-8", errors="replace")[:4096]:
            raise ValueError(f"{out} is no page of ours; --overwrite replaces it")
        runs = existing_store(store)
        loaded = [load_model(runs, key) for key in keys]
        chosen = parse("tasks", task) if task else ()
        if len(chosen) > 1:
            raise ValueError("--task takes one task")
    explained, played = [], []
    for recipe, model in loaded:
        asked = (chosen or recipe.test)[0]
        name = f"{pattern_text(recipe.pattern)}, width {recipe.dim}, seed {recipe.seed}"
        with StatusLine() as progress, user_input():
            built = asked.build()
            if built.vocab > model.embed.num_embeddings:
                raise ValueError(f"{asked} has {built.vocab} tokens, {name} knows {model.embed.num_embeddings}")
            show = lambda what, name=name: progress.show(f"{name}: {what} ...")  # noqa: E731
            found = explain_model(model, built, name=name, cases=cases, rows=rows, seed=seed, progress=show)
            found = found._replace(task=str(asked))
            if watch is not None:
                found = found._replace(watched=watched(recipe, watch, name))
            explained.append(found)
            played.append(played_row(model, draw_cases(built, 1, seed=seed)))
        typer.echo(f"\n{name}, on {asked}")
        for sentence in words(found):
            typer.echo(f"  {sentence}")
        print_table(found.errors.drop(columns="meaning"))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(explained, played), encoding="utf-8")
    typer.echo(str(out))


def watched(recipe: "Recipe", every: int, name: str) -> "pd.DataFrame":
    """The scores of a run over its training, which is done once more."""
    import pandas as pd

    from bestiary.cli._progress import Progress
    from bestiary.explain.watching import watch

    with Progress(f"steps of {name}") as progress:
        return pd.DataFrame(list(watch(recipe, every=every, progress=progress)))


def load_model(store: "Store", key: str) -> "tuple[Recipe, Model]":
    """The recipe and the trained model of a run. Raises LookupError if there is none, or if it kept no weights."""
    from bestiary.lm.files import load_weights
    from bestiary.report.command import command
    from bestiary.runs.record import verified
    from bestiary.runs.store import WEIGHTS, DamagedRun
    from bestiary.training.recipe import Recipe

    if key not in store.run_keys():
        raise LookupError(f"there is no run {key!r} in {store.folder}; `bestiary status --all` names them")
    try:
        recipe = Recipe.read(store.read(key).recipe)
        file = store.folder / key / WEIGHTS
        if not file.is_file():
            raise LookupError(
                f"run {key} kept no weights; train it with them in another store: {command(recipe)} --keep --store kept"
            )
        verified(store.folder / key, WEIGHTS)
    except DamagedRun as fault:
        refuse(str(fault))
    model = recipe.build()
    load_weights(model, file)
    return recipe, model.eval()
