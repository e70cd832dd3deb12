"""Actors that cut and evaluate capacities (`prunnet.evaluation`). Weights, scores and images reach them once, through
the object store. A sweep starts its own; the trials of a search share theirs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from cluster.pool import Outcome, Pool
from prunnet import process
from prunnet.config.recipe import ClusterConfig
from prunnet.data.base import RetrievalTest
from prunnet.evaluation.evaluator import Arrays, Evaluator, FeaturesUnit, Plan, TestUnit
from prunnet.experiments.run import Failure
from prunnet.storage import hashing
from prunnet.subnetworks.trained import CalibrationImages, MemberId

_KEPT = 2
"""Evaluators that an actor keeps: one holds a network and the features it tested last."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a plan, and where the object store has its weights, calibration images and test."""

    key: str
    plan: Plan
    stored: tuple[ray.ObjectRef, ...]

    @classmethod
    def put(
        cls,
        plan: Plan,
        weights: Mapping[MemberId, Arrays],
        calibration: CalibrationImages | None,
        test: RetrievalTest,
    ) -> Subject:
        """Puts all of it into the object store, once for all actors."""
        key = hashing.of_json([plan.sweep_id, plan.features, plan.results])
        return cls(key, plan, (ray.put(weights), ray.put(calibration), ray.put(test)))


class EvaluationActor:
    """An actor that evaluates units of any subject."""

    def __init__(self, cpus: float) -> None:
        process.prepare(cpus)
        self._evaluators: OrderedDict[str, Evaluator] = OrderedDict()

    def features(self, subject: Subject, unit: FeaturesUnit) -> dict[str, Any]:
        return self._of(subject).features(unit)

    def tests(self, subject: Subject, unit: TestUnit) -> int:
        return self._of(subject).tests(unit)

    def worth(self, subject: Subject, unit: FeaturesUnit, gallery: FeaturesUnit, metric: str) -> float:
        return self._of(subject).worth(unit, gallery, metric)

    def _of(self, subject: Subject) -> Evaluator:
        if subject.key not in self._evaluators:
            while len(self._evaluators) >= _KEPT:
                self._evaluators.popitem(last=False)
            self._evaluators[subject.key] = Evaluator(subject.plan, *ray.get(list(subject.stored)))
        self._evaluators.move_to_end(subject.key)
        return self._evaluators[subject.key]


def start_actor(cluster: ClusterConfig, **options: Any) -> Any:
    """One actor with a recipe's share of CPUs and GPUs."""
    actor_class = ray.remote(num_cpus=cluster.cpus_per_actor, num_gpus=cluster.gpus_per_actor)(EvaluationActor)
    return actor_class.options(**options).remote(cluster.cpus_per_actor)


def shared_actors(cluster: ClusterConfig) -> list[Any]:
    """`cluster.actors` actors for many callers. Ray itself restarts a dead one wherever there is room, and repeats its
    calls; a finished call that is repeated changes nothing."""
    return [start_actor(cluster, max_restarts=-1, max_task_retries=cluster.attempts) for _ in range(cluster.actors)]


def evaluate(
    subject: Subject,
    features: Sequence[FeaturesUnit],
    tests: Callable[[set[str]], Sequence[TestUnit]],
    cluster: ClusterConfig,
    report: Callable[[str, int, str | None], None],
    hosts: Sequence[Any] | None = None,
) -> list[Failure]:
    """Runs both kinds of unit on `cluster.actors` actors.

    Args:
        tests: the test units, given the keys of the features that failed.
        report: called with (stage, units done, message or None) after every unit and every retry.
        hosts: shared actors; None: own ones, which end with the work.

    Returns:
        Each unit that failed `cluster.attempts` times; the others are finished.
    """
    if hosts is None:
        pool: Pool[Any] = Pool(lambda: start_actor(cluster), cluster.actors, cluster.attempts)
    else:
        pool = Pool.of(hosts, cluster.attempts)
    try:
        first = _stage("features", pool, features, lambda a, u: a.features.remote(subject, u), report)
        lost = {unit.key for unit, _ in first.failed}
        second = _stage("tests", pool, tests(lost), lambda a, u: a.tests.remote(subject, u), report)
    finally:
        pool.close()
    return [Failure(unit.capacity, error) for unit, error in (*first.failed, *second.failed)]


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
