"""Errors as one line on stderr: those of the user with status 2, those of the disk with status 1.

With the environment variable BESTIARY_TRACEBACK set, the traceback is shown instead.
"""

import errno
import linecache
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

FULL = (errno.ENOSPC, errno.EDQUOT)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
DISK = (*FULL, errno.EROFS, errno.EIO)  # no fault of what the user gave
USER_ERRORS = (
    *(ValueError, TypeError, LookupError, OSError, SyntaxError, ImportError, EOFError, AttributeError, NameError),
    *(RecursionError, MemoryError, ArithmeticError),
)
VAGUE = (KeyError, IndexError, TypeError, AttributeError, NameError, UnicodeError, EOFError, ArithmeticError)
PACKAGE = Path(__file__).parents[1]  # which may be installed among the libraries, and is none
LIBRARIES = ("site-packages", "dist-packages", str(Path(os.__file__).parent), "<frozen", "<string>")


class ErrorGroup(TyperGroup):
    """The verbs, whose errors of the disk are told in one line, and whose arguments must be text."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse arguments that are no valid UTF-8, which no file that we write could hold."""
        for argument in args:
            try:
                argument.encode()
            except UnicodeEncodeError:
                refuse(f"the argument {ascii(argument)} is no valid UTF-8; rename what it names")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        try:
            return super().invoke(ctx)
        except (OSError, EOFError) as fault:
            if isinstance(fault, OSError) and fault.errno == errno.EPIPE or os.environ.get("BESTIARY_TRACEBACK"):
                raise
            refuse(explain(fault), status=1)


@contextmanager
def user_input() -> Iterator[None]:
    """Report errors raised inside as the user's: one line on stderr, exit status 2; those of the disk with status 1."""
    try:
        yield
    except USER_ERRORS as fault:
        if isinstance(fault, BrokenPipeError) or os.environ.get("BESTIARY_TRACEBACK"):
            raise  # whoever read the output has had enough, which is no fault
        of_disk = isinstance(fault, OSError) and (fault.errno in DISK or is_full_disk(fault))
        refuse(explain(fault), status=1 if of_disk else 2)


def refuse_failed(count: int) -> None:
    """Exit with 1 if runs failed, with the place of their tracebacks."""
    if count:
        what = f"{count} run{'' if count == 1 else 's'} failed or cannot be read"
        refuse(f"{what}; tracebacks are in failure.txt in the folders of the runs", status=1)


def refuse(message: str, *, status: int = 2) -> NoReturn:
    """Exit with a one-line message on stderr."""
    typer.echo(f"bestiary: {message}", err=True)
    raise typer.Exit(status)


def warn_damaged(damaged: Sequence[str]) -> None:
    """Print a line on stderr for each run that cannot be read."""
    for line in damaged:
        typer.echo(f"bestiary: {line}", err=True)


def explain(fault: BaseException) -> str:
    """An error in one line. Where its message was not written for a user, it says in which line it arose."""
    if isinstance(fault, OSError):
        return explain_os_error(fault)
    message = " ".join(str(fault.args[0] if isinstance(fault, LookupError) and fault.args else fault).split())
    if isinstance(fault, RecursionError):
        return f"something is nested too deeply to be read{location(fault)}"
    if isinstance(fault, MemoryError):
        return f"there is not enough memory{location(fault)}"
    if not isinstance(fault, VAGUE) or is_deliberate(fault):
        return message or type(fault).__name__
    if isinstance(fault, KeyError):
        message = f"there is no entry {fault.args[0]!r}" if fault.args else "an entry is missing"
    elif isinstance(fault, IndexError):
        message = f"there are too few entries ({message})"
    elif isinstance(fault, EOFError):
        message = "a file ends too early"
    return f"{message}{location(fault)}; what was read there is damaged or of another form"


def is_full_disk(fault: OSError) -> bool:
    """Whether the disk is full, for this process or for one that worked for it and whose error is passed on as text."""
    return fault.errno in FULL or any(f"[Errno {code}]" in str(fault) for code in FULL)


def explain_os_error(fault: OSError) -> str:
    """An error of the file system in one line, with what to do about it."""
    if is_full_disk(fault):
        return f"the disk is full ({fault}); free some space and give the same command again"
    place = f"{str(fault.filename)!r}" if fault.filename is not None else ""
    if fault.errno in READ_ONLY:
        return f"{place or 'a file'} cannot be used ({fault.strerror}); name a place that you may read and write"
    match fault:
        case FileNotFoundError() if place:
            return f"there is no file or folder {place}"
        case IsADirectoryError() if place:
            return f"{place} is a folder, where a file is needed"
        case NotADirectoryError() | FileExistsError() if place:
            return f"{place} is a file, where a folder is needed"
    return f"{fault.strerror}: {place}" if place and fault.strerror else " ".join(str(fault).split())


def own_frame(fault: BaseException) -> tuple[str, int] | None:
    """File and line of the innermost frame that is not in a library."""
    trace, found = fault.__traceback__, None
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if Path(file).is_relative_to(PACKAGE) or not any(mark in file for mark in LIBRARIES):
            found = file, trace.tb_lineno
        trace = trace.tb_next
    return found


def is_deliberate(fault: BaseException) -> bool:
    """Whether a `raise` of ours, or of a user's file, made this error, so that its message is meant to be read."""
    trace = fault.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
    return own_frame(fault) == (file, line) and linecache.getline(file, line).lstrip().startswith("raise")


def location(fault: BaseException) -> str:
    """` (in FILE, line N)` where an error arose."""
    frame = own_frame(fault)
    if frame is None:
        return ""
    file = Path(frame[0])
    shown = file.relative_to(PACKAGE) if file.is_relative_to(PACKAGE) else file
    return f" (in {shown}, line {frame[1]})"


def print_any_text() -> None:
    """Let text that the terminal cannot show be printed with escapes instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
