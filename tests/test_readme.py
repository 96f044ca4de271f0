"""What the README shows is what there is, and it runs."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MIXER, PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_mixer_in_the_readme_is_the_example_and_short() -> None:
    assert (ROOT / "examples" / "my_mixer.py").read_text() == MIXER
    assert len(MIXER.splitlines()) < 25


def test_the_python_in_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(PYTHON, "README.md", "exec"), {})
    *measurements, state = capsys.readouterr().out.splitlines()
    assert measurements
    assert state.endswith("bytes of state")


def test_lab_looks_for_files_where_it_is_called(tmp_path: Path) -> None:
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    command = checkout / ".venv" / "bin" / "bestiary"
    command.parent.mkdir(parents=True)
    elsewhere.mkdir()
    for name in ("lab", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, checkout)
    command.write_text('#!/bin/sh\necho "$PWD $@"\n')
    command.chmod(0o755)
    stamp = f"{checkout}/.venv/stamp-plain"
    subprocess.run(
        f'echo "$(cat pyproject.toml constraints.txt | cksum) $PWD" > {stamp}', shell=True, cwd=checkout, check=True
    )
    for verb in ("card", "check"):
        call = [checkout / "lab", verb, "my mixer.py"]
        assert (
            subprocess.run(call, cwd=elsewhere, capture_output=True, text=True).stdout
            == f"{elsewhere} {verb} my mixer.py\n"
        )


def test_links_and_folders_in_the_readme_exist() -> None:
    for path in re.findall(r"\]\((?!http)([^)]+)\)", README) + re.findall(
        r"`((?:bestiary|benchmarks|docs)/[\w/.]*)`", README
    ):
        assert (ROOT / path).exists(), path
