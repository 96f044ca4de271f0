"""The theory's experiments, verb and chapter: what they measure, what they print, what they promise."""

import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from bestiary.cli import app
from bestiary.experiments import constructions, degree, distance_to_theory
from bestiary.report.plot import Growth, growth_panels
from bestiary.spec import names

ROOT = Path(__file__).parents[1]
CHAPTER = (ROOT / "docs" / "theory.md").read_text()


def test_every_row_of_the_smoke_scale_is_exact_and_drawn() -> None:
    table = pd.DataFrame(constructions.measure("smoke"))
    shown = constructions.summary(table)
    assert (shown["accuracy"] == 1).all()
    assert (shown["in float32"] == 1).all()
    ((_, figure),) = constructions.figures(table)
    assert len([axis for axis in figure.axes if axis.lines]) == table["construction"].nunique()


@pytest.mark.parametrize(("text", "base"), list(degree.BASES.items()))
@pytest.mark.parametrize("layers", [1, 2])
def test_the_degree_of_a_stack_is_the_bound_and_no_more(text: str, base: int, layers: int) -> None:
    stack = [degree.random_mixer(text, 5, layer) for layer in range(layers)]
    found, error = degree.measure_degree(stack, highest=base**layers, seed=5)
    assert found == base**layers
    assert error < 1e-12


def test_a_gate_that_is_constant_adds_no_degree() -> None:
    gated, open_ = (degree.random_mixer("base_conv", 1, layer) for layer in range(2))
    with torch.no_grad():
        open_.project.weight.zero_()
    assert degree.measure_degree([gated, open_], highest=4, seed=0)[0] == 2


def test_finite_differences_see_the_degree_of_a_polynomial() -> None:
    values = [Fraction(t**3 - 2 * t) for t in range(6)]
    assert [degree.finite_difference(values, n) for n in (3, 4, 5)] == [6, 0, 0]


def test_a_law_is_drawn_dashed_through_its_last_count() -> None:
    figure = growth_panels({"p": [Growth("state", [4.0, 16.0], [8.0, 32.0], [16.0, 32.0], "$N$")]}, x="N")
    counts, law = figure.axes[0].lines
    assert (counts.get_linestyle(), law.get_linestyle()) == ("None", "--")
    assert counts.get_ydata()[-1] == law.get_ydata()[-1]
    assert [text.get_text() for text in figure.axes[0].texts] == ["$N$"]


def test_what_is_trained_has_the_layers_and_the_width_of_what_is_written() -> None:
    for made in distance_to_theory.recipes("smoke"):
        known = {
            distance_to_theory.canonical_pattern(text): found
            for text, found in distance_to_theory.constructions(16, 12).items()
        }
        depth, build = known[", ".join(map(str, made.pattern))]
        assert (made.depth, made.dim) == (depth, distance_to_theory.stream_width(build()))


def test_one_panel_for_each_memory_has_the_points_of_all_vocabularies() -> None:
    ended = {"accuracy": 0.5, "asked": 8, "selection": 0.5, "solved": math.nan, "seconds": 1.0, "outcome": "finished"}
    rows = [
        {**dict(made.test[0].options), **ended, **{name: getattr(made, name) for name in ("depth", "dim", "rate")}}
        | {"pattern": ", ".join(map(str, made.pattern))}
        for made in distance_to_theory.recipes("small")
    ]
    ((_, figure),) = distance_to_theory.figures(pd.DataFrame(rows))
    assert [axis.get_title() for axis in figure.axes] == [
        "attention", "linear attention", "delta rule", "least squares"
    ]  # fmt: skip
    assert all(np.array_equal(line.get_xdata(), [32, 64]) for axis in figure.axes for line in axis.lines)


def run_cli(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    """The command line within this process, in a folder of its own."""
    monkeypatch.chdir(folder)
    return CliRunner().invoke(app, list(arguments))


def test_bound_prints_a_short_table(capfd: pytest.CaptureFixture[str]) -> None:
    assert CliRunner().invoke(app, ["bound", "--pairs", "0", "--vocab", "64"]).exit_code == 2
    app(["bound", "--pairs", "64", "--vocab", "8192", "--state", "4096"], standalone_mode=False)
    shown = capfd.readouterr().out
    assert re.search(r"bits of state that every answer needs +767\.3 +theorem", shown)
    assert re.search(r"accuracy of least squares, random keys, 3 seeds +1 +simulated", shown)
    assert len(shown.splitlines()) < 20


def test_an_experiment_that_trains_nothing_is_measured_and_leaves_no_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run_cli(tmp_path, monkeypatch, "run", "degree", "--scale", "smoke")
    assert done.exit_code == 0
    assert "figures/degree-smoke.csv" in done.output
    assert (tmp_path / "figures" / "degree-smoke.png").exists()
    assert "measures by itself" in run_cli(tmp_path, monkeypatch, "run", "degree", "--dry-run").output
    (tmp_path / "runs").mkdir()
    for verb in ("plot", "status"):
        refused = run_cli(tmp_path, monkeypatch, verb, "degree")
        assert refused.exit_code == 2
        assert "degree leaves no runs in a store; `bestiary run degree` measures and draws it" in refused.output
    assert not list((tmp_path / "runs").iterdir())


def test_an_experiment_without_recipes_or_measure_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text('"""A question."""\n\nsummary = figures = print\n')
    refused = run_cli(tmp_path, monkeypatch, "run", "./mine.py")
    assert refused.exit_code == 2
    assert "must define recipes, or else measure, summary and figures" in refused.output


def test_what_the_chapter_names_is_there() -> None:
    for name in re.findall(r"\./lab run (\w+)", CHAPTER):
        assert name in names("experiments")
    for file, wanted in re.findall(r"\./lab test (tests/\w+\.py) -k (\w+)", CHAPTER):
        assert re.search(rf"def test_\w*{wanted}", (ROOT / file).read_text()), (file, wanted)
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", CHAPTER):
        assert (ROOT / "docs" / path).exists(), path
