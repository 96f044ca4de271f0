"""Verbs that look at what there is: list, show, doctor, check and bound."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.cli._app import StoreFolder, app, existing_store, refuse, user_input
from bestiary.cli._trust import TrustFiles

if TYPE_CHECKING:
    from bestiary.runs.store import Store

LARGEST = 2**48  # pairs, tokens and numbers in a state that `bound` is asked about


@app.command("list")
def list_names(
    kind: Annotated[str, typer.Argument(help="mixers, tasks, experiments or recipes; all if none.")] = "",
) -> None:
    """Name what there is, with a line about each; mixers and tasks in a table."""
    from bestiary.spec import nearest

    kinds = ("mixers", "tasks", "experiments", "recipes")
    if kind and kind not in kinds:
        refuse(f"nothing is called {kind!r} {nearest(kind, kinds)}")
    if kind in ("mixers", "tasks"):
        from bestiary.cli import describe
        from bestiary.cli.console import print_table

        with user_input():
            table = describe.mixer_table() if kind == "mixers" else describe.task_table()
        print_table(table)
        return
    for wanted in (kind,) if kind else kinds:
        typer.echo(wanted)
        for name, line in summaries(wanted):
            typer.echo(f"  {name:14} {line}")


def summaries(kind: str) -> Iterator[tuple[str, str]]:
    """Names of a kind, each with the first line of its docstring."""
    if kind == "recipes":
        from bestiary.training.recipe import NAMED

        for name, recipe in NAMED.items():
            yield name, (recipe.__doc__ or "").splitlines()[0]
        return
    from bestiary.spec import names

    for name in names(kind):
        file = Path(__file__).parents[1] / kind / f"{name}.py"
        doc = ast.get_docstring(ast.parse(file.read_text())) if file.exists() else "(from an installed package)"
        yield name, (doc or "").splitlines()[0]


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="A mixer, task, experiment or recipe, with options; a file; a run's key.")
    ],
    dim: Annotated[int, typer.Option(help="The width at which a mixer is shown.")] = 64,
    store: StoreFolder = Path("runs"),
    _files: TrustFiles = None,
) -> None:
    """Describe one thing: what it is, its options, its size."""
    from bestiary.cli import describe
    from bestiary.runs.store import Store

    with user_input():
        runs = Store(store)
        if name in runs.run_keys():
            lines = run_lines(runs, name)
        elif store != Path("runs") and not store.is_dir():
            raise LookupError(f"the store {store} does not exist; name the folder of the runs with --store")
        else:
            lines = list(describe.describe(name, dim=dim))
    for line in lines:
        typer.echo(line)


def run_lines(store: "Store", key: str) -> list[str]:
    """What is known of a run; exits with one line if it is damaged."""
    from bestiary.cli import describe
    from bestiary.runs.store import DamagedRun, damaged_run

    try:
        return list(describe.run_lines(store, key))
    except DamagedRun as fault:
        refuse(str(fault))
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as fault:
        refuse(str(damaged_run(store.folder / key, fault)))


@app.command()
def doctor(
    keys: Annotated[list[str] | None, typer.Argument(help="Keys of runs; every run in the store if none.")] = None,
    store: StoreFolder = Path("runs"),
    _files: TrustFiles = None,
) -> None:
    """Say why runs may not have learnt their task, the likeliest cause first, and what to try next."""
    from bestiary.cli.describe import diagnosis

    with user_input():
        runs = existing_store(store)
        known = runs.run_keys()
        for key in keys or ():
            if key not in known:
                raise LookupError(f"there is no run {key!r} in {store}; `bestiary status --all` names them")
    unreadable = False
    for key in keys or known:
        try:
            for line in diagnosis(runs, key, brief=not keys):
                typer.echo(line)
        except (ValueError, LookupError) as fault:
            unreadable = True
            typer.echo(f"bestiary: {key}: {fault}", err=True)
    if unreadable:
        raise typer.Exit(1)


@app.command()
def check(
    targets: Annotated[list[str] | None, typer.Argument(help="Mixers, tasks or files; all of ours if none.")] = None,
) -> None:
    """Hold mixers and tasks to the laws."""
    from bestiary import laws
    from bestiary.laws.report import summary, target_specs, under_variants
    from bestiary.spec import names, spec

    with user_input():
        named = [*target_specs(targets or ())]
        if not targets:
            named = [spec(kind, name) for kind in ("mixers", "tasks") for name in names(kind)]
        checked = dict.fromkeys(found for one in named for found in under_variants(one))
    broken = 0
    for found in checked:
        typer.echo(str(found))
        for verdict in laws.verdicts(found):
            typer.echo(f"  {verdict}")
            broken += verdict.broken
    typer.echo(summary(broken))
    if broken:
        raise typer.Exit(1)


@app.command()
def bound(
    pairs: Annotated[int, typer.Option(min=1, max=LARGEST, help="Pairs to recall.")],
    vocab: Annotated[int, typer.Option(min=4, max=LARGEST, help="Tokens, half of which are values.")],
    state: Annotated[
        int | None, typer.Option(min=1, max=LARGEST, help="Numbers in a state, to see what they can hold.")
    ] = None,
) -> None:
    """Say what recall of so many pairs needs at least, and what a state can hold."""
    from bestiary.cli.console import print_table
    from bestiary.constructions.bounds import table

    print_table(table(pairs, vocab, state))
