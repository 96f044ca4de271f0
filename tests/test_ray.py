"""Sweeps on a Ray cluster: what is lost with a worker or a node is done again, and no number changes."""

import contextlib
import os
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import pytest
from test_sweep import SMALL, recipes

from bestiary.runs.store import Store, list_claims, read_json
from bestiary.runs.table import results
from bestiary.sweep import Event, sweep
from bestiary.sweep.jobs import WorkerConfig
from bestiary.sweep.ray_cluster import RayCluster, connect
from bestiary.training.recipe import clean

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

QUIET = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_ADDRESS": "",
}
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray")
    folder = Path(f"/tmp/bestiary-ray-{os.getpid()}")  # short: sockets lie in it
    folder.mkdir()
    resource_tracker.ensure_running()  # before the environment by which `stop_all` knows what belongs to the cluster
    forkserver.ensure_running()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (QUIET | {"RAY_TMPDIR": str(folder)}).items():
            patch.setenv(name, value)
        import ray
        from ray.cluster_utils import Cluster

        made = Cluster(
            initialize_head=True,
            head_node_args=NODE | {"include_dashboard": False, "_system_config": {"health_check_period_ms": 500}},
        )
        try:
            yield made
        finally:
            ray.shutdown()
            made.shutdown()
            stop_all(folder)


def stop_all(folder: Path) -> None:
    """End whatever still runs out of a cluster's folder, and remove it."""
    for process, environment in processes("environ").items():
        if f"RAY_TMPDIR={folder}".encode() in environment and process != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def processes(file: str) -> dict[int, bytes]:
    """What /proc says of every process that can be seen."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found[int(place.name)] = (place / file).read_bytes()
    return found


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_an_address_that_does_not_answer_is_told_in_ten_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        mute, shut = silent.getsockname()[1], closed.getsockname()[1]
        for address in (f"127.0.0.1:{shut}", f"127.0.0.1:{mute}", f"ray://127.0.0.1:{mute}"):
            begun = time.monotonic()
            with pytest.raises(ValueError, match=f"no Ray cluster answers at {address}") as told:
                connect(address)
            assert time.monotonic() - begun < 10
            assert "\n" not in str(told.value)
    for address in ("nonsense", "host:port", "host:99999999"):
        with pytest.raises(ValueError, match="is not the address of a Ray cluster; give auto, host:port"):
            connect(address)


def test_no_cluster_on_this_machine_says_how_to_start_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(b"gcs_server" in command for command in processes("cmdline").values()):
        pytest.skip("a Ray cluster of somebody else runs here")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="no Ray cluster answers on this machine .*start one with: ray start --head"):
        connect("auto")


def test_a_killed_worker_and_a_stopped_node_change_no_number(cluster: Any, tmp_path: Path) -> None:
    asked, store, plain = recipes(10, steps=120), Store(tmp_path / "ray"), Store(tmp_path / "local")
    for _ in sweep(asked, plain, together="never"):
        pass
    second = cluster.add_node(**NODE)
    executor = RayCluster(cluster.address, WorkerConfig(str(store.folder)))
    wait_for(lambda: executor.poll(0.1) or executor.free() == 2)
    seen: list[Event] = []
    stopped = killed = False
    for event in sweep(asked, store, executor=executor, together="never"):
        seen.append(event)
        if event.kind == "measured" and event.detail.step <= 40 and not (killed and stopped):
            process = read_json(list_claims(store.folder / event.recipe.key)[-1] / "owner.json")["process"]
            is_second = parent(process) == second.all_processes["raylet"][0].process.pid
            if is_second and killed:
                stopped = True
                cluster.remove_node(second, allow_graceful=False)
            elif not is_second and not killed and any(event.kind == "ended" for event in seen):
                killed = True
                os.kill(process, signal.SIGKILL)
    assert killed
    assert stopped
    kinds = Counter(event.kind for event in seen)
    assert (kinds["ended"], kinds["failed"]) == (10, 0)
    assert kinds["retried"] == 2
    assert all("the worker died" in event.detail for event in seen if event.kind == "retried")
    keys = [recipe.key for recipe in asked]
    here, there = (results(store, keys)[0].drop(columns="seconds") for store in (plain, store))
    assert here.equals(there)
    for key in keys:
        rows = [
            tuple(row[name] for name in ("step", "split", "segment", "facet", "value")) for row in store.read(key).log
        ]
        assert len(set(rows)) == len(rows)
    assert not list(store.folder.glob(".ray-*"))


def test_a_node_that_joins_later_is_used(cluster: Any, tmp_path: Path) -> None:
    executor = RayCluster(cluster.address, WorkerConfig(str(tmp_path)))
    assert executor.free() == 1
    more = cluster.add_node(**NODE)
    try:
        wait_for(lambda: executor.poll(0.1) or executor.free() == 2)
    finally:
        executor.close()
        cluster.remove_node(more)


def test_closing_gives_up_the_claims_of_workers(cluster: Any, tmp_path: Path) -> None:
    (recipe,), store = recipes(1, steps=100_000), Store(tmp_path)
    events = sweep([recipe], store, executor=RayCluster(cluster.address, WorkerConfig(str(tmp_path))))
    while next(events).kind != "measured":
        pass
    assert store.owner(recipe.key) is not None
    events.close()
    (claim,) = list_claims(tmp_path / recipe.key)
    assert (claim / "released").exists()
    assert store.failure(recipe.key) is None


def test_workers_share_a_part_of_a_place_only_as_asked(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no node of the Ray cluster at .* has 1 CPUs and 0.25 GPUs"):
        RayCluster(cluster.address, WorkerConfig(str(tmp_path)), gpus=0.25)
    with pytest.raises(ValueError, match="1.5 GPUs for a worker: give a part of one"):
        RayCluster(cluster.address, WorkerConfig(str(tmp_path)), gpus=1.5)


def test_a_mixer_named_by_a_relative_path_is_found_on_every_node(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(Path("examples/my_mixer.py").read_text())
    monkeypatch.chdir(tmp_path)
    recipe, store = clean("./mine.py", **SMALL | {"steps": 20}), Store(tmp_path / "runs")
    executor = RayCluster(cluster.address, WorkerConfig(str(store.folder)))
    assert [event.kind for event in sweep([recipe], store, executor=executor)][-1] == "ended"
    assert (store.folder / recipe.key / "source" / "mine.py").exists()


def test_a_store_that_workers_do_not_see_is_refused(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "touch", lambda *_, **__: None)  # as on a node with another file system
    with pytest.raises(ValueError, match="is not the driver's; the store must be on a file system all share"):
        RayCluster(cluster.address, WorkerConfig(str(tmp_path)))
