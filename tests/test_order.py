"""Imports point one way: each part of the package uses the parts before it, never those after, and never in circles."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ORDER = (
    *("spec", "ops", "tasks", "mixers", "model", "laws", "constructions", "training"),
    *("runs", "sweep", "report", "corpus", "lm", "slices", "explain", "experiments", "results", "cli"),
)
ANYWHERE = ("_version",)  # what every part may import
FORWARDS = ("interop",)  # names from version 0.1, in folders of models that were converted then
PACKAGE = Path(__file__).parents[1] / "bestiary"
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file.relative_to(PACKAGE).parts[0] not in FORWARDS)
MODULES = {
    ".".join(("bestiary", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in FILES
}


def imported(file: Path) -> set[str]:
    """The modules of the package that a file imports, at its top or inside its functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bestiary":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found


def part(module: str) -> str:
    return (module.split(".") + [""])[1]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "bestiary"])
def test_imports_point_backwards(name: str) -> None:
    if part(name) in ANYWHERE:
        return
    used = {part(module) for module in imported(MODULES[name])} - {part(name), *ANYWHERE}
    later = {other for other in used if other not in ORDER or ORDER.index(other) > ORDER.index(part(name))}
    assert not later, f"{name} imports from the later {sorted(later)}"


def test_no_two_files_import_each_other() -> None:
    left = {name: imported(file) & set(MODULES) - {name} for name, file in MODULES.items()}
    while free := [name for name, used in left.items() if not used & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these import each other in circles: {sorted(left)}"


@pytest.mark.parametrize(
    "module",
    [
        "bestiary",
        "bestiary.cli",
        "bestiary.training.recipe",
        "bestiary.runs.store",
        "bestiary.sweep",
        "bestiary.runs.table",
        "bestiary.report.plot",
    ],
)
def test_torch_is_not_imported_before_it_is_needed(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
