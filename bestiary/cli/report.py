"""The verb that writes a report, or serves it."""

import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from bestiary.cli._app import (
    Overwrite,
    Scale,
    ScaleOption,
    app,
    check_page,
    find_hook,
    load_with_recipes,
    open_store,
    recipes_of,
    refuse,
    user_input,
    warn_damaged,
)
from bestiary.cli._trust import TrustFiles

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
    overwrite: Overwrite = False,
    _files: TrustFiles = None,
) -> None:
    """Write one HTML page with the figures and tables of a store, and the command that redoes each run.

    A former report is replaced, any other file only with --overwrite.
    """
    from bestiary.report import report as build_report

    with user_input():
        module = load_with_recipes(experiment) if experiment else None
        options = {} if module is None else report_options(module)
        title = f"{Path(experiment).stem}, {scale}" if experiment else "All runs"
        if not runs.is_dir():
            raise LookupError(f"there is no folder {runs}; give the folder of the runs, as in: bestiary report runs")
        if not serve:
            check_replaceable(out, overwrite=overwrite)

    def make(version: str = "") -> "Report":
        recipes = None if module is None else recipes_of(module, scale, open_store(runs))
        smoke = module is not None and scale == Scale.smoke
        return build_report(open_store(runs), recipes, title=title, version=version, smoke=smoke, **options)

    if serve:
        serve_report(runs, make, port)
        return
    with user_input():
        written = make()
        out.parent.mkdir(parents=True, exist_ok=True)
        for place, content in ((out, written.html), (out.with_suffix(".tex"), written.latex)):
            beside = place.with_name(f".{place.name}-{uuid.uuid4().hex}")
            try:
                beside.write_text(content, encoding="utf-8")
                beside.replace(place)
            finally:
                beside.unlink(missing_ok=True)
            typer.echo(str(place))
    warn_damaged(written.damaged)
    if written.damaged:
        raise typer.Exit(1)


def check_replaceable(page: Path, *, overwrite: bool) -> None:
    """Raise ValueError if the page, or the tables beside it, would replace a file that is not of a report."""
    from bestiary.report.latex import HEAD
    from bestiary.report.page import MARK

    if page.suffix == ".tex":
        raise ValueError(f"{str(page)!r} is the name of the tables; the page needs another, as in report.html")
    for place, mark in ((page, MARK), (page.with_suffix(".tex"), HEAD)):
        check_page(place, mark, overwrite=overwrite)


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
