"""Joining or starting a Ray cluster, and saying at once what it cannot give."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from prunnet.config import ClusterConfig
from prunnet.errors import ResourceError


@contextmanager
def session(config: ClusterConfig) -> Iterator[None]:
    """A Ray cluster for the time of a job: the one of RAY_ADDRESS (as in a submitted job), else a local one.

    Raises ResourceError where the cluster cannot hold the job; see `check_resources`.
    """
    joined = ray.is_initialized()
    if not joined:
        address = os.environ.get("RAY_ADDRESS")
        if address:
            ray.init(address=address, logging_level=logging.WARNING)
        else:
            ray.init("local", logging_level=logging.WARNING, include_dashboard=False, log_to_driver=verbose())
    try:
        check_resources(config)
        yield
    finally:
        if not joined:
            ray.shutdown()


def in_submitted_job() -> bool:
    """Whether this process is a driver that `ray job submit` started."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def verbose() -> bool:
    """PRUNNET_VERBOSE=1 shows what the workers print."""
    return os.environ.get("PRUNNET_VERBOSE", "") not in ("", "0")


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
