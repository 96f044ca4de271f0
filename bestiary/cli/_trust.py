"""What a command may run: the files of their own that users name, and nothing that a store or a model folder names."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer


def trust_files(files: list[str] | None) -> list[str] | None:
    """Let files of the user's own be run, because they are named here."""
    from bestiary.spec import trust

    for file in files or ():
        try:
            trust(file)
        except (LookupError, OSError) as fault:
            typer.echo(f"bestiary: {fault.args[0] if isinstance(fault, LookupError) else fault}", err=True)
            raise typer.Exit(2) from None
    return files


TrustFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-files", callback=trust_files, help="A file of your own that a model was made with; once for each."
    ),
]


@contextmanager
def reading_store() -> Iterator[None]:
    """In here text comes from a store: a file that it names is run only if the user has named the same."""
    from bestiary.spec import reading_data

    with reading_data():
        yield
