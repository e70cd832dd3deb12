"""Joining or starting a Ray cluster, and saying at once what it cannot give."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.dashboard.utils import ray_address_to_api_server_url
from ray.util.state import list_actors

from prunnet.config import ClusterConfig
from prunnet.errors import ResourceError

_API_URL = "RAY_API_SERVER_ADDRESS"
_NOWHERE = "http://127.0.0.1:1"
_LOOKS = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
_LOOK_EVERY_SECONDS = "0.5"
"""Ray Train takes a worker's checkpoint at its next look, and the worker waits for that: 2 s, left to itself, which is
longer than an epoch of a small network."""


@contextmanager
def session(config: ClusterConfig, *, state_api: bool = False) -> Iterator[None]:
    """A Ray cluster for the time of a job: the one of RAY_ADDRESS (as in a submitted job), else a local one. Inside
    another session it is that one's.

    Args:
        state_api: whether Ray's dashboard process must run: see `check_state_api`.

    Raises ResourceError where the cluster cannot hold the job; see `check_resources`.
    """
    joined = ray.is_initialized()
    if not joined:
        _start(os.environ.get("RAY_ADDRESS"), state_api)
    try:
        wait_for_resources(config)
        if state_api:
            check_state_api()
        yield
    finally:
        if not joined:
            ray.shutdown()
            os.environ.pop(_API_URL, None)


def _start(address: str | None, state_api: bool) -> None:
    """Joins the cluster at `address`, or starts one.

    Every process is told where *its* cluster's state API is, or that there is none: left to itself, Ray looks for it
    for ten seconds at the end of each training, or takes the newest cluster of the machine for its own. That one
    knows nothing of this training, and its workers would be taken away.
    """
    more: dict[str, Any] = {"log_to_driver": verbose(), "include_dashboard": False}
    api = _NOWHERE
    if address:
        more = {}
        with contextlib.suppress(Exception):  # a cluster without a dashboard: requests', gRPC's and Ray's own
            api = ray_address_to_api_server_url(address)
    elif state_api:
        port = _free_port()
        api = f"http://127.0.0.1:{port}"
        more |= {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    variables = {_API_URL: api, _LOOKS: os.environ.get(_LOOKS, _LOOK_EVERY_SECONDS)}
    os.environ.update(variables)  # the processes that a new cluster starts inherit them
    if address:
        more["runtime_env"] = {"env_vars": variables}
    ray.init(address or "local", logging_level=logging.WARNING, **more)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_submitted_job() -> bool:
    """Whether this process is a driver that `ray job submit` started."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def verbose() -> bool:
    """PRUNNET_VERBOSE=1 shows what the workers print."""
    return os.environ.get("PRUNNET_VERBOSE", "") not in ("", "0")


def check_state_api() -> None:
    """ResourceError where Ray's state API does not answer.

    When the driver of a nested training dies or is stopped, Ray Train's cleaner asks that API whether it is dead, and
    takes the workers' placement group back. The API is part of the dashboard: without it every stopped trial keeps its
    CPUs, and the search waits for ever.
    """
    try:
        list_actors(limit=1, timeout=30)
    except Exception as error:  # requests', gRPC's and Ray's own, by how far it came
        raise ResourceError(
            f"Ray's state API does not answer ({type(error).__name__}), so stopped trials would keep their CPUs; "
            "start the head with --include-dashboard=true"
        ) from None


def wait_for_resources(config: ClusterConfig) -> None:
    """`check_resources`, again and again for `cluster.wait_minutes`; an autoscaler is told what will be needed."""
    deadline = time.monotonic() + 60 * config.wait_minutes
    asked = False
    while True:
        try:
            return check_resources(config)
        except ResourceError:
            if time.monotonic() >= deadline:
                raise
            if not asked:
                request_resources(bundles=_bundles(config))
                asked = True
            time.sleep(min(2.0, max(0.05, deadline - time.monotonic())))


def _bundles(config: ClusterConfig) -> list[dict[str, float]]:
    worker = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    actor = {"CPU": config.cpus_per_actor, "GPU": config.gpus_per_actor}
    every = [worker] * config.workers + [actor] * config.actors
    return [{kind: share for kind, share in bundle.items() if share} for bundle in every]


def check_resources(config: ClusterConfig) -> None:
    """ResourceError, with the arithmetic, where training or evaluation asks for more than the cluster has."""
    total = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asks = {
        "cluster.workers": (config.workers, config.cpus_per_worker, config.gpus_per_worker, "worker"),
        "cluster.actors": (config.actors, config.cpus_per_actor, config.gpus_per_actor, "actor"),
    }
    for key, (count, cpus, gpus, unit) in asks.items():
        for kind, each in (("CPU", cpus), ("GPU", gpus)):
            places = sum(int((node.get(kind, 0.0) + 1e-9) // each) for node in nodes) if each else count
            if places < count:
                raise ResourceError(
                    f"{key}={count} with {each:g} {kind}(s) a {unit} asks for {count * each:g} {kind}(s); the cluster "
                    f"has {total.get(kind, 0.0):g} on {len(nodes)} node(s), room for {places}: lower {key} "
                    f"or cluster.{kind.lower()}s_per_{unit}"
                )
