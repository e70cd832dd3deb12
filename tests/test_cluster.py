"""What the cluster floor promises, on a local Ray: retries, replaced actors, failures reported, nothing leaked."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup

import cluster.session
from cluster import process_group
from cluster.pool import Pool
from cluster.session import check_resources, session, wait_for_resources
from prunnet.config.recipe import ClusterConfig
from prunnet.errors import ResourceError


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with session(ClusterConfig(workers=1, actors=1)):
        yield


@ray.remote(num_cpus=1)
class Worker:
    """Squares numbers; dies or fails on the first tries of some, leaving a mark of each try."""

    def square(self, number: int, marks: str) -> int:
        mark = Path(marks)
        tries = len(list(mark.glob(f"{number}-*")))
        (mark / f"{number}-{tries}").touch()
        if number == 13:
            raise ValueError("thirteen is refused")
        if number == 7 and tries == 0:
            os._exit(1)
        if number == 5 and tries < 2:
            raise OSError("a passing trouble")
        return number * number


def test_a_session_inside_another_is_that_ones_and_leaves_it_running(local_ray: None) -> None:
    head = ray.get_runtime_context().get_node_id()
    with session(ClusterConfig(workers=1, actors=1)):
        assert ray.get_runtime_context().get_node_id() == head
    assert ray.get_runtime_context().get_node_id() == head


def test_every_unit_is_done_once_whatever_dies(local_ray: None, tmp_path: Path) -> None:
    pool: Pool[int] = Pool(Worker.remote, size=2, attempts=3)
    done, retried = [], []
    outcome = pool.run(
        range(14),
        lambda actor, number: actor.square.remote(number, str(tmp_path)),
        on_done=lambda unit, result: done.append((unit, result)),
        on_retry=lambda unit, why: retried.append(unit),
    )
    pool.close()
    assert sorted(done) == [(n, n * n) for n in range(13)] == sorted(outcome.done)
    assert sorted(retried) == [5, 5, 7, 13, 13]
    assert [(unit, "thirteen is refused" in why) for unit, why in outcome.failed] == [(13, True)]
    assert len(list(tmp_path.glob("13-*"))) == 3
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "CPUs were not given back"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"workers": 500}, "cluster.workers=500 with 1 CPU"),
        ({"actors": 1, "cpus_per_actor": 1000}, "cluster.actors=1 with 1000 CPU"),
        ({"gpus_per_worker": 8}, "8 GPU"),
    ],
)
def test_what_the_cluster_cannot_give_is_said_at_once(local_ray: None, asked: dict[str, float], says: str) -> None:
    with pytest.raises(ResourceError, match=says) as caught:
        check_resources(ClusterConfig(**{"workers": 1, "actors": 1, **asked}))  # type: ignore[arg-type]
    assert "the cluster has" in str(caught.value)


def test_a_cluster_that_grows_is_waited_for_and_asked_once(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ClusterConfig(workers=500, actors=1, wait_minutes=0.5)
    asked: list[object] = []
    looks = iter([False, False, True])

    def look(config: ClusterConfig) -> None:
        if not next(looks):
            check_resources(config)

    monkeypatch.setattr(cluster.session, "check_resources", look)
    monkeypatch.setattr(cluster.session, "request_resources", lambda bundles: asked.append(bundles))
    wait_for_resources(wanted)
    assert asked == [[{"CPU": 1.0}] * 501]


def test_a_cluster_that_does_not_grow_is_not_waited_for_longer_than_asked(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.session, "request_resources", lambda bundles: None)
    began = time.monotonic()
    with pytest.raises(ResourceError, match="room for"):
        wait_for_resources(ClusterConfig(workers=500, actors=1, wait_minutes=0.02))
    assert 1.2 <= time.monotonic() - began < 20


def test_a_group_of_workers_that_does_not_start_gives_its_processors_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15, "done when" 3: a worker that dies while it joins the others left a training that waited for ever."""
    ended: list[str] = []

    class Begun:
        def shutdown(self) -> None:
            ended.append("workers and placement group")

    def start(group: WorkerGroup) -> None:
        group._worker_group_state = Begun()  # type: ignore[assignment]
        raise RuntimeError("a worker died")

    monkeypatch.setattr(WorkerGroup, "_start", start)
    with pytest.raises(RuntimeError, match="a worker died"):
        process_group.Group._start(object.__new__(process_group.Group))
    assert ended == ["workers and placement group"]
    monkeypatch.setattr(TrainController, "worker_group_cls", WorkerGroup)
    process_group._UsesGroup().after_controller_start(None)
    assert TrainController.worker_group_cls is process_group.Group
