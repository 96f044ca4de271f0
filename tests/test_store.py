"""The store: claims, crashes, damage, and what is left on disk."""

import errno
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
from safetensors import SafetensorError

from bestiary.cli import _app
from bestiary.runs.claims import STALE_AFTER
from bestiary.runs.store import ClaimLost, DamagedRun, Run, Store, commit, machine, process_start, verified, write_file
from bestiary.spec.loading import CONTENT
from bestiary.training.recipe import Recipe, clean
from tests.fake_runs import run_on_other_disk

ROOT = Path(__file__).parents[1]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return clean("attention", dim=8)


LINE = {"step": 1, "split": "test", "segment": 0, "facet": "", "value": 0, "loss": 1.0, "right": 1, "asked": 2}


def claimed(store: Store, recipe: Recipe) -> Run:
    run = store.claim(recipe)
    assert run is not None
    return run


def test_a_run_is_done_only_once_it_has_ended(store: Store, recipe: Recipe) -> None:
    with claimed(store, recipe) as run:
        run.append(LINE)
        assert recipe not in store
        run.end("finished")
    assert recipe in store
    assert store.claim(recipe) is None
    record = store.read(recipe.key)
    assert record.log == [LINE]
    assert record.ended is not None
    assert record.ended.outcome == "finished"
    assert Recipe(**record.recipe) == recipe
    origin = json.loads((store.folder / recipe.key / "origin.json").read_text())
    assert set(origin) == {"begun", "commit", "versions", "host"}
    assert origin["host"]["processor"]
    assert not list((store.folder / recipe.key).glob(".*"))


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="no git checkout")
def test_a_run_names_the_commit_that_made_it() -> None:
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert head.stdout.startswith((commit() or "none").removesuffix("-dirty"))


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_a_changed_source_is_told_from_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "bestiary" / "runs" / "store.py"
    monkeypatch.setattr("bestiary.runs.store.__file__", str(source))
    assert commit() is None
    source.parent.mkdir(parents=True)
    source.write_text("one")
    author = ["-c", "user.name=me", "-c", "user.email=me@here", "-c", "commit.gpgsign=false"]
    for words in (["init"], ["add", "."], [*author, "commit", "-m", "one"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)
    named = commit() or ""
    assert re.fullmatch("[0-9a-f]{12}", named)
    source.write_text("two")
    assert commit() == f"{named}-dirty"


def test_a_run_can_be_held_by_one_only(store: Store, recipe: Recipe) -> None:
    with claimed(store, recipe) as run:
        assert store.claim(recipe) is None
        assert f"process {os.getpid()}" in (store.owner(recipe.key) or "")
        run.end("finished")
    assert store.owner(recipe.key) is None


def hold(folder: Path, recipe: Recipe, ready: object) -> None:
    with claimed(Store(folder), recipe) as run:
        run.append(LINE)
        ready.set()  # pyright: ignore[reportAttributeAccessIssue]
        time.sleep(60)


def test_a_run_whose_worker_was_killed_is_taken_up_at_once(store: Store, recipe: Recipe) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(store.folder, recipe, ready))
    process.start()
    assert ready.wait(60)
    assert store.claim(recipe) is None
    process.kill()
    process.join()
    with claimed(store, recipe) as run:
        run.end("diverged")
    assert store.read(recipe.key).log == []


def pretend(store: Store, recipe: Recipe, owner: dict[str, object], *, age: float = 0.0) -> None:
    """A claim as another worker would have left it."""
    place = store.folder / recipe.key / "claim-0"
    place.mkdir(parents=True)
    write_file(place / "owner.json", owner)
    os.utime(place / "owner.json", (time.time() - age,) * 2)


def test_a_claim_of_another_machine_lives_by_its_heartbeat(store: Store, recipe: Recipe) -> None:
    pretend(store, recipe, {"machine": "elsewhere", "process": 1, "born": "1"}, age=STALE_AFTER - 60)
    assert store.claim(recipe) is None
    os.utime(store.folder / recipe.key / "claim-0" / "owner.json", (time.time() - STALE_AFTER - 60,) * 2)
    assert store.claim(recipe) is not None


def test_a_later_process_of_the_same_number_is_not_the_owner(store: Store, recipe: Recipe) -> None:
    pretend(store, recipe, {"machine": machine(), "process": os.getpid(), "born": "long ago"})
    assert store.claim(recipe) is not None
    assert process_start(os.getpid())
    assert process_start(2**22 + 1) == ""


def test_a_claim_is_its_owners_though_its_renaming_is_told_as_failed(
    store: Store, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def rename_and_fail(self: Path, other: Path) -> NoReturn:
        rename(self, other)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))

    with monkeypatch.context() as patch:  # as on NFS, if a reply was lost and the request sent again
        patch.setattr(Path, "rename", rename_and_fail)
        run = store.claim(recipe)
    assert run is not None
    assert store.claim(recipe) is None
    with run:
        run.end("finished")


def test_a_claim_that_another_was_faster_to_make_is_not_ones_own(
    store: Store, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def be_late(self: Path, other: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        assert store.claim(recipe) is not None
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", be_late)
    assert store.claim(recipe) is None


def test_where_no_start_of_processes_is_known_a_claim_needs_its_heartbeat_too(
    store: Store, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bestiary.runs.claims.process_start", lambda process: "alive" if process > 0 else "")
    owner = {"machine": machine(), "process": os.getpid(), "born": "alive"}
    pretend(store, recipe, owner, age=STALE_AFTER - 60)
    assert store.claim(recipe) is None
    os.utime(store.folder / recipe.key / "claim-0" / "owner.json", (time.time() - STALE_AFTER - 60,) * 2)
    assert store.owner(recipe.key) is None
    assert store.claim(recipe) is not None
    other = recipe.model_copy(update={"seed": 1})
    pretend(store, other, owner | {"process": -1})
    assert store.claim(other) is not None


def test_an_owner_that_was_overtaken_writes_no_more(store: Store, recipe: Recipe) -> None:
    with pytest.raises(ClaimLost, match="taken over"), claimed(store, recipe) as slow:
        pretend(Store(store.folder), recipe.model_copy(update={"seed": 9}), {})
        (store.folder / recipe.key / "claim-0" / "released").touch()  # as if its machine had gone silent
        with claimed(store, recipe) as quick:
            quick.append(LINE)
            with pytest.raises(ClaimLost):
                slow.append(LINE | {"step": 2})
            with pytest.raises(ClaimLost):
                slow.end("finished")
            assert recipe not in store
            quick.end("finished")
        slow.append(LINE)
    assert store.read(recipe.key).log == [LINE]
    assert store.failure(recipe.key) is None


def test_a_failure_keeps_its_traceback_and_may_be_tried_again(store: Store, recipe: Recipe) -> None:
    with pytest.raises(ZeroDivisionError), claimed(store, recipe):
        1 / 0  # noqa: B018
    assert "ZeroDivisionError" in (store.failure(recipe.key) or "")
    with claimed(store, recipe) as run:
        run.end("finished")
    assert store.failure(recipe.key) is None


def test_an_attempt_keeps_nothing_of_the_one_before(store: Store) -> None:
    mine = clean("examples/my_mixer.py", dim=8)
    place = store.folder / mine.key
    with pytest.raises(ZeroDivisionError), claimed(store, mine) as run:
        run.append(LINE)
        run.save_weights(mine.build())
        (place / "source" / "other.py").touch()
        1 / 0  # noqa: B018
    assert (place / "weights.safetensors").exists()
    with claimed(store, mine) as run:
        run.end("diverged")
    assert sorted(path.name for path in place.iterdir() if path.is_file()) == [
        "done",
        "log.jsonl",
        "origin.json",
        "recipe.json",
    ]
    assert [path.name for path in (place / "source").iterdir()] == ["my_mixer.py"]


def test_an_owner_that_was_overtaken_leaves_the_weights_of_the_other(store: Store, recipe: Recipe) -> None:
    other = recipe.model_copy(update={"seed": 1})
    with pytest.raises(ClaimLost), claimed(store, recipe) as slow:
        (store.folder / recipe.key / "claim-0" / "released").touch()  # as if its machine had gone silent
        with claimed(store, recipe) as quick:
            quick.finish(recipe.build())
        slow.save_weights(other.build())
    assert verified(store.folder / recipe.key, "weights.safetensors")
    assert not list((store.folder / recipe.key).glob(".weights*"))


def test_an_interrupted_run_is_released_and_is_no_failure(store: Store, recipe: Recipe) -> None:
    with pytest.raises(KeyboardInterrupt), claimed(store, recipe):
        raise KeyboardInterrupt
    assert store.failure(recipe.key) is None
    assert store.claim(recipe) is not None


def test_half_a_last_line_is_not_read(store: Store, recipe: Recipe) -> None:
    with claimed(store, recipe) as run:
        run.append(LINE)
    with (store.folder / recipe.key / "log.jsonl").open("a") as log:
        log.write('{"step": 2, "spl')
    assert store.read(recipe.key).log == [LINE]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("recipe.json", "{"),
        ("recipe.json", None),
        ("done", "[]"),
        ("done", '{"x": 1}'),
        ("log.jsonl", "{\n{}\n"),
        ("log.jsonl", "\0\n"),
        ("log.jsonl", '{"step": [1\n2]}\n'),
    ],
)
def test_a_damaged_run_is_named_with_what_to_do(store: Store, recipe: Recipe, file: str, content: str | None) -> None:
    with claimed(store, recipe) as run:
        run.append(LINE)
        run.end("finished")
    place = store.folder / recipe.key
    (place / file).unlink() if content is None else (place / file).write_text(content)
    with pytest.raises(DamagedRun, match=f"set it aside with: mv {place} {place}.damaged") as caught:
        store.read(recipe.key)
    assert "\n" not in str(caught.value)
    place.rename(f"{place}.damaged")
    assert store.run_keys() == []
    assert store.claim(recipe) is not None


def test_a_full_disk_is_reported_as_such_and_loses_nothing(store: Store, recipe: Recipe) -> None:
    with pytest.raises(OSError, match="No space left") as caught, claimed(store, recipe) as run:
        run.append(LINE)
        run.log.close()
        run.log = open("/dev/full", "w")  # noqa: SIM115
        run.append(LINE)
    assert caught.value.errno == errno.ENOSPC
    assert store.read(recipe.key).log == [LINE]
    assert store.claim(recipe) is not None


def test_a_disk_that_is_full_when_weights_are_kept_is_no_fault_of_the_run(
    store: Store, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", refuse)
    with pytest.raises(OSError, match="No space left") as caught, claimed(store, recipe) as run:
        run.save_weights(recipe.build())
    assert caught.value.errno == errno.ENOSPC


def test_weights_are_kept_and_read_back(store: Store, recipe: Recipe) -> None:
    import torch
    from safetensors.torch import load_file

    model = recipe.build()
    with claimed(store, recipe) as run:
        run.save_weights(model)
        run.end("finished")
    kept = load_file(store.folder / recipe.key / "weights.safetensors")
    other = recipe.model_copy(update={"seed": 1}).build()
    other.load_state_dict(kept)
    assert torch.equal(other.embed.weight, model.embed.weight)


def test_sources_of_a_users_mixer_are_copied(store: Store) -> None:
    made = clean("examples/my_mixer.py")
    with claimed(store, made) as run:
        run.end("finished")
    copy = store.folder / made.key / "source" / "my_mixer.py"
    assert copy.read_text() == Path("examples/my_mixer.py").read_text()


VALUE = "from bestiary import Mixer\nclass Mine(Mixer):\n    V = {}\n    def __init__(self, dim): super().__init__()\n"


def copies(store: Store, recipe: Recipe) -> dict[str, str]:
    with claimed(store, recipe) as run:
        run.end("finished")
    return {file.name: file.read_text() for file in (store.folder / recipe.key / "source").iterdir()}


def test_sources_are_those_that_the_run_is_made_with(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(VALUE.format(1))
    made = [clean(str(file), dim=8, seed=seed) for seed in range(3)]
    file.write_text(VALUE.format(99))
    assert made[0].pattern[0].source
    assert copies(store, made[0]) == {"mine.py": VALUE.format(1)}
    file.unlink()
    assert copies(store, made[1]) == {"mine.py": VALUE.format(1)}
    CONTENT.clear()  # as in a worker that has not read it
    file.write_text(VALUE.format(99))
    with pytest.raises(ValueError, match=r"mine.py has changed since this was made with it"):
        copies(store, made[2])
    assert "has changed" in (store.failure(made[2].key) or "")
    assert store.owner(made[2].key) is None


def test_sources_of_one_name_and_within_others_are_all_kept(store: Store, tmp_path: Path) -> None:
    for value, folder in enumerate(("a", "b", "c", "same")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(VALUE.format(value % 3))
    a, b, c, same = (f"{tmp_path}/{folder}/mine.py" for folder in ("a", "b", "c", "same"))
    within = f'attention, serial("{b}")'
    found = copies(store, clean(f"{a}, serial({within!r}), {c}, {same}", dim=8))
    assert sorted(found.values()) == [VALUE.format(value) for value in range(3)]
    assert found["mine.py"] == VALUE.format(0)
    assert all(len(name) == len("mine-01234567.py") for name in found if name != "mine.py")


def test_an_empty_or_missing_folder_holds_nothing(tmp_path: Path) -> None:
    assert Store(tmp_path / "nowhere").run_keys() == []


def refusing(what: int) -> Any:
    """A call that a disk refuses."""

    def refuse(place: Any, *_: Any, **__: Any) -> NoReturn:
        raise OSError(what, os.strerror(what), str(place))

    return refuse


@pytest.mark.parametrize("what", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize(("owner", "call"), [(Path, "mkdir"), (Path, "open"), (Path, "rename"), (os, "fsync")])
def test_a_claim_that_the_disk_refuses_says_so_and_leaves_nothing(
    store: Store, recipe: Recipe, what: int, owner: Any, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(OSError, match=os.strerror(what)) as caught:
        patch.setattr(owner, call, refusing(what))
        store.claim(recipe)
    assert caught.value.errno == what
    assert store.run_keys() == []
    assert not [place for place in store.folder.rglob("*") if place.name != recipe.key]
    with claimed(store, recipe) as run:
        run.end("finished")


def test_a_run_that_cannot_be_entered_is_released(
    store: Store, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = claimed(store, recipe)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Read-only"):
        patch.setattr(Path, "unlink", refusing(errno.EROFS))
        run.__enter__()
    assert store.owner(recipe.key) is None
    assert store.claim(recipe) is not None


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_file_that_cannot_be_put_leaves_the_former_one_and_no_half(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "file", "former")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os if call == "fsync" else Path, call, refusing(errno.ENOSPC))
        write_file(tmp_path / "file", "latter")
    assert [(place.name, place.read_text()) for place in tmp_path.iterdir()] == [("file", "former")]


def test_a_heartbeat_outlives_a_disk_that_refuses_it(
    store: Store, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bestiary.runs.store.HEARTBEAT", 0.01)
    with claimed(store, recipe) as run:
        heart, beaten = run.claim / "owner.json", time.time() + 60
        shutil.move(run.claim, run.claim.with_name("away"))
        time.sleep(0.05)
        shutil.move(run.claim.with_name("away"), run.claim)
        os.utime(heart, (0, 0))
        while heart.stat().st_mtime == 0:
            assert time.time() < beaten
            time.sleep(0.01)
        run.end("finished")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (errno.EROFS, "'runs/0' cannot be used (Read-only file system)"),
        (errno.EACCES, "'runs/0' cannot be used (Permission denied)"),
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
    ],
)
def test_a_disk_that_refuses_is_one_line_and_status_1(
    what: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_app, "app", lambda: refusing(what)("runs/0"))
    with pytest.raises(SystemExit) as ended:
        _app.main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bestiary: {message}")
    assert "runs/0" in line


@pytest.mark.slow
def test_training_into_a_store_on_a_read_only_disk_is_one_line(store: Store) -> None:
    store.folder.mkdir()
    settings = ["train=mqar(vocab=20,length=12,pairs=2)", "dim=8", "batch=16", "steps=4", "every=2"]
    command = [sys.executable, "-m", "bestiary.cli", "train", "--store", str(store.folder), *settings]
    done = run_on_other_disk(store.folder, *command)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert "cannot be used (Read-only file system)" in line
    assert not list(store.folder.iterdir())
