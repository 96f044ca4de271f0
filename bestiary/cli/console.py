"""What a person sees: progress bars on a terminal, plain lines where output is piped."""

import math
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from bestiary.cli._progress import format_seconds
from bestiary.runs.store import Outcome
from bestiary.sweep import Event
from bestiary.training.recipe import Recipe
from bestiary.training.train import Measurement

WIDE = 160  # columns of output that is piped
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def recipe_label(recipe: Recipe, *, task: bool = False) -> str:
    """A run in a few words: its mixers, width, learning rate and seed, and on demand what it is trained on."""
    label = f"{', '.join(map(str, recipe.pattern))}  dim={recipe.dim} rate={recipe.rate:g} seed={recipe.seed}"
    return f"{label} {', '.join(map(str, recipe.train))}" if task else label


class ProgressDisplay:
    """Shows the events of a sweep: one bar for the sweep and one for each running recipe.

    It prints a line for every run that ends, and with `detail` one for every evaluation on the selection stream, so
    that a pipe or a log file shows the same course as a terminal.
    """

    def __init__(self, name: str, recipes: Sequence[Recipe], *, done: int = 0, detail: bool = False) -> None:
        self.several_tasks = len({recipe.train for recipe in recipes}) > 1
        total = len(recipes)
        columns = (
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[news]}"),
        )
        self.progress = Progress(TextColumn("{task.description}", markup=False), *columns, console=out, transient=True)
        self.progress.disable = not out.is_terminal
        self.bar = self.progress.add_task(name, total=total, completed=done, news="runs")
        self.lines: dict[str, TaskID] = {}
        self.loss: dict[str, float] = {}
        self.accuracy: dict[str, float] = {}  # on the selection stream
        self.tests: dict[str, list[float]] = {}  # test accuracy of each segment
        self.started: dict[str, float] = {}  # when each run began, by this process's clock
        self.first: dict[str, int] = {}  # the step that it began after
        self.total, self.done, self.detail = total, done, detail
        self.failures: list[Recipe] = []

    def label(self, recipe: Recipe) -> str:
        """A run in a few words, by which it is known from the others."""
        return recipe_label(recipe, task=self.several_tasks)

    def follow(self, events: Iterable[Event]) -> int:
        """Show every event. Returns how many runs failed."""
        with self.progress:
            for kind, recipe, what in events:
                match kind:
                    case "started":
                        self.remove_bar(recipe)
                        self.tests.pop(recipe.key, None)  # of a try that ended between two tests
                        if what is not None:
                            self.print_note(recipe, str(what), style="yellow" if what.fault else "")
                        self.first[recipe.key] = 0 if what is None else what.step
                        self.started[recipe.key] = time.monotonic()
                        self.lines[recipe.key] = self.progress.add_task(self.label(recipe), total=recipe.steps, news="")
                    case "measured":
                        self.show_measurement(recipe, what)
                    case "ended":
                        self.show_end(recipe, what)
                    case "failed":
                        self.failures.append(recipe)
                        self.print_result(recipe, f"failed: {what}", style="red")
                    case "retried":
                        self.print_note(recipe, f"{what}; tried again", style="yellow")
                    case "unstacked":
                        self.print_note(
                            recipe, f"not trained together with others of its shape: {what}", style="yellow"
                        )
                    case "waiting" if recipe.key not in self.lines:
                        waiting = f"{self.label(recipe)}  (another worker has it)"
                        self.lines[recipe.key] = self.progress.add_task(waiting, total=None, news="")
        return len(self.failures)

    def show_measurement(self, recipe: Recipe, measurement: Measurement) -> None:
        """Update the bar of a run with its loss and accuracy."""
        if measurement.split == "train":
            self.loss[recipe.key] = measurement.loss / measurement.asked
            return
        self.accuracy[recipe.key] = measurement.right / measurement.asked
        if measurement.split == "test":
            self.tests.setdefault(recipe.key, []).append(measurement.right / measurement.asked)
        news = f"loss {self.loss[recipe.key]:.3f}  accuracy {self.accuracy[recipe.key]:.3f}"
        news += self.time_left(recipe, measurement.step)
        self.progress.update(self.lines[recipe.key], completed=measurement.step, news=news)
        if self.detail and measurement.split == "selection":
            self.progress.console.print(f"step {measurement.step:>6}  {news}")

    def time_left(self, recipe: Recipe, step: int) -> str:
        """How long the rest of the steps will take at the pace so far, as the end of a line."""
        done = step - self.first.get(recipe.key, 0)
        if step >= recipe.steps or recipe.key not in self.started or done <= 0:
            return ""
        seconds = (time.monotonic() - self.started[recipe.key]) * (recipe.steps - step) / done
        return f"  {format_seconds(seconds)} left"

    def show_end(self, recipe: Recipe, end: Outcome) -> None:
        """Print how a run ended, with the mean of its test accuracies."""
        self.done += 1
        shares = self.tests.pop(recipe.key, [])
        score = f", test {sum(shares) / len(shares):.3f}" if shares else ""
        note = f" ({end.note})" if end.note else ""
        self.print_result(recipe, f"{end.outcome}{score}, {end.seconds:.0f} s{note}")

    def print_note(self, recipe: Recipe, news: str, *, style: str) -> None:
        """Print a line about a run that goes on."""
        self.remove_bar(recipe)
        self.progress.console.print(escape(f"{self.label(recipe)}: {news}"), style=style)

    def remove_bar(self, recipe: Recipe) -> None:
        """Take the bar of a run off the screen."""
        if (line := self.lines.pop(recipe.key, None)) is not None:
            self.progress.remove_task(line)

    def print_result(self, recipe: Recipe, news: str, *, style: str = "") -> None:
        """Print a line about a run that is over."""
        self.remove_bar(recipe)
        self.progress.update(self.bar, completed=self.done)
        counted = f"[{self.done + len(self.failures)}/{self.total}]"
        self.progress.console.print(escape(f"{counted} {self.label(recipe)}: {news}"), style=style)


def print_table(table: pd.DataFrame) -> None:
    """Print a table. Values that all rows share stand once above it; an interval is one column; missing is blank.

    The interval of NAME_low and NAME_high stands behind NAME. A table that is too wide is printed in several, each
    with the first column.
    """
    if {"low", "high"} <= set(table.columns):
        spans = [f"{low:.3f} to {high:.3f}" for low, high in zip(table["low"], table["high"], strict=True)]
        table = table.drop(columns="high").assign(low=spans).rename(columns={"low": "95 % interval"})
    cells = join_intervals({str(name): format_column(column) for name, column in table.items()})
    alike = {str(name) for name, column in table.items() if column.nunique(dropna=False) == 1}
    shared = [name for name in cells if len(table) > 1 and name in alike and len(set(cells[name])) == 1]
    if common := [f"{name} {cells[name][0]}" for name in shared if cells[name][0]]:
        out.print(", ".join(common))
    numeric = {str(name) for name, column in table.items() if pd.api.types.is_numeric_dtype(column)}
    shown = {name: column for name, column in cells.items() if name not in shared}
    if fitting_columns(shown, numeric, out.width) != [[*shown]]:  # then numbers have their headers word by word
        shown = {name.replace(" ", "\n"): column for name, column in shown.items()}
        numeric = {name.replace(" ", "\n") for name in numeric}
    for names in fitting_columns(shown, numeric, out.width):
        part = Table(box=None, pad_edge=False, header_style="bold")
        for name in names:
            part.add_column(name, justify="right" if name in numeric else "left", no_wrap=name in numeric)
        for row in zip(*(shown[name] for name in names), strict=True):
            part.add_row(*row)
        out.print(part)


def join_intervals(cells: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The columns of a table as text, those of NAME_low and NAME_high (or NAME low, NAME high) behind that of NAME."""
    found = dict(cells)
    for name in cells:
        for space in " _":
            if {low := f"{name}{space}low", high := f"{name}{space}high"} <= set(cells):
                columns = zip(found[name], found.pop(low), found.pop(high), strict=True)
                found[name] = [f"{value} ({least} to {most})" if least else value for value, least, most in columns]
    return found


def fitting_columns(cells: Mapping[str, Sequence[str]], numeric: Collection[str], width: int) -> list[list[str]]:
    """The columns of a table in groups that fit a width, each with the first column: one group if they all do.

    Text may be broken at spaces, numbers may not, and headers at the ends of their lines.
    """
    widths = {
        name: max(map(len, [*name.split("\n"), *(column if name in numeric else " ".join(column).split())]), default=0)
        for name, column in cells.items()
    }
    if not widths:
        return []
    first, *others = widths
    groups = [[first]]
    left = width - widths[first]
    for name in others:
        if widths[name] + 2 > left and len(groups[-1]) > 1:
            groups.append([first])
            left = width - widths[first]
        groups[-1].append(name)
        left -= widths[name] + 2
    return groups


def format_column(column: pd.Series) -> list[str]:
    """The cells of a column as text: three decimals or significant figures, "" for what is missing."""
    if not pd.api.types.is_numeric_dtype(column):
        return [escape(str(value)) if pd.notna(value) else "" for value in column]
    share = pd.api.types.is_float_dtype(column) and column.abs().max() <= 1

    def cell(value: Any) -> str:  # a number of Python or NumPy
        if not math.isfinite(value):
            return str(value)
        if share:
            return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.3g}"
        return f"{value:,.0f}" if value == int(value) else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"

    return [cell(value) if pd.notna(value) else "" for value in column]
