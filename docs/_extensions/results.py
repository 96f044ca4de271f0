"""Tables and figures of the pages, from the files in `results/`; `./lab results` rewrites them.

    <!-- table: figure2-small: mixer, dim as width, accuracy, interval, seconds -->
    (what is written here is replaced)
    <!-- end of table -->

The name is that of a file, `results/figure2-small.csv`, and the part before its last hyphen that of the experiment.
The columns are those of the experiment's `summary`; `interval` stands for `low` and `high`, and where there are
`NAME low` and `NAME high`, or `NAME_low` and `NAME_high`, they stand behind NAME.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer
from source import ROOT

DOCS, RESULTS = ROOT / "docs", ROOT / "results"
BLOCK = re.compile(r"^```.*?^```|<!-- table: (\S+): (.*?) -->\n(.*?)<!-- end of table -->", re.DOTALL | re.MULTILINE)
SHARES = ("accuracy", "low", "high")  # columns with three digits after the point
LARGEST = 300_000  # bytes of a file


class Block(NamedTuple):
    """A table of a page: the name of its file, its columns as written, and its text."""

    name: str
    columns: str
    text: str


def pages() -> list[Path]:
    """The pages that may have tables."""
    return [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def blocks(page: str) -> list[Block]:
    """The tables of a page that come from files."""
    return [Block(*found.groups()) for found in BLOCK.finditer(page) if found[1]]  # not one that is shown as code


def written(page: str, names: set[str] | None = None) -> str:
    """The page with its tables written anew, those of the named files or all."""

    def replace(found: re.Match[str]) -> str:
        block = Block(*found.groups())
        if not block.name or (names and block.name not in names):
            return found.group()
        return f"<!-- table: {block.name}: {block.columns} -->\n{block_text(block)}<!-- end of table -->"

    return BLOCK.sub(replace, page)


def block_text(block: Block) -> str:
    """A table of a page, and a line that says what made its numbers."""
    from bestiary.runs.exports import describe_origin, read_table

    file = RESULTS / f"{block.name}.csv"
    table = read_table(file)
    rows = experiment(block.name).summary(table).to_dict("records")
    pairs = [(column.partition(" as ")[0].strip(), column.partition(" as ")[2].strip()) for column in split(block)]
    headings = [heading or {"interval": "95 % interval"}.get(name, name) for name, heading in pairs]
    lines = [headings, ["---"] * len(pairs), *([cell(row, name) for name, _ in pairs] for row in rows)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"\n{text}\n[`results/{file.name}`](../results/{file.name}): {describe_origin(table)}.\n\n"


def split(block: Block) -> list[str]:
    return block.columns.split(",")


def experiment(name: str) -> Any:
    """The module of the experiment whose results are in `results/NAME.csv`."""
    from bestiary.spec import load

    return load("experiments", name.rpartition("-")[0])


def cell(row: dict[str, Any], name: str) -> str:
    """A value of a summary as the pages show it: empty if it is missing, whole numbers with commas."""
    if name == "interval":
        return f"{row['low']:.3f} to {row['high']:.3f}"
    value = row[name]
    if value is None or value != value:
        return ""
    if isinstance(value, str | bool):
        return str(value)
    for space in (" ", "_"):
        if (low := row.get(f"{name}{space}low")) is not None:
            high = row[f"{name}{space}high"]
            return short(value) if low != low else f"{short(value)} ({short(low)} to {short(high)})"
    if name in SHARES:
        return f"{value:.3f}"
    if name == "seconds" or (value == int(value) and abs(value) < 1e15):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def short(value: float) -> str:
    """A number with about three digits."""
    return f"{value:,.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def stale() -> Iterator[str]:
    """A line for each table that is not what its file says."""
    for page in pages():
        for block in blocks(page.read_text()):
            place = f"{page.relative_to(ROOT)}: the table of results/{block.name}.csv"
            if not (RESULTS / f"{block.name}.csv").is_file():
                yield f"{place} has no such file"
            elif block.text != block_text(block):
                yield f"{place} differs from its file; run ./lab results"


def draw(name: str) -> Iterator[Path]:
    """Draw the figures of a file into `docs/figures/`."""
    from bestiary.report.plot import save_figure
    from bestiary.runs.exports import read_table

    for suffix, figure in experiment(name).figures(read_table(RESULTS / f"{name}.csv")):
        yield from save_figure(figure, DOCS / "figures" / f"{name}{suffix}")


def main(names: list[str]) -> None:
    """Rewrite the tables of all pages and draw the figures, of the named files or of all in `results/`."""
    for name in names or sorted(file.stem for file in RESULTS.glob("*.csv")):
        for path in draw(name):
            typer.echo(path.relative_to(ROOT))
    for page in pages():
        before = page.read_text()
        after = written(before, set(names))
        if after != before:
            page.write_text(after)
            typer.echo(page.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
