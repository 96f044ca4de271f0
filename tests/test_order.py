"""Imports point one way: each part of the package uses the parts before it, never those after."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ORDER = (
    *(
        "spec",
        "ops",
        "tasks",
        "mixers",
        "model",
        "laws",
        "intervals",
        "recipe",
        "size",
        "training",
        "together",
        "constructions",
    ),
    *("store", "text", "sweep", "index", "table", "facets", "search", "plot", "experiments", "report", "interop"),
    *("console", "describe", "cli"),
)
PACKAGE = Path(__file__).parents[1] / "bestiary"
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(file: Path) -> set[str]:
    """The parts of the package that a file imports, at its top or inside its functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "bestiary":
            found |= {alias.name for alias in node.names if alias.name in ORDER}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bestiary."):
            found.add((node.module or "").split(".")[1])
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_backwards(file: Path) -> None:
    part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part != "__init__":
        later = {name for name in imported(file) - {part} if ORDER.index(name) > ORDER.index(part)}
        assert not later, f"{file.name} belongs to {part} but imports from the later {sorted(later)}"


@pytest.mark.parametrize(
    "module",
    [
        "bestiary",
        "bestiary.cli",
        "bestiary.recipe",
        "bestiary.store",
        "bestiary.sweep",
        "bestiary.table",
        "bestiary.plot",
    ],
)
def test_torch_is_not_imported_before_it_is_needed(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
