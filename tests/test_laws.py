"""The laws over everything found, and the proof that each law can fail."""

from pathlib import Path

import pytest

import bestiary
from bestiary.laws import MIXER_LAWS, TASK_LAWS, Verdict, check, variants
from bestiary.laws.report import Report
from bestiary.spec import Spec, names, parse

# Everything as it is by default; with other options the laws are slow tests.
MIXERS = [
    pytest.param(found, marks=() if place == 0 else pytest.mark.slow, id=str(found))
    for name in names("mixers")
    for place, found in enumerate(variants("mixers", name))
]
TASKS = [
    pytest.param(found, marks=() if place == 0 else pytest.mark.slow, id=str(found))
    for name in names("tasks")
    for place, found in enumerate(variants("tasks", name))
]


@pytest.mark.parametrize("law", MIXER_LAWS)
@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_obeys(mixer: Spec, law: str) -> None:
    MIXER_LAWS[law](mixer)


HEAVY = "chance", "presets"  # laws that draw many rows

LAWS_OF_TASKS = [pytest.param(law, marks=pytest.mark.slow if law in HEAVY else ()) for law in TASK_LAWS]


@pytest.mark.parametrize("law", LAWS_OF_TASKS)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_obeys(task: Spec, law: str) -> None:
    TASK_LAWS[law](task)


BODY = """
import torch
from torch import nn
from bestiary.mixers._mixer import Mixer, take

class Broken(Mixer):
    def __init__(self, dim, *, size: int = 2):
        super().__init__()
        self.out = nn.Linear(dim, dim)
        {init}
    def forward(self, x, state=None, *, tokens=None):
        past = torch.zeros_like(x[:, :1]) if state is None else state
        before = torch.cat([past, x[:, :-1]], 1)
        after = x[:, -1:]
        {forward}
        return self.out(y), after
"""

READS = "self.reads_tokens = True; self.parallel = lambda x, where=None, tokens=None: "

BROKEN_MIXERS = {  # how to break a token shift, and the laws that must notice
    "sees the future": ("pass", "y = x + x.roll(-1, 1)", {"causality", "cut"}),
    "normalises over the whole sequence": ("pass", "y = before / x.abs().sum(1, keepdim=True)", {"causality", "cut"}),
    "forgets at a cut": ("pass", "y = x + torch.cat([0 * past, x[:, :-1]], 1)", {"cut", "no dead state"}),
    "keeps what it never reads": ("pass", "y = x + before * (torch.arange(x.shape[2]) > 9)", {"no dead state"}),
    "stacks badly": ("pass", "y = x + before * (1 if self.out.weight.sum() > 0 else 2)", {"stacking"}),
    "needs a sequence": ("pass", "y = x + before + 0 * x.max()", {"empty input"}),
    "looks at its neighbours": ("pass", "y = x + before + x.mean(0, keepdim=True)", {"batch independence"}),
    "has an idle weight": ("self.idle = nn.Parameter(torch.ones(3))", "y = x + before", {"gradients"}),
    "overflows": ("pass", "y = (x + before).exp()", {"float32 range"}),
    "divides by a norm": (
        "pass",
        "y = x + before + before / (before.norm(dim=-1, keepdim=True) + 1e-12)",
        {"zero inputs"},
    ),
    "asks for numbers": ("pass", "y = (x + before) * (1 + float(x.sum()) * 0)", {"meta"}),
    "holds most on the way": (
        "pass",
        "y = x + before[:, -x.shape[1]:]; after = torch.cat([past, x], 1); "
        "after = after if after.shape[1] < 7 else after[:, -1:]",
        {"largest state"},
    ),
    "holds most on the way to a hundred positions": (
        "pass",
        "y = x + before[:, -x.shape[1]:]; after = torch.cat([past, x], 1); "
        "after = after if after.shape[1] < 70 else after[:, -1:]",
        {"largest state"},
    ),
    "names too short a sequence with an equal state": (
        "self.equal_state = lambda time: min(time, 17)",
        "y = x + before[:, -x.shape[1]:]; after = torch.cat([past, x], 1)",
        {"largest state"},
    ),
    "forgets what is 200 positions back": (
        "pass",
        "read = torch.cat([past, x], 1); y = x + read.cumsum(1)[:, -x.shape[1]:]; after = read[:, -200:]",
        {"cut"},
    ),
    "wraps round where sequences are long": (
        "self.parallel = lambda x, where=None: take(self(x)[0] + x.roll(1, 1) * (x.shape[1] > 200), where)",
        "y = x + before",
        {"causality", "cut"},
    ),
    "replaces a buffer in training": (
        "self.register_buffer('mean', torch.zeros(dim))",
        "self.mean = 0.9 * self.mean + x.detach().mean((0, 1)) if self.training else self.mean; "
        "y = x + before + self.mean",
        {"stacking"},
    ),
    "draws outside torch": (
        "import random; self.odd = nn.Parameter(torch.tensor(random.random()))",
        "y = (x + before) * self.odd",
        {"seeding"},
    ),
    "draws a buffer outside torch": (
        "import random; self.register_buffer('odd', torch.tensor(random.random()))",
        "y = (x + before) * self.odd",
        {"seeding"},
    ),
    "sees a little of the future in bfloat16": (
        "pass",
        "y = x + before + (x.roll(-1, 1) / 1000).bfloat16().to(x)",
        {"causality"},
    ),
    "sees the future behind a norm": (
        "self.norm = nn.LayerNorm(dim)",
        "y = before + self.norm(x) + self.norm(x).roll(-1, 1)",
        {"causality", "cut"},
    ),
    "sees the future in parallel in bfloat16": (
        "self.parallel = lambda x, where=None: take(self(x)[0] + 0.01 * x.roll(-1, 1), where)",
        "y = x + before + (x / 1000).bfloat16().to(x)",
        {"causality"},
    ),
    "starts anew every 64 positions in parallel": (
        "self.parallel = lambda x, where=None: take(torch.cat([self(part)[0] for part in x.split(64, 1)], 1), where)",
        "y = x + before",
        {"parallel form"},
    ),
    "is wrong below 64 positions in parallel": (
        "self.parallel = lambda x, where=None: take(self(x)[0] * (1 + (x.shape[1] < 64)), where)",
        "y = x + before",
        {"parallel form"},
    ),
    "sees the future beyond 64 positions in parallel": (
        "self.parallel = lambda x, where=None: "
        "take(self(x)[0] + x.roll(-1, 1) * (torch.arange(x.shape[1]) > 63).unsqueeze(1), where)",
        "y = x + before",
        {"parallel form"},
    ),
    "keeps gradients from its input in parallel": (
        "self.parallel = lambda x, where=None: take(self(x.detach())[0], where)",
        "y = x + before",
        {"parallel form"},
    ),
    "has no gradients where positions are chosen": (
        "self.parallel = lambda x, where=None: self(x)[0] if where is None else take(self(x)[0], where).detach()",
        "y = x + before",
        {"parallel form"},
    ),
    "has no gradients in parallel": (
        "self.parallel = lambda x, where=None: take(self(x)[0], where).detach()",
        "y = x + before",
        {"parallel form"},
    ),
    "reads the next token": (
        READS + "take(self(x, tokens=tokens)[0], where)",
        "y = x + before + (0 if tokens is None else tokens.roll(-1, 1).unsqueeze(2))",
        {"causality", "cut"},
    ),
    "reads its neighbours' tokens": (
        READS + "take(self(x, tokens=tokens)[0], where)",
        "y = x + before + (0 if tokens is None else tokens.roll(1, 0).unsqueeze(2))",
        {"batch independence"},
    ),
    "reads no tokens in parallel": (
        READS + "take(self(x)[0], where)",
        "y = x + before + (0 if tokens is None else tokens.unsqueeze(2))",
        {"parallel form"},
    ),
    "stacks tokens badly": (
        READS + "take(self(x, tokens=tokens)[0], where)",
        "y = x + before if tokens is None or self.out.weight.sum() > 0 else 2 * x",
        {"stacking"},
    ),
    "raises oddly": ("1 / (size - 1)", "y = x + before", {"options"}),
}


@pytest.mark.parametrize("fault", BROKEN_MIXERS)
def test_a_law_finds_the_mixer_that(fault: str, tmp_path: Path) -> None:
    init, forward, laws = BROKEN_MIXERS[fault]
    file = tmp_path / "broken.py"
    file.write_text(BODY.format(init=init, forward=forward))
    (found,) = parse("mixers", str(file))
    noticed = {law for law, fault in check(found) if fault is not None}
    assert laws <= noticed


HONEST = {
    "reads features": ("pass", "y = x + before"),
    "reads tokens": (
        "self.codes = nn.Embedding(64, dim); " + READS + "take(self(x, tokens=tokens)[0], where)",
        "y = x + before + (0 if tokens is None else self.codes(tokens))",
    ),
    "has a frozen weight": (
        "self.fixed = nn.Parameter(torch.ones(dim), requires_grad=False)",
        "y = (x + before) * self.fixed",
    ),
    "writes into a buffer in training": (
        "self.register_buffer('mean', torch.zeros(dim))",
        "self.mean.mul_(0.9).add_(x.detach().mean((0, 1)) if self.training else 0.1 * self.mean); "
        "y = x + before + 0 * self.mean",
    ),
    "drops out in training": ("self.drop = nn.Dropout(0.5)", "y = x + self.drop(before)"),
}


@pytest.mark.parametrize("case", HONEST)
def test_no_law_is_broken_by_an_honest_mixer_that(case: str, tmp_path: Path) -> None:
    init, forward = HONEST[case]
    file = tmp_path / "honest.py"
    file.write_text(BODY.format(init=init, forward=forward))
    (found,) = parse("mixers", str(file))
    assert [fault for _, fault in check(found) if fault] == []


KEEPS = """
import torch
from torch import nn
from bestiary.mixers._mixer import Mixer

class Keeping(Mixer):
    def __init__(self, dim):
        super().__init__()
        self.out, self.kept = nn.Linear(dim, dim), []
    def forward(self, x, state=None):
        {forward}
        return self.out(x), after
"""
OUTSIDE = {  # where a mixer keeps what is not counted, and what is said of it
    "itself": (
        "x = x if state is None else x + self.kept[state]; self.kept.append(x[:, -1:]); after = len(self.kept) - 1",
        "cut",
        "cut at 1: a copy of the mixer cannot go on from the state alone: IndexError",
    ),
    "whole numbers": (
        "after = (state or []) + x[0, :, 0].long().tolist() if len(x) else []",
        "largest state",
        "after 131 positions 131 numbers of the state are in no tensor, and do not count",
    ),
}


@pytest.mark.parametrize("place", OUTSIDE)
def test_a_law_finds_what_is_kept_in(place: str, tmp_path: Path) -> None:
    forward, law, said = OUTSIDE[place]
    file = tmp_path / "keeping.py"
    file.write_text(KEEPS.format(forward=forward))
    assert str(dict(check(parse("mixers", str(file))[0]))[law]).startswith(said)


TASK = """
import torch
from bestiary.spec import Positive
from bestiary.tasks._task import SILENT, Batch, Task, stream

class Broken(Task):
    def __init__(self, *, vocab: Positive = 50):
        self.vocab, self.length, self.chance, self.plateau = vocab, 6, 1 / vocab, 1.0
    def sample(self, count, rng):
        tokens = torch.randint(self.vocab, (count, 6), generator=rng)
        answer, facets = tokens[:, :1], {{}}
        {sample}
        targets = torch.full_like(tokens, SILENT)
        targets[:, 4:5] = answer
        return Batch(tokens, targets, facets)
    def solve(self, tokens):
        answers = torch.full_like(tokens, SILENT)
        if tokens.shape[1] > 4:
            answers[:, 4] = {solve}
        return answers
"""

BROKEN_TASKS = {
    "draws from the global generator": (
        "tokens[:, 1] = torch.randint(self.vocab, (count,))",
        "tokens[:, 0]",
        "determinism",
    ),
    "counts its draws": (
        "self.calls = getattr(self, 'calls', 0) + 1; tokens = (tokens + self.calls) % self.vocab; "
        "answer = tokens[:, :1]",
        "tokens[:, 0]",
        "determinism",
    ),
    "leaves the vocabulary": ("tokens[:, 1] = self.vocab", "tokens[:, 0]", "shapes"),
    "names a facet as a column of scores": ("facets = {'first': tokens}", "tokens[:, 0]", "shapes"),
    "names a facet as a further score": (
        "facets = {'far': tokens}; self.extra_scores = lambda batch, logits: {'far': logits[:, 0]}",
        "tokens[:, 0]",
        "shapes",
    ),
    "names a further score as a sum over rows": (
        "self.extra_scores = lambda batch, logits: {'whole': logits[:, 0]}",
        "tokens[:, 0]",
        "shapes",
    ),
    "has a facet below zero": ("facets = {'far': torch.full_like(tokens, -1)}", "tokens[:, 0]", "shapes"),
    "has a facet without bound": ("facets = {'far': tokens + 2**40}", "tokens[:, 0]", "shapes"),
    "has a fraction as a facet": ("facets = {'far': tokens + 0.5}", "tokens[:, 0]", "shapes"),
    "has a wrong oracle": ("pass", "tokens[:, 1]", "oracle"),
    "asks about the future": ("answer = tokens[:, 5:]", "tokens[:, -1]", "prefix"),
    "repeats its training rows": (
        "leak = rng.initial_seed() == stream('test', 'key', 0).initial_seed();"
        "again = torch.randint(self.vocab, (count, 6), generator=stream('train', 0, 0));"
        "tokens = again if leak else tokens; answer = tokens[:, :1]",
        "tokens[:, 0]",
        "disjoint streams",
    ),
    "hides how few rows it has": ("tokens[:, 5] = 0", "tokens[:, 0]", "disjoint streams"),
    "is easier than it says": ("tokens[:, 0] = tokens[:, 0] // 2", "tokens[:, 0]", "chance"),
}
ATTRIBUTES = {
    "del self.plateau": "a task sets `plateau`, a number; it does not set it",
    "self.vocab = 50.0": "a task sets `vocab`, a number; it is 50.0",
    "self.length = 0": "`length` is 0; it must be at least 1",
    "self.chance = 2.0": "`chance` is 2.0; it must be from 0 to 1",
    "self.chance = float('nan')": "`chance` is nan; it must be from 0 to 1",
    "self.plateau = 0.01": "`plateau` is 0.01, less than `chance`, 0.02",
}


@pytest.mark.parametrize("change", ATTRIBUTES)
def test_a_law_names_the_attribute_that_a_task_lacks(change: str, tmp_path: Path) -> None:
    file = tmp_path / "lacking.py"
    file.write_text(TASK.format(sample="pass", solve="tokens[:, 0]").replace("1.0\n", f"1.0\n        {change}\n", 1))
    (found,) = parse("tasks", str(file))
    assert dict(check(found))["attributes"] == ATTRIBUTES[change]


@pytest.mark.parametrize("fault", BROKEN_TASKS)
def test_a_law_finds_the_task_that(fault: str, tmp_path: Path) -> None:
    sample, solve, law = BROKEN_TASKS[fault]
    file = tmp_path / "broken.py"
    file.write_text(TASK.format(sample=sample, solve=solve))
    (found,) = parse("tasks", str(file))
    assert law in {law for law, fault in check(found) if fault is not None}


def test_an_honest_task_breaks_no_law(tmp_path: Path) -> None:
    file = tmp_path / "honest.py"
    file.write_text(TASK.format(sample="pass", solve="tokens[:, 0]"))
    (found,) = parse("tasks", str(file))
    assert [fault for _, fault in check(found) if fault] == []


def test_a_report_keeps_the_faults_of_all_that_break_a_law() -> None:
    one, two = parse("mixers", "attention, lru")
    found = {
        one: (Verdict("cut", "here"), Verdict("options", "odd", advice=True)),
        two: (Verdict("cut", "there"), Verdict("options", None)),
    }
    report = Report(found)
    assert not report
    assert report.broken == {"cut": "attention: here; lru: there"}
    assert report.advice == {"options": "attention: odd"}
    assert Report({one: found[one]}).broken == {"cut": "here"}


def test_a_report_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to check"):
        bestiary.check([])
