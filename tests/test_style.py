"""Rules that no test checks are wishes."""

import ast
from pathlib import Path

import pytest

from bestiary.spec import locate

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("bestiary/**/*.py"), *ROOT.glob("benchmarks/*.py")])
IDS = [str(file.relative_to(ROOT)) for file in FILES]


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_a_file_can_be_read_in_one_sitting(file: Path) -> None:
    lines = len(file.read_text().splitlines())
    shared = file.name.startswith("_")  # parts that several mixers or tasks have in common
    assert lines <= ((200 if shared else 160) if file.parent.name in ("mixers", "tasks") else 450)


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_functions_are_short(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.end_lineno - node.body[0].lineno if node.end_lineno else 0
            assert body <= 45, f"{node.name} has {body} lines"


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_every_file_and_public_class_says_what_it_is(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert not tree.body or ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"class {node.name} has no docstring"


@pytest.mark.parametrize("file", sorted(ROOT.glob("bestiary/mixers/[!_]*.py")), ids=lambda file: file.stem)
def test_a_mixer_states_its_source_and_its_departures(file: Path) -> None:
    doc = ast.get_docstring(ast.parse(file.read_text())) or ""
    assert "20" in doc.splitlines()[0], "the first line cites the paper with its year"
    assert "Departs from" in doc


@pytest.mark.parametrize("file", sorted(ROOT.glob("bestiary/tasks/[!_]*.py")), ids=lambda file: file.stem)
def test_a_task_has_a_source_a_family_a_drawing_three_difficulties_and_an_axis(file: Path) -> None:
    first = (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines()[0]
    assert "20" in first, "the first line cites the paper with its year"
    task = locate("tasks", file.stem)
    assert task.family in FAMILIES
    assert len(task.variants) >= 2
    assert task.axes
    assert any(line.startswith(8 * " ") for line in (task.__doc__ or "").splitlines()), "one sequence is drawn"


FAMILIES = ("recall", "mad", "copying", "formal languages", "state tracking", "in-context rules", "reasoning")
