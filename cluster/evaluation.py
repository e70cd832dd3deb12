"""Actors that cut and evaluate capacities (`prunnet.evaluation`). Weights, scores and images reach them once, through
the object store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray

from cluster.pool import Outcome, Pool
from prunnet.config import ClusterConfig
from prunnet.data.base import RetrievalTest
from prunnet.evaluation import Arrays, Evaluator, FeaturesUnit, Plan, TestUnit


def evaluate(
    plan: Plan,
    weights: dict[float, Arrays],
    calibration: np.ndarray,
    test: RetrievalTest,
    features: Sequence[FeaturesUnit],
    tests: Callable[[set[str]], Sequence[TestUnit]],
    cluster: ClusterConfig,
    report: Callable[[str, int, str | None], None],
) -> list[tuple[float, str]]:
    """Runs both kinds of unit on `cluster.actors` actors.

    Args:
        test: queries and gallery; pixels in memory are shared by all actors of a node, files are opened by each.
        tests: the test units, given the keys of the features that failed.
        report: called with (stage, units done, message or None) after every unit and every retry.

    Returns:
        (capacity, error) of each unit that failed `cluster.attempts` times; the others are finished.
    """
    actor_class = ray.remote(num_cpus=cluster.cpus_per_actor, num_gpus=cluster.gpus_per_actor)(Evaluator)
    stored = (ray.put(weights), ray.put(calibration), ray.put(test))
    pool: Pool[Any] = Pool(lambda: actor_class.remote(plan, *stored), cluster.actors, cluster.attempts)
    try:
        first = _stage("features", pool, features, lambda a, u: a.features.remote(u), report)
        lost = {unit.key for unit, _ in first.failed}
        second = _stage("tests", pool, tests(lost), lambda a, u: a.tests.remote(u), report)
    finally:
        pool.close()
    return [(unit.capacity, error) for unit, error in (*first.failed, *second.failed)]


def _stage(
    name: str,
    pool: Pool[Any],
    units: Sequence[Any],
    call: Callable[[Any, Any], ray.ObjectRef],
    report: Callable[[str, int, str | None], None],
) -> Outcome[Any]:
    return pool.run(
        units,
        call,
        on_done=lambda unit, _: report(name, 1, None),
        on_retry=lambda unit, why: report(name, 0, f"capacity {unit.capacity:g} is tried again: {why}"),
    )
