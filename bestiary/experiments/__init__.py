"""One question per file, in the docstring; `recipes` says what to run, `summary` and `figures` what it shows.

def recipes(scale: str) -> Iterator[Recipe]            scale is smoke (seconds), small (minutes) or paper
def measure(scale: str) -> Iterator[dict[str, Any]]    instead of recipes, where nothing is trained: the rows themselves
def summary(table: DataFrame) -> DataFrame             from the rows of bestiary.runs.table.results
def figures(table: DataFrame) -> Iterator[tuple[str, Figure]]       a name for each

It may also say more:

def further(table: DataFrame, scale: str) -> list[Recipe]           what to run after it has seen so much; [] at the end
facet = "distance"                                                  the rows are those of bestiary.runs.facets.by_facet
def called(pattern: str) -> str                                     what a report calls a pattern
"""
