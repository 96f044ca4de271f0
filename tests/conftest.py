"""Every test runs on one thread, so that two workers share two cores; those of pages share a browser."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browsing import launch_browser

from bestiary.spec.loading import TRUSTED


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the large suites counted, also where they ran in other processes.

    With SKIPPED=FILE the names of skipped tests are written there, one a line, for `pytest @FILE` to run them.
    With MAY_SKIP=REGEX a skipped test whose name and reason do not match is named, and the run has failed.
    """
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "when", "") == "call":
            for text in (value for name, value in report.user_properties if name == "counts"):
                terminalreporter.write_line(text)
    if file := os.environ.get("SKIPPED"):
        names = {report.nodeid for report in terminalreporter.stats.get("skipped", [])}
        Path(file).write_text("".join(f"{name}\n" for name in sorted(names)))
    for test in forbidden_skips(terminalreporter):
        terminalreporter.write_line(f"must not be skipped: {test}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # which other processes lack
    if reporter is not None and forbidden_skips(reporter):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def forbidden_skips(reporter: Any) -> list[str]:
    """Tests or files that were skipped, each with its reason, of which MAY_SKIP knows nothing."""
    allowed = os.environ.get("MAY_SKIP", "")  # unset, it allows all
    tests = {f"{report.nodeid}: {report.longrepr[-1]}" for report in reporter.stats.get("skipped", [])}
    return sorted(test for test in tests if not re.search(allowed, test))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_trusted() -> None:
    TRUSTED.clear()  # each test names the files that it runs


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from launch_browser()
