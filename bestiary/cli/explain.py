"""The verb that says what a model does when it recalls."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from bestiary.cli._app import Overwrite, StoreFolder, app, check_page, existing_store, refuse, user_input
from bestiary.cli._progress import StatusLine
from bestiary.cli._trust import TrustFiles

if TYPE_CHECKING:
    import pandas as pd

    from bestiary.explain.explanation import Explanation
    from bestiary.model import Model
    from bestiary.runs.store import Store
    from bestiary.tasks._task import Task
    from bestiary.training.recipe import Recipe

MARK = "<title>Explanation: "  # by which a page of ours is known


class Subject(NamedTuple):
    """A model to be explained, and the task that it is asked."""

    name: str
    model: Any  # of ours, or `Pretrained`
    task: "Task"
    asked: str  # the task in words
    recipe: "Recipe | None" = None  # of a run that can be watched
    decode: "Callable[[list[int]], str] | None" = None  # of a language model: tokens as text


@app.command()
def explain(
    keys: Annotated[
        list[str],
        typer.Argument(help="Keys of runs that kept their weights, or language models with --probe."),
    ],
    task: Annotated[str, typer.Option(help="Another task than the one of the run's test.")] = "",
    probe: Annotated[
        bool, typer.Option("--probe", help="KEYS are language models, of any kind: they are asked pairs of words.")
    ] = False,
    cases: Annotated[int, typer.Option(min=8, help="Rows that are changed and patched.")] = 64,
    rows: Annotated[int, typer.Option(min=8, help="Rows that are answered.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the rows, from the test stream.")] = 0,
    watch: Annotated[
        int | None, typer.Option(min=1, help="Train the runs once more, and look every so many steps what forms.")
    ] = None,
    store: StoreFolder = Path("runs"),
    out: Annotated[Path, typer.Option(help="The page.")] = Path("explanation.html"),
    overwrite: Overwrite = False,
    trust: Annotated[bool, typer.Option("--trust-remote-code", help="Run the code that a model brings.")] = False,
    _files: TrustFiles = None,
) -> None:
    """Say what trained models do when they recall, and write it as a page.

    Counts mistakes by kind, changes rows and sees whether the answers follow, exchanges streams and states between
    rows to find where a pair is bound and what carries it, takes parts out, and reads the memory. For tasks in which an
    answer stood behind an earlier occurrence of the asked token. A run keeps its weights with --keep. With --probe for
    any causal language model, whose streams alone are exchanged.
    """
    from bestiary.explain.page import page

    with user_input():
        check_page(out, MARK, overwrite=overwrite)
        if probe and (task or watch is not None):
            raise ValueError("--probe asks pairs of words, of models as they are: leave out --task and --watch")
        subjects = [open_language_model(key, trust) for key in keys] if probe else open_runs(keys, task, store)
    found = [explain_subject(one, watch, cases=cases, rows=rows, seed=seed) for one in subjects]
    out.write_text(page([one for one, _ in found], [row for _, row in found]), encoding="utf-8")
    typer.echo(str(out))


def explain_subject(subject: Subject, watch: int | None, **how: int) -> "tuple[Explanation, Any]":
    """What is found of a model, printed in short, and the row that the page plays."""
    from bestiary.cli.console import print_table
    from bestiary.explain.cases import draw_cases
    from bestiary.explain.explanation import explain_model, words
    from bestiary.explain.player import played_row

    name, model, task, asked, recipe, decode = subject
    with StatusLine() as progress, user_input():
        found = explain_model(
            model, task, name=name, **how, progress=lambda what: progress.show(f"{name}: {what} ...")
        )._replace(task=asked)
        played = played_row(model, draw_cases(task, 1, seed=how["seed"]), decode)
    if watch is not None and recipe is not None:
        with user_input():
            found = found._replace(watched=watched(recipe, task, watch, name, **how))
    typer.echo(f"\n{name}, on {asked}")
    for sentence in words(found):
        typer.echo(f"  {sentence}")
    print_table(found.errors.drop(columns="meaning"))
    return found, played


def open_runs(keys: list[str], task: str, folder: Path) -> list[Subject]:
    """Runs of a store with their own test, or another task. Raises LookupError or ValueError."""
    from bestiary.report.command import pattern_text
    from bestiary.spec import parse

    chosen, store, found = parse("tasks", task) if task else (), existing_store(folder), []
    if len(chosen) > 1:
        raise ValueError("--task takes one task")
    for recipe, model in [load_model(store, key) for key in keys]:
        asked = (chosen or recipe.test)[0]
        name, built = f"{pattern_text(recipe.pattern)}, width {recipe.dim}, seed {recipe.seed}", asked.build()
        if built.vocab > model.embed.num_embeddings:
            raise ValueError(f"{asked} has {built.vocab} tokens, {name} knows {model.embed.num_embeddings}")
        found.append(Subject(name, model, built, str(asked), recipe))
    return found


def open_language_model(name: str, trust: bool) -> Subject:
    """A language model of any kind, and pairs of words in its tokens. Raises LookupError or ValueError."""
    from bestiary.explain.pretrained import Pretrained, WordPairs
    from bestiary.lm.models import open_model
    from bestiary.model import Model

    model, tokenizer, _ = open_model(name, trust=trust)
    opened = model if isinstance(model, Model) else Pretrained(model)
    place = Path(name)
    title = place.stem if place.is_file() else place.name
    return Subject(title, opened, WordPairs(tokenizer), "pairs of words", decode=tokenizer.decode)


def watched(recipe: "Recipe", task: "Task", every: int, name: str, **how: Any) -> "pd.DataFrame":
    """The scores of a run on a task over its training, which is done once more."""
    import pandas as pd

    from bestiary.cli._progress import Progress
    from bestiary.explain.watching import watch

    with Progress(f"steps of {name}") as progress:
        return pd.DataFrame(list(watch(recipe, task=task, every=every, progress=progress, **how)))


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
