"""Progress on stderr, and durations as a person would say them."""

import sys
import time
from types import TracebackType

EVERY = 10.0  # seconds between lines where stderr is no terminal


class StatusLine:
    """Progress on stderr: one line that is rewritten on a terminal, and whole lines now and then anywhere else.

    A context: leaving it ends the line, so that what is printed next stands on a line of its own.
    """

    def __init__(self, *, every: float = EVERY) -> None:
        self.every, self.printed, self.text = every, time.monotonic(), ""
        self.live = sys.stderr.isatty()

    def __enter__(self) -> "StatusLine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live and self.text:
            self.write("\n")
        self.text = ""

    def show(self, text: str, *, last: bool = False) -> None:
        """Replace what is shown. Without a terminal only the `last` text, and one every few seconds, is printed."""
        if self.live:
            self.write(f"\r{text}\x1b[K")
        elif last or time.monotonic() - self.printed >= self.every:
            self.write(f"{text}\n")
            self.printed = time.monotonic()
        self.text = text

    def note(self, text: str) -> None:
        """Print a line that stays, above what is shown."""
        self.write(f"\r{text}\x1b[K\n" if self.live else f"{text}\n")

    def write(self, text: str) -> None:
        """Write to stderr at once."""
        sys.stderr.write(text)
        sys.stderr.flush()


class Progress(StatusLine):
    """How much is done, of how much, and about how long the rest takes: called with both whenever that changes."""

    def __init__(self, what: str, *, every: float = 3 * EVERY) -> None:
        super().__init__(every=every)
        self.what, self.first, self.started = what, -1, 0.0

    def __enter__(self) -> "Progress":
        return self

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.first < 0:  # what was done before says nothing of the speed
            self.first, self.started = done, now
        text = f"{done:,} of {total:,} {self.what}"
        if self.first < done < total:
            text += f", about {format_seconds((now - self.started) * (total - done) / (done - self.first))} left"
        self.show(text, last=done in (self.first, total))


def format_seconds(seconds: float | int) -> str:
    """A duration in the unit that suits it: `0.4 s`, `35 s`, `4 min`, `2.5 h`, `3 days`."""
    if seconds < 0.01:
        return f"{1000 * seconds:.1g} ms" if seconds >= 0.0001 else "0 s"
    for unit, size, limit in (("s", 1, 90), ("min", 60, 90 * 60), ("h", 3600, 48 * 3600)):
        if seconds < limit:
            amount = seconds / size
            return f"{amount:.2g} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
