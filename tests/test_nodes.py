"""Several Ray nodes on one machine: a node dies or is called back in the middle of the work, another joins, and the
table is the one of an undisturbed run; afterwards nothing is held."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from prunnet import results
from prunnet.networks.files import load_network
from tests import test_jobs, test_search_jobs
from tests.conftest import REPOSITORY, image_folder
from tests.test_jobs import checkpoints, run, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@contextmanager
def nodes(*cpus: int) -> Iterator[Cluster]:
    """A head without logical CPUs, where drivers live, and a node for each number."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_port": test_jobs.free_port()},
    )
    try:
        for count in cpus:
            cluster.add_node(num_cpus=count)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def start(command: list[str], cluster: Cluster) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_over(cluster: Cluster) -> str:
    return test_jobs.asked("{free} of {every} CPUs free, {held} placement groups held", cluster.address, 90)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), classes=12, per_class=10, side=16)


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("undisturbed")
    done = run(test_jobs.command(data, storage))
    assert done.returncode == 0, done.stdout + done.stderr
    return storage


def outcome(storage: Path) -> tuple[str, object]:
    _, header = load_network(storage / "job" / "model.safetensors")
    return header["weights_sha"], results.deterministic(results.read(storage / "job" / "results"))


def test_a_node_dies_in_a_sweep_and_another_joins(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    with nodes(1, 1) as cluster:
        job = start(test_jobs.command(data, tmp_path), cluster)
        wait_until(lambda: checkpoints(tmp_path) >= 2, job)
        cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
        cluster.add_node(num_cpus=1)
        wait_until(lambda: len(list(tmp_path.glob("job/features/[!.]*"))) >= 1, job, seconds=300)
        cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
        cluster.add_node(num_cpus=1)
        output = job.communicate(timeout=600)[0]
        assert job.returncode == 0, output
        assert outcome(tmp_path) == outcome(undisturbed)
        assert left_over(cluster) == "2.0 of 2.0 CPUs free, 0 placement groups held"


DRAIN = """
import sys, time
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
address, node, seconds = sys.argv[1:]
reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
deadline = int(1000 * (time.time() + float(seconds)))
print(GcsClient(address).drain_node(node, reason, "taken back", deadline))
"""


def drain(cluster: Cluster, node: Any, seconds: float) -> None:
    """What a cloud's notice makes of a spot machine: its node is drained, with a deadline."""
    done = run([sys.executable, "-c", DRAIN, cluster.address, node.node_id, str(seconds)])
    assert "True" in done.stdout, done.stdout + done.stderr


def registered(storage: Path) -> list[dict[str, Any]]:
    """What Ray Train's list of checkpoints holds: of each, `step` and the epochs that were over."""
    lists = list(storage.glob("job/training/*/checkpoint_manager_snapshot.json"))
    with contextlib.suppress(json.JSONDecodeError):  # it is being written
        return [found["metrics"] for path in lists for found in json.loads(path.read_text())["checkpoint_results"]]
    return []


def test_a_node_that_is_called_back_is_answered_by_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch, which without it would begin anew on the next node."""
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    images = image_folder(tmp_path / "images", classes=20, per_class=20, side=16)
    settings = ["train.epochs=3", "train.batch_size=4", "cluster.preemption_steps=5"]
    more = [part for setting in settings for part in ("--set", setting)]
    with nodes(1, 1) as cluster:
        job = start(test_jobs.command(images, tmp_path, *more), cluster)
        wait_until(lambda: registered(tmp_path), job)  # so the workers train
        first = registered(tmp_path)[0]
        per_epoch = first["step"] // first["epoch"]
        drain(cluster, cluster.list_all_nodes()[1], 90)
        wait_until(lambda: any(found["step"] % per_epoch for found in registered(tmp_path)), job, seconds=80)
        assert not (tmp_path / "job" / "model.safetensors").exists()
        cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
        cluster.add_node(num_cpus=1)
        output = job.communicate(timeout=600)[0]
        assert job.returncode == 0, output
        assert left_over(cluster) == "2.0 of 2.0 CPUs free, 0 placement groups held"


def test_a_node_dies_in_a_search_and_another_joins(data: Path, tmp_path: Path) -> None:
    # Points that depend on no outcome, and nobody stopped: so that the two searches are the same trials.
    changes = {"sampler": {"name": "random"}, "stop": {"name": "none"}, "trials": 3}
    tables = {}
    for name, disturbed in (("quiet", False), ("disturbed", True)):
        folder = tmp_path / name
        folder.mkdir()
        recipe = test_search_jobs.search_file(folder, data, **changes)
        with nodes(1, 1) as cluster:
            job = start(test_search_jobs.command(recipe), cluster)
            if disturbed:
                trial = lambda: list(folder.glob("search/trials/search-0*/train-*/checkpoint_*"))  # noqa: B023, E731
                wait_until(trial, job, seconds=300)
                cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
                cluster.add_node(num_cpus=1)
            output = job.communicate(timeout=600)[0]
            assert job.returncode == 0, output
            assert left_over(cluster) == "2.0 of 2.0 CPUs free, 0 placement groups held"
        tables[name] = results.deterministic(results.read(folder / "search" / "results"))
    assert tables["quiet"] == tables["disturbed"]
