"""How far long work is, with an estimate of the time that is left."""

import sys
import time
from types import TracebackType

import typer

INTERVAL = 30.0  # seconds between lines where stderr is no terminal


class Progress:
    """A line on stderr that says how much is done: rewritten on a terminal, else printed anew now and then.

    Called with how many are done and how many there are. A context manager that ends the line.
    """

    def __init__(self, what: str) -> None:
        self.what, self.first, self.started, self.printed, self.open = what, -1, 0.0, 0.0, False

    def __enter__(self) -> "Progress":
        return self

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.first < 0:  # what was done before says nothing of the speed
            self.first, self.started = done, now
        terminal = sys.stderr.isatty()
        if terminal or done in (self.first, total) or now - self.printed >= INTERVAL:
            line = f"{done:,} of {total:,} {self.what}{self.time_left(done, total, now)}"
            typer.echo(f"\r\033[K{line}" if terminal else line, nl=not terminal, err=True)
            self.printed, self.open = now, terminal

    def time_left(self, done: int, total: int, now: float) -> str:
        """An estimate of the time that is left, from the speed so far; nothing as long as there is none."""
        if done <= self.first or done >= total:
            return ""
        return f", about {format_duration((now - self.started) * (total - done) / (done - self.first))} left"

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.open:
            typer.echo("", err=True)


def format_duration(seconds: float) -> str:
    """A time in its largest unit."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
