"""A page in a real browser: what the tests of pages share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking") + (
    "disable-component-update",
    "disable-sync",
)


def launch_browser() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("needs chromium in /usr/bin")
    with playwright.sync_playwright() as playing:
        started = playing.chromium.launch(executable_path=str(CHROMIUM), args=[f"--{flag}" for flag in FLAGS])
        yield started
        started.close()


class Reader:
    """A page that is open, and what went wrong in it and what it requested."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page = context.new_page()
        self.page.on("console", self.note)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)

    def note(self, message: Any) -> None:
        """Keep an error or a warning of the console."""
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait a few seconds for what follows from an event; the page itself evaluates no text."""
        for _ in range(50):
            if condition():
                return
            self.page.wait_for_timeout(100)
        raise AssertionError("it did not happen within five seconds")

    def count(self, selector: str) -> int:
        """How many elements a CSS selector finds."""
        return self.page.locator(selector).count()

    def pick(self, name: str) -> None:
        """Choose a point of the first figure by the keyboard."""
        self.page.locator(f'#frontier .point[aria-label^="{name}"]').focus()
        self.page.keyboard.press("Enter")
