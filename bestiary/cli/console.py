"""What a person sees: live bars on a terminal, plain lines where output is piped."""

import math
import sys
from collections.abc import Iterable

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from bestiary.runs.store import Outcome
from bestiary.sweep import Event
from bestiary.training.recipe import Recipe
from bestiary.training.train import Measurement

WIDE = 160  # columns of a pipe, where nothing says how wide the paper is
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def label(recipe: Recipe) -> str:
    return f"{', '.join(map(str, recipe.pattern))}  dim={recipe.dim} rate={recipe.rate:g} seed={recipe.seed}"


class Watch:
    """Follows the events of a sweep: one bar for the sweep and one line for each running recipe.

    A line is left behind for every run that ends, and in `detail` for every look at the selection stream, so that
    a pipe or a log shows the same course.
    """

    def __init__(self, name: str, *, total: int, done: int = 0, detail: bool = False) -> None:
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
        self.accuracy: dict[str, float] = {}
        self.tests: dict[str, list[float]] = {}  # of each segment
        self.total, self.done, self.detail = total, done, detail
        self.failures: list[Recipe] = []

    def follow(self, events: Iterable[Event]) -> int:
        """Show every event; how many runs failed."""
        with self.progress:
            for kind, recipe, what in events:
                match kind:
                    case "started":
                        self.forget(recipe)
                        self.lines[recipe.key] = self.progress.add_task(label(recipe), total=recipe.steps, news="")
                    case "measured":
                        self.measured(recipe, what)
                    case "ended":
                        self.ended(recipe, what)
                    case "failed":
                        self.failures.append(recipe)
                        self.leave(recipe, f"failed: {what}", style="red")
                    case "retried":
                        self.aside(recipe, f"{what}; tried again", style="yellow")
                    case "unstacked":
                        self.aside(recipe, f"not trained together with others of its shape: {what}", style="yellow")
                    case "waiting" if recipe.key not in self.lines:
                        waiting = f"{label(recipe)}  (another worker has it)"
                        self.lines[recipe.key] = self.progress.add_task(waiting, total=None, news="")
        return len(self.failures)

    def measured(self, recipe: Recipe, seen: Measurement) -> None:
        if seen.split == "train":
            self.loss[recipe.key] = seen.loss / seen.asked
            return
        self.accuracy[recipe.key] = seen.right / seen.asked
        if seen.split == "test":
            self.tests.setdefault(recipe.key, []).append(seen.right / seen.asked)
        news = f"loss {self.loss[recipe.key]:.3f}  accuracy {self.accuracy[recipe.key]:.3f}"
        self.progress.update(self.lines[recipe.key], completed=seen.step, news=news)
        if self.detail and seen.split == "selection":
            self.progress.console.print(f"step {seen.step:>6}  {news}")

    def ended(self, recipe: Recipe, end: Outcome) -> None:
        self.done += 1
        shares = self.tests.pop(recipe.key, [])
        score = f", test {sum(shares) / len(shares):.3f}" if shares else ""
        note = f" ({end.note})" if end.note else ""
        self.leave(recipe, f"{end.outcome}{score}, {end.seconds:.0f} s{note}")

    def aside(self, recipe: Recipe, news: str, *, style: str) -> None:
        """Tell of something that ends no run."""
        self.forget(recipe)
        self.progress.console.print(escape(f"{label(recipe)}: {news}"), style=style)

    def forget(self, recipe: Recipe) -> None:
        if (line := self.lines.pop(recipe.key, None)) is not None:
            self.progress.remove_task(line)

    def leave(self, recipe: Recipe, news: str, *, style: str = "") -> None:
        self.forget(recipe)
        self.progress.update(self.bar, completed=self.done)
        counted = f"[{self.done + len(self.failures)}/{self.total}]"
        self.progress.console.print(escape(f"{counted} {label(recipe)}: {news}"), style=style)


def show(table: pd.DataFrame) -> None:
    """Print a table: what all rows share once above it, an interval behind its middle, gaps for what is missing."""
    if {"low", "high"} <= set(table.columns):
        spans = [f"{low:.3f} to {high:.3f}" for low, high in zip(table["low"], table["high"], strict=True)]
        table = table.drop(columns="high").assign(low=spans).rename(columns={"low": "95 % interval"})
    shared = [name for name in table.columns if len(table) > 1 and table[name].nunique(dropna=False) == 1]
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in table.columns.drop(shared):
        numeric = pd.api.types.is_numeric_dtype(table[name])
        shown.add_column(name, justify="right" if numeric else "left", no_wrap=numeric)
    cells = {name: written(column) for name, column in table.items()}
    for row in zip(*(cells[name] for name in table.columns.drop(shared)), strict=True):
        shown.add_row(*row)
    if told := [f"{name} {cells[name][0]}" for name in shared if cells[name][0]]:
        out.print(", ".join(told))
    out.print(shown)


def written(column: pd.Series) -> list[str]:
    """The cells of a column: three decimals or significant figures, gaps for what is missing."""
    if not pd.api.types.is_numeric_dtype(column):
        return [escape(str(value)) if pd.notna(value) else "" for value in column]
    share = pd.api.types.is_float_dtype(column) and column.abs().max() <= 1

    def cell(value: float | int) -> str:
        if not math.isfinite(value):
            return str(value)
        if share:
            return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.3g}"
        return f"{value:,.0f}" if value == int(value) else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"

    return [cell(value) if pd.notna(value) else "" for value in column]
