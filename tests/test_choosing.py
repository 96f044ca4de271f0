"""Experiments with mixers of the user's, and with some of their own."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from bestiary.cli import app
from bestiary.cli._app import choose_mixers, find_names, load_experiment
from bestiary.cli.runs import choose_recipes
from bestiary.experiments import steps_to_solve, tracking
from bestiary.spec import load, names

MINE = str(Path(__file__).parents[1] / "examples" / "my_mixer.py")
COMPARING = [name for name in names("experiments") if isinstance(getattr(load("experiments", name), "MIXERS", 0), dict)]


def test_names_that_hold_commas_are_found() -> None:
    known = ("DeltaNet", "DeltaNet, negative", "LSTM")
    assert find_names("DeltaNet, LSTM", known) == ["DeltaNet", "LSTM"]
    assert find_names("lstm,deltanet,  Negative", known) == ["LSTM", "DeltaNet, negative"]
    with pytest.raises(LookupError, match="no 'LSTN'.*LSTM"):
        find_names("DeltaNet, LSTN", known)
    with pytest.raises(LookupError, match="no ''"):
        find_names("DeltaNet,", known)


@pytest.mark.parametrize("name", COMPARING)
def test_every_comparing_experiment_runs_what_is_chosen(name: str) -> None:
    module = load_experiment(name)
    first, *rest = module.MIXERS
    scale = "small" if len(rest) < 50 else "smoke"
    before = [recipe.key for recipe in module.recipes(scale)]
    chosen = choose_mixers(module, [MINE], first)
    made = list(chosen.recipes(scale))
    assert list(chosen.MIXERS) == [first, "my_mixer"]
    assert any(MINE in str(recipe.pattern) for recipe in made)
    own = {recipe.key for recipe in made if MINE not in str(recipe.pattern)}
    others = {recipe.key for recipe in choose_mixers(module, None, ", ".join(rest)).recipes(scale)}
    assert own.isdisjoint(others)
    assert own | others == {*before}
    assert [recipe.key for recipe in module.recipes(scale)] == before


@pytest.mark.parametrize("name", COMPARING)
def test_every_comparing_experiment_runs_some_of_its_own(name: str) -> None:
    module = load_experiment(name)
    last = list(module.MIXERS)[-1]
    assert list(choose_mixers(module, None, last).MIXERS) == [last]


def test_some_of_the_published_numbers_are_measured_alone() -> None:
    module = load_experiment("calibration")
    chosen = choose_mixers(module, None, "parity, DeltaNet, negative, one layer, Mamba, no gate")
    assert [one.name for one in chosen.anchors("small")] == ["one layer, Mamba, no gate", "parity, DeltaNet, negative"]
    assert len(list(chosen.recipes("small"))) == 3 + 2
    assert len(module.anchors("small")) > 2  # the module itself is as it was
    with pytest.raises(ValueError, match="paper has none of these numbers: parity, DeltaNet, negative"):
        list(choose_mixers(module, None, "parity, DeltaNet, negative").recipes("paper"))
    with pytest.raises(LookupError, match="no 'parity, Delta'|no 'parity'"):
        choose_mixers(module, None, "parity, Delta")
    with pytest.raises(ValueError, match="calibration has no table of mixers"):
        choose_mixers(module, [MINE], "parity, DeltaNet")


def test_a_mixer_that_is_put_beside_itself_is_run_once() -> None:
    _, recipes = choose_recipes("rates", "small", ["attention"], "")
    keys = [recipe.key for recipe in recipes]
    assert len(keys) == len({*keys})


def test_files_of_one_name_stand_beside_each_other(tmp_path: Path) -> None:
    files = [tmp_path / version / "my.py" for version in ("v1", "v2")]
    for place, file in enumerate(files):
        file.parent.mkdir()
        file.write_text(Path(MINE).read_text() + f"# {place}\n")
    one, two = map(str, files)
    chosen = choose_mixers(tracking, [one, two, one, f"{one}(slowest=1.0)"], "LSTM").MIXERS
    assert list(chosen) == ["LSTM", "my", two, f"{one}(slowest=1.0)"]
    assert [chosen["my"], chosen[two]] == [one, two]


def test_an_experiment_without_mixers_says_so() -> None:
    with pytest.raises(ValueError, match="degree has no table of mixers to choose from"):
        choose_mixers(load_experiment("degree"), [], "Attention")
    with pytest.raises(LookupError):
        choose_mixers(load_experiment("tracking"), ["nothing"], "")
    assert choose_mixers(tracking, None, "") is tracking


@pytest.mark.slow
def test_the_table_calls_the_mixer_by_its_file(tmp_path: Path) -> None:
    places = ["--store", str(tmp_path / "runs"), "--figures", str(tmp_path / "figures"), "--workers", "2"]
    chosen = ["--scale", "smoke", "--with", MINE, "--only", "LSTM"]
    result = CliRunner().invoke(app, ["run", "tracking", *chosen, *places])
    assert result.exit_code == 0, result.output
    assert {"LSTM", "my_mixer"} <= set(result.output.split())
    assert "Attention" not in result.output
    assert (tmp_path / "figures" / "tracking-smoke.svg").is_file()
    seen = CliRunner().invoke(app, ["plot", "tracking", *chosen, *places[:4]])
    assert "my_mixer" in seen.output
    assert "my_mixer" not in tracking.MIXERS


def test_other_seeds_are_run_of_what_is_chosen() -> None:
    chosen = choose_mixers(steps_to_solve, [MINE], "Attention")
    asked = [str(recipe.pattern[0]) for recipe in chosen.recipes("small")]
    assert asked == ["attention"] * 4 + [MINE] * 4
