"""The kernels of flash-linear-attention, as we call them, compute what our own code computes. Slow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_recurrence import KINDS

pytestmark = pytest.mark.slow
pytest.importorskip("triton", reason="the extra `kernels` is not installed")
pytest.importorskip("einops", reason="the extra `kernels` is not installed")


def test_the_kernels_compute_outputs_states_and_gradients_of_ours() -> None:
    here = Path(__file__).parent
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (here.parent, here, os.environ.get("PYTHONPATH", ""))))
    done = subprocess.run(
        [sys.executable, str(here / "interpreted_kernels.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line.pop("kind") for line in found] == list(KINDS)
    for kind, line in zip(KINDS, found, strict=True):
        assert len(line) >= 6, kind
        assert max(line.values()) < 1e-5, (kind, line)
