"""The command line within this process: what it prints, its exit status, and the exception that escaped it."""

import contextlib
import io
import math
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from typer.testing import CliRunner

from bestiary.cli import app, main

SLOWEST = 20  # seconds of work that a command may take
LONGEST = 90  # seconds until it is stopped, on a machine that does other work beside


class TooLong(BaseException):
    """A command has not come back."""


class Done(NamedTuple):
    """A command that has come back."""

    status: int
    out: str
    err: str
    trace: str  # of an exception that nobody caught
    seconds: float  # of work, or infinite where it was stopped

    @property
    def fault(self) -> str:
        """What is wrong with it whatever was asked: a traceback, a hang, or a failure without a word."""
        if self.trace:
            return self.trace.strip().splitlines()[-1] + "   at " + last_line_of_ours(self.trace)
        if self.seconds > SLOWEST:
            return f"it takes more than {SLOWEST} s"
        if self.status not in (0, 1, 2, 130):
            return f"exit status {self.status}"
        if self.status and not (self.err + self.out).strip():
            return f"exit status {self.status} without a word"
        if "Traceback (most recent" in self.err:
            return "a traceback is printed"
        if vague := re.search(r"bestiary: (.*\(in [\w/. -]+\.py, line \d+\))", self.err):
            return f"nobody foresaw: {vague[1][:160]}"
        return ""


def bestiary(*arguments: Any, status: int = 0) -> str:
    """All that a command prints, which must end with this status."""
    done = CliRunner().invoke(app, [str(part) for part in arguments])
    assert done.exit_code == status, f"{done.output}\n{done.exception!r}"
    return done.output


def last_line_of_ours(trace: str) -> str:
    """Where in the package an exception came from."""
    places = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ") and "/bestiary/" in line]
    return places[-1].partition("/bestiary/")[2].replace('", line ', ":") if places else "?"


def command(*arguments: Any, folder: Path) -> Done:
    """Run the command line in a folder, as `bestiary` would, but for at most some seconds."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace", write_through=True) for _ in "12")
    status, trace, begun, stopped = 0, "", time.process_time(), 0.0
    with contextlib.ExitStack() as held:
        held.enter_context(contextlib.chdir(folder))
        held.enter_context(contextlib.redirect_stdout(out))
        held.enter_context(contextlib.redirect_stderr(err))
        held.enter_context(warnings.catch_warnings(action="ignore"))
        held.enter_context(replaced(sys, "argv", ["bestiary", *map(str, arguments)]))
        held.enter_context(alarm(LONGEST))
        try:
            main()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except TooLong:
            stopped = math.inf
        except BaseException:
            status, trace = 1, traceback.format_exc()
    texts = [stream.buffer.getvalue().decode(errors="replace") for stream in (out, err)]  # pyright: ignore
    return Done(status, *texts, trace, time.process_time() - begun + stopped)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another value of an attribute for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise TooLong after so many seconds; the handlers of signals and the timer of the test come back afterwards."""

    def ring(*_: Any) -> None:
        raise TooLong

    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)}
    signal.signal(signal.SIGALRM, ring)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    begun = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in kept.items():
            signal.signal(number, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(0.1, left - (time.monotonic() - begun)))


def environment() -> dict[str, str]:
    """That of a process which finds the package."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
