"""The verb that writes a report, or serves it."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.cli._app import (
    Scale,
    Size,
    TrustFiles,
    app,
    complain,
    opened,
    question,
    recipes_of,
    refuse,
    trained,
    user_input,
)

if TYPE_CHECKING:
    from bestiary.report import Report


@app.command()
def report(
    runs: Annotated[Path, typer.Argument(help="Folder of the runs.")] = Path("runs"),
    experiment: Annotated[str, typer.Option(help="Only the runs of this experiment.")] = "",
    scale: Size = Scale.small,
    out: Annotated[Path, typer.Option(help="The page; its tables in LaTeX are written beside it.")] = Path(
        "report.html"
    ),
    serve: Annotated[bool, typer.Option("--serve", help="Serve it to this machine, anew as runs end.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to serve it; 0 takes a free one.")] = 8000,
    _files: TrustFiles = None,
) -> None:
    """Write one HTML page with the figures and tables of a store, and the command that redoes each run."""
    from bestiary.report import report as made

    with user_input():
        asked = trained(question(experiment)) if experiment else None
        named = {} if asked is None else naming(asked)
        title = f"{Path(experiment).stem}, {scale}" if experiment else "All runs"
        if not runs.is_dir():
            raise LookupError(f"there is no folder {runs}; give the folder of the runs, as in: bestiary report runs")

    def make(version: str = "") -> "Report":
        recipes = None if asked is None else recipes_of(asked, scale, opened(runs))
        return made(opened(runs), recipes, title=title, version=version, **named)

    if serve:
        follow(runs, make, port)
        return
    with user_input():
        found = make()
        out.parent.mkdir(parents=True, exist_ok=True)
        for place, content in ((out, found.html), (out.with_suffix(".tex"), found.latex)):
            place.write_text(content, encoding="utf-8")
            typer.echo(str(place))
    complain(found.damaged)
    if found.damaged:
        raise typer.Exit(1)


def naming(asked: ModuleType) -> dict[str, Callable[[str], str]]:
    """What an experiment calls patterns, if it calls them anything."""
    return {"called": asked.called} if hasattr(asked, "called") else {}


def follow(runs: Path, make: "Callable[[str], Report]", port: int) -> None:
    """Serve until Ctrl-C."""
    import errno

    from bestiary.report.serve import HOST, server

    try:
        serving = server(opened(runs), lambda version: make(version).html, port=port)
    except OSError as fault:
        if fault.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        refuse(f"port {port} cannot be used ({fault.strerror}); give another with --port, or 0 for a free one")
    typer.echo(f"http://{HOST}:{serving.server_address[1]}/ (Ctrl-C ends it)")
    with serving:
        serving.serve_forever()
