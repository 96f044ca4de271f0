"""What the documentation shows is what there is: examples hold, pages agree with the code, public names explain."""

import ast
import re
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from bestiary import laws
from bestiary.cli import app
from bestiary.cli.data import write_table
from bestiary.runs.store import Outcome, Record
from bestiary.runs.table import segment_rows
from bestiary.spec import parse
from bestiary.training.recipe import NAMED, Recipe, clean

ROOT = Path(__file__).parents[1]
DOCS, EXAMPLES = ROOT / "docs", ROOT / "examples"
sys.path.append(str(DOCS / "_extensions"))

from equations import equation_block, math  # noqa: E402
from prose import blocks, markdown  # noqa: E402
from source import Member, Module, Package  # noqa: E402
from test_order import ORDER  # noqa: E402

from results import LARGEST, RESULTS, block_text, pages, stale, written  # noqa: E402
from results import blocks as table_blocks  # noqa: E402


def code(page: str, language: str) -> list[str]:
    """The blocks of code of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


@pytest.mark.parametrize(("kind", "name"), [("mixers", "my_mixer"), ("mixers", "my_memory"), ("tasks", "my_task")])
def test_examples_obey_every_law(kind: str, name: str) -> None:
    path = str(EXAMPLES / f"{name}.py")
    parse(kind, path)  # what is named may be run
    for checked in laws.variants(kind, path):
        assert {law: fault for law, fault in laws.check(checked) if fault} == {}


def test_the_example_that_peeks_is_caught_as_the_page_says() -> None:
    (checked,) = parse("mixers", str(EXAMPLES / "leaky_mixer.py"))
    found = dict(laws.check(checked))
    assert found["causality"] is not None
    for law, fault in found.items():
        shown = f"BROKEN  {law}: {fault}" if fault else f"ok      {law}"
        assert fault is None or f"  {shown}\n" in (DOCS / "own-mixer.md").read_text()


@pytest.mark.parametrize(("page", "names"), [("own-mixer", laws.MIXER_LAWS), ("own-task", laws.TASK_LAWS)])
def test_the_page_explains_every_law_and_shows_it_hold(page: str, names: dict[str, object]) -> None:
    text = (DOCS / f"{page}.md").read_text()
    assert re.findall(r"^\| ([a-z0-9 ]+) \|", text[text.index("| law |") :], re.MULTILINE)[1 : len(names) + 1] == list(
        names
    )
    assert re.findall(r"^  ok      (.*)$", text, re.MULTILINE)[: len(names)] == list(names)


def test_the_experiment_of_the_page_trains_and_draws(tmp_path: Path) -> None:
    folders = ["--store", str(tmp_path / "runs"), "--figures", str(tmp_path)]
    short = "steps=4, every=2, batch=8, selection_rows=8, test_rows=8, seed=seed"
    recipes = (EXAMPLES / "my_experiment.py").read_text().replace("steps=steps, seed=seed", short)
    assert short in recipes
    (functions,) = [block for block in code("own-experiment.md", "python") if "def summary" in block]
    for name, text in (("plain", recipes), ("with_functions", recipes + functions)):
        (tmp_path / f"{name}.py").write_text(text)
        given = ["run", str(tmp_path / f"{name}.py"), "--scale", "smoke", "--workers", "1", *folders]
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 0, result.output
        assert (tmp_path / f"{name}-smoke.csv").read_text().count("\n") == 5
        assert (tmp_path / f"{name}-smoke.png").exists()


def test_the_training_loop_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile("\n".join(code("training-loop.md", "python")), "training-loop.md", "exec"), {"__name__": "page"})
    accuracy, near, losses = capsys.readouterr().out.splitlines()
    assert accuracy.startswith("accuracy 0.0")
    assert near.startswith("accuracy within 16 tokens: 0.0")
    one, two = map(float, losses.split())
    assert one == pytest.approx(two)


def test_the_run_of_zoology_can_be_built_here() -> None:
    (command,) = re.findall(
        r"```\n(\./lab train --task .*?steer=test.*?)```", (DOCS / "from-zoology.md").read_text(), re.S
    )
    words = shlex.split(command.replace("\\\n", " "))
    options = dict(zip(words[2::2], words[3::2], strict=False))
    fields = dict(word.split("=", 1) for word in words if re.match(r"[a-z_]+=", word))

    def value(text: str) -> object:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text

    recipe = NAMED["clean"](options["--layers"], train=options["--task"], **{n: value(v) for n, v in fields.items()})
    recipe.check()
    assert recipe.steps == 100 * sum(recipe.distinct)


def test_every_table_of_the_pages_is_what_its_file_says() -> None:
    assert list(stale()) == []


def test_every_file_of_results_is_small_and_shown_in_a_page() -> None:
    shown = {block.name for page in pages() for block in table_blocks(page.read_text())}
    files = sorted(RESULTS.glob("*.csv"))
    assert {file.stem for file in files} <= shown
    large = [file.name for file in files if file.stat().st_size > LARGEST]
    assert not large, f"over {LARGEST:,} bytes, so export with --compact: {', '.join(large)}"


def test_a_table_that_differs_from_its_file_is_named_and_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.DataFrame([row for seed in range(2) for row in finished_rows(clean("mamba", dim=8, seed=seed), 10_000)])
    write_table(table, tmp_path / "steps_to_solve-small.csv", compact=True)
    page = tmp_path / "page.md"
    page.write_text(
        "Before.\n\n<!-- table: steps_to_solve-small: mixer, median, accuracy, interval, seeds -->\n"
        "<!-- end of table -->\n\nAfter, with 0.5 in it.\n\n"
        "```\n<!-- table: shown as code: a -->\n<!-- end of table -->\n```\n"
    )
    monkeypatch.setattr("results.RESULTS", tmp_path)
    monkeypatch.setattr("results.ROOT", tmp_path)
    monkeypatch.setattr("results.pages", lambda: [page])
    line = "page.md: the table of results/steps_to_solve-small.csv"
    assert list(stale()) == [f"{line} differs from its file; run ./lab results"]
    mended = written(page.read_text())
    (row,) = [line for line in mended.splitlines() if line.startswith("| Mamba")]
    assert row == "| Mamba |  | 0.500 | 0.493 to 0.507 | 2 |"
    assert "| mixer | median | accuracy | 95 % interval | seeds |\n|" in mended
    assert mended.startswith("Before.\n\n<!-- table: ")
    assert mended.endswith(
        "After, with 0.5 in it.\n\n```\n<!-- table: shown as code: a -->\n<!-- end of table -->\n```\n"
    )
    page.write_text(mended)
    assert list(stale()) == []
    assert written(mended) == mended
    assert block_text(table_blocks(mended)[0]) in mended
    page.write_text(mended.replace("0.493", "0.492"))
    assert len(list(stale())) == 1
    page.write_text(mended.replace("steps_to_solve-small:", "steps_to_solve-paper:"))
    assert list(stale()) == ["page.md: the table of results/steps_to_solve-paper.csv has no such file"]


def finished_rows(recipe: Recipe, asked: int) -> Iterator[dict[str, object]]:
    """The rows of a run that answered half of the questions right."""
    line = {"facet": "", "value": 0, "loss": 1.0, "segment": 0, "step": 25, "asked": asked, "right": asked // 2}
    log = [{**line, "split": split} for split in ("selection", "test")]
    return segment_rows(Record(recipe.key, recipe.json(), Outcome("finished", 2.0), log))


def test_the_architecture_names_the_parts_in_order() -> None:
    text = (DOCS / "architecture.md").read_text()
    assert tuple(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == ORDER


def test_every_public_name_says_what_it_is() -> None:
    silent = Package().undocumented()
    assert not silent, f"{len(silent)} public names have no docstring: {', '.join(silent)}"


def test_a_silent_name_is_found_and_an_inherited_docstring_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    package, said = Package(), "bestiary.spec.parse"
    before = set(package.undocumented())
    assert said not in before
    monkeypatch.setattr(package.listed[said], "doc", "")
    assert set(package.undocumented()) - before == {said}
    assert package.listed["bestiary.tasks.mqar.MQAR.sample"].doc == ""
    assert package.inherited("bestiary.tasks.mqar.MQAR", "sample").startswith("Draw `count` ")


def test_the_reference_has_every_verb_and_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    import api
    import commands

    pages: dict[str, str] = {}
    for module in (api, commands):
        monkeypatch.setattr(module, "put", lambda file, text: pages.update({file.name: text}))
    api.write(Package(), DOCS / "generated" / "api", ORDER)
    commands.write(DOCS / "generated")
    verbs = set(get_command(app).commands)  # pyright: ignore[reportAttributeAccessIssue]
    assert set(re.findall(r"^## (\w+)$", pages["commands.md"], re.MULTILINE)) == verbs
    rooms = {name.removesuffix(".md").removesuffix("-room").removeprefix("bestiary.") for name in pages}
    assert set(ORDER) - {"cli"} <= rooms
    assert "{py:class} Recipe" in pages["bestiary.training.recipe.md"]
    assert "train(recipe: bestiary.training.recipe.Recipe," in pages["bestiary.training.train.md"]


def test_signatures_stand_as_written_with_names_in_full() -> None:
    import api

    package = Package()
    module = next(m for m in package.modules if m.name == "bestiary.model")
    parts: dict[str, Member] = {part.name: part for part in module.members}
    forward = next(part for part in parts["Model"].members if part.name == "Model.forward")
    wanted = "tokens: bestiary.tasks._task.Tokens, state: bestiary.model.ModelState | None=None"
    assert api.signature(package, module, forward) == (
        f"Model.forward({wanted}) -> tuple[Float[Tensor, 'batch time vocab'], bestiary.model.ModelState]"
    )


def test_a_docstring_becomes_markdown() -> None:
    doc = "Reads a*b*c from `here`.\n\n    y = W x\n    z = y\n\nAnd 1_000 more."
    shown = markdown(doc, lambda name: f"[{name}]")
    assert shown == "Reads a\\*b\\*c from [here].\n\n```text\ny = W x\nz = y\n```\n\nAnd 1\\_000 more."


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("S_t", "<msub><mi>S</mi><mrow><mi>t</mi></mrow></msub>"),
        ("x^2", "<msup><mi>x</mi><mrow><mn>2</mn></mrow></msup>"),
        ("v_t^T", "<msubsup><mi>v</mi><mrow><mi>t</mi></mrow><mrow><mi>T</mi></mrow></msubsup>"),
        ("beta * k", "<mi>β</mi><mo>⊙</mo><mi>k</mi>"),
        ("sqrt(d)", "<msqrt><mrow><mi>d</mi></mrow></msqrt>"),
        ("e^i_t", "<msup><mi>e</mi><mrow><msub><mi>i</mi><mrow><mi>t</mi></mrow></msub></mrow></msup>"),
        ("a short one", '<mtext>a</mtext><mspace width="0.3em"></mspace><mtext>short</mtext>'),
    ],
)
def test_equations_become_mathml(text: str, wanted: str) -> None:
    assert wanted in math(text)


@pytest.mark.parametrize("file", sorted((ROOT / "bestiary" / "mixers").glob("[!_]*.py")), ids=lambda file: file.stem)
def test_every_equation_of_a_mixer_is_whole(file: Path) -> None:
    equations = [text for kind, text in blocks(Module(file).doc) if kind == "code"]
    assert equations
    for text in equations:
        for row in equation_block(text).split("\n\n"):
            if row.startswith("<div"):
                shown = "".join(ElementTree.fromstring(row).itertext())
                assert not set(shown) & {"_", "^"}, shown


def test_types_of_options_are_written_in_words() -> None:
    from bestiary.cli.describe import type_text
    from bestiary.spec import names, schema

    kinds = {type_ for kind in ("mixers", "tasks") for name in names(kind) for type_, _ in schema(kind, name).values()}
    texts = {type_text(kind) for kind in kinds}
    assert {"positive int", "positive int or None", "float from 0 to 1", "mixers"} <= texts
    assert [text for text in texts if re.search(r"[\[\](){}|]", text)] == []
