"""What is damaged is named, and no number of it is believed: stores, models, corpora and checkpoints, file by file.

Each damage is followed by a verb that reads the folder. It must come back in time, without a traceback; what is not
damaged is shown as before; and what is damaged is shown as before too, or is refused by name.
"""

import contextlib
import csv
import json
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from damaging import Damage, Findings, Folder, Recorder, damages, share_of
from in_process import LONGEST, SLOWEST, alarm, command
from stores import line

from bestiary.runs.store import Store
from bestiary.sweep.jobs import Job, JobEvent, WorkerConfig
from bestiary.sweep.work import work
from bestiary.training.recipe import Recipe, clean

pytestmark = [pytest.mark.slow, pytest.mark.hostile, pytest.mark.timeout(1800)]

STORE, MODEL, CONVERTED, CORPUS, CHECKPOINT, RUN = map(share_of, (1000, 420, 120, 420, 60, 120))
TASK = "mqar(vocab=20, length=12, pairs=2)"
SIZES: dict[str, Any] = {"dim": 8, "depth": 1, "steps": 20, "every": 10, "selection_rows": 40, "test_rows": 50}
EXPERIMENT = f'''"""Does a small model remember two pairs?"""

from bestiary.experiments.figure2 import figures, summary
from bestiary.training.recipe import clean


def recipes(scale):
    for seed in range(3):
        yield clean("attention", train="{TASK}", seed=seed, **{SIZES!r})
'''
SMALL = ("context=8", "batch=2", "steps=4", "every=1", "dim=8", "depth=1", "selection_rows=2", "test_rows=2")
READ = (ValueError, LookupError, OSError, TypeError)


def tell(record_property: Recorder, what: str, findings: Findings) -> None:
    """Print the counts, and fail with the list of what went wrong."""
    told = f"{findings.tried} damages to {what}: {findings.refused} refused, {len(findings.found)} kinds of faults"
    record_property("counts", told)
    assert not findings.found, f"{told}\n{findings}"


# Stores


def made(seed: int) -> Recipe:
    return clean("attention", train=TASK, seed=seed, **SIZES)


def add_run(store: Store, recipe: Recipe, right: float) -> None:
    """A run with measurements that nobody made, and with weights."""
    run = store.claim(recipe)
    assert run is not None
    with run:
        for step in (10, 20):
            run.append(line(step, "train", -1, right) | {"loss": 100.0 / step})
            run.append(line(step, "selection", 0, right * step / 20))
        run.append(line(20, "test", 0, right))
        run.finish(recipe.build())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs that are done, one that diverged, one that failed and one that was interrupted."""
    here = tmp_path_factory.mktemp("damaged")
    runs = Store(here / "runs")
    for seed, right in enumerate((0.25, 0.5, 0.75)):
        add_run(runs, made(seed), right)
    for seed, fault in ((3, None), (4, ZeroDivisionError("nothing")), (5, KeyboardInterrupt())):
        run = runs.claim(made(seed))
        assert run is not None
        try:
            with run:
                run.append(line(10, "train", -1, 0.0))
                if fault is not None:
                    raise fault
                run.end("diverged", "the loss is nan at step 10")
        except (ZeroDivisionError, KeyboardInterrupt):
            pass
    (here / "question.py").write_text(EXPERIMENT)
    return here


OTHERS = (
    *(("status", "--all"), ("show", "KEY"), ("sql", "select * from log"), ("export", "--log", "--to", "log.csv")),
    *(("sql", "select * from runs"), ("status", "question.py"), ("export", "question.py", "--to", "q.csv")),
    *(("sql", "select * from results"), ("status", "--all"), ("show", "KEY"), ("plot", "question.py")),
)
OTHER, REPORTED = 3, 60  # damages for which there is one of these, and one report, which takes seconds


def rows_of(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of an exported table by run, without gaps."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in csv.DictReader(file.read_text().splitlines()) if file.is_file() else ():
        found.setdefault(row["key"], []).append({name: number(value) for name, value in row.items() if value})
    return found


def number(text: str) -> float | str:
    """A number whether it is written 3 or 3.0: a column is of floats where one of its rows has none."""
    try:
        return float(text)
    except ValueError:
        return text


def exported(folder: Path) -> tuple[Any, dict[str, list[dict[str, Any]]]]:
    (folder / "out.csv").unlink(missing_ok=True)
    done = command("export", "--to", "out.csv", folder=folder)
    return done, rows_of(folder / "out.csv")


def test_damage_to_a_store(store: Path, record_property: Recorder) -> None:
    _, before = exported(store)
    whole, findings, others = Folder(store / "runs"), Findings(), cycle(OTHERS)
    assert len(before) == 4
    keys = {path.name for path in (store / "runs").iterdir() if path.is_dir()}
    for count, damage in enumerate(damages(store / "runs", Random(1), many=STORE)):
        whole.restore()
        damage.apply(store / "runs" / damage.file)
        findings.tried += 1
        hit = damage.file.partition("/")[0]
        done, after = exported(store)
        findings.refused += bool(done.status)
        shown = f"runs/{damage} ; bestiary export --to out.csv"
        if done.fault:
            findings.note(done.fault, shown)
        for key in before:
            judge(findings, key, before[key], after.get(key), damaged=key == hit, told=done.err, shown=shown, by=damage)
        if count % OTHER:
            continue
        key = hit if hit in keys else min(keys)
        verb = tuple(key if word == "KEY" else word for word in next(others))
        verb = ("report", "runs") if count % REPORTED == 0 else verb
        done = command(*verb, folder=store)
        if done.fault:
            findings.note(f"{verb[0]}: {done.fault}", f"runs/{damage} ; bestiary {' '.join(verb)}")
        elif done.status and not any(key in done.err + done.out for key in keys):
            findings.note(f"{verb[0]} names no run: {done.err.strip()[:100]!r}", f"runs/{damage}")
    whole.restore()
    tell(record_property, "a store", findings)


def judge(
    findings: Findings, key: str, before: Any, after: Any, *, damaged: bool, told: str, shown: str, by: Damage
) -> None:
    """Whether the rows of a run are as before, or it is named as damaged."""
    if after == before:
        return
    if not damaged:
        findings.note("another run is lost or changed", shown)
    elif after is not None:
        findings.note("a number has changed without a word", shown)
    elif key not in told and by.file.endswith("/done") and by.how in ("deleted", "a link to nothing"):
        return  # nothing tells such a run from one that was interrupted
    elif key not in told:
        findings.note("a run is lost without a word", shown)


def carry_out(folder: Path, recipe: Recipe, *, until: int | None = None) -> list[JobEvent]:
    """What a worker reports of a run; it is interrupted by the measurement of a step."""
    events: list[JobEvent] = []

    def report(event: JobEvent) -> None:
        events.append(event)
        if event.kind == "measured" and event.detail.step == until:
            raise KeyboardInterrupt

    with contextlib.suppress(*([KeyboardInterrupt] if until else [])):
        work(Job((recipe,)), WorkerConfig(str(folder)), "cpu", report)
    return events


def test_damage_to_the_checkpoint_of_a_run(
    tmp_path: Path, record_property: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run ends with the log that it would have had, from its checkpoint or from the start, or fails by name."""
    monkeypatch.setattr("bestiary.sweep.checkpoints.SAVE_EVERY", 0.0)
    recipe, here = clean("attention", train=TASK, **SIZES | {"every": 5}), tmp_path / "runs"
    carry_out(tmp_path / "whole", recipe)
    wanted = (tmp_path / "whole" / recipe.key / "log.jsonl").read_bytes()
    carry_out(here, recipe, until=15)
    whole, findings = Folder(here), Findings()
    for damage in damages(here, Random(6), many=RUN, files=lambda name: "claim-0/" not in name):
        whole.restore()
        damage.apply(here / damage.file)
        findings.tried += 1
        shown = f"runs/{damage}"
        with alarm(LONGEST):
            events = carry_out(here, recipe)
        faults = [event.detail.fault for event in events if event.kind == "started" and event.detail is not None]
        lines = [str(event.detail) for event in events if event.kind == "failed"] + list(filter(None, faults))
        findings.refused += bool(lines)
        if any(recipe.key not in line or "\n" in line for line in lines):
            findings.note(f"told in no line, or the file is not named: {lines}", shown)
        if events[-2].kind == "ended" and (here / recipe.key / "log.jsonl").read_bytes() != wanted:
            findings.note("a number has changed without a word", shown)
        elif events[-2].kind not in ("ended", "failed"):
            findings.note(f"it ends as {events[-2].kind}", shown)
    assert findings.refused > findings.tried / 4
    tell(record_property, "the checkpoint of a run", findings)


# Models and corpora


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a model trained on it, and that model as a folder of Hugging Face."""
    here = tmp_path_factory.mktemp("models")
    texts = [json.dumps({"text": f"Ada has {i} of 9. Bob has 8 of {i}. " * 4}) + "\n" for i in range(200)]
    (here / "text.jsonl").write_text("".join(texts))
    for given in (
        ("corpus", "text.jsonl", "--out", "corpus", "--vocab", "260"),
        ("pretrain", "attention", *SMALL, "--corpus", "corpus", "--store", "models"),
    ):
        done = command(*given, folder=here)
        assert done.status == 0, done.err + done.trace
    next(path for path in (here / "models").iterdir() if path.is_dir()).rename(here / "model")
    assert command("convert", "model", "converted", folder=here).status == 0
    return here


def read_all(
    folder: Path, many: int, seed: int, read: Callable[[], Any], verbs: Iterator[tuple[str, ...]], every: int
) -> Findings:
    """Damage a folder, read it, and compare; and now and then by the command line."""
    whole, findings, before = Folder(folder), Findings(), read()
    for number, damage in enumerate(damages(folder, Random(seed), many=many)):
        whole.restore()
        damage.apply(folder / damage.file)
        findings.tried += 1
        shown, begun = f"{folder.name}/{damage}", time.process_time()
        try:
            with alarm(LONGEST):
                after = read()
        except READ as error:
            findings.refused += 1
            text = str(error.args[0]) if isinstance(error, LookupError) and error.args else str(error)
            if not text.strip() or "\n" in text.strip():
                findings.note(f"told in no line: {type(error).__name__} {text[:80]!r}", shown)
            elif folder.name not in text:
                findings.note(f"the file is not named: {text[:120]!r}", shown)
        except BaseException as error:
            findings.note(f"{type(error).__name__}: {str(error)[:100]}", shown)
        else:
            if not same(before, after):
                findings.note("a number has changed without a word", shown)
        if time.process_time() - begun > SLOWEST:
            findings.note(f"it takes more than {SLOWEST} s", shown)
        if number % every == 0:
            verb = next(verbs)
            done = command(*verb, folder=folder.parent)
            if done.fault:
                findings.note(f"{verb[0]}: {done.fault}", f"{shown} ; bestiary {' '.join(verb)}")
    whole.restore()
    assert same(before, read())
    return findings


def same(one: Any, other: Any) -> bool:
    """Whether two readings are equal to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, torch.Tensor | np.ndarray):
        return one.shape == other.shape and one.dtype == other.dtype and bool((one == other).all())
    return bool(one == other)


GENERATE = ("generate", "model", "Ada has", "--count", "3", "--temperature", "0")


def test_damage_to_a_model(models: Path, record_property: Recorder) -> None:
    from bestiary.corpus.tokenizers import open_tokenizer
    from bestiary.lm.pretraining import open_run

    def read() -> dict[str, Any]:
        recipe, model = open_run(models / "model")
        tokens = open_tokenizer(str(models / "model" / "tokenizer")).encode(["Ada has 7 of 9."])[0]
        return {"recipe": recipe.json(), "tokens": tokens.tolist()} | {n: w for n, w in model.state_dict().items()}

    verbs = cycle([GENERATE, GENERATE, GENERATE, GENERATE, ("convert", "model", "out")])
    tell(record_property, "a model", read_all(models / "model", MODEL, 2, read, verbs, every=4))


@pytest.mark.hf
def test_damage_to_a_converted_model(models: Path, record_property: Recorder) -> None:
    pytest.importorskip("transformers")
    from bestiary.lm.huggingface import open_causal

    def read() -> dict[str, Any]:
        model, tokenizer = open_causal(models / "converted")
        tokens = tokenizer("Ada has 7 of 9.", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return {"tokens": tokens, "logits": model(tokens).logits}

    probe = ("probe", "converted", "--rows", "4", "--shots", "0", "--entries", "2", "--words", "0")
    tell(
        record_property,
        "a converted model",
        read_all(models / "converted", CONVERTED, 3, read, cycle([probe]), every=20),
    )


def test_damage_to_a_corpus(models: Path, record_property: Recorder) -> None:
    from bestiary.corpus.corpus import open_corpus

    folder = models / "corpus"

    def read() -> dict[str, Any]:
        corpus = open_corpus(folder)
        counts = corpus.counts()
        found: dict[str, Any] = {"vocab": corpus.vocab, "hash": corpus.hash, "total": counts.total}
        for split in ("train", "selection", "test"):
            found |= {split: np.array(corpus.tokens(split)), f"{split} ends": np.array(corpus.ends(split))}
        first, second = found["train"][:-1].astype(int), found["train"][1:].astype(int)
        found |= {"counts": counts.lookup(first, second), "most": counts.most_common(5)}
        return found | {"text": corpus.tokenizer.encode(["Ada has 7 of 9."])[0].tolist()}

    read()
    verbs = cycle(
        [
            ("pretrain", "attention", *SMALL, "--corpus", "corpus", "--dry-run"),
            ("corpus", "text.jsonl", "--out", "corpus", "--vocab", "260"),
            ("slice", "model", "corpus", "--length", "60", "--limit", "2", "--threshold", "9999", "--out", "sliced"),
        ]
    )
    tell(record_property, "a corpus", read_all(folder, CORPUS, 4, read, verbs, every=15))


def test_damage_to_a_checkpoint(models: Path, record_property: Recorder) -> None:
    """A run goes on to the weights that it would have had, or is refused."""
    from bestiary.corpus.corpus import open_corpus
    from bestiary.lm.loop import pretrain
    from bestiary.lm.pretraining import Pretraining, open_run

    corpus, here = open_corpus(models / "corpus"), models / "interrupted"
    fields = {name: int(value) for name, _, value in (part.partition("=") for part in SMALL)}
    recipe = Pretraining(corpus=corpus.hash, vocab=corpus.vocab, pattern="attention", **fields)
    list(pretrain(recipe, corpus, models / "whole", save_every=1))
    wanted = open_run(models / "whole" / recipe.key)[1].state_dict()
    rows: Any = pretrain(recipe, corpus, here, save_every=1)
    while next(rows)["step"] < 3:
        pass
    rows.close()
    whole, findings = Folder(here), Findings()
    given = ("pretrain", "attention", *SMALL, "--corpus", "corpus", "--store", "interrupted", "--save-every", "1")
    for damage in damages(here, Random(5), many=CHECKPOINT, files=lambda name: "claim" not in name):
        whole.restore()
        damage.apply(here / damage.file)
        findings.tried += 1
        done, shown = command(*given, folder=models), f"interrupted/{damage} ; bestiary {' '.join(given)}"
        findings.refused += bool(done.status)
        if done.fault:
            findings.note(done.fault, shown)
        elif done.status == 0 and not same(wanted, open_run(here / recipe.key)[1].state_dict()):
            findings.note("a number has changed without a word", shown)
        elif done.status and recipe.key not in done.err:
            findings.note(f"the file is not named: {done.err.strip()[:120]!r}", shown)
    tell(record_property, "a checkpoint", findings)
