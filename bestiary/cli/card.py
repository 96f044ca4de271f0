"""Where a mixer stands: `card` trains it under the protocol and shows it beside the field, `board` shows the field."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bestiary.cli._app import (
    FiguresFolder,
    Overwrite,
    StoreFolder,
    app,
    check_page,
    choose_mixers,
    next_recipes,
    open_store,
    refuse,
    user_input,
)
from bestiary.cli._errors import refuse_failed
from bestiary.cli._trust import TrustFiles
from bestiary.spec import nearest, read_specs

if TYPE_CHECKING:
    import pandas as pd

    from bestiary.results.card import Card
    from bestiary.runs.store import Store
    from bestiary.training.recipe import Recipe

BUDGETS = ("quick", "full")


def card(
    *mixers: "str | type",
    budget: str = "full",
    workers: int | None = None,
    store: Path | str = "runs",
    scale: str = "small",
) -> "Card":
    """The card of one mixer or several: checks, trains what is not in the store, measures, and compares.

    A mixer is a pattern, a file, or a class that is defined in a file. With the `quick` budget only the first seed is
    trained. Raises ValueError for a mixer that breaks a law, cannot be built or has the name of another, LookupError
    for an unknown one, RuntimeError if none of its runs ended.
    """
    from bestiary.cli.runs import run_recipes
    from bestiary.experiments import protocol_v1
    from bestiary.report.words import count_noun

    if not mixers:
        raise ValueError("name a mixer or several: a pattern, a file, or a class")
    if budget not in BUDGETS:
        raise ValueError(f"budget={budget!r}: it is quick or full")
    patterns = [
        ", ".join(map(str, read_specs("mixers", mixer))) if isinstance(mixer, type) else mixer for mixer in mixers
    ]
    check_names(patterns, protocol_v1.MIXERS)
    protocol = choose_mixers(protocol_v1, patterns, "")
    added = {name: pattern for name, pattern in protocol.MIXERS.items() if name not in protocol_v1.MIXERS}
    vars(protocol)["MIXERS"] = added | {name: name for name in patterns if name in protocol_v1.MIXERS}
    facts = check_and_measure(protocol.MIXERS)
    recipes: list[Recipe] = list(protocol.recipes(scale))
    how = {"workers": workers, "threads": 1, "device": "cpu", "backend": "auto", "keep": False}
    name = f"card of {', '.join(protocol.MIXERS)}"
    failed, table = run_recipes(name, recipes, Path(store), **how)
    while budget == "full" and (more := next_recipes(protocol, table, scale, recipes)):
        typer.echo(f"{count_noun(len(more), 'run')} more, with other seeds at the best rates")
        recipes += more
        failed, table = run_recipes(name, recipes, Path(store), **how)
    if table.empty:
        raise RuntimeError("none of the runs ended; their folders in the store hold the tracebacks")
    return compare(protocol, table, facts, scale, open_store(Path(store)))._replace(failed=failed)


@app.command("card")
def show_card(
    mixers: Annotated[list[str], typer.Argument(help="A pattern or a file of yours, or several to compare.")],
    budget: Annotated[
        str, typer.Option(help="quick: the first seed alone. full: three seeds.", metavar="<quick|full>")
    ] = "full",
    scale: Annotated[str, typer.Option(hidden=True)] = "small",
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at a time; one for each core if not given.")] = None,
    store: StoreFolder = Path("runs"),
    figures: FiguresFolder = Path("figures"),
    send: Annotated[
        Path | None,
        typer.Option(help="Also write the mixer's file, its runs and its facts to this folder, to send in."),
    ] = None,
) -> None:
    """Show where a mixer stands beside the whole field. The same command again goes on where it stopped.

    Checks the laws, trains the mixer under the protocol v1, measures its cost, and writes a page, its verdict in
    Markdown and a figure.
    """
    with user_input():
        if send is not None and (len(mixers) != 1 or not mixers[0].endswith(".py") or budget != "full"):
            raise ValueError("--send goes with one mixer, in a file of its own, and the full budget")
        try:
            made = card(*mixers, budget=budget, workers=workers, store=store, scale=scale)
        except RuntimeError as fault:
            refuse(str(fault), status=1)
    write_card(made, figures)
    refuse_failed(made.failed)
    if send is not None:
        write_contribution(made, Path(mixers[0]), send, open_store(store))


@app.command()
def board(
    sort: Annotated[str, typer.Option(help="The column to sort by, the best first.")] = "recall 64",
    store: StoreFolder = Path("runs"),
    page_file: Annotated[
        Path | None, typer.Option("--page", help="Write the board as a page to this file, too.")
    ] = None,
    overwrite: Overwrite = False,
    trust_files: TrustFiles = None,  # noqa: ARG001
) -> None:
    """Show the scores of every mixer under the protocol v1: those that ship with the package, and yours.

    Runs of a file of your own are shown if you name it with --trust-files. A former board is replaced, any other file
    only with --overwrite.
    """
    import pandas as pd

    from bestiary.cli.console import print_table
    from bestiary.experiments.protocol_v1 import COLUMNS, MIXERS
    from bestiary.results.card import Card, entries, page
    from bestiary.results.reference import reference_facts, reference_scores, stored_scores

    if page_file is not None:
        with user_input():
            check_page(page_file, "<title>Board: ", overwrite=overwrite)
    scores, facts = reference_scores(), reference_facts()
    if store.is_dir():
        own, faults = stored_scores(open_store(store), {*scores["mixer"]})
        scores = pd.concat([scores, own])
        for fault in faults:
            typer.echo(f"bestiary: left out: {fault}", err=True)
    wide = scores.pivot(index="mixer", columns="column", values="value")
    wide = wide[[column for column in COLUMNS if column in wide]]
    wide = wide.join(facts[[fact for fact in ("family", "state 64", "train beside attention") if fact in facts]])
    if sort not in [*wide, "mixer"]:
        refuse(f"the board has no column {sort!r} {nearest(sort, [*COLUMNS, 'mixer', 'family', *map(str, facts)])}")
    least_first = sort in ("mixer", "family", "state 64", "train beside attention")
    print_table(wide.reset_index().sort_values(sort, ascending=least_first, kind="stable"))
    if page_file is not None:
        page_file.write_text(page(Card([], entries(scores, facts, MIXERS), pd.DataFrame())), encoding="utf-8")
        typer.echo(str(page_file))


def check_names(patterns: Sequence[str], built_in: Collection[str]) -> None:
    """Raise ValueError if a file has the name of a built-in mixer, or two mixers from files have the same name."""
    from bestiary.spec import is_file, parse, plain_name

    named: dict[str, dict[str, Any]] = {}
    for text in patterns:
        first, *others = parse("mixers", text)
        if others or not is_file(first.name):
            continue
        name = plain_name(first.name)
        if name in built_in:
            raise ValueError(f"{text!r} has the name of the built-in mixer {name}; rename the file")
        if named.setdefault(name, first.identity) != first.identity:
            raise ValueError(f"two mixers would be called {name} on the card; give each a file with a name of its own")


def check_and_measure(mixers: Mapping[str, str]) -> "pd.DataFrame":
    """Facts about each mixer. Raises ValueError if one breaks a law."""
    import pandas as pd

    from bestiary.cli._progress import StatusLine
    from bestiary.results.facts import broken_laws, family, measure
    from bestiary.spec import parse

    rows = {}
    with StatusLine() as progress:
        for name, pattern in mixers.items():
            progress.show(f"{name}: checking the laws ...")
            faults = [fault for mixer in {*parse("mixers", pattern)} for fault in broken_laws(mixer)]
            if faults:
                raise ValueError(f"{name} breaks a law, so its results would mean nothing: {'; '.join(faults)}")
            measured = measure(pattern, lambda what, name=name: progress.show(f"{name}: {what} ..."))
            rows[name] = {"family": family(pattern), **measured}
    return pd.DataFrame.from_dict(rows, orient="index")


def compare(protocol: ModuleType, table: "pd.DataFrame", facts: "pd.DataFrame", scale: str, store: "Store") -> "Card":
    """The card of the protocol's mixers, from their runs in the store and their facts."""
    from bestiary.experiments import protocol_v1
    from bestiary.results.card import Card, entries
    from bestiary.results.causes import causes
    from bestiary.results.reference import reference_facts, reference_scores

    own = entries(protocol.scores(table, scale), facts, protocol.MIXERS)
    field = entries(reference_scores(), reference_facts(), protocol_v1.MIXERS)
    field = [entry for entry in field if entry.name not in protocol.MIXERS]
    found = {entry.name: causes(entry, table, store, scale) for entry in own}
    return Card(own, field, table, smoke=scale == "smoke", causes=found)


def write_card(made: "Card", figures: Path) -> None:
    """Print the verdict, and write the page, the Markdown and the figure."""
    from bestiary.report.plot import mark_smoke, save_figure
    from bestiary.results.card import cause_line, figure, markdown, page

    for name, sentences in made.verdicts().items():
        typer.echo(f"\n{name}")
        for sentence in sentences:
            typer.echo(f"  {sentence}")
        for cause in made.causes.get(name, ()):
            typer.echo(f"  {cause_line(cause)} (seen: {cause.evidence})")
    typer.echo("")
    figures.mkdir(parents=True, exist_ok=True)
    stem = figures / f"card-{file_name(made.title)}"
    for suffix, text in ((".html", page(made)), (".md", markdown(made) + "\n")):
        path = stem.with_name(stem.name + suffix)
        path.write_text(text, encoding="utf-8")
        typer.echo(str(path))
    drawn = figure(made)
    if made.smoke:
        mark_smoke(drawn)
    for path in save_figure(drawn, stem):
        typer.echo(str(path))


def write_contribution(made: "Card", file: Path, folder: Path, store: "Store") -> None:
    """Write a mixer's file, its runs and its facts as they are sent in: see `bestiary.results.contributed`."""
    import pandas as pd

    from bestiary.cli.data import write_table
    from bestiary.runs.exports import add_origins
    from bestiary.spec import parse

    (own,) = made.own
    name = file.stem
    facts = pd.DataFrame([{"mixer": name, "family": own.family, **own.facts}])
    there = str(parse("mixers", own.pattern)[0])
    runs = made.runs.assign(pattern=made.runs["pattern"].str.replace(there, file.name, regex=False))
    write_table(add_origins(runs, store), folder / f"{name}.csv", compact=True)
    write_table(facts, folder / f"{name}-facts.csv")
    (folder / file.name).write_bytes(file.read_bytes())
    typer.echo(f"{folder}: {file.name}, {name}.csv, {name}-facts.csv")


def file_name(title: str) -> str:
    """A title as part of a file's name: letters, digits and underscores, the rest as dashes."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", title).strip("-")
