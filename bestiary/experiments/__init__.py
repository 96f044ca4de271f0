"""One question per file, asked in its docstring. A file of your own works the same way: `bestiary run ./mine.py`.

def recipes(scale: str) -> Iterator[Recipe]            what to run; scale is smoke (seconds), small (minutes) or paper
def measure(scale: str) -> Iterator[dict[str, Any]]    instead of recipes, where nothing is trained: rows of the table

A `measure` that takes `known: DataFrame | None = None` too can go on from the rows of an earlier table (`--known`).
Optional, except with `measure`:

def summary(table: DataFrame) -> DataFrame             the table to print, from the rows of bestiary.runs.table.results
def figures(table: DataFrame) -> Iterator[tuple[str, Figure]]       figures, each with a suffix for its file name
MIXERS = {"Name": "pattern"}                           names of patterns, among which --with and --only choose
ONLY: tuple[str, ...] = ()                             in place of MIXERS: what --only chose of the names in choices()
def choices() -> list[str]
def next_recipes(table: DataFrame, scale: str) -> list[Recipe]      what to run after seeing these results; [] ends it
facet = "distance"                                     a row for each value of this facet (see bestiary.runs.facets)
def pattern_name(pattern: str) -> str                  the name that a report shows for a pattern
def pages(table: DataFrame, stem: Path) -> Iterator[Path]           further files to write
"""
