"""Names, options, patterns, files of one's own, installed packages, and what is said about mistakes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bestiary.spec import locate, names, parse, read_specs, spec
from bestiary.spec.options import signature_fault

GOOD = """
from bestiary import Mixer

class Mine(Mixer):
    def __init__(self, dim, *, size: int = 3):
        super().__init__()
        self.size = size

    def forward(self, x, state=None):
        return x, None
"""


@pytest.mark.parametrize(
    "text", ["attention", "attention(heads=2)", "base_conv(filter='explicit', taps=9)", "mamba(rank=3)"]
)
def test_what_is_printed_can_be_typed_again(text: str) -> None:
    (found,) = parse("mixers", text)
    assert parse("mixers", str(found)) == (found,)


def test_every_name_can_be_located_and_every_option_has_a_type_and_a_default() -> None:
    for kind in ("mixers", "tasks"):
        for name in names(kind):
            assert locate(kind, name)
            assert spec(kind, name).changed == ()


def test_a_pattern_repeats_and_orders_layers() -> None:
    found = parse("mixers", " 2*gated_delta, attention(window=64)")
    assert [part.name for part in found] == ["gated_delta", "gated_delta", "attention"]
    assert dict(found[2].options)["window"] == 64


def test_a_path_may_hold_the_sign_of_a_comment() -> None:
    with pytest.raises(LookupError, match="there is no file 'a # b.py'"):
        parse("mixers", "attention, 'a # b.py'")


def test_specs_are_equal_when_their_builds_are() -> None:
    assert spec("mixers", "attention", heads=1) == spec("mixers", "attention")
    assert spec("mixers", "attention", heads=2).key != spec("mixers", "attention").key
    assert spec("tasks", "mqar", power=1) == spec("tasks", "mqar", power=1.0)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("atention", LookupError, "did you mean 'attention'"),
        ("attention(windw=3)", TypeError, "attention has no option 'windw'.*did you mean 'window'"),
        ("attention(window='wide')", TypeError, r"attention\(window='wide'\): Input should be a valid integer"),
        ("attention(heads=0)", TypeError, "greater than 0"),
        ("attention(heads=True)", TypeError, "valid integer"),
        ("base_conv(filter='shrt')", TypeError, "'short', 'explicit' or 'implicit'"),
        ("base_conv(filter=short)", ValueError, "quote text"),
        ("attention(", ValueError, "cannot read 'attention\\('"),
        ("attention + based", ValueError, "none of name"),
        ("0*attention", ValueError, "none of name"),
        ("attention(3)", ValueError, "none of name"),
        ("", ValueError, "cannot read ''"),
        ("./nowhere.py", LookupError, "there is no file './nowhere.py'"),
        ("attention(heads=2, heads=4)", ValueError, "option 'heads' is given twice"),
        ("serial('attention', mixers='based')", ValueError, "option 'mixers' is given twice"),
        ("hyena(frequency=nan)", ValueError, "'nan' is not a value"),
        ("hyena(frequency=1e999)", TypeError, r"hyena\(frequency=inf\): Input should be a finite number"),
        ("stick_breaking(dropout=1e999)", TypeError, "no option 'dropout'"),
        ("1000000000*attention", ValueError, "it has more than 4,096 layers"),
        ("2*(3000*attention)", ValueError, "it has more than 4,096 layers"),
        ("100*serial('99*attention')", ValueError, "more than 4,096 layers, those within others included"),
        ("True*attention", ValueError, "none of name"),
        ("_path0", LookupError, "no mixer '_path0'"),
        ("'attention'", ValueError, "'attention' is in quotes, so it is the path of a file and must end in .py"),
        ("'a b.py'", LookupError, "there is no file 'a b.py'"),
        ("attention # , mamba", ValueError, "'# , mamba' would be left out as a comment"),
        ("serial('attention # , mamba')", TypeError, "'# , mamba' would be left out as a comment"),
        ("attention(heads=2, # width\n window=3)", ValueError, "'# width' would be left out as a comment"),
        ("'a.py' 'b.py'", ValueError, "there is no comma between 'a.py' and 'b.py'"),
        ("'a.py' b.py", ValueError, "there is no comma between 'a.py' and 'b.py'"),
        ("serial('attention,'\n'mamba')", ValueError, "there is no comma between 'attention,' and 'mamba'"),
        ("attention(window=[3])[0]", ValueError, "none of name"),
        ("attention(window={}[0])", ValueError, "is not a value"),
        ("attention(**{'heads': 2})", ValueError, "none of name"),
        ("attention.a.b", ValueError, "none of name"),
        ("attention.small", LookupError, "attention has no preset 'small'"),
        ("()", ValueError, "none of name"),
        ("(" * 100_000, ValueError, "a pattern of 100,000 characters is too long; 65,536 are the most"),
        ("(" * 60_000, ValueError, "nested too deep|write name"),
        ("attention(window=" + "-" * 60_000 + "1)", ValueError, "nested too deep|write name"),
        ("+".join(["attention"] * 6000), ValueError, "nested too deep"),
        ("x" * 60_000, LookupError, "no mixer 'xxx"),
        ("attention(window=" + "9" * 4000 + ")", TypeError, "less than or equal|finite|valid"),
        ("attention\0", ValueError, "cannot read"),
        ("\udcff", ValueError, "cannot read"),
        ("~nobody-of-this-name/a.py", LookupError, "there is no file"),
        ("C:\\a\\b.py", ValueError, r"there is no file 'C:\\\\a"),
        ("no such folder/a - b.py:Mine", ValueError, "there is no file 'no such folder/a - b.py:Mine'"),
        ("attention window, a.py", ValueError, "cannot read 'attention window, a.py': write name"),
        ("attention, <Mine>(heads=2)", ValueError, "Mine is known only where it was defined, .*: put the class in"),
        ("a" * 5000 + ".py", LookupError, "there is no file"),
    ],
)
def test_a_mistake_is_answered_in_one_line(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        parse("mixers", text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


def test_an_unknown_name_is_answered_by_the_nearest_not_by_all() -> None:
    with pytest.raises(LookupError, match="^no mixer 'atention' \\(did you mean 'attention'") as caught:
        parse("mixers", "atention")
    assert "base_conv" not in str(caught.value)


def test_patterns_within_patterns_end_somewhere() -> None:
    text = "attention"
    for _ in range(20):
        text = f"serial({text!r})"
    with pytest.raises((ValueError, TypeError), match="too long|within patterns more than 16 deep|cannot read"):
        parse("mixers", text)
    stored: Any = parse("mixers", "attention")[0].stored
    for _ in range(20):
        stored = {"name": "serial", "source": "", "options": {"mixers": [stored]}}
    with pytest.raises((ValueError, TypeError), match="patterns stand within patterns more than 16 deep"):
        read_specs("mixers", [stored])


@pytest.mark.parametrize(
    "item", [None, 3, "", {}, {"name": "attention"}, {"name": 3, "options": {}, "source": ""}, ["attention"]]
)
def test_what_is_stored_must_be_a_spec(item: Any) -> None:
    with pytest.raises(ValueError, match="is no mixer as they are stored|cannot read ''"):
        read_specs("mixers", [item])


ODD = ("a b", "my mixers/a", "a@b", "a=b", "(a)", "a, b", "ä🙂", "'a'", 'a"b', "a\\b", "#")


@pytest.mark.parametrize("name", ODD)
def test_a_path_of_any_characters_can_be_named(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(GOOD)
    made = spec("mixers", str(file), size=5)
    assert parse("mixers", f"2*{made}, attention") == (made, made, *parse("mixers", "attention"))
    assert parse("mixers", str(file))[0].name == str(file)
    within = spec("mixers", "serial", mixers=f"{made}, attention")
    assert parse("mixers", str(within)) == (within,)
    assert read_specs("mixers", [within.stored]) == (within,)


@pytest.mark.parametrize("body", ["", "class One: ...\nclass Two: ...\n", "class _Hidden: ...\nx = 1\n"])
def test_a_file_must_define_one_public_class(body: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(body)
    with pytest.raises(LookupError, match="must define one public class"):
        spec("mixers", str(file))


def test_a_file_of_ones_own_is_known_by_its_content_not_its_place(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(GOOD)
    here, there = (parse("mixers", f"{tmp_path}/{folder}/mine.py(size=5)")[0] for folder in ("here", "there"))
    assert here.build(64).size == 5
    assert here.key == there.key
    (tmp_path / "there" / "mine.py").write_text(GOOD + "\n# changed\n")
    assert here.key != parse("mixers", f"{tmp_path}/there/mine.py(size=5)")[0].key


def test_an_option_without_type_or_default_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine:\n    def __init__(self, dim, *, size): ...\n")
    with pytest.raises(TypeError, match="'size' of Mine needs a type and a default"):
        spec("mixers", str(file))


def test_options_of_ones_own_class_may_be_given_by_place_and_without_a_type(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine:\n    def __init__(self, dim, size=3, scale: float = 1, act=print): ...\n")
    assert dict(spec("mixers", str(file), size=4).options) == {"size": 4, "scale": 1.0}
    with pytest.raises(TypeError, match="Input should be a valid integer"):
        spec("mixers", str(file), size="large")
    with pytest.raises(TypeError, match="no option 'act'"):
        spec("mixers", str(file), act=3)
    assert signature_fault(locate("mixers", str(file))) == (
        "option 'size' of Mine must be keyword-only: put `*, ` before it"
    )


def test_installed_packages_add_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_package.py").write_text(GOOD)
    meta = tmp_path / "plugin_package-1.2.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-package\nVersion: 1.2\n")
    (meta / "entry_points.txt").write_text("[bestiary.mixers]\nmine = plugin_package:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "mine" in names("mixers")
    found = spec("mixers", "mine", size=4)
    assert found.build(64).size == 4
    assert found.source == "plugin-package 1.2"
    monkeypatch.delitem(sys.modules, "plugin_package")


def test_the_identity_of_a_spec_is_plain_json() -> None:
    found = spec("mixers", "base_conv", taps=5)
    assert json.loads(json.dumps(found.identity))["options"] == {"filter": "short", "taps": 5}
