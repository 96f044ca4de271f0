"""The command line, as a user sees it: what it prints, its exit status, and one line for each mistake."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from bestiary.cli import console
from bestiary.cli._errors import explain, user_input
from bestiary.cli._measuring import measure_rows
from bestiary.cli._progress import StatusLine, format_seconds
from bestiary.runs.store import Store
from bestiary.sweep.jobs import WorkerConfig
from tests.fake_runs import fill_store
from tests.in_process import command

SMALL = [
    "train=mqar(vocab=20,length=12,pairs=2)",
    "dim=8",
    "batch=16",
    "steps=4",
    "every=2",
    "selection_rows=40",
    "test_rows=60",
]
EXPERIMENT = '''"""Does a small model remember two pairs?"""

from bestiary.experiments.figure2 import figures, summary
from bestiary.training.recipe import clean

SIZES = {"batch": 16, "every": 5, "selection_rows": 40, "test_rows": 60}


def recipes(scale):
    for seed in range(2):
        for dim in (8, 16):
            task = "mqar(vocab=20, length=12, pairs=2)"
            yield clean(LAYERS, train=task, dim=dim, seed=seed, steps=STEPS, **SIZES)
'''


def run_cli(*arguments: str, folder: Path, status: int = 0, traces: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line in a folder of its own."""
    command = [sys.executable, "-m", "bestiary.cli", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == status, done.stderr + done.stdout
    assert done.stderr.count("Traceback") == traces
    return done


def write_experiment(folder: Path, *, layers: str = "'attention'", steps: int = 10) -> Path:
    file = folder / "question.py"
    file.write_text(EXPERIMENT.replace("LAYERS", layers).replace("STEPS", str(steps)))
    return file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--layers", "atention"], "did you mean 'attention'"),
        (["train", "--layers", "attention(windw=2)"], "did you mean 'window'"),
        (["train", "--layers", "attention(("], "cannot read 'attention(('"),
        (["train", "--task", "mqar(length=63)"], "must be even"),
        (["train", "--task", "mqar(pairs=40)"], "need a length of 160"),
        (["train", "dmi=3"], "did you mean 'dim'"),
        (["train", "dim"], "write name=value"),
        (["train", "dim=big"], "valid integer"),
        (["train", "--recipe", "iclr"], "did you mean 'iclr24'"),
        (["train", "pattern=mamba"], "pattern=mamba: mixers are given by --layers"),
        (["train", "--task", "mqar", "train=reverse"], "two tasks are given: --task mqar and train=reverse"),
        (["search", "floor=1e-3"], "rates from --low=0.0001 on cannot end at floor=0.001"),
        (["run", "mechanism", "--backend", "native", "--keep"], "takes no --backend, --keep"),
        (["run", "figure2", "--scale", "paper", "--only", "Attention"], "runs the same at scale paper, whatever"),
        (["export", "--to", "x.csv", "--only", "Attention"], "--with and --only choose mixers of an experiment"),
        (["export", "degree", "--to", "x.csv", "--only", "Attention"], "degree has no table of mixers"),
        (["train", "--device", "cuda:99"], "there is no device 'cuda:99' here; there are"),
        (["run", "figure2", "--ray", "auto", "--slurm", "jobs=2"], "--ray and --slurm are two places; give one"),
        (["run", "figure2", "--gpus", "1", "--slurm", "jobs=2"], "--gpus is for --ray; by Slurm give gpus_per_node"),
        (["run", "figure3"], "did you mean 'figure2'"),
        (["run", "./nowhere.py"], "there is no file './nowhere.py'"),
        (["show", "atention"], "did you mean 'attention'"),
        (["show", "figur2"], "did you mean 'figure2'"),
        (["show", "gated-delta"], "nothing is called 'gated-delta' (did you mean 'gated_delta'?)"),
        (["show", "0123456789ab"], "nothing is called '0123456789ab'"),
        (["check", "attention, mamba("], "cannot read 'attention, mamba('"),
        (["check", "./nowhere.py"], "there is no file"),
        (["list", "mixer"], "did you mean 'mixers'"),
        (["plot", "figure2"], "runs does not exist; first: bestiary run figure2 --scale small"),
        (["run", "figure2", "--dry-run", "--device", "cuda:9"], "there is no device 'cuda:9' here"),
        (["status", "figure2", "--store", "typo"], "the store typo does not exist"),
        (
            ["plot", "figure2", "--store", "typo"],
            "typo does not exist; first: bestiary run figure2 --scale small --store",
        ),
        (["export", "--to", "x.csv", "--store", "typo"], "the store typo does not exist"),
        (["report", "typo"], "there is no folder typo"),
        (["show", "0123456789ab", "--store", "typo"], "the store typo does not exist"),
        (["show", "\udcff"], "the argument '\\udcff' is no valid UTF-8"),
    ],
)
def test_a_mistake_is_answered_in_one_line_with_status_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = command(*arguments, folder=tmp_path)
    assert (done.status, done.trace) == (2, "")
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What trackers, Ray and sweeps are asked for; nothing happens in these sweeps."""
    told: list[Any] = []

    def sweep(_recipes: Any, _store: Any, *given: Any, **how: Any) -> Iterator[Any]:
        told.append((*given, how))
        yield from ()

    def make_sinks(*given: Any, **how: Any) -> list[Any]:
        told.append((*given, how))
        return [SimpleNamespace(name="mine", follow=told.append, close=lambda: told.append("closed"))]

    for place in ("sweep.sweep", "sweep.slurm.slurm_sweep"):
        monkeypatch.setattr(f"bestiary.{place}", sweep)
    for place in ("sweep.start_server", "cli.runs.check_recipes"):
        monkeypatch.setattr(f"bestiary.{place}", lambda *_, **__: None)
    monkeypatch.setattr("bestiary.sweep.trackers.make_sinks", make_sinks)
    monkeypatch.setattr("bestiary.sweep.ray_cluster.RayCluster", lambda *given, **how: (*given, how))
    return told


@pytest.mark.parametrize("place", [[], ["--slurm", "jobs=2"], ["--ray", "auto", "--gpus", "0.5"]])
def test_a_sweep_is_carried_out_where_and_as_it_was_asked(place: list[str], heard: list[Any], tmp_path: Path) -> None:
    write_experiment(tmp_path)
    given = ["--workers", 3, "--threads", 2, "--backend", "torch", "--keep", "--together", "never", "--patience", 7]
    done = command("run", "./question.py", *given, *place, "--track", "trackio", folder=tmp_path)
    assert (done.status, done.trace) == (0, "")
    how: dict[str, Any] = {"workers": 3, "threads": 2, "device": "cpu", "backend": "torch", "keep": True}
    how |= {"together": "never", "patience": 7.0}
    if "--ray" in place:
        config = WorkerConfig(str(tmp_path / "runs"), backend="torch", keep=True, threads=2)
        how["executor"] = ("auto", config, {"device": "cpu", "gpus": 0.5, "workers": 3})
    tracked, swept, closed = heard
    assert tracked == ("trackio", {"group": "./question.py small", "folder": tmp_path / "tensorboard"})
    assert swept == (("jobs=2", how) if "--slurm" in place else (how,))
    assert closed == "closed"


def test_a_single_run_is_carried_out_as_it_was_asked(heard: list[Any], tmp_path: Path) -> None:
    given = ["--threads", 2, "--backend", "compiled", "--keep", "--track", "wandb"]
    done = command("train", *SMALL, *given, folder=tmp_path)
    assert (done.status, done.trace) == (0, "")
    how = {"workers": 1, "threads": 2, "device": "cpu", "backend": "compiled", "keep": True}
    assert heard[0] == ("wandb", {"group": "train", "folder": tmp_path / "tensorboard"})
    assert heard[1:] == [(how | {"together": "auto", "patience": None},), "closed"]


def test_an_error_without_sense_says_where_it_arose(tmp_path: Path) -> None:
    for fault, message in {
        "{}['splits']": "there is no entry 'splits' (in {file}, line 2); what was read there is damaged",
        "[][0]": "there are too few entries (list index out of range) (in {file}, line 2)",
        "eof()": "a file ends too early (in {file}, line 6)",
        "None.get": "'NoneType' object has no attribute 'get' (in {file}, line 2)",
        "nest(0)": "something is nested too deeply to be read",
    }.items():
        file = tmp_path / "mine.py"
        file.write_text(
            f"def recipes(scale):\n    yield {fault}\n\ndef eof():\n    import pickle\n    pickle.loads(b'')\n"
            "def nest(x):\n    nest(x)\nsummary = figures = print\n"
        )
        done = command("run", "./mine.py", folder=tmp_path)
        assert done.status == 2
        assert message.format(file=file) in done.err
        assert len(done.err.strip().splitlines()) == 1


def test_a_message_that_was_written_for_the_user_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def recipes(scale):\n    raise KeyError('no such scale')\nsummary = figures = print\n"
    )
    assert command("run", "./mine.py", folder=tmp_path).err == "bestiary: no such scale\n"


def test_an_error_of_ours_is_ours_where_the_package_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "site-packages" / "bestiary" / "options.py"
    file.parent.mkdir(parents=True)
    file.write_text("def refuse():\n    raise TypeError('did you mean that?')\n")
    space: dict[str, Any] = {}
    exec(compile(file.read_text(), str(file), "exec"), space)
    with pytest.raises(TypeError) as caught:
        space["refuse"]()
    assert explain(caught.value).endswith("of another form")
    monkeypatch.setattr("bestiary.cli._errors.PACKAGE", file.parent)
    assert explain(caught.value) == "did you mean that?"


def test_a_reader_that_has_had_enough_is_no_fault() -> None:
    with pytest.raises(BrokenPipeError), user_input():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("verb", ["show", "check"])
def test_patterns_and_presets_are_shown_and_checked(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestiary.cli.describe.LENGTHS", (1,))
    monkeypatch.setattr("bestiary.laws.verdicts", lambda _: [])
    for text, named in {
        "mqar.mamba2": ("MQAR: ", "mqar("),
        "3*token_shift": ("TokenShift: ", "token_shift\n"),
        "token_shift, short_conv": ("--- mixer short_conv ---", "short_conv\n"),
    }.items():
        done = command(verb, text, folder=tmp_path)
        assert (done.status, done.err) == (0, "")
        assert done.out.count(named[verb == "check"]) == 1


@pytest.mark.parametrize("verb", [["corpus"], ["pretrain", "attention"], ["convert", "a", "b"], ["report"]])
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("ENOSPC", "the disk is full ([Errno 28] No space left on device: 'somewhere'); free"),
        ("EROFS", "'somewhere' cannot be used (Read-only file system); name a place"),
    ],
)
def test_a_disk_that_is_full_or_read_only_is_told_by_every_verb(
    verb: list[str], code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number := getattr(errno, code), os.strerror(number), "somewhere")

    if verb[0] == "convert":
        pytest.importorskip("transformers")
        monkeypatch.setattr("bestiary.lm.conversion.export_run", fail)
    if verb == ["report"]:
        fill_store(Store(tmp_path / "runs"), 2)
    for place in ("bestiary.corpus.prepare.prepare", "bestiary.corpus.corpus.open_corpus", "pathlib.Path.write_text"):
        monkeypatch.setattr(place, fail)
    done = command(*verb, folder=tmp_path)
    assert (done.status, done.trace) == (1, "")
    assert done.err.startswith(f"bestiary: {message}")
    assert len(done.err.splitlines()) == 1


def test_completion_of_the_shell_knows_verbs_and_experiments() -> None:
    asked = {"COMP_WORDS": "bestiary run fig", "COMP_CWORD": "2", "_BESTIARY_COMPLETE": "complete_bash"}
    program = "from bestiary.cli import app; app(prog_name='bestiary')"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["figure2"]


def test_help_is_quick_because_torch_is_not_imported() -> None:
    code = "import sys; sys.argv = ['bestiary', '--help']; from bestiary.cli import app; app(standalone_mode=False)"
    code += "; assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_everything_listed_can_be_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bestiary.cli.describe.LENGTHS", (1, 64))
    lines = run_cli("list", folder=tmp_path).stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["mixers", "tasks", "experiments", "recipes"]
    names = [line.split()[0] for line in lines if line.startswith(" ")]
    assert {"attention", "mqar", "figure2", "iclr24"} <= set(names)
    from bestiary.cli.describe import describe

    for name in names:
        assert len(list(describe(name, dim=16))) > 3


@pytest.mark.slow
def test_a_name_of_several_things_shows_them_all(tmp_path: Path) -> None:
    shown = command("show", "based", folder=tmp_path).out
    assert "--- recipe based ---" in shown
    assert "--- mixer based ---" in shown
    assert "---" not in command("show", "based(features=4)", folder=tmp_path).out


def test_showing_a_mixer_measures_its_memory(tmp_path: Path) -> None:
    shown = run_cli("show", "attention(window=8)", "--dim", "32", folder=tmp_path).stdout
    assert "window     8" in shown
    assert "448 numbers" in shown  # 7 keys and values of width 32


@pytest.mark.slow
def test_training_leaves_a_run_that_can_be_shown_and_is_not_repeated(tmp_path: Path) -> None:
    done = run_cli("train", "--layers", "attention", "--keep", *SMALL, folder=tmp_path)
    assert re.match(r"about [\d.]+ m?s: 4 steps of [\d.]+ m?s and the evaluations", done.stdout)
    assert "step      2  loss" in done.stdout
    assert re.search(r"accuracy 0\.\d+  [\d.]+ (m?s|min) left", done.stdout)
    chance, result = re.search(
        r"Chance is (0\.\d+), the plateau .* 0\.500\. The accuracy (0\.\d+)", done.stdout
    ).groups()
    assert float(chance) == 0.1
    assert f"{result}  " in done.stdout.splitlines()[-1]
    assert ("is not above chance" in done.stdout) or ("not above the plateau" in done.stdout)
    (run,) = (tmp_path / "runs").glob("[!.]*")
    assert (run / "weights.safetensors").exists()
    shown = run_cli("show", run.name, folder=tmp_path).stdout
    assert "attention" in shown
    assert "of 120 right" in shown
    again = run_cli("train", "--layers", "attention", *SMALL, folder=tmp_path)
    assert "1 of 1 run done already" in again.stdout
    assert "about" not in again.stdout


@pytest.mark.slow
def test_an_experiment_ends_with_a_table_and_figures_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    done = run_cli("run", "./question.py", folder=tmp_path)
    assert "[4/4]" in done.stdout
    listed = run_cli("run", "./question.py", "--dry-run", folder=tmp_path).stdout
    assert listed == "4 of 4 runs done already, in runs\n"
    *_, csv, svg, png = done.stdout.splitlines()
    assert (svg, png, csv) == tuple(f"figures/question-small.{kind}" for kind in ("svg", "png", "csv"))
    assert (tmp_path / csv).read_text().startswith("length,pairs,mixer,")
    assert (tmp_path / svg).stat().st_size > 1000
    status = run_cli("status", "./question.py", folder=tmp_path).stdout
    assert "4 finished" in status
    (tmp_path / svg).unlink()
    again = run_cli("plot", "./question.py", folder=tmp_path)
    assert (tmp_path / svg).exists()
    assert "accuracy" in again.stdout


def test_a_file_is_checked_under_the_options_that_it_asks_for(tmp_path: Path) -> None:
    text = Path("examples/my_task.py").read_text()
    (tmp_path / "odd name.py").write_text(text)
    done = command("check", "./odd name.py", folder=tmp_path)
    assert (done.status, done.out.count("odd name.py")) == (0, 3)
    assert "(items=20, symbols=40)" in done.out
    again = command("check", "'./odd name.py'(items=3, symbols=5)", folder=tmp_path)
    assert (again.status, again.out.count("odd name.py")) == (0, 1)
    (tmp_path / "task.py").write_text(text.replace("items=20", "itms=20"))
    wrong = command("check", "./task.py", folder=tmp_path)
    assert (wrong.status, wrong.err.count("\n")) == (2, 1)
    assert "has no option 'itms'" in wrong.err


def test_a_file_of_an_experiment_is_shown_and_not_checked(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    shown = command("show", "./question.py", folder=tmp_path)
    assert "Does a small model remember two pairs?" in shown.out
    assert "small      4 runs" in shown.out
    checked = command("check", "./question.py", folder=tmp_path)
    assert checked.status == 2
    assert "an experiment is run by `bestiary run`" in checked.err


@pytest.mark.slow
def test_a_column_that_the_results_lack_is_named_with_those_there_are(tmp_path: Path) -> None:
    file = write_experiment(tmp_path, steps=1)
    file.write_text(
        file.read_text().replace("figures, summary", "figures") + "def summary(table): return table['rtae']"
    )
    done = command("run", "./question.py", "--scale", "smoke", "--workers", "1", folder=tmp_path)
    assert done.status == 2
    assert "`summary` asks for 'rtae', which is no column of the results; those are " in done.err
    assert ", rate, " in done.err


def test_numbers_of_a_column_with_gaps_are_shown_as_those_of_one_without() -> None:
    from bestiary.cli.console import format_column

    assert format_column(pd.Series([8, None], dtype="Int64")) == ["8", ""]
    assert format_column(pd.Series([0.25, None], dtype="Float64")) == ["0.250", ""]


def test_runs_on_several_tasks_are_told_apart() -> None:
    from bestiary.cli.console import ProgressDisplay
    from bestiary.training.recipe import clean

    made = [clean("attention", train=f"mqar(pairs={pairs})") for pairs in (2, 4)]
    assert ProgressDisplay("", made).label(made[0]).endswith("seed=0 mqar(pairs=2)")
    assert ProgressDisplay("", made[:1]).label(made[0]).endswith("seed=0")


@pytest.mark.slow
def test_a_dry_run_estimates_and_runs_nothing(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    done = run_cli("run", "./question.py", "--dry-run", folder=tmp_path)
    assert re.search(r"4 runs, about [\d.]+ (ms|s|min) of one process", done.stdout)
    assert "0.0 hours" not in done.stdout
    assert "measuring" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_failing_run_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    text = Path("examples/my_mixer.py").read_text()
    (tmp_path / "bad.py").write_text(
        text.replace("h, last =", "assert x.shape[2] < 9 or len(x) < 3, 'too wide'; h, last =")
    )
    write_experiment(tmp_path, layers="'./bad.py'")
    done = run_cli("run", "./question.py", folder=tmp_path, status=1, traces=1)
    assert done.stdout.count("failed: AssertionError: too wide") == 2
    assert "failed 2 times: AssertionError: too wide" in done.stderr
    assert "2 runs failed or cannot be read; tracebacks are in failure.txt" in done.stderr
    assert "accuracy" in done.stdout


@pytest.mark.slow
def test_a_damaged_run_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    run_cli("run", "./question.py", folder=tmp_path)
    run = sorted((tmp_path / "runs").glob("[!.]*"))[0]
    (run / "recipe.json").write_text("{")
    for verb, shown in (("run", "accuracy"), ("plot", "accuracy"), ("status", "3 finished")):
        done = run_cli(verb, "./question.py", folder=tmp_path, status=1)
        assert f"set it aside with: mv runs/{run.name} runs/{run.name}.damaged" in done.stderr
        assert shown in done.stdout


@pytest.mark.slow
def test_an_interrupted_sweep_stops_with_130_and_goes_on_later(tmp_path: Path) -> None:
    write_experiment(tmp_path, steps=100_000)
    command = [sys.executable, "-m", "bestiary.cli", "run", "./question.py"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    with subprocess.Popen(command, cwd=tmp_path, preexec_fn=heed, **pipes) as going:
        while not list(tmp_path.glob("runs/*/log.jsonl")):
            time.sleep(0.1)
        os.kill(going.pid, signal.SIGINT)
        _, errors = going.communicate(timeout=60)
    assert going.returncode == 130
    assert errors == "stopped after 0 of 4 runs; the same command goes on from there\n"
    status = run_cli("status", "./question.py", folder=tmp_path).stdout
    assert "interrupted" in status
    assert "at work" not in status


@pytest.mark.slow
def test_checking_tells_an_honest_mixer_from_a_leaky_one(tmp_path: Path) -> None:
    examples = Path("examples").resolve()
    assert "every law holds" in run_cli("check", f"{examples}/my_mixer.py", folder=tmp_path).stdout
    leaky = run_cli("check", f"{examples}/leaky_mixer.py", folder=tmp_path, status=1).stdout
    assert "BROKEN  causality: the output at position 0 changes when the input at position 1 does" in leaky


@pytest.mark.slow
def test_a_mixer_that_cannot_be_stacked_at_speed_prints_no_raw_warning(tmp_path: Path) -> None:
    text = Path("examples/my_mixer.py").read_text()
    (tmp_path / "slow.py").write_text(text.replace("h, last =", "x = x + 0 * torch.histc(x.detach()).sum(); h, last ="))
    assert run_cli("check", "./slow.py", folder=tmp_path).stderr == ""


@pytest.mark.slow
def test_figures_of_the_smoke_scale_are_marked_and_others_are_not(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    for scale in ("smoke", "small"):
        run_cli("run", "./question.py", "--scale", scale, folder=tmp_path)
        drawn = (tmp_path / f"figures/question-{scale}.svg").read_text()
        assert ("smoke scale: not a result" in drawn) == (scale == "smoke")


def test_progress_without_a_terminal_is_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for every, shown in ((10.0, "note\nthree\n"), (0.0, "one\ntwo\nnote\nthree\n")):
        with StatusLine(every=every) as progress:
            for text in ("one", "two"):
                progress.show(text)
            progress.note("note")
            progress.show("three", last=True)
        assert capsys.readouterr().err == shown


def test_durations_are_in_the_unit_that_suits_them() -> None:
    seconds = (0.0, 0.004, 0.4, 35.0, 240.0, 9000.0, 300_000.0)
    assert [format_seconds(s) for s in seconds] == ["0 s", "4 ms", "0.4 s", "35 s", "4 min", "2.5 h", "3 days"]


def test_a_file_with_two_classes_or_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text("class A: ...\nclass B: ...\n")
    (tmp_path / "none.py").write_text("x = 1\n")
    for name in ("two", "none"):
        done = command("check", f"./{name}.py", folder=tmp_path)
        assert (done.status, done.err.count("must define one public class")) == (2, 1)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_what_was_done_stays(tmp_path: Path) -> None:
    write_experiment(tmp_path)
    run_cli("run", "./question.py", "--workers", "1", folder=tmp_path)
    program = (
        "import errno, sys; from bestiary import cli; from bestiary.sweep import local, jobs\n"
        "full = lambda job: jobs.JobEvent(job, 'disk full', None, (errno.ENOSPC, 'runs/x'))\n"
        "local.Local.poll = lambda self, timeout: [full(job) for job in self.jobs.values()]\n"
        "if __name__ == '__main__':\n    sys.argv = ['bestiary', 'train', *sys.argv[1:]]; cli.main()\n"
    )
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "program.py", *SMALL], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().startswith("bestiary: the disk is full")
    assert "4 finished" in run_cli("status", "./question.py", folder=tmp_path).stdout


@pytest.mark.slow
def test_origin_names_versions_and_recipe_names_every_option(tmp_path: Path) -> None:
    run_cli("train", *SMALL, folder=tmp_path)
    (run,) = (tmp_path / "runs").glob("[!.]*")
    assert json.loads((run / "origin.json").read_text())["versions"]["torch"]
    assert json.loads((run / "recipe.json").read_text())["pattern"][0]["options"]["rotary"] is True


def test_a_table_too_wide_is_printed_in_several_each_with_its_first_column(capsys: pytest.CaptureFixture[str]) -> None:
    columns = {f"a long name {i}": [0.5, 0.25] for i in range(12)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console.out, "width", 60)
        console.print_table(pd.DataFrame({"mixer": ["attention", "delta_net"], **columns}))
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 60
    assert printed.count("attention") == printed.count("delta_net") > 1
    assert printed.count("0.500") == 12


def test_columns_that_fit_stay_in_one_table() -> None:
    cells = {"mixer": ["attention"], "dim": ["16"], "accuracy": ["0.500"]}
    assert console.fitting_columns(cells, {"dim", "accuracy"}, 24) == [["mixer", "dim", "accuracy"]]
    assert console.fitting_columns(cells, {"dim", "accuracy"}, 23) == [["mixer", "dim"], ["mixer", "accuracy"]]
    assert console.fitting_columns({}, set(), 80) == []


def test_an_interrupted_measurement_says_that_it_can_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def measure(scale: str) -> Iterator[dict[str, Any]]:
        yield {"news": f"{scale}: one model is trained"}
        raise KeyboardInterrupt

    vars(experiment := ModuleType("question"))["measure"] = measure
    with pytest.raises(KeyboardInterrupt):
        measure_rows(experiment, "smoke", 1)
    trained, stopped = capsys.readouterr().err.splitlines()
    assert trained == "smoke: one model is trained"
    assert stopped == "stopped; what has been trained is kept, and the same command goes on from there"


def test_an_interval_stands_behind_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"model": ["a", "b"], "loss": [2.5, 3.0], "loss_low": [2.0, None], "loss_high": [3.5, None]}
    console.print_table(pd.DataFrame(rows | {"hits low": [1, 2], "low": [0.1, 0.2], "high": [0.3, 0.4]}))
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed[0] == ["model", "loss", "hits", "low", "95", "%", "interval"]
    assert printed[1] == ["a", "2.500", "(2", "to", "3.500)", "1", "0.100", "to", "0.300"]
    assert printed[2] == ["b", "3", "2", "0.200", "to", "0.400"]
