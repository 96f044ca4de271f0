"""Results that others send in must be the protocol's runs of a mixer that obeys the laws."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from stores import finished

from bestiary.cli.card import write_contribution
from bestiary.experiments._protocol import SEEDS, WINDOW, first_runs
from bestiary.experiments.protocol_v1 import PARTS, scores
from bestiary.results.card import Card
from bestiary.results.contributed import FOLDER, contributed_facts, contributed_runs, contributions, faults
from bestiary.results.verdict import Entry
from bestiary.runs.store import Store
from bestiary.runs.table import results
from bestiary.spec import parse

MIXER = Path(__file__).parents[1] / "examples" / "my_mixer.py"
FACTS = {"state 64": 64.0, "train beside attention": 0.5}


@pytest.mark.parametrize("name", contributions())
def test_what_was_sent_in_has_no_fault(name: str) -> None:
    assert list(faults(name, FOLDER)) == []


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `bestiary card my_mixer.py --send FOLDER` writes it, of runs that nobody trained."""
    store, folder = Store(tmp_path_factory.mktemp("runs")), tmp_path_factory.mktemp("sent")
    pattern = str(MIXER)
    parse("mixers", pattern)
    made = [run for part in PARTS for run in first_runs(part, pattern)]
    made += [
        part.recipe(pattern, rate, seed)
        for part in PARTS
        for rate in (part.rates if part.columns == WINDOW else part.rates[:1])
        for seed in SEEDS[1:]
    ]
    for recipe in made:
        finished(store, recipe, 0.5 if recipe.seed else 0.6 - recipe.rate)
    table, _ = results(store, [recipe.key for recipe in made])
    entry = Entry("my_mixer", pattern, "recurrent", {}, FACTS)
    write_contribution(Card([entry], [], table), MIXER, folder, store)
    return folder


@pytest.fixture
def copy(sent: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sent, tmp_path / "copy")


def change(file: Path, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change the table of a compact file."""
    first, rest = file.read_text().split("\n", 1)
    beside = file.with_suffix(".rest")
    beside.write_text(rest)
    text = edit(pd.read_csv(beside, dtype=str)).to_csv(index=False)
    beside.unlink()
    file.write_text(f"{first}\n{text}")


def test_what_the_card_writes_has_no_fault_and_scores_in_any_folder(copy: Path) -> None:
    assert list(faults("my_mixer", copy)) == []
    assert contributions(copy) == {"my_mixer": str(copy / "my_mixer.py")}
    found = scores(contributed_runs("my_mixer", copy), mixers=contributions(copy))
    assert found["seeds"].eq(3).all()
    assert len(found) == 16
    assert contributed_facts("my_mixer", copy).loc["my_mixer", "state 64"] == 64


def test_another_mixer_than_the_one_that_was_run_is_refused(copy: Path) -> None:
    with (copy / "my_mixer.py").open("a") as file:
        file.write("# changed\n")
    found = list(faults("my_mixer", copy))
    assert any("runs of the protocol with this file are not there" in fault for fault in found)
    assert any("are none of the protocol's with this file" in fault for fault in found)


def test_a_mixer_that_leaks_is_refused(copy: Path) -> None:
    shutil.copy(MIXER.with_name("leaky_mixer.py"), copy / "my_mixer.py")
    assert next(faults("my_mixer", copy)).startswith("causality")


def test_a_file_with_the_name_of_a_built_in_mixer_is_refused(tmp_path: Path) -> None:
    assert next(faults("based", tmp_path)) == "based is the name of a built-in mixer; give the file another"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda table: table.iloc[5:], "are not there, or not whole"),
        (lambda table: pd.concat([table, table.assign(key="0123456789ab").head(1)]), "1 runs are none of the protocol"),
        (lambda table: table.assign(accuracy="0.99"), "say other accuracies than their counts"),
        (lambda table: table.assign(right="2000", accuracy="2.0"), "say other accuracies than their counts"),
        (lambda table: table.assign(right=None), "say other accuracies than their counts"),
    ],
)
def test_runs_that_are_missing_strange_or_embellished_are_refused(
    copy: Path, edit: Callable[[pd.DataFrame], pd.DataFrame], said: str
) -> None:
    change(copy / "my_mixer.csv", edit)
    assert any(said in fault for fault in faults("my_mixer", copy))


def test_facts_of_another_mixer_are_refused(copy: Path) -> None:
    facts = copy / "my_mixer-facts.csv"
    facts.write_text(facts.read_text().replace("my_mixer", "other"))
    assert list(faults("my_mixer", copy)) == ["the facts must be one row, of my_mixer"]
