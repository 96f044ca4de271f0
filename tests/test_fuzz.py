"""Whatever is typed or stored is read, or refused in one line: specs, patterns, recipes and command lines by chance.

The failures of a suite are listed together, each with the shortest thing that shows it.
"""

import json
import shlex
import string
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from damaging import Recorder, share_of
from in_process import command
from stores import finished, recipe

from bestiary.runs.store import Store
from bestiary.spec import names, parse, read_specs, reading_data, schema, spec
from bestiary.training.recipe import Recipe

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")
from hypothesis import HealthCheck, given, settings  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.hostile]

REFUSED = (ValueError, TypeError, LookupError)
KINDS = ("mixers", "tasks")
COMMANDS = share_of(2000)
NONSENSE = ("list index out of range", "has no attribute", "NoneType", "unexpected keyword", "not subscriptable")
quickly = settings(
    max_examples=share_of(400), deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def one_line(error: BaseException) -> None:
    """What is said of a mistake is short and says something."""
    text = str(error.args[0]) if isinstance(error, LookupError) else str(error)
    assert text.strip()
    assert "\n" not in text
    assert len(text) < 2000
    for nonsense in NONSENSE:
        assert nonsense not in text


# Specs

PIECES = st.one_of(
    st.sampled_from([*names("mixers")[:12], "serial", "parallel", "mqar", "parity", "evil.py", "./a b.py", "_path0"]),
    st.sampled_from([*"()[]{},.*=+-'\"\\@#:;&|~!?<>%/ \n\t\0", "heads=2", "window=None", "dim=8", "3*", "**"]),
    st.sampled_from(["1e999", "nan", "-1", "10**9", "True", "2j", "b'x'", "'a, b'", '"attention"', "f'{x}'", "é"]),
    st.text(max_size=5),
)
PATTERNS = st.lists(PIECES, max_size=14).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@quickly
@given(text=PATTERNS, kind=st.sampled_from(KINDS))
def test_any_text_is_a_pattern_or_refused(text: str, kind: str) -> None:
    try:
        found = parse(kind, text)
    except REFUSED as error:
        one_line(error)
        return
    assert parse(kind, ", ".join(map(str, found))) == found
    assert read_specs(kind, json.loads(json.dumps([part.stored for part in found]))) == found


def values(hint: Any) -> Any:
    """Values of an option's type, or nearly."""
    if get_origin(hint) is Annotated:
        return values(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) in (Union, type(int | None)):
        return st.one_of(*map(values, get_args(hint)))
    simple = {bool: st.booleans(), int: st.integers(-2, 2**60), float: st.floats(), str: st.text(max_size=6)}
    if hint in simple:
        return simple[hint]
    if hint is type(None):
        return st.none()
    return st.sampled_from(["attention", "attention, mamba", "serial('based')"]) | JSON


@quickly
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_any_options_make_a_spec_that_is_itself_again_or_are_refused(data: Any, kind: str) -> None:
    name = data.draw(st.sampled_from(names(kind)))
    known = schema(kind, name)
    chosen = data.draw(st.lists(st.sampled_from(sorted(known)), unique=True, max_size=3)) if known else []
    options = {option: data.draw(st.one_of(values(known[option][0]), JSON)) for option in chosen}
    try:
        made = spec(kind, name, **options)
    except REFUSED as error:
        one_line(error)
        return
    assert parse(kind, str(made)) == (made,)
    again = read_specs(kind, json.loads(json.dumps([made.stored])))
    assert again == (made,)
    assert again[0].key == made.key


@quickly
@given(
    place=st.sampled_from(["", "name", "options", "source", "text", "mixers"]),
    value=JSON,
    kind=st.sampled_from(KINDS),
)
def test_what_is_stored_is_a_spec_or_refused(place: str, value: Any, kind: str) -> None:
    stored: Any = parse("mixers", "serial('attention, based')")[0].stored
    if place == "mixers":
        stored["options"]["mixers"] = value
    elif place:
        stored[place] = value
    try:
        for part in read_specs(kind, [stored] if place else value):
            assert isinstance(part.key, str)
            assert str(part)
    except REFUSED as error:
        one_line(error)


@quickly
@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_a_file_of_any_name_can_be_named(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / f"{name}.py"
    file.write_text("class Mine:\n    def __init__(self, dim, *, size: int = 3): self.size = size\n")
    made = spec("mixers", str(file), size=5)
    assert parse("mixers", f"2*{made}") == (made, made)
    with reading_data():
        assert parse("mixers", str(spec("mixers", "serial", mixers=str(made))))[0].options[0][1] == (made,)
    file.unlink()


# Recipes


@quickly
@given(
    fields=st.dictionaries(
        st.sampled_from([*Recipe.model_fields, "dmi", ""]),
        st.one_of(JSON, PATTERNS, st.integers(-3, 10**20), st.floats(), st.sampled_from(["none", "rows", "mlp"])),
        max_size=4,
    )
)
def test_any_fields_are_a_recipe_or_refused(fields: dict[str, Any]) -> None:
    try:
        made = Recipe(**({"train": "parity(length=8)", "pattern": "attention"} | fields))
    except REFUSED as error:
        one_line(error)
        return
    again = Recipe.read(json.loads(json.dumps(made.json())))
    assert (again, again.key) == (made, made.key)
    try:
        made.check()
    except REFUSED as error:
        one_line(error)


# Command lines


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with runs, a corpus, a model trained on it, and a mixer of one's own."""
    here = tmp_path_factory.mktemp("fuzz")
    for seed in range(2):
        finished(Store(here / "runs"), recipe("attention", seed=seed), 0.5)
    texts = [json.dumps({"text": f"Ada has {i} of 9. Bob has 8 of {i}. " * 4}) + "\n" for i in range(200)]
    (here / "text.jsonl").write_text("".join(texts))
    (here / "mine.py").write_text((Path(__file__).parents[1] / "examples" / "my_mixer.py").read_text())
    small = ("context=8", "batch=2", "steps=2", "every=1", "dim=8", "depth=1", "selection_rows=2", "test_rows=2")
    for line in (
        ("corpus", "text.jsonl", "--out", "corpus", "--tokenizer", "bytes"),
        ("pretrain", "attention", *small, "--corpus", "corpus", "--store", "models"),
    ):
        done = command(*line, folder=here)
        assert done.status == 0, done.err + done.trace
    next((here / "models").iterdir()).rename(here / "model")
    return here


LINES = """
list | list mixer | list recipes | show attention | show mine.py | show mqar | show figure2 | show clean
show KEY --store runs | check attention | check mine.py parity | bound --pairs 4 --vocab 16 --state 64
train --task 'mqar(vocab=20, length=12, pairs=2)' --layers 'base_conv, attention' dim=8 steps=4 rate=1e-3 seed=2
train --layers 'mine.py(slowest=2.0), attention(heads=2)' dim=8 --recipe clean --threads 1 --keep
train --layers "serial('attention, based')" --task 'parity(length=8), dyck' --device cpu --backend torch
train distinct=3 shuffle=rows channel=mlp positions=9 dropout=0.5 test='parity(length=9)' select=parity stop=None
run figure2 --scale smoke --workers 1 --threads 1 --together never | run figure2 --scale smoke --dry-run
run capacity --scale smoke --slurm partition=gpu | run figure2 --scale smoke --ray auto --gpus 0.5
status | status --all | status figure2 --scale smoke | status --store model | plot figure2 --scale smoke
search --low 1e-3 --high 1e-2 --coarse 2 --seeds 1 --by grid dim=8 steps=4 | search --by halving --trials 3
match attention 'base_conv, based' --like attention --by parameters --tolerance 0.5 dim=8 train='parity(length=8)'
export --to out.csv | export --to out.parquet --log | export figure2 --to x.csv --scale small
sql 'select pattern, avg(accuracy) from results group by all' | sql 'select * from log' --to out.csv | sql 'from runs'
corpus text.jsonl --out corpus --tokenizer bytes --column text --limit 100 | corpus text.jsonl --out other --vocab 300
pretrain attention --corpus corpus --dry-run dim=8 depth=1 context=8 | pretrain zoology --size 1M --corpus corpus
pretrain 'mine.py, attention' context=8 steps=3 dim=8 --corpus corpus --store m --save-every 2 --accumulate 2
generate model 'Ada has' --count 3 --temperature 0.8 --top-k 4 --seed 1 | generate model --count 2 --temperature 0
probe model --shots 0 --entries 2 --words 0 --rows 4 --out probe.csv | convert model converted --trust-files mine.py
slice model corpus --length 60 --limit 2 --threshold 9 --order 2 --split test --out sliced
sql '' | run figure2 --scale smoke --dry-run --device cuda:9 | generate model --temperature 1e-40
generate model --temperature inf | train dim=8 dim=16 | check 'my mixers/a b.py' | status figure2 --store typo
report runs --experiment figure2 --scale smoke --out r.html
"""
JUNK = (
    *("", " ", "0", "-1", "1e999", "nan", "-inf", "1e-320", "10**9", "99999999999999999999", "True", "None", "{}"),
    *("é", "\udcff", "\n", "a\nb", "🙂", "%s", "{x}", "--", "-", "--help", "--dim", "-x", "=", "dim=", "=3", "a=b=c"),
    *("dim=0", "dim=1e3", "depth=99999999", "rate=-1", "steps=0", "batch=1e9", "seed=-1", "clip=nan", "nowhere.py"),
    *("1000000000*attention", "attention(heads=2, heads=3)", "attention(heads=3)", "a" * 300, "(" * 300, "'", '"'),
    *("attention(", "mqar(length=3)", "mqar(pairs=0)", "hyena(frequency=1e999)", "./", "model", "runs", "corpus", "."),
    *(
        "text.jsonl",
        "nowhere",
        "nowhere/nothing",
        "select",
        "select 1/0",
        "from log where",
        "cuda:9",
        "mps",
        "\\",
        "0,0",
    ),
)


def lines(rng: Random, key: str) -> Iterator[list[str]]:
    """Command lines that are nearly right, without end."""
    base = [shlex.split(line) for text in LINES.strip().splitlines() for line in text.split(" | ")]
    while True:
        line = [key if word == "KEY" else word for word in rng.choice(base)]
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            line = changed(rng, line, [word for other in base for word in other])
        if not any(word.startswith(("/", "~")) or ".." in word or word == "--serve" for word in line):
            yield line


def changed(rng: Random, line: list[str], words: list[str]) -> list[str]:
    """A line with one thing wrong."""
    at = rng.randrange(len(line) + 1)
    match rng.randrange(8):
        case 0 if len(line) > 1:
            return line[: max(1, at - 1)] + line[max(1, at) :]
        case 1:
            return [*line[:at], rng.choice(JUNK), *line[at:]]
        case 2:
            return [*line[:at], rng.choice(words), *line[at:]]
        case 3 | 4 if 1 < at < len(line):
            return [*line[:at], rng.choice(JUNK), *line[at + 1 :]]
        case 5 if 1 < at < len(line) and "=" in line[at]:
            return [*line[:at], line[at].partition("=")[0] + "=" + rng.choice(JUNK), *line[at + 1 :]]
        case 6 if 0 < at < len(line) and line[at]:
            place = rng.randrange(len(line[at]))
            letter = rng.choice(string.punctuation.replace("/", "").replace("~", "") + " 0aé\n")
            return [*line[:at], line[at][:place] + letter + line[at][place + 1 :], *line[at + 1 :]]
        case _ if at < len(line):
            return [*line[: at + 1], *line[at:]]
    return line


@pytest.fixture
def _nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for is checked, and not carried out; the hub is not asked."""
    from huggingface_hub import constants

    from bestiary import laws, sweep
    from bestiary.lm import loop
    from bestiary.sweep import slurm
    from bestiary.training import train

    monkeypatch.setattr(sweep, "sweep", lambda *_, **__: (event for event in ()))
    monkeypatch.setattr(slurm, "slurm_sweep", lambda *_, **__: (event for event in ()))
    monkeypatch.setattr(loop, "pretrain", lambda *_, **__: iter(()))
    monkeypatch.setattr(laws, "check", lambda *_: iter(()))
    monkeypatch.setattr(train, "step_seconds", lambda _, device: 0.01 * len(str(train.find_device(device))))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_nothing_is_trained")
def test_command_lines_are_carried_out_or_refused_in_a_line(place: Path, record_property: Recorder) -> None:
    faults: dict[str, list[str]] = {}
    counts = {0: 0, 1: 0, 2: 0}
    drawn = lines(Random(14), recipe("attention", seed=0).key)
    for _ in range(COMMANDS):
        line = next(drawn)
        done = command(*line, folder=place)
        counts[done.status] = counts.get(done.status, 0) + 1
        fault = done.fault or (is_told_badly(done.err) if done.status == 2 else "")
        if fault:
            faults.setdefault(fault, []).append(shlex.join(["bestiary", *line]))
    told = f"{counts[0]} carried out, {counts[1] + counts[2]} refused, {len(faults)} kinds of faults"
    record_property("counts", f"{COMMANDS} command lines: {told}")
    assert not faults, listed(faults)


def is_told_badly(text: str) -> str:
    """What is wrong with how a mistake is told."""
    own = [line for line in text.splitlines() if line.startswith("bestiary: ")]
    if not own:
        return "" if "Usage:" in text or "Error" in text else f"refused with {text[:80]!r}"
    for nonsense in NONSENSE:
        if nonsense in own[-1]:
            return f"a message without sense: {own[-1][:160]!r}"
    return "" if own[-1].removeprefix("bestiary: ").strip() else "an empty message"


def listed(faults: dict[str, list[str]]) -> str:
    """Each fault with the shortest line that shows it, the commonest first."""
    ordered = sorted(faults.items(), key=lambda item: -len(item[1]))
    return "\n".join(f"{len(found)} x {fault}\n    {min(found, key=len)}" for fault, found in ordered)
