"""The doctor: each failure made on purpose is named, and what is healthy is left in peace."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ill import write_file
from torch import Tensor
from typer.testing import CliRunner

from bestiary.cli import app
from bestiary.model import Model
from bestiary.report.contents import report_data
from bestiary.report.doctor import Finding, diagnose, finding_lines
from bestiary.report.runs import gather_runs
from bestiary.runs.health import Health, quarter_means, summarize_log
from bestiary.runs.store import Store
from bestiary.spec import names
from bestiary.tasks._task import SILENT, Batch
from bestiary.training import health
from bestiary.training import train as training
from bestiary.training.recipe import Recipe, clean
from bestiary.training.together import CannotStack, train_together
from bestiary.training.train import Diverged, answers_another, train

SMALL: dict[str, Any] = {
    "train": "mqar(vocab=16, length=8, pairs=2)",
    "dim": 32,
    "batch": 64,
    "steps": 40,
    "every": 10,
    "selection_rows": 64,
    "test_rows": 64,
    "rate": 1e-2,
}
MIXED = "base_conv, attention"

ILL: dict[str, Callable[[Path], Recipe]] = {
    "rate too high": lambda _: clean(MIXED, **SMALL | {"rate": 1.0}),
    "rate too low": lambda _: clean(MIXED, **SMALL | {"rate": 1e-5}),
    "too few steps": lambda _: clean(MIXED, **SMALL | {"rate": 3e-3, "steps": 8, "every": 2}),
    "no positions": lambda _: clean(
        "attention(rotary=False)", **SMALL | {"train": "mqar(vocab=32, length=24, pairs=6)"}
    ),
    "state too small": lambda _: clean(
        "min_gru", **SMALL | {"train": "mqar(vocab=128, length=64, pairs=16)", "dim": 8}
    ),
    "frozen layer": lambda folder: clean(f'base_conv, "{write_file(folder, "Frozen")}"', **SMALL),
    "gradient cut": lambda folder: clean(f'base_conv, "{write_file(folder, "Cut")}"', **SMALL),
    "shuffled targets": lambda folder: clean(
        MIXED, **SMALL | {"train": f'"{write_file(folder, "Shuffled")}"(vocab=16, length=8, pairs=2)'}
    ),
    "rows learnt by heart": lambda _: clean(
        MIXED, **SMALL | {"train": "mqar(vocab=40, length=16)", "distinct": (1,), "batch": 16, "steps": 80}
    ),
    "not a number": lambda folder: clean(f'base_conv, "{write_file(folder, "Breaks")}"', **SMALL),
    "diverged": lambda _: clean("attention", **SMALL | {"rate": 1e200, "clip": None}),
    "wrong mask": lambda folder: clean(f'base_conv, "{write_file(folder, "Leaks")}"', **SMALL | {"steps": 20}),
    "not carried over": lambda _: clean(
        MIXED,
        **SMALL
        | {"train": "mqar(vocab=80, length=8, pairs=1)", "test": "mqar(vocab=80, length=64, pairs=16)", "steps": 100},
    ),
}


def log_of(recipe: Recipe) -> list[dict[str, Any]]:
    """The log of a run, as a store holds it; it ends where the loss is no number."""
    log: list[dict[str, Any]] = []
    try:
        for measurement in train(recipe):
            log.append(measurement._asdict())
    except Diverged:
        pass
    return log


def names_of(found: list[Finding]) -> list[str]:
    return [finding.name for finding in found]


SLOW = ("rate too high", "not carried over")  # they take more than two seconds


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in ILL])
def test_a_failure_made_on_purpose_is_named_first(name: str, tmp_path: Path) -> None:
    recipe = ILL[name](tmp_path)
    found = diagnose(recipe, log_of(recipe))
    assert found[0].name == name
    assert found[0].command.startswith("bestiary ")
    assert all(finding.sentence.endswith(".") and finding.evidence for finding in found)


@pytest.mark.slow
def test_a_run_that_solved_its_task_has_no_finding() -> None:
    recipe = clean(MIXED, **SMALL | {"train": "mqar(vocab=16, length=8, pairs=1)", "steps": 200})
    log = log_of(recipe)
    assert (summarize_log(log).selection or 0) > 0.98
    assert diagnose(recipe, log) == []


def test_a_leak_counts_even_if_the_task_is_solved() -> None:
    recipe = clean("attention", **SMALL)
    solved = Health(selection=1.0, tests=(1.0,), asked=1000)
    assert diagnose_health(recipe, solved) == []
    assert diagnose_health(recipe, solved._replace(probed=2, leaks=2)) == ["wrong mask"]


def diagnose_health(recipe: Recipe, known: Health) -> list[str]:
    from bestiary.report.doctor import findings

    return names_of(findings(recipe, known))


@pytest.mark.slow
def test_a_healthy_run_that_is_not_finished_needs_more_steps_and_nothing_else() -> None:
    recipe = clean(MIXED, **SMALL | {"steps": 100, "every": 20, "selection_rows": 256})
    found = diagnose(recipe, log_of(recipe))
    assert names_of(found)[0] == "still improving"
    assert set(names_of(found)) <= {"still improving", "on the plateau", "at chance"}
    assert "steps=200" in found[0].command


@pytest.mark.slow
def test_the_plateau_is_told_by_the_answers_that_are_mixed_up() -> None:
    recipe = clean("linear_attention", **SMALL | {"steps": 200})
    log = log_of(recipe)
    mixed = summarize_log(log).mixed
    assert mixed is not None
    assert mixed > 0.9
    assert names_of(diagnose(recipe, log))[-1] == "on the plateau"


def test_a_log_without_signs_is_judged_by_its_accuracies(tmp_path: Path) -> None:
    for name in ("rows learnt by heart", "frozen layer"):
        recipe = ILL[name](tmp_path)
        old = [{**line, "extra": {}} for line in log_of(recipe)]
        known = summarize_log(old)
        assert (known.mixed, known.moved, known.frozen, known.probed) == (None, {}, (), 0)
        assert (name in names_of(diagnose(recipe, old))) == (name == "rows learnt by heart")
        assert list(finding_lines(diagnose(recipe, old)))
    assert diagnose(recipe, []) == []


def test_a_file_that_was_not_named_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bestiary.spec.loading import TRUSTED

    recipe = ILL["shuffled targets"](tmp_path)
    log = log_of(recipe)
    monkeypatch.setattr("bestiary.report.doctor.wrong_targets", lambda _: pytest.fail("it was run"))
    TRUSTED.clear()
    stored = Recipe.read(recipe.json())
    assert "shuffled targets" not in names_of(diagnose(stored, log))


@pytest.mark.parametrize("pattern", [MIXED, "gated_delta", "mamba"])
def test_the_signs_change_no_number_of_the_training(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = clean(pattern, **SMALL | {"steps": 12, "every": 4}, dropout=0.1)
    model, other = recipe.build(), recipe.build()
    seen = list(train(recipe, model))
    assert any(name.startswith("moved:") for name in seen[0].extra)
    monkeypatch.setattr(training, "health_signs", lambda *_: {})
    plain = list(train(recipe, other))
    assert [one[:8] for one in seen] == [one[:8] for one in plain]
    assert all(torch.equal(w, other.state_dict()[name]) for name, w in model.state_dict().items())


def test_gradients_and_movements_are_those_of_the_weights() -> None:
    recipe = clean(MIXED, **SMALL | {"steps": 3, "every": 3, "clip": None, "stop": None})
    model = recipe.build()
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    signs = next(iter(train(recipe, model))).extra
    weights = {n: w for n, w in model.named_parameters() if n.startswith(("layers.1.mixer", "layers.1.before_mixer"))}
    assert len(weights) > 4
    for sign, parts in {
        "gradient": [w.grad for w in weights.values()],
        "moved": [w.detach() - start[n] for n, w in weights.items()],
        "start": [start[n] for n in weights],
    }.items():
        wanted = sum(float(part.double().pow(2).sum()) for part in parts if part is not None)
        assert signs[f"{sign}:layers.1.mixer"] == pytest.approx(wanted, rel=1e-4)


def test_mistakes_that_answer_another_question_are_counted() -> None:
    targets = torch.tensor([[SILENT, 3, 4, 5], [SILENT, 6, 6, SILENT]])
    given = torch.tensor([[SILENT, 4, 4, 9], [SILENT, 6, 3, SILENT]])
    wanted = [[True, True, False], [True, False]]
    found = answers_another(Batch(targets, targets, {}), given, 10)
    assert [row[asked].tolist() for row, asked in zip(found, targets != SILENT, strict=True)] == wanted
    recipe = clean("attention", **SMALL | {"steps": 1})
    counts = [one.extra["mixed"] for one in train(recipe) if one.split == "selection"]
    assert all(0 <= count <= 512 for count in counts)
    assert not any("mixed" in one.extra for one in train(recipe) if one.split == "test")


class Shifting(torch.nn.Module):
    """A model whose outputs are the embeddings of the tokens `ahead` places later."""

    def __init__(self, model: Model, ahead: int) -> None:
        super().__init__()
        self.model, self.ahead = model, ahead

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1]) + self.ahead
        return self.model.embed(tokens[:, places.clamp(0, tokens.shape[1] - 1)])


@pytest.mark.parametrize("ahead", [0, 1, 5, -1])
def test_a_probe_finds_a_leak_of_one_position(ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = clean("attention", **SMALL | {"train": "mqar(vocab=64, length=32, pairs=2)"})
    model = recipe.build()
    monkeypatch.setattr(model, "hidden", Shifting(model, ahead).forward)
    found = health.probe(recipe, model)
    assert found["leaks"] == (2 if ahead > 0 else 0)
    assert found["probed"] == 2


def test_a_stack_refuses_frozen_weights() -> None:
    recipes = [clean("attention", **SMALL | {"seed": seed}) for seed in range(2)]
    models = [recipe.build() for recipe in recipes]
    models[1].norm.requires_grad_(False)
    with pytest.raises(CannotStack, match="frozen"):
        next(train_together(recipes, models))


def test_quarters() -> None:
    assert quarter_means([]) == ()
    assert quarter_means([1.0]) == (1.0,)
    assert quarter_means([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]) == (1.5, 3.5, 5.5, 7.5)


def test_the_report_and_the_verb_hold_the_findings_of_a_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    recipe = clean(MIXED, **SMALL | {"rate": 1e-5, "steps": 40})
    run = store.claim(recipe)
    assert run is not None
    with run:
        for line in log_of(recipe):
            run.append(line)
        run.end("finished")
    verb = CliRunner().invoke(app, ["doctor", "--store", str(tmp_path)])
    assert f"{recipe.key}  base_conv, attention, dim=32 rate=1e-05 seed=0: rate too low" in verb.output
    verb = CliRunner().invoke(app, ["doctor", recipe.key, "--store", str(tmp_path)])
    assert "the likeliest cause first\n  rate too low: The weights have hardly moved" in verb.output
    assert CliRunner().invoke(app, ["doctor", "nothing", "--store", str(tmp_path)]).exit_code == 2
    (tmp_path / recipe.key / "done").rename(tmp_path / "kept")
    verb = CliRunner().invoke(app, ["doctor", "--store", str(tmp_path)])
    assert (verb.exit_code, verb.output) == (0, f"{recipe.key}: not judged, as it has not ended: interrupted\n")
    store.record_failure(recipe, "Traceback ...\nValueError: no\n")
    verb = CliRunner().invoke(app, ["doctor", recipe.key, "--store", str(tmp_path)])
    assert "it has not ended: failed\nTraceback ...\nValueError: no" in verb.output
    (tmp_path / "kept").rename(tmp_path / recipe.key / "done")
    found = report_data(gather_runs(store, store.run_keys()))["causes"]
    assert [cause[0] for cause in found[recipe.key]] == names_of(diagnose(recipe, store.read(recipe.key).log))
    assert found[recipe.key][0][0] == "rate too low"
    (tmp_path / recipe.key / "recipe.json").write_text("{")
    verb = CliRunner().invoke(app, ["doctor", "--store", str(tmp_path)])
    assert (verb.exit_code, verb.stdout) == (1, "")
    assert f"bestiary: {recipe.key}: " in verb.stderr


def test_what_fails_on_tasks_that_were_not_trained_is_not_carried_over() -> None:
    """Even where the selection stream is that of training, as in experiments about longer rows."""
    short, long = "mqar(vocab=80, length=8, pairs=1)", "mqar(vocab=80, length=64, pairs=16)"
    recipe = clean("attention", **SMALL | {"train": short, "select": short, "test": f"{short}, {long}"})
    known = Health(selection=1.0, trained=1.0, tests=(1.0, 0.1), asked=1000)
    assert "not carried over" in diagnose_health(recipe, known)
    assert "rows learnt by heart" in diagnose_health(recipe.model_copy(update={"distinct": (1,)}), known)


@pytest.mark.slow
@pytest.mark.parametrize("name", names("mixers"))
def test_no_mixer_of_ours_is_said_to_leak_or_to_be_cut_off(name: str) -> None:
    changes = {"train": "mqar(vocab=40, length=36, pairs=3)", "dim": 48, "batch": 4, "steps": 12, "every": 4}
    recipe = clean(name, **SMALL | changes)
    found = set(names_of(diagnose(recipe, log_of(recipe))))
    assert not found & {"wrong mask", "gradient cut", "frozen layer", "gradient vanished", "not a number", "diverged"}
