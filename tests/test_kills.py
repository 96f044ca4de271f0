"""Processes that are killed at any moment: the same command again ends with the bytes that it would have written."""

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from damaging import Findings, Recorder, share_of
from in_process import LONGEST, command

from bestiary.runs.store import Store
from bestiary.sweep.checkpoints import CheckpointedRun
from bestiary.training.recipe import Recipe, clean

pytestmark = [pytest.mark.slow, pytest.mark.hostile, pytest.mark.timeout(1800)]

RUNS, RESUMED, MODELS, CORPORA, FILES = map(share_of, (26, 20, 14, 10, 10))
SIZES: dict[str, Any] = {"dim": 16, "steps": 40, "every": 4, "batch": 16, "selection_rows": 40, "test_rows": 50}
SMALL = ("context=8", "batch=2", "steps=30", "every=3", "dim=8", "depth=1", "selection_rows=2", "test_rows=2")
CONTEXT = multiprocessing.get_context("forkserver")
PRELOAD = ["bestiary.training.together", "bestiary.sweep.work", "bestiary.lm.loop", "bestiary.cli", "torch._dynamo"]


def train(folder: str, recipe: Recipe) -> None:
    """What a worker of a sweep does with a run."""
    from bestiary.training.train import train

    run = Store(folder).claim(recipe)
    assert run is not None
    model = recipe.build()
    with run:
        for measurement in train(recipe, model):
            run.append(measurement._asdict())
        run.finish(model)


def verb(folder: str, *arguments: str) -> None:
    """A command line, silently."""
    from bestiary.cli import main

    os.chdir(folder)
    sys.argv = ["bestiary", *arguments]
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    main()


def carried_out(target: Callable[..., None], *arguments: Any) -> float:
    """Carry something out in a process of its own; how long it took."""
    process = CONTEXT.Process(target=target, args=arguments)
    begun = time.monotonic()
    process.start()
    process.join(LONGEST)
    process.kill()  # if it hangs; what is killed here takes a second or two
    process.join()
    assert process.exitcode == 0, f"{target.__name__}{arguments} ended with {process.exitcode}"
    return time.monotonic() - begun


def killed(target: Callable[..., None], *arguments: Any, after: float) -> bool:
    """Whether it was still at work when it was killed."""
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    process.join(after)
    process.kill()
    process.join()
    return process.exitcode != 0


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    CONTEXT.set_forkserver_preload(PRELOAD)


def contents(folder: Path, *names: str) -> dict[str, bytes]:
    """The files of these names in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for name in names for p in sorted(folder.rglob(name))}


def kill_often(
    kills: int, seed: int, again: Callable[..., None], given: tuple[Any, ...], whole: Any, seen: Callable[[], Any],
    between: Callable[[], str], start: Callable[[], None],
) -> tuple[int, Findings]:  # fmt: skip
    """Kill a process at random moments, look at what it leaves, let it go on, and compare."""
    rng, findings, done = Random(seed), Findings(), 0
    longest = max(carried_out(again, *given) for _ in range(2) if start() is None)
    if seen() != whole:
        findings.note("it is not deterministic", "without a kill")
    while done < kills:
        start()
        moments = [rng.uniform(0.0, longest) for _ in range(rng.choice((1, 1, 2)))]
        struck = [killed(again, *given, after=after) for after in moments]
        done += sum(struck)
        findings.tried += sum(struck)
        shown = f"killed after {', '.join(f'{moment:.3f}' for moment in moments)} s of {longest:.3f}"
        if fault := between():
            findings.note(fault, shown)
        try:
            carried_out(again, *given)
        except AssertionError as error:
            findings.note(str(error)[:200], shown)
        else:
            if seen() != whole:
                findings.note("the end is not what it would have been", shown)
    return done, findings


def tell(record_property: Recorder, what: str, done: int, findings: Findings) -> None:
    record_property("counts", f"{done} kills of {what}: {len(findings.found)} kinds of faults")
    assert not findings.found, str(findings)


def test_runs_that_are_killed(tmp_path: Path, record_property: Recorder) -> None:
    recipe = clean("base_conv, attention", train="mqar(vocab=20, length=12, pairs=2)", **SIZES)
    folder = tmp_path / "runs"
    carried_out(train, str(tmp_path / "whole"), recipe)
    names = ("log.jsonl", "weights.safetensors", "recipe.json")
    whole = contents(tmp_path / "whole", *names)

    def between() -> str:
        for given in (("status", "--all"), ("export", "--log", "--to", "out.csv")):
            done = command(*given, folder=tmp_path)
            if done.fault or "cannot be read" in done.err:
                return f"{given[0]} after a kill: {done.fault or done.err}"
        return ""

    def start() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def again() -> dict[str, bytes]:
        return contents(folder, *names)

    tell(
        record_property,
        "runs",
        *kill_often(RUNS, 1, train_unless_done, (str(folder), recipe), whole, again, between, start),
    )


def work_saving_often(folder: str, recipe: Recipe) -> None:
    """What a worker of a sweep does, with a checkpoint after every step."""
    from bestiary.sweep import checkpoints
    from bestiary.sweep.jobs import Job, WorkerConfig
    from bestiary.sweep.work import work

    checkpoints.SAVE_EVERY, checkpoints.SHARE = 0.0, 0
    work(Job((recipe,)), WorkerConfig(folder, keep=True), "cpu", lambda _: None)


def test_runs_with_checkpoints_that_are_killed(tmp_path: Path, record_property: Recorder) -> None:
    recipe = clean("base_conv, attention", train="mqar(vocab=20, length=12, pairs=2)", **SIZES)
    folder, went_on = tmp_path / "runs", list[int]()
    carried_out(train, str(tmp_path / "whole"), recipe)
    names = ("log.jsonl", "weights.safetensors", "recipe.json")
    whole = contents(tmp_path / "whole", *names)

    def between() -> str:
        run = Store(folder).claim(recipe)
        if run is not None:
            found = CheckpointedRun(run.place, run.claim, recipe)
            run.release()
            went_on.append(found.first)
            if found.note:
                return f"a checkpoint after a kill: {found.note}"
        done = command("status", "--all", folder=tmp_path)
        return done.fault

    def start() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def seen() -> dict[str, bytes]:
        found = contents(folder, *names)
        return found | {str(place): b"left" for place in folder.glob("*/checkpoint")}

    given = (str(folder), recipe)
    done = kill_often(RESUMED, 5, work_saving_often, given, whole, seen, between, start)
    tell(record_property, f"runs with checkpoints, {sum(step > 0 for step in went_on)} of which went on", *done)


def train_unless_done(folder: str, recipe: Recipe) -> None:
    """As a worker: a run that is done is left alone."""
    if recipe not in Store(folder):
        train(folder, recipe)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("killed")
    texts = [json.dumps({"text": f"Ada has {i} of 9. Bob has 8 of {i}. " * 4}) + "\n" for i in range(400)]
    (here / "text.jsonl").write_text("".join(texts))
    carried_out(verb, str(here), "corpus", "text.jsonl", "--out", "corpus", "--vocab", "260")
    return here


def test_models_that_are_killed(corpus: Path, record_property: Recorder) -> None:
    def given(store: str) -> tuple[str, ...]:
        rest = ("--corpus", "corpus", "--store", store, "--save-every", "3")
        return (str(corpus), "pretrain", "attention", *SMALL, *rest)

    def seen(store: str) -> Any:
        rows = [json.loads(row) for log in (corpus / store).rglob("log.jsonl") for row in log.read_text().splitlines()]
        losses = [(row["step"], row["split"], row["loss"]) for row in rows]
        return losses, contents(corpus / store, "weights.safetensors", "tokenizer.json")

    carried_out(verb, *given("whole"))

    def between() -> str:
        done = command("status", "--store", "models", folder=corpus)
        return done.fault

    def start() -> None:
        shutil.rmtree(corpus / "models", ignore_errors=True)

    done = kill_often(
        MODELS, 2, verb, given("models"), seen("whole"), lambda: seen("models"), between, start
    )  # fmt: skip
    tell(record_property, "pretraining", *done)


def test_corpora_that_are_killed(corpus: Path, record_property: Recorder) -> None:
    given = (str(corpus), "corpus", "text.jsonl", "--out", "again", "--vocab", "260")
    names = ("*.bin", "*.npy", "manifest.json", "tokenizer.json")

    def start() -> None:
        shutil.rmtree(corpus / "again", ignore_errors=True)

    whole = contents(corpus / "corpus", *names)
    found = kill_often(CORPORA, 3, verb, given, whole, lambda: contents(corpus / "again", *names), lambda: "", start)
    tell(record_property, "corpora", *found)


def test_files_are_there_whole_or_not_at_all(corpus: Path, record_property: Recorder) -> None:
    carried_out(verb, str(corpus), "pretrain", "attention", *SMALL, "--corpus", "corpus", "--store", "files")
    recipe = clean("attention", train="mqar(vocab=20, length=12, pairs=2)", **SIZES)
    carried_out(train, str(corpus / "runs"), recipe)
    model = next(path for path in (corpus / "files").iterdir() if path.is_dir())
    total, findings = 0, Findings()
    for given, place, names in (
        (("export", "--to", "out/table.csv"), "out", ("table.csv",)),
        (("convert", str(model), "converted"), "converted", ("config.json", "model.safetensors", "tokenizer.json")),
    ):
        carried_out(verb, str(corpus), *given)
        whole = contents(corpus / place, *names)

        def start(place: str = place) -> None:
            shutil.rmtree(corpus / place, ignore_errors=True)

        def between(place: str = place, names: tuple[str, ...] = names, whole: Any = whole) -> str:
            for name, content in contents(corpus / place, *names).items():
                if content != whole[name]:
                    return f"half of {name} is left"
            return ""

        def seen(place: str = place, names: tuple[str, ...] = names) -> Any:
            return contents(corpus / place, *names)

        done, found = kill_often(max(1, FILES // 2), 4, verb, (str(corpus), *given), whole, seen, between, start)
        total += done
        for fault, shown in found.found.items():
            findings.note(f"{given[0]}: {fault}", shown[0])
    tell(record_property, "files", total, findings)
