"""The verb that writes a report, or serves it."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.cli._app import (
    Scale,
    ScaleOption,
    app,
    find_hook,
    load_with_recipes,
    open_store,
    recipes_of,
    refuse,
    user_input,
    warn_damaged,
)

if TYPE_CHECKING:
    from bestiary.report import Report


@app.command()
def report(
    runs: Annotated[Path, typer.Argument(help="Folder of the runs.")] = Path("runs"),
    experiment: Annotated[str, typer.Option(help="Only the runs of this experiment.")] = "",
    scale: ScaleOption = Scale.small,
    out: Annotated[Path, typer.Option(help="The page; its tables in LaTeX are written beside it.")] = Path(
        "report.html"
    ),
    serve: Annotated[bool, typer.Option("--serve", help="Serve it to this machine, anew as runs end.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to serve it; 0 takes a free one.")] = 8000,
) -> None:
    """Write one HTML page with the figures and tables of a store, and the command that redoes each run."""
    from bestiary.report import report as build_report

    with user_input():
        module = load_with_recipes(experiment) if experiment else None
        options = {} if module is None else report_options(module)
        title = f"{Path(experiment).stem}, {scale}" if experiment else "All runs"
        if not runs.is_dir():
            raise LookupError(f"there is no folder {runs}; give the folder of the runs, as in: bestiary report runs")

    def make(version: str = "") -> "Report":
        recipes = None if module is None else recipes_of(module, scale, open_store(runs))
        return build_report(open_store(runs), recipes, title=title, version=version, **options)

    if serve:
        serve_report(runs, make, port)
        return
    with user_input():
        written = make()
        out.parent.mkdir(parents=True, exist_ok=True)
        for place, content in ((out, written.html), (out.with_suffix(".tex"), written.latex)):
            place.write_text(content, encoding="utf-8")
            typer.echo(str(place))
    warn_damaged(written.damaged)
    if written.damaged:
        raise typer.Exit(1)


def report_options(experiment: ModuleType) -> dict[str, Callable[[str], str]]:
    """The experiment's names for patterns, if it has any."""
    pattern_name = find_hook(experiment, "pattern_name", "called")
    return {} if pattern_name is None else {"pattern_name": pattern_name}


def serve_report(runs: Path, make: "Callable[[str], Report]", port: int) -> None:
    """Serve the report until Ctrl-C."""
    import errno

    from bestiary.report.serve import HOST, make_server

    try:
        serving = make_server(open_store(runs), lambda version: make(version).html, port=port)
    except OSError as fault:
        if fault.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        refuse(f"port {port} cannot be used ({fault.strerror}); give another with --port, or 0 for a free one")
    typer.echo(f"http://{HOST}:{serving.server_address[1]}/ (Ctrl-C ends it)")
    with serving:
        serving.serve_forever()
