"""The laws over everything found, and the proof that each law can fail."""

from pathlib import Path

import pytest

from bestiary.laws import MIXER_LAWS, TASK_LAWS, check, variants
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
from bestiary.mixers._mixer import Mixer

class Broken(Mixer):
    def __init__(self, dim, *, size: int = 2):
        super().__init__()
        self.out = nn.Linear(dim, dim)
        {init}
    def forward(self, x, state=None):
        past = torch.zeros_like(x[:, :1]) if state is None else state
        before = torch.cat([past, x[:, :-1]], 1)
        after = x[:, -1:]
        {forward}
        return self.out(y), after
"""

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
    "draws outside torch": (
        "import random; self.odd = nn.Parameter(torch.tensor(random.random()))",
        "y = (x + before) * self.odd",
        {"seeding"},
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


def test_an_honest_mixer_breaks_no_law(tmp_path: Path) -> None:
    file = tmp_path / "honest.py"
    file.write_text(BODY.format(init="pass", forward="y = x + before"))
    (found,) = parse("mixers", str(file))
    assert [fault for _, fault in check(found) if fault] == []


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
    "leaves the vocabulary": ("tokens[:, 1] = self.vocab", "tokens[:, 0]", "shapes"),
    "names a facet as a column of scores": ("facets = {'first': tokens}", "tokens[:, 0]", "shapes"),
    "names a facet as a further score": (
        "facets = {'far': tokens}; self.extra_scores = lambda batch, logits: {'far': logits[:, 0]}",
        "tokens[:, 0]",
        "shapes",
    ),
    "has a wrong oracle": ("pass", "tokens[:, 1]", "oracle"),
    "asks about the future": ("answer = tokens[:, 5:]", "tokens[:, -1]", "prefix"),
    "repeats its training rows": (
        "leak = rng.initial_seed() == stream('test', 'key', 0).initial_seed();"
        "again = torch.randint(self.vocab, (count, 6), generator=stream('train', 0, 0));"
        "tokens = again if leak else tokens; answer = tokens[:, :1]",
        "tokens[:, 0]",
        "disjoint streams",
    ),
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
