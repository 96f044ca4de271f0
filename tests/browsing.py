"""A page in a real browser: what the tests of pages share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
QUIET = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking") + (
    "disable-component-update",
    "disable-sync",
)


def launched() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("needs chromium in /usr/bin")
    with playwright.sync_playwright() as playing:
        found = playing.chromium.launch(executable_path=str(CHROMIUM), args=[f"--{flag}" for flag in QUIET])
        yield found
        found.close()


class Reader:
    """A page that is open, and what went wrong or was asked for in it."""

    def __init__(self, browser: Any, address: str, **how: Any) -> None:
        self.faults: list[str] = []
        self.asked: list[str] = []
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | how))
        self.page = context.new_page()
        self.page.on(
            "console", lambda said: self.faults.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda fault: self.faults.append(str(fault)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait a few seconds for what follows from an event; the page itself evaluates no text."""
        for _ in range(50):
            if condition():
                return
            self.page.wait_for_timeout(100)
        raise AssertionError("it did not come to be")

    def count(self, what: str) -> int:
        return self.page.locator(what).count()

    def pick(self, name: str) -> None:
        self.page.locator(f'#frontier .point[aria-label^="{name}"]').focus()
        self.page.keyboard.press("Enter")
