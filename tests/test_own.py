"""Modules of the user's own: what is taken as a mixer, what is refused and with which words, and how it is used."""

import linecache
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import command
from torch import nn

import bestiary
from bestiary import Mixer, Model, Rereading, check, memory, parse, read_results, run_recipes, spec
from bestiary.laws import verdicts
from bestiary.mixers._own import ANNOUNCED, TRIED
from bestiary.mixers._wrap import Carrying
from bestiary.spec import Spec, read_specs
from bestiary.training.recipe import Recipe, clean, zoology23

EXAMPLE = Path(__file__).parents[1] / "examples/any_module.py"
TOP = "import torch\nfrom torch import nn\nfrom bestiary import Mixer, Rereading\n"
MODULE = TOP + "\nclass Mine(nn.Module):\n    def __init__(self, dim{init}):\n        super().__init__()\n"
PLAIN = MODULE.format(init=", taps=3") + (
    "        self.taps, self.conv = taps, nn.Conv1d(dim, dim, taps)\n"
    "    def forward(self, x):\n"
    "        return self.conv(nn.functional.pad(x.mT, (self.taps - 1, 0))).mT\n"
)


@pytest.fixture(autouse=True)
def _nothing_tried() -> None:
    TRIED.clear()
    ANNOUNCED.clear()


def write(folder: Path, text: str) -> str:
    (folder / "mine.py").write_text(text)
    return str(folder / "mine.py")


def outputs(mixer: Mixer, x: torch.Tensor, *cuts: int) -> torch.Tensor:
    state, parts = None, []
    for start, end in zip((0, *cuts), (*cuts, x.shape[1]), strict=True):
        y, state = mixer(x[:, start:end], state)
        parts.append(y)
    return torch.cat(parts, 1)


def test_a_plain_module_rereads_its_input_and_is_announced_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path, PLAIN)
    with caplog.at_level(logging.WARNING, "bestiary"):
        mixer = spec("mixers", file).build(8)
        spec("mixers", file, taps=4).build(8)
    assert isinstance(mixer, Rereading)
    assert len(caplog.records) == 1
    assert "rereads its input" in caplog.text
    assert "grows with the length (8 numbers a token)" in caplog.text
    x = torch.randn(2, 9, 8)
    torch.testing.assert_close(outputs(mixer, x, 1, 2, 6), mixer.module(x))
    where = torch.tensor([[0, 8], [3, 3]])
    torch.testing.assert_close(mixer.parallel(x, where)[1, 0], mixer.module(x)[1, 3])
    assert memory(lambda: spec("mixers", file).build(8), time=100, dim=8).numbers == 800


def test_a_whole_sequence_is_one_call_of_the_module() -> None:
    calls = []

    class Counted(Rereading):
        def __init__(self, dim: int) -> None:
            super().__init__(nn.Linear(dim, dim))

        def read(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(x.shape[1])
            return self.module(x)

    model = Model(20, dim=8, depth=1, pattern=Counted)
    calls.clear()
    model.hidden(torch.zeros(2, 7, dtype=torch.long))
    assert calls == [7]


def test_a_module_with_a_state_carries_it() -> None:
    mixer = spec("mixers", f"{EXAMPLE}:GRU").build(8)
    assert isinstance(mixer, Carrying)
    x = torch.randn(2, 9, 8)
    torch.testing.assert_close(outputs(mixer, x, 1, 2, 6), mixer.module(x)[0])
    assert memory(lambda: spec("mixers", f"{EXAMPLE}:GRU").build(8), time=1000, dim=8).numbers == 8


@pytest.mark.parametrize("name", ["GRU", "MultiHead", "Llama"])
def test_the_examples_obey_the_laws(name: str) -> None:
    if name == "Llama":
        pytest.importorskip("transformers")
    report = check(f"{EXAMPLE}:{name}")
    assert report, report
    assert ("precision" in report.advice) == (name == "Llama")


def test_a_module_that_leaks_breaks_the_law_of_causality(tmp_path: Path) -> None:
    leaky = MODULE.format(init="") + "        self.out = nn.Linear(dim, dim)\n    def forward(self, x):\n"
    report = check(write(tmp_path, leaky + "        return self.out(x + x.mean(1, keepdim=True))\n"))
    assert not report
    assert "the output at position 0 changes" in report.broken["causality"]
    assert str(report).endswith("laws broken")


CLASS = TOP + "class Mine({base}):\n    def __init__(self, dim):\n        super().__init__()\n"
LINEAR = "        self.out = nn.Linear(dim, dim)\n"
FAULTS = {  # a file, and a part of the one sentence about it
    "one tensor": (CLASS.format(base="Mixer") + LINEAR + "    def forward(self, x, state=None): return self.out(x)\n",
        r"^forward\(x\) of Mine returns one tensor; return \(y, state\), or wrap it in Rereading$"),
    "no state": (CLASS.format(base="Mixer") + "    def forward(self, x): return x, None\n",
        r"takes no state: write forward\(self, x, state=None\) and return \(y, state\), or wrap it in Rereading"),
    "three things": (CLASS.format(base="Mixer") + "    def forward(self, x, state=None): return x, None, 1\n",
        r"returns 3 things; return two, \(y, state\)"),
    "a dict": (CLASS.format(base="Mixer") + "    def forward(self, x, state=None): return {'y': x}\n",
        "returns a dict"),
    "odd state": (CLASS.format(base="Mixer") + "    def forward(self, x, state=None): return x, ({'k': x},)\n",
        "the state of Mine holds a dict; a state is made of tensors"),
    "numbers in a list": (CLASS.format(base="Mixer") + "    def forward(self, x, state=None): return x, 3 * [0.0]\n",
        "the state of Mine holds a float; a state is made of tensors"),
    "no forward": (CLASS.format(base="Mixer"), "Mine has no forward"),
    "module without forward": (CLASS.format(base="nn.Module"), "Mine has no forward"),
    "no input": (CLASS.format(base="nn.Module") + "    def forward(self): return 1\n", "takes no input"),
    "pair": (CLASS.format(base="nn.Module") + "    def forward(self, x): return x, x\n",
        "returns 2 things: return y alone; if one of them is a state"),
    "width": (CLASS.format(base="nn.Module") + "    def forward(self, x): return x[..., :-1]\n",
        r"an input of shape \(2, 5, 64\) gives an output of shape \(2, 5, 63\)"),
    "pooled": (CLASS.format(base="nn.Module") + "    def forward(self, x): return x.mean(1)\n", r"shape \(2, 64\)"),
    "channels first": (CLASS.format(base="nn.Module") + "    def forward(self, x): return x.mT\n", "in another order"),
    "whole numbers": (CLASS.format(base="nn.Module") + "    def forward(self, x): return x.long()\n", "int64 numbers"),
    "query, key, value": (TOP + "class Mine(nn.MultiheadAttention):\n    def __init__(self, dim):\n"
        "        super().__init__(dim, 4)\n", r"needs key, value beside x: call it in read\(self, x\) of a subclass"),
    "needed state": (CLASS.format(base="nn.Module") + "    def forward(self, x, state): return x, state\n",
        "needs state, which is None at the start: write state=None"),
    "mask": (CLASS.format(base="nn.Module") + "    def forward(self, x, positions=None): return x + positions[0]\n",
        r"raises TypeError: .*; it also takes positions: give them in read\(self, x\)"),
    "time first": (TOP + "class Mine(nn.GRU):\n    def __init__(self, dim): super().__init__(dim, dim)\n",
        r"it takes \(time, batch, dim\); say batch_first=True"),
    "float32": (CLASS.format(base="nn.Module") + LINEAR
        + "    def forward(self, x): return x + self.out(torch.zeros(len(x), 1, 64))\n",
        "have the same dtype.*; the laws compute in float64: create tensors with dtype=x.dtype"),
    "128 positions": (CLASS.format(base="nn.Module") + LINEAR
        + "    def forward(self, x): return self.out(x) + self.out.weight.repeat(2, 1)[: x.shape[1]]\n",
        r"on an input of shape \(2, 131, 64\) raises RuntimeError: .*; the laws need 131 positions"),
    "not a module": ("class Mine:\n    def __init__(self, dim): ...\n", "Mine is no module: make it a subclass"),
    "raises": (CLASS.format(base="nn.Module") + "        self.x = {}['depth']\n    def forward(self, x): return x\n",
        r"Mine\(64\) raises KeyError: 'depth'"),
    "raises later": (CLASS.format(base="nn.Module") + "    def forward(self, x): return x @ x\n",
        r"Mine on an input of shape \(2, 5, 64\) raises RuntimeError"),
    "nothing to reread": (TOP + "class Mine(Rereading):\n    def __init__(self, dim): super().__init__()\n",
        "has neither a module nor"),
}  # fmt: skip
SIGNATURES = {
    "(self)": r"Mine.__init__ takes no width: write def __init__\(self, dim\)",
    "(self, *, dim: int = 4)": "takes no width",
    "(self, config)": "takes 'config' and not a width",
    "(self, dim, heads)": "option 'heads' of Mine needs a default",
    "(self, dim, *, heads)": "option 'heads' of Mine needs a type and a default",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_form_is_one_sentence_before_any_law(fault: str, tmp_path: Path) -> None:
    text, said = FAULTS[fault]
    (verdict,) = verdicts(parse("mixers", write(tmp_path, text))[0])
    assert verdict.law == "form"
    assert verdict.broken
    assert "\n" not in str(verdict.fault)
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(verdict.fault)


@pytest.mark.parametrize("given", SIGNATURES)
def test_a_constructor_that_takes_no_width_is_refused(given: str, tmp_path: Path) -> None:
    file = write(
        tmp_path, TOP + f"class Mine(nn.Module):\n    def __init__{given}: ...\n    def forward(self, x): ...\n"
    )
    with pytest.raises(TypeError, match=SIGNATURES[given]):
        parse("mixers", file)


def test_a_module_without_a_constructor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="takes no width"):
        parse("mixers", write(tmp_path, TOP + "class Mine(nn.Module):\n    def forward(self, x): return x\n"))


def test_a_wrong_form_is_refused_before_training(tmp_path: Path) -> None:
    text = FAULTS["one tensor"][0]
    with pytest.raises(ValueError, match="returns one tensor"):
        clean(write(tmp_path, text), train="mqar(vocab=32, length=16, pairs=2)", dim=8).check()


def test_options_are_advice_for_ones_own_file(tmp_path: Path) -> None:
    report = check(write(tmp_path, PLAIN))
    assert report
    assert report.advice["options"] == "option 'taps' of Mine must be keyword-only: put `*, ` before it"
    assert "never reaches an output" in report.advice["no dead state"]
    done = command("check", "mine.py", folder=tmp_path)
    assert done.status == 0
    assert "  advice  options: " in done.out
    assert done.out.endswith("every law holds\n")


def test_a_module_that_computes_in_float32_is_judged_in_float32(tmp_path: Path) -> None:
    text = PLAIN.replace("return self.conv(", "return 1.0 * self.conv(").replace(
        ".mT\n", ".mT.float().cumsum(1).to(x)\n"
    )
    report = check(write(tmp_path, text))
    assert report, report
    assert "float32" in report.advice["precision"]
    (double,) = parse("mixers", write(tmp_path, PLAIN))
    assert "precision" not in {verdict.law for verdict in verdicts(double)}


def test_a_module_that_knows_300_positions_or_has_no_weights_obeys_every_law(tmp_path: Path) -> None:
    table = PLAIN.replace("dim, taps)\n", "dim, taps)\n        self.places = nn.Embedding(300, dim)\n")
    for text in (
        table.replace(".mT\n", ".mT + self.places.weight[: x.shape[1]]\n"),
        MODULE.format(init="") + "    def forward(self, x): return x.cumsum(1)\n",
    ):
        report = check(write(tmp_path, text))
        assert report, report


TWO = TOP + (
    "class Part(nn.Module):\n    def __init__(self, size, step): super().__init__()\n"
    "    def forward(self, x): return x\n"
    "class One(Mixer):\n    def __init__(self, dim, *, heads: int = 4):\n        super().__init__()\n"
    "        self.heads = heads\n    def forward(self, x, state=None): return x, None\n"
)


def test_a_file_with_one_mixer_among_its_classes_needs_no_name(tmp_path: Path) -> None:
    file = write(tmp_path, TWO)
    assert parse("mixers", f"{file}:One") == parse("mixers", file)
    assert parse("mixers", f"{file}:One(heads=2)")[0].build(8).heads == 2
    own = TOP + "class Part(nn.Module):\n    def __init__(self, size): ...\nclass One(nn.Linear):\n"
    assert type(parse("mixers", write(tmp_path, own + "    def __init__(self, dim): super().__init__(dim, dim)\n"))[0]
        .build(8).module).__name__ == "One"  # fmt: skip


def test_a_class_is_named_behind_a_colon(tmp_path: Path) -> None:
    file = write(tmp_path, TWO + "class Other(One): ...\n")
    with pytest.raises(LookupError, match=r"it defines One, Other: name the one you mean, as in mine.py:One"):
        parse("mixers", file)
    with pytest.raises(LookupError, match="has no class 'Tow'; it defines One, Other, Part"):
        parse("mixers", f"{file}:Tow")
    one, other = parse("mixers", f"{file}:One(heads=2), 2*{file}:Other")[:2]
    assert one.key != parse("mixers", f"{file}:Other(heads=2)")[0].key
    assert str(other) == f"{file}:Other"
    (stored,) = read_specs("mixers", [one.stored])
    assert (stored, stored.key) == (one, one.key)
    folder = tmp_path / "a b"
    folder.mkdir()
    write(folder, TWO + "class Other(One): ...\n")
    (moved,) = parse("mixers", f"{folder}/mine.py:One")
    assert parse("mixers", str(moved)) == (moved,)
    assert moved.key == parse("mixers", f"{file}:One")[0].key


def test_a_file_may_hold_a_mixer_and_a_task(tmp_path: Path) -> None:
    text = "from bestiary import Task\n" + TWO + "class Mine(Task):\n    def __init__(self, *, length: int = 4): ...\n"
    file = write(tmp_path, text)
    assert parse("mixers", file)[0].build(8).heads == 4
    assert dict(parse("tasks", file)[0].options) == {"length": 4}


class Here(Mixer):
    """A mixer in a file of tests."""

    def __init__(self, dim: int, *, scale: float = 2.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        return x * self.scale, state


def test_text_classes_and_specs_are_patterns() -> None:
    model = Model(20, dim=8, depth=3, pattern=["base_conv, attention", Here])
    assert [type(layer.mixer).__name__ for layer in model.layers] == ["BaseConv", "Attention", "Here"]
    assert type(model.layers[2].mixer) is Here
    assert len(Model(20, dim=8, depth=2, pattern="base_conv, attention").layers) == 2
    assert clean([Here]).pattern == Recipe(train="mqar", pattern=Here).pattern
    assert [part.name for part in zoology23("base_conv").pattern] == ["base_conv", "base_conv"]
    assert read_specs("mixers", type(model.layers[1].mixer)) == parse("mixers", "attention")


def test_a_class_of_a_file_is_that_of_the_file() -> None:
    (found,) = read_specs("mixers", Here)
    assert found.name == __file__
    assert found.key == parse("mixers", __file__)[0].key


def test_a_class_without_a_file_lives_in_its_process_alone(tmp_path: Path) -> None:
    space: dict[str, Any] = {"__name__": "nowhere"}
    exec(TWO, space)
    (found,) = read_specs("mixers", space["One"])
    assert str(found) == "<One>"
    assert type(found.build(8)) is space["One"]
    assert check(space["One"]).verdicts
    exec("from bestiary import Task\nclass Asked(Task):\n    def __init__(self): ...\n", space)
    within = spec("mixers", "serial", mixers=("attention", space["One"]))
    for recipe, name in (
        (Recipe(train="mqar", pattern=space["One"]), "One"),
        (Recipe(train="mqar", pattern=within), "One"),
        (Recipe(train=space["Asked"], pattern="attention"), "Asked"),
        (Recipe(train="mqar", select=space["Asked"], pattern="attention"), "Asked"),
    ):
        with pytest.raises(ValueError, match=f"workers cannot build {name}: put the class in a file"):
            run_recipes([recipe], tmp_path)
    with pytest.raises(ValueError, match="^One is known only where it was defined, .*: put the class in a file"):
        bestiary.card(space["One"])
    elsewhere = Spec("mixers", "<Two>", (), (), "0" * 64)
    with pytest.raises(LookupError, match="Two is known only where it was defined"):
        elsewhere.build(8)


def session_class(rank: int, factor: int) -> type:
    """A class as a notebook defines it, whose source is known although it has no file."""

    source = f"def forward(self, x):\n    return x[..., :{factor}]\n"
    place = f"<cell of {factor}>"
    space: dict[str, Any] = {}
    exec(compile(source, place, "exec"), space)
    linecache.cache[place] = (len(source), None, source.splitlines(keepends=True), place)
    parent = type("Base", (nn.Module,), {"__module__": "nowhere", "read": staticmethod(space["forward"])})
    return type("Mine", (parent,), {"__module__": "nowhere", "__init__": session_init, "RANK": rank})


def session_init(self: nn.Module, dim: int, *, heads: int = 4) -> None:
    """Of the classes that a session defines."""


def test_a_class_of_a_session_is_another_if_an_attribute_or_its_base_is() -> None:
    keys = [read_specs("mixers", session_class(*given))[0].source for given in ((4, 1), (8, 1), (4, 2), (4, 1))]
    assert len({*keys}) == 3
    assert keys[0] == keys[3]


SESSION = """
import functools
from torch import nn

class Plain(nn.Module):
    def forward(self, x):
        return x

def make(k, base=Plain):
    def plus(x):
        return x + k

    class Closed(base):
        def __init__(self, dim):
            super().__init__()
            self.k = k

    class Default(base):
        def __init__(self, dim):
            super().__init__()
            self.k = self.given()

        def given(self, k=k):
            return k

    class Attribute(base):
        held = {"k": [k]}

        def __init__(self, dim):
            super().__init__()
            self.k = self.held["k"][0]

    class Property(base):
        def __init__(self, dim):
            super().__init__()
            self.k = k if dim < 0 else None

        k = property(lambda self: self._k, lambda self, _: setattr(self, "_k", k))

    class Static(base):
        def __init__(self, dim):
            super().__init__()
            self.k = self.given()

        @staticmethod
        def given():
            return k

    class Nested(base):
        def __init__(self, dim):
            super().__init__()
            self.k = plus(0)

    class Wrapped(base):
        @functools.lru_cache
        def given(self):
            return k

        def __init__(self, dim):
            super().__init__()
            self.k = self.given()

    class Partial(base):
        given = functools.partialmethod(lambda self, k: k, k)

        def __init__(self, dim):
            super().__init__()
            self.k = self.given()

    return {cls.__name__: cls for cls in (Closed, Default, Attribute, Property, Static, Nested, Wrapped, Partial)}
"""


@pytest.fixture(scope="module")
def session() -> dict[str, Any]:
    """A session whose source is known, as that of a notebook is."""
    space: dict[str, Any] = {"__name__": "nowhere"}
    exec(compile(SESSION, "<cell>", "exec"), space)
    linecache.cache["<cell>"] = (len(SESSION), None, SESSION.splitlines(keepends=True), "<cell>")
    return space


@pytest.mark.parametrize(
    "name", ["Closed", "Default", "Attribute", "Property", "Static", "Nested", "Wrapped", "Partial"]
)
def test_classes_of_one_source_are_others_where_a_value_from_around_them_is(name: str, session: dict[str, Any]) -> None:
    made = [clean(session["make"](k)[name], dim=8) for k in (1, 2, 3)]
    assert len({recipe.key for recipe in made}) == 3
    assert [recipe.pattern[0].build(8).module.k for recipe in made] == [1, 2, 3]


def test_classes_of_one_source_are_the_same_where_all_around_them_is(session: dict[str, Any]) -> None:
    for name in ("Closed", "Default", "Attribute", "Property", "Static"):
        first, again = (read_specs("mixers", session["make"](1)[name])[0].source for _ in range(2))
        assert first == again, name
    bases = [read_specs("mixers", session["make"](1, base)["Closed"])[0].source for base in (nn.Module, Here)]
    assert bases[0] != bases[1]


def test_a_wrapped_module_is_trained_by_workers_and_read_again(tmp_path: Path) -> None:
    recipes = [
        clean(f"{EXAMPLE}:MultiHead(heads=2)", train="mqar(vocab=32, length=16, pairs=2)", dim=8, steps=3, seed=seed)
        for seed in (0, 1)
    ]
    small = [recipe.model_copy(update={"test_rows": 20, "selection_rows": 20, "batch": 4}) for recipe in recipes]
    table = run_recipes(small, tmp_path / "runs", workers=1)
    assert set(table["key"]) == {recipe.key for recipe in small}
    assert table["outcome"].unique().tolist() == ["finished"]
    assert len(read_results(tmp_path / "runs")) == 2
    assert (tmp_path / "runs" / small[0].key / "source" / EXAMPLE.name).exists()
    with pytest.raises(LookupError, match="there is no store"):
        read_results(tmp_path / "nowhere")


@pytest.mark.slow
def test_check_takes_text_specs_classes_and_tasks() -> None:
    assert "BROKEN" not in str(check("lru, short_conv"))
    assert check(parse("tasks", "parity")[0])
    assert check([Here]).verdicts.keys() == set(read_specs("mixers", Here))
    with pytest.raises(LookupError, match="nothing is called 'atention'"):
        check("atention")
