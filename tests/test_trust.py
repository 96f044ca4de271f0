"""What is read never runs: hostile stores, model folders, configurations and checkpoints, each with a canary."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import command, environment
from stores import finished, recipe

from bestiary.report import command as command_of
from bestiary.report import report
from bestiary.runs.store import Store
from bestiary.runs.table import results
from bestiary.spec import parse, read_specs, reading_data, spec, trust
from bestiary.spec.loading import TRUSTED, load_file
from bestiary.training.recipe import Recipe, clean

MINE = (Path(__file__).parents[1] / "examples" / "my_mixer.py").read_text()
READING = (
    ("status", "--all"),
    ("export", "--to", "out.csv"),
    ("export", "--log", "--to", "out.csv"),
    ("sql", "select * from results"),
    ("sql", "select * from runs"),
    ("report", "runs"),
)
EXPERIMENTS = ("figure2", "frontier", "load", "capacity", "kimi_trio", "distance_to_theory", "based_figure3")


class Canary:
    """A file of code that leaves a mark when it is run."""

    def __init__(self, folder: Path) -> None:
        self.mark, self.file = folder / "canary", folder / "evil.py"
        self.file.write_text(MINE + f"\nfrom pathlib import Path\n\nPath({str(self.mark)!r}).touch()\n")

    def forget(self) -> None:
        """As in a process that has never heard of the file."""
        self.mark.unlink(missing_ok=True)
        TRUSTED.clear()
        load_file.cache_clear()
        for name in [name for name in sys.modules if name.startswith("bestiary_")]:
            del sys.modules[name]

    @property
    def sang(self) -> bool:
        return self.mark.exists()


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    made = Canary(tmp_path)
    yield made
    made.forget()


@pytest.fixture
def hostile(canary: Canary, tmp_path: Path) -> Recipe:
    """The recipe of a run that was made with the file, in a store beside one that was not."""
    store = Store(tmp_path / "runs")
    finished(store, recipe("attention"), 0.5)
    made = recipe(str(canary.file))
    finished(store, made, 0.75)
    assert canary.sang
    canary.forget()
    return made


def forms(stored: dict[str, Any], file: Path) -> Iterator[dict[str, Any]]:
    """Other ways in which data may name the file."""
    for pattern in (str(file), [str(file)], [{**stored["pattern"][0], "source": ""}], f"serial({str(file)!r})"):
        yield {**stored, "pattern": pattern}
    for mixers in (str(file), [str(file)], [stored["pattern"][0]], f"serial('{file}')"):
        yield {**stored, "pattern": [{"text": "x", "name": "serial", "options": {"mixers": mixers}, "source": ""}]}
    yield {**stored, "pattern": [{**stored["pattern"][0], "name": "attention", "text": str(file)}]}
    yield {**stored, "train": stored["pattern"], "test": stored["pattern"]}
    yield {**stored, "train": str(file), "test": [str(file)], "select": str(file)}


def plant(store: Path, key: str, stored: dict[str, Any], like: str) -> None:
    """Another run of the store, with this recipe."""
    shutil.copytree(store / like, store / key)
    (store / key / "recipe.json").write_text(json.dumps(stored))


@pytest.mark.parametrize("verb", READING, ids=" ".join)
def test_a_run_made_with_a_file_is_read_without_running_it(
    verb: tuple[str, ...], hostile: Recipe, canary: Canary, tmp_path: Path
) -> None:
    pytest.importorskip("duckdb")
    done = command(*verb, folder=tmp_path)
    assert done.status == 0, done.err + done.trace
    assert not canary.sang
    shown = done.out + "".join(p.read_text() for p in tmp_path.glob("*.csv")) + page(tmp_path)
    assert hostile.key in shown


def page(folder: Path) -> str:
    return "".join(place.read_text() for place in folder.glob("*.html"))


def test_it_is_counted_shown_and_drawn_by_name(hostile: Recipe, canary: Canary, tmp_path: Path) -> None:
    table, damaged = results(Store(tmp_path / "runs"), [hostile.key])
    assert (table["accuracy"].tolist(), table["pattern"].tolist(), damaged) == ([0.75], [str(canary.file)], [])
    found = report(Store(tmp_path / "runs"))
    assert "evil.py" in found.html
    assert '"parameters":null' in found.html
    assert found.damaged == []
    shown = command("show", hostile.key, folder=tmp_path)
    assert "evil.py" in shown.out
    assert "test segment 0: 750 of 1000 right" in shown.out
    assert not canary.sang


@pytest.mark.slow
def test_no_way_to_name_a_file_in_a_store_runs_it(hostile: Recipe, canary: Canary, tmp_path: Path) -> None:
    stored, store, like = hostile.json(), tmp_path / "runs", recipe("attention").key
    for number, form in enumerate(forms(stored, canary.file)):
        plant(store, f"{number:012x}", form, like)
        for verb in (("status", "--all"), ("export", "--to", "out.csv"), ("show", f"{number:012x}")):
            command(*verb, folder=tmp_path)
            assert not canary.sang, f"{verb} ran {form['pattern']}"
        with suppress(LookupError, ValueError, TypeError):
            Recipe.read(form).check()
        with suppress(LookupError, ValueError, TypeError):
            command_of(form)
        assert not canary.sang, f"read as {form['pattern']}"
    for verb in READING:
        command(*verb, folder=tmp_path)
        assert not canary.sang, f"{verb}"


@pytest.mark.slow
def test_an_experiment_runs_no_file_that_its_runs_name(hostile: Recipe, canary: Canary, tmp_path: Path) -> None:
    from bestiary.spec import load

    for name in EXPERIMENTS:
        for made in list(load("experiments", name).recipes("smoke"))[:40]:
            if not (tmp_path / "runs" / made.key).exists():
                planted = {**made.json(), "pattern": hostile.json()["pattern"]}
                plant(tmp_path / "runs", made.key, planted, hostile.key)
        for verb in ("plot", "status"):
            command(verb, name, "--scale", "smoke", folder=tmp_path)
            assert not canary.sang, f"{verb} {name}"


def test_a_stored_recipe_is_itself_again_and_is_built_only_when_its_file_is_named(
    hostile: Recipe, canary: Canary
) -> None:
    found = Recipe.read(hostile.json())
    assert (found.key, found.json()) == (hostile.key, hostile.json())
    with pytest.raises(LookupError, match="evil.py' is a file of code, run only if you name it, as with --trust-files"):
        found.check()
    with pytest.raises(LookupError, match="run only if you name it"):
        command_of(hostile.json())
    assert not canary.sang
    trust(canary.file)
    found.check()
    assert canary.sang
    assert f"--layers {canary.file}" in command_of(hostile.json())


def test_the_file_that_is_run_is_the_one_that_was_named(hostile: Recipe, canary: Canary, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "evil.py"
    copy.parent.mkdir()
    canary.file.rename(copy)
    canary.file.write_text("raise SystemExit('the wrong file')")
    trust(copy)
    found = Recipe.read(hostile.json())
    found.check()
    assert found.key == hostile.key
    assert found.pattern[0].name == str(copy)


def test_another_file_of_that_name_does_not_stand_in(hostile: Recipe, canary: Canary) -> None:
    canary.file.write_text(MINE)
    trust(canary.file)
    with pytest.raises(ValueError, match="evil.py has changed since this was made with it"):
        Recipe.read(hostile.json()).check()


def test_data_names_no_file_by_path_unless_the_user_has(canary: Canary) -> None:
    with reading_data():
        for text in (str(canary.file), f"serial('{canary.file}')", f"'{canary.file}'"):
            with pytest.raises(LookupError, match="run only if you name it"):
                parse("mixers", text)
            with pytest.raises(LookupError, match="run only if you name it"):
                read_specs("mixers", [text])
    assert not canary.sang
    spec("mixers", str(canary.file))
    with reading_data():
        assert parse("mixers", str(canary.file))[0].source


def test_what_was_loaded_stays_what_was_named(canary: Canary) -> None:
    (made,) = parse("mixers", f"{canary.file}(slowest=2.0)")
    canary.file.write_text("raise SystemExit('changed under way')")
    assert made.build(8).rate.max() == 2.0
    load_file.cache_clear()
    with pytest.raises(ValueError, match="has changed since this was made with it"):
        made.build(8)


def test_workers_run_the_file_that_the_user_named(canary: Canary) -> None:
    made = pickle.dumps(clean(str(canary.file)))
    canary.forget()
    pickle.loads(made).check()
    assert canary.sang


@pytest.mark.slow
def test_a_run_with_a_file_of_ones_own_keeps_its_key(tmp_path: Path) -> None:
    (tmp_path / "my mixers").mkdir()
    (tmp_path / "my mixers" / "a b.py").write_text(MINE)
    small = ("steps=2", "every=1", "batch=4", "dim=8", "selection_rows=4", "test_rows=4", "--task", "parity(length=8)")
    given = [sys.executable, "-m", "bestiary.cli", "train", "--layers", '"my mixers/a b.py", attention', *small]
    for said in ("finished", "done already"):
        ran = subprocess.run(given, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert said in ran.stdout
    again = command("report", "runs", "--trust-files", "my mixers/a b.py", folder=tmp_path)
    assert again.status == 0, again.err
    assert "a b.py" in page(tmp_path)
    assert '"parameters":null' not in page(tmp_path)


@pytest.mark.usefixtures("hostile")
def test_a_report_knows_the_size_of_a_model_whose_file_is_named(canary: Canary, tmp_path: Path) -> None:
    assert command("report", "runs", "--trust-files", canary.file, folder=tmp_path).status == 0
    assert '"parameters":null' not in page(tmp_path)


# Folders of models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and a model trained on it for two steps with a file that leaves a mark."""
    pytest.importorskip("transformers")
    here = tmp_path_factory.mktemp("models")
    made = Canary(here)
    texts = [json.dumps({"text": f"Ada has {i} of 9. Bob has 8 of {i}. " * 4}) + "\n" for i in range(200)]
    (here / "text.jsonl").write_text("".join(texts))
    assert command("corpus", "text.jsonl", "--out", "corpus", "--tokenizer", "bytes", folder=here).status == 0
    small = ("context=8", "batch=2", "steps=2", "every=1", "dim=8", "depth=1", "selection_rows=2", "test_rows=2")
    given = ("pretrain", made.file, *small, "--corpus", "corpus", "--store", "models", "--save-every", 1)
    done = command(*given, folder=here)
    assert done.status == 0, done.err + done.trace
    (run,) = (here / "models").iterdir()
    run.rename(here / "model")
    assert command("convert", "model", "converted", folder=here).status == 0
    made.forget()
    return here


@pytest.fixture
def model(models: Path, tmp_path: Path) -> Iterator[tuple[Path, Canary]]:
    """A copy of them, the mark of the file cleared."""
    here = tmp_path / "copy"
    shutil.copytree(models, here)
    made = Canary(models)
    made.forget()
    yield here, made
    made.forget()


OPENING = (
    ("generate", "model", "Ada"),
    ("convert", "model", "out"),
    ("probe", "model", "--rows", "4", "--shots", "0", "--entries", "2", "--words", "0"),
    ("slice", "model", "corpus", "--length", "60", "--limit", "4", "--threshold", "9999", "--out", "out"),
    ("evaluate", "model"),
    ("probe", "converted", "--rows", "4", "--shots", "0", "--entries", "2", "--words", "0"),
    ("slice", "converted", "corpus", "--length", "60", "--limit", "4", "--threshold", "9999", "--out", "out"),
)


@pytest.mark.parametrize("verb", OPENING, ids=" ".join)
def test_a_folder_of_a_model_runs_no_code(verb: tuple[str, ...], model: tuple[Path, Canary]) -> None:
    place, canary = model
    done = command(*verb, folder=place)
    assert not canary.sang
    assert done.status == 2
    assert len(done.err.strip().splitlines()) == 1
    assert verb[0] == "evaluate" or "evil.py' is a file of code, run only if you name it" in done.err


def test_a_model_is_used_when_its_file_is_named(model: tuple[Path, Canary]) -> None:
    place, canary = model
    done = command("generate", "model", "Ada", "--count", 3, "--trust-files", canary.file, folder=place)
    assert done.status == 0, done.err + done.trace
    assert done.out.startswith("Ada")
    assert command("generate", "model", "--trust-files", "nowhere.py", folder=place).status == 2


@pytest.mark.hf
def test_a_configuration_runs_no_code(model: tuple[Path, Canary]) -> None:
    transformers = pytest.importorskip("transformers")
    from bestiary.lm import huggingface

    place, canary = model
    (place / "converted" / "modeling_bestiary.py").write_text(canary.file.read_text())
    config = json.loads((place / "converted" / "config.json").read_text())
    assert config.pop("auto_map")
    for pattern in (config["pattern"], str(canary.file), [str(canary.file)], f"serial('{canary.file}')"):
        (place / "converted" / "config.json").write_text(json.dumps({**config, "pattern": pattern}))
        for opened in (transformers.AutoConfig, huggingface.BestiaryConfig, transformers.AutoModelForCausalLM):
            with suppress(LookupError, ValueError):
                opened.from_pretrained(place / "converted")
            assert not canary.sang
    with pytest.raises(LookupError, match="run only if you name it"):
        huggingface.BestiaryConfig(pattern=str(canary.file))
    with pytest.raises(ValueError, match="a model has 1 to 4,096 layers, not 1000000000"):
        huggingface.BestiaryConfig(depth=10**9)


class Bomb:
    """What leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("file", ["state.pt", ".metadata", "__0_0.distcp", "state.safetensors"])
def test_a_checkpoint_is_never_unpickled(file: str, model: tuple[Path, Canary], tmp_path: Path) -> None:
    place, mark = model[0], tmp_path / "unpickled"
    small = ("context=8", "batch=2", "steps=4", "every=1", "dim=8", "depth=1", "selection_rows=2", "test_rows=2")
    given = ("pretrain", "attention", *small, "--corpus", "corpus", "--store", "models", "--save-every", 1)
    done = command(*given, folder=place)
    assert done.status == 0, done.err + done.trace
    (run,) = (place / "models").iterdir()
    (run / "done").unlink()
    checkpoint = run / "checkpoint" / "step-2"
    checkpoint.mkdir(parents=True)
    (checkpoint.parent / "last.json").write_text(json.dumps({"step": 2, "log": 0, "sum": 0.0}))
    with (checkpoint / file).open("wb") as bomb:
        if file == "state.pt":
            torch.save(Bomb(mark), bomb)
        else:
            pickle.dump(Bomb(mark), bomb)
    done = command(*given, folder=place)
    assert not mark.exists(), f"{file} was unpickled"
    assert not done.fault, done.trace


def test_no_file_of_a_checkpoint_is_unpickled(model: tuple[Path, Canary], tmp_path: Path) -> None:
    from bestiary.corpus.corpus import open_corpus
    from bestiary.lm.loop import pretrain
    from bestiary.lm.pretraining import Pretraining

    place, mark = model[0], tmp_path / "unpickled"
    corpus, small = open_corpus(place / "corpus"), ("context=8", "batch=2", "steps=4", "every=1", "dim=8", "depth=1")
    fields = {name: int(value) for name, _, value in (part.partition("=") for part in small)}
    made = Pretraining(corpus=corpus.hash, vocab=corpus.vocab, pattern="attention", test_rows=2, **fields)
    rows: Any = pretrain(made, corpus, place / "stopped", save_every=1)
    while next(rows)["step"] < 3:
        pass
    rows.close()
    files = [path for path in (place / "stopped" / made.key / "checkpoint").rglob("*") if path.is_file()]
    assert len(files) >= 2
    for file in files:
        content = file.read_bytes()
        file.write_bytes(pickle.dumps(Bomb(mark)))
        given = ("pretrain", "attention", *small, "test_rows=2", "--corpus", "corpus", "--store", "stopped")
        done = command(*given, folder=place)
        assert not mark.exists(), f"{file.name} was unpickled"
        assert (done.status, done.fault) == (2, ""), done.trace
        file.write_bytes(content)
