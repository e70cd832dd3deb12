"""How many trials a cluster holds at once: the arithmetic that keeps nested trainings from waiting for each other.

A trial asks for its training workers all at once or not at all (Ray Train's placement group), and holds nothing while
it waits; its driver takes no CPU. So trials never deadlock, and at least one always runs if one fits beside the
evaluation actors, which keep their CPUs throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray

from prunnet.config.recipe import ClusterConfig
from prunnet.errors import ResourceError

SLOT = "trial_slot"
HEAD = "node:__internal_head__"
_TRACE = 0.001
"""Of a placement resource: it says where a driver lives, and never how many there are."""
Free = dict[str, float]


def driver_resources() -> dict[str, float]:
    """What a trial's driver asks for: no CPU, and a place on a node with the custom resource `trial_slot` (on-demand
    machines that are not taken away), or else on the head node."""
    return {"CPU": 0, SLOT if SLOT in ray.cluster_resources() else HEAD: _TRACE}


def room_for_trials(cluster: ClusterConfig, most: int | None = None) -> int:
    """How many trials run at once beside the evaluation actors, at most `most`.

    Raises ResourceError, with the arithmetic, where not one does.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return trials_that_fit(cluster, nodes, most)


def trials_that_fit(cluster: ClusterConfig, nodes: Sequence[Mapping[str, Any]], most: int | None = None) -> int:
    """As `room_for_trials`, for nodes of given resources."""
    free = [{kind: float(node.get(kind, 0.0)) for kind in ("CPU", "GPU")} for node in nodes]
    actor: Free = {"CPU": cluster.cpus_per_actor, "GPU": cluster.gpus_per_actor}
    worker: Free = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}
    actors = sum(_place(free, actor) for _ in range(cluster.actors))
    left = [dict(node) for node in free]
    trials = 0
    limit = most if most is not None else 10_000
    while actors == cluster.actors and trials < limit and all(_place(left, worker) for _ in range(cluster.workers)):
        trials += 1
    if trials == 0:
        raise ResourceError(_arithmetic(cluster, nodes))
    return trials


def _place(free: Iterable[Free], ask: Free) -> bool:
    """Takes a share from the node with the most CPUs left that has it."""
    for node in sorted(free, key=lambda n: -n["CPU"]):
        if all(node[kind] + 1e-9 >= share for kind, share in ask.items()):
            for kind, share in ask.items():
                node[kind] -= share
            return True
    return False


def _arithmetic(cluster: ClusterConfig, nodes: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for kind, actor, worker in (
        ("CPU", cluster.cpus_per_actor, cluster.cpus_per_worker),
        ("GPU", cluster.gpus_per_actor, cluster.gpus_per_worker),
    ):
        if actor or worker:
            asked = cluster.actors * actor + cluster.workers * worker
            has = " + ".join(f"{node.get(kind, 0.0):g}" for node in nodes)
            lines.append(
                f"{cluster.actors} actors x {actor:g} + {cluster.workers} workers x {worker:g} = {asked:g} {kind}(s) "
                f"for one trial, the nodes have {has}"
            )
    return (
        "no trial fits beside the evaluation actors: " + "; ".join(lines) + "; lower cluster.actors, cluster.workers, "
        "cluster.cpus_per_actor or cluster.cpus_per_worker"
    )
